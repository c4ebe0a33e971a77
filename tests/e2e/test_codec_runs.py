"""Whole runs with codecs: fewer bytes, nearly the same loss; debts go through checkpoints; bad pairs are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Here, events_of, losses_of, refused, write_config

RUN = Path("runs") / "r"


@pytest.mark.slow
def test_a_coded_run_sends_less_and_goes_on_from_what_it_owed(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path)
    # Even shares: the two runs are compared to the bit.
    codec = (
        "sync.codec=int4",
        "sync.shares=even",
        "checkpoint.every=20",
        "train.schedule=constant",
        "train.warmup=1",
    )
    plain = tutti_here("train", "c.yaml", "train.steps=40", *codec, "sync.codec=fp32", "name=plain", "--json")
    whole = tutti_here("train", "c.yaml", "train.steps=40", *codec, "name=whole", "--json")
    assert whole.json["bytes_sent"] < 0.15 * plain.json["bytes_sent"]
    assert whole.json["validation_loss"] == pytest.approx(plain.json["validation_loss"], rel=0.05)
    assert tutti_here("train", "c.yaml", "train.steps=20", *codec, "--json").code == 0
    again = tutti_here("train", "c.yaml", "train.steps=40", *codec, "--resume", "--json")
    assert again.code == 0, again.said
    said = [event["message"] for event in events_of(RUN, "warning")]
    assert said == [
        "what codec int4 lost and still owed is that of replica 0; what 1 others owed was not saved"
    ]
    ours, theirs = losses_of(RUN), losses_of(Path("runs/whole"))
    assert ours[20] == theirs[20]
    assert ours[40] == pytest.approx(theirs[40], rel=0.01)  # a replica forgot a small debt
    other = tutti_here("train", "c.yaml", "train.steps=42", "sync.codec=bf16", "--resume", "--json")
    assert other.code == 0, other.said
    assert "this run sends by bf16" in events_of(RUN, "warning")[-1]["message"]


def test_what_cannot_be_together_is_refused(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path)
    refused(tutti_here("train", "c.yaml", "sync.then=zstd"), "cannot compress codec fp32")
    refused(tutti_here("train", "c.yaml", "sync.codec=int3"), "sync.codec", "int4")
    assert not RUN.exists()
