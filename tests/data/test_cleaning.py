"""Steps of cleaning, each against a reference of its own: the library, the paper's definition, counting by hand."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutti.config import load_config
from tutti.config.clean import PERSONAL, CleanConfig
from tutti.config.data import DataConfig
from tutti.core import ConfigError, DataError
from tutti.data import prepare
from tutti.data.cleaning.cleaner import Cleaner, shortened, steps_of
from tutti.data.cleaning.filters import Length, share_of_letters
from tutti.data.cleaning.headers import Headers
from tutti.data.cleaning.repetition import repeated
from tutti.data.cleaning.step import Dropped
from tutti.redact import KINDS, Patterns

Configure = Callable[..., DataConfig]
PROSE = (
    "The harbour lay quiet under a low sky. Two boats had come in before dawn, and their crews were mending nets along "
    "the wall, talking in short sentences. A dog slept between the crates. Nobody looked up when the ferry arrived."
)


def changed(step: object, text: str, kind: str = "text") -> str | Dropped:
    return step.apply(text, kind, Counter())  # type: ignore[attr-defined,no-any-return]


def test_unicode_is_mended_as_ftfy_does_it() -> None:
    ftfy = pytest.importorskip("ftfy")
    from tutti.data.cleaning.unicode import Unicode

    step = Unicode()
    assert changed(step, "l’humanitÃ© \x07et cafe\u0301\r\nﬁn") == "l’humanité et café\nfin"
    for untouched in (PROSE, "“Curly” quotes — and ＷＩＤＥ signs，&amp; entities", "漢字かな交じり文。"):
        assert changed(step, untouched) is untouched
    reference = ftfy.TextFixerConfig(unescape_html=False, fix_character_width=False, uncurl_quotes=False)

    @settings(max_examples=300, deadline=None)
    @given(
        st.text(
            alphabet=st.characters(exclude_categories=["Cs"]) | st.sampled_from("Ã©â€™ï¬\u0301e\n \x85\u2028")
        )
    )
    def same(text: str) -> None:
        assert changed(step, text) == ftfy.fix_text(text, reference)

    same()


HEADER = "# Copyright 2020 Example GmbH\n# Licensed under the MIT licence.\n"


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("#!/bin/sh\n" + HEADER + "\n# What it does.\necho 1\n", "#!/bin/sh\n# What it does.\necho 1\n"),
        ("/* Copyright (c) A\n * warranty */\n\n/* The parser. */\nint x;\n", "/* The parser. */\nint x;\n"),
        (
            "// SPDX-License-Identifier: MIT\n// Copyright B\n\n// License: see above\nfn f() {}\n",
            "fn f() {}\n",
        ),
        ("-- All rights reserved\nmain = 1\n", "main = 1\n"),
        ("# The parser.\n" + "x = 1  # Copyright\n", "# The parser.\nx = 1  # Copyright\n"),
        ('x = "Copyright"\n', 'x = "Copyright"\n'),
        (
            "// SPDX-License-Identifier: GPL-2.0\n#include <linux/mm.h>\n#define X 1\n\nint a;\n",
            "#include <linux/mm.h>\n#define X 1\n\nint a;\n",
        ),
        ("// Copyright C\n#[derive(Debug)]\nstruct A;\n", "#[derive(Debug)]\nstruct A;\n"),
        ("!function(){var license=1}();\n", "!function(){var license=1}();\n"),
        ("! Copyright D\n!\nprogram e\n", "program e\n"),
        ("# License: BSD\n# If not, see there.\nx = 1\n", "x = 1\n"),
    ],
)
def test_headers_about_licences_go_and_other_comments_stay(source: str, left: str) -> None:
    assert changed(Headers(), source, "code") == left
    assert changed(Headers(), source, "text") == source


def test_headers_go_however_source_code_is_named(tmp_path: Path, configure: Configure) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    for name in ("a.py", "b.py.gz", "c.md"):
        source = (HEADER + f"x = 1  # {name}\n" * 20).encode()
        (folder / name).write_bytes(gzip.compress(source) if name.endswith(".gz") else source)
    for source, seen in ((folder, 3), (f"{folder}/a*", 1), (folder / "b.py.gz", 1), (f"code:{folder}", 1)):
        prepared = prepare(configure(source, clean={"headers": True}, validation=0.0))
        (step,) = [step for step in prepared.manifest.steps if step.step == "headers"]
        assert (step.seen, step.changed) == (seen, min(seen, 2)), source


def test_length_and_letters_by_counting() -> None:
    step = Length(5, 10)
    assert [isinstance(changed(step, "x" * n), Dropped) for n in (4, 5, 10, 11)] == [True, False, False, True]
    for text in (PROSE, "漢字 +-+ ", "a1 !?", "....", " \n", "नमस्ते दुनिया"):
        visible = [sign for sign in text if not sign.isspace()]
        import unicodedata

        letters = [s for s in visible if s.isalnum() or unicodedata.category(s)[0] == "M"]
        assert share_of_letters(text) == pytest.approx(len(letters) / max(1, len(visible)))


def gopher(text: str) -> bool:
    """Rae et al. 2021, table A1, by loops over Python lists."""
    for separator in ("\n", "\n\n"):
        pieces = [piece.strip() for piece in text.split(separator) if piece.strip()]
        again = [piece for at, piece in enumerate(pieces) if piece in pieces[:at]]
        if len(again) > 0.3 * len(pieces) or sum(map(len, again)) > 0.2 * sum(map(len, pieces)):
            return True
    words = "".join(sign if sign.isalnum() else " " for sign in text.lower()).split()
    total = sum(map(len, words))
    for n, limit in ((2, 0.2), (3, 0.18), (4, 0.16)):
        counts = Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
        most = max(counts.values(), default=0)
        tops = [sum(map(len, gram)) * count for gram, count in counts.items() if count == most > 1]
        if tops and min(tops) > limit * total:
            return True
    for n, limit in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True):
        seen: set[tuple[str, ...]] = set()
        covered: set[int] = set()
        for at in range(len(words) - n + 1):
            gram = tuple(words[at : at + n])
            if gram in seen:
                covered.update(range(at, at + n))
            seen.add(gram)
        if sum(len(words[at]) for at in covered) > limit * total:
            return True
    return False


def test_repetition_by_the_limits_of_the_paper() -> None:
    draw = random.Random(0)
    vocabulary = [f"{letter}{n}" for letter in "abcdefgh" for n in range(40)]
    verdicts = []
    for _ in range(400):
        words = [draw.choice(vocabulary) for _ in range(draw.randint(5, 150))]
        for _ in range(draw.randint(0, 6)):  # a stretch of it comes again
            at, length = draw.randrange(len(words)), draw.randint(2, 14)
            words[at:at] = words[max(0, at - length) : at]
        text = "".join(word + draw.choice([" ", " ", " ", " ", "\n", "\n\n"]) for word in words)
        verdicts.append((repeated(text) is not None, gopher(text)))
    assert 60 < sum(one for one, _ in verdicts) < 340
    # Where several sequences are the most frequent, either may be the one that counts.
    assert sum(one != other for one, other in verdicts) <= 4
    assert repeated(PROSE) is None


def test_languages() -> None:
    pytest.importorskip("py3langid")
    from tutti.data.cleaning.language import Language

    german = "Der Hafen lag still unter einem tiefen Himmel, und niemand sah auf, als die Fähre ankam."
    step = Language(["en", "zh"])
    assert changed(step, PROSE) == PROSE
    assert changed(step, "港口在低沉的天空下静静地躺着。") == "港口在低沉的天空下静静地躺着。"
    assert changed(step, german) == Dropped("de")
    with pytest.raises(DataError, match=r"'xx' is no language(.|\n)* en, "):
        Language(["xx"])


def test_patterns_look_only_where_something_can_be_found() -> None:
    lines = [
        PROSE,
        "write to anna@example.org or call +44 7700 900123, card 4111 1111 1111 1111",
        "IBAN GB29 NWBK 6016 1331 9268 19 fe80::1 ::ffff:a",
        "postgres://user:secret@db AKIAABCDEFGHIJKLMNOP sk-abcdefghijklmnopqrstuvwx",
        "ghp_" + "a" * 40 + " hf_" + "b" * 34 + " xoxb-aaaaaaaaaa-b AIza" + "c" * 35 + " sk_live_" + "d" * 20,
    ]
    finder = Patterns()
    draw = random.Random(1)
    for _ in range(30):
        draw.shuffle(lines)
        text = "\n".join(lines)
        slow = finder._in_line(text)  # as if all of it were one line in which something can be found
        assert sorted(finder.spans(text)) == sorted(slow)
    assert {span.kind for span in finder.spans("\n".join(lines))} >= {"EMAIL_ADDRESS", "API_KEY", "IBAN_CODE"}
    assert KINDS == PERSONAL
    only = Patterns(["EMAIL_ADDRESS"])
    assert {span.kind for span in only.spans("\n".join(lines))} == {"EMAIL_ADDRESS"}


@pytest.mark.parametrize(
    ("text", "sure"),
    [
        ("call 467 3395 now", False),
        ("3910 Fourth, 70248 31 Rue", False),
        ("00 1a 61 62 63 64", False),
        ("555-0123", True),
        ("06 12 34 56 78", True),
        ("+44 7700 900123", True),
        ("98765 43210", True),
        ("127.0.0.1 or 192.168.1.1 or ::1 or e::f", False),
        ("127.000.000.001", False),
        ("8.8.8.8", True),
        ("card 4111 1111 1111 1111, please", True),
        ("5105105105105100.", True),
        ("378282246310005", True),  # of American Express' own examples
        ("x = 2.6457513110645907", False),  # a root
        ("1700000000005 ms", False),  # a moment
        ("id4111111111111111", False),
        ("4111111111111111e5", False),
        ("2100000000000005", False),  # nobody's cards begin so
        ("GB29 NWBK 6016 1331 9268 19", True),
        ("ab5412345678901234", False),
        ("2001:4860:4860::8888", True),
    ],
)
def test_in_text_to_learn_from_only_what_is_sure_is_hidden(text: str, sure: bool) -> None:
    assert bool(Patterns(sure=True).spans(text)) == sure


def test_steps_are_counted_with_examples_that_show_no_personal_data() -> None:
    cleaner = Cleaner(steps_of(CleanConfig(shortest=20, redact=True).settled()))
    texts = [
        "short",
        PROSE,
        "My address is anna@example.org, write to me.",
        "tel +44 7700 900123 anna@example.org",
    ]
    cleaned = [cleaner.clean(text, "text", f"f:{number}") for number, text in enumerate(texts, 1)]
    assert cleaned[0] is None and cleaned[1] == PROSE
    assert cleaned[2] == "My address is [EMAIL_ADDRESS], write to me."
    length, redact = cleaner.reports()
    assert (length.step, length.seen, length.dropped, length.bytes) == ("length", 4, 1, 5)
    assert length.reasons == {"shorter than 20": 1} and length.examples[0].where == "f:1"
    assert (redact.step, redact.seen, redact.changed, redact.dropped) == ("redact", 3, 2, 0)
    assert redact.reasons == {"EMAIL_ADDRESS": 2, "PHONE_NUMBER": 1}
    assert not any("anna" in example.text for example in redact.examples)
    assert shortened("x" * 500).endswith("…") and len(shortened("y " * 500)) <= 100


def test_examples_end_in_no_half_of_personal_data() -> None:
    for data in ("anna.smith@example.com", "4111 1111 1111 1111", "+44 7700 900123"):
        for spaces in range(360, 640):
            for behind in ("", " and so on" * 100):
                shown = shortened(" " * spaces + data + behind)
                assert not shown or shown[0] == "[", (spaces, shown)


def test_a_preset_is_what_it_says(tmp_path: Path) -> None:
    assert CleanConfig().settled() == CleanConfig(
        unicode=False, shortest=0, letters=0.0, repetition=False, near_duplicates=0.0, decontaminate=0
    )
    standard = CleanConfig(preset="standard", shortest=7).settled()
    assert (standard.unicode, standard.shortest, standard.near_duplicates) == (True, 7, 0.8)
    assert standard.redact is False and standard.languages is None
    file = tmp_path / "a.yaml"
    file.write_text("data:\n  clean: standard\n")
    config = load_config(file, ["data.clean.redact=true"])
    assert config.data.clean == CleanConfig(preset="standard", redact=True)
    for wrong in ("data.clean=strong", "data.clean.redact=[EMAIL]", "data.clean.near_duplicates=0.2"):
        with pytest.raises(ConfigError):
            load_config(file, [wrong])
    with pytest.raises(ConfigError, match="for raw text"):
        load_config(file, ["task=classify"])


def test_what_was_cleaned_is_in_the_prepared_text_and_its_report(
    tmp_path: Path, configure: Configure
) -> None:
    path = tmp_path / "a.jsonl"
    texts = [f"{PROSE} Number {n}." for n in range(25)] + ["tiny", "write to bob@example.org " + PROSE[::-1]]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = configure(
        path, clean={"shortest": 10, "redact": ["EMAIL_ADDRESS"]}, split="document", validation=0.1
    )
    prepared = prepare(config)
    steps = {step.step: step for step in prepared.manifest.steps}
    assert list(steps) == ["read", "length", "redact", "duplicates"]
    assert (steps["read"].seen, steps["length"].dropped, steps["redact"].changed) == (27, 1, 1)
    assert sum(split.documents for split in prepared.splits.values()) == 26
    assert prepare(config, say=lambda line: pytest.fail(line)).fingerprint == prepared.fingerprint
    plain = prepare(configure(path, split="document", validation=0.1))
    assert plain.manifest.steps == () and plain.fingerprint != prepared.fingerprint


def test_a_missing_library_names_what_to_install(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    (tmp_path / "a.txt").write_text(PROSE)
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(DataError, match=r"needs ftfy(.|\n)*tutti\[data\]"):
        prepare(configure(tmp_path / "a.txt", clean="standard"))
