"""What may be shown of an address."""

from __future__ import annotations

import pytest

from tutti.core.address import without_secrets


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("https://anna:geheim@data.example.org/texts.jsonl", "https://data.example.org/texts.jsonl"),
        ("s3://KEY:SECRET@bucket/a@b/*.parquet", "s3://bucket/a@b/*.parquet"),
        (
            "simplecache::https://token@host/a.gz?X-Amz-Signature=abc&b=1#x",
            "simplecache::https://host/a.gz?…#x",
        ),
        ("https://host/?key=1 and https://a:b@c?d", "https://host/?… and https://c?…"),
        ("see https://host/path@version?", "see https://host/path@version?"),
        ("folder/anna@work.txt", "folder/anna@work.txt"),
        ("what is ?x", "what is ?x"),
    ],
)
def test_of_a_url_only_what_may_be_shown_is_left(said: str, shown: str) -> None:
    assert without_secrets(said) == shown
