"""Personal data: what is found, with check digits from elsewhere; and that a stream hides what the whole text hides."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutti.redact.numbers import is_iban, passes_luhn
from tutti.serve.guard import segments
from tutti.serve.guard.redact import Patterns, Redactor, Span, Together, mask
from tutti.serve.guard.texts import Flow, Way

PATTERNS = Patterns()

#: Card numbers are those that payment providers publish for tests, IBANs those of the registry of ISO 13616.
FOUND = {
    "EMAIL_ADDRESS": ["anna@example.org", "b.c+d@sub.müller.de", "x_y@a-b.co.uk", "O'Neil@example.com"],
    "PHONE_NUMBER": ["+44 7700 900 123", "(212) 555-0123", "212-555-0123", "+4930123456", "030 1234567", "07700900123",
                     "+46 (0)8 928 571 38", "60-56-85-91", "001 650 253 0000"],
    "CREDIT_CARD": ["4242424242424242", "4242 4242 4242 4242", "3782-822463-10005", "6011111111111117",
                    "30569309025904"],
    "IBAN_CODE": ["GB29 NWBK 6016 1331 9268 19", "DE89370400440532013000", "NL91 ABNA 0417 1643 00",
                  "NO93 8601 1117 947",
                  "MT84 MALT 0110 0001 2345 MTLC AST0 01S", "fr1420041010050500013m02606"],
    "IP_ADDRESS": ["192.168.0.1", "8.8.8.8", "2001:db8::8a2e:370:7334", "::1", "fe80:0:0:0:202:b3ff:fe1e:8329"],
    "US_SSN": ["078-05-1120", "219 09 9999"],
    "URL_WITH_PASSWORD": ["https://anna:secret@example.org/x?y=1", "postgres://u:p@db/t"],
    "API_KEY": ["sk-tutti-abcdefghijklmnopqrstuvwx", "AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9, "xoxb-1234567890-abc",
                "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n"],
}  # fmt: skip
NOT_FOUND = [
    "2024-01-01 12:30", "12.05.2023", "12:30:45", "1 000 000 people", "3.1415926535", "v1.2.3.4.5", "std::vector",
    "a@b", "4242424242424241", "GB29NWBK60161331926818", "300.1.1.1", "000-12-3456", "https://example.org:8080/x",
    "2019-2020", "1999 2000 2001", "f(x) = 12 + 34", "version 10.15.7 of 2021", "sk-learn", "ISBN 42",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, some in FOUND.items() for value in some])
@pytest.mark.parametrize(
    "frame", ["{}", "it is {}.", "({})", "a {}, b", '"{}"', "x\n{}\ny", "联系{}吧", "to {} this week"]
)
def test_what_has_a_form_is_found(kind: str, value: str, frame: str) -> None:
    found: Counter[str] = Counter()
    assert mask(frame.format(value), PATTERNS, found) == frame.format(f"[{kind}]")
    assert found == {kind: 1}


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert mask(f"so {text} is", PATTERNS, Counter()) == f"so {text} is"


def test_check_digits() -> None:
    """Luhn: one wrong digit, and nearly any two neighbours exchanged, is noticed. IBAN: by the registry's examples."""
    card = "4242424242424242"
    assert passes_luhn(card)
    for place in range(len(card)):
        for digit in set("0123456789") - {card[place]}:
            assert not passes_luhn(card[:place] + digit + card[place + 1 :])
    assert is_iban("GB29NWBK60161331926819") and not is_iban("GB29NWBK60161331926891")


def split(redactor: Redactor, parts: list[str]) -> str:
    flow = Flow(Way(redactor), Counter())
    return "".join([*map(flow.push, parts), flow.end()])


class Lines:
    """A redactor as models are: it judges a sentence by all of it."""

    slow = False

    def spans(self, text: str) -> list[Span]:
        return [
            Span(start, start + len(part.rstrip()), "SECRET")
            for start, part in segments.segments(text)
            if "secret" in part and part.strip()
        ]

    def cuts(self, text: str) -> list[int]:
        return segments.cuts(text)


REDACTORS = [PATTERNS, Lines(), Together([PATTERNS, Lines()])]
ALL = (
    " and then ".join(value for some in FOUND.values() for value in some)
    + ". So is a secret! More? 1 2 3\n\n42"
)


@pytest.mark.parametrize("redactor", REDACTORS, ids=["patterns", "sentences", "together"])
def test_wherever_a_stream_is_split_it_hides_the_same(redactor: Redactor) -> None:
    expected = mask(ALL, redactor, Counter())
    assert split(redactor, list(ALL)) == expected
    for place in range(0, len(ALL) + 1, 1 if redactor is PATTERNS else 7):
        assert split(redactor, [ALL[:place], ALL[place:]]) == expected, (ALL[:place][-20:], ALL[place:][:20])


_VALUES = st.sampled_from([value for some in FOUND.values() for value in some] + NOT_FOUND)
_BITS = st.text(alphabet="aB1 9-.@:/+()\n\t\u00a0é語。!?\"'[]|", max_size=8)
_TEXT = st.lists(
    st.one_of(_VALUES, _BITS, st.sampled_from(["secret", " ", ". A", "GB29", "+49"])), max_size=12
)


@given(parts=_TEXT, cuts=st.lists(st.integers(0, 300), max_size=12), which=st.integers(0, 2))
@settings(max_examples=400, deadline=None)
def test_any_text_in_any_pieces(parts: list[str], cuts: list[int], which: int) -> None:
    """The contract of `cuts`, and so of streams."""
    text, redactor = "".join(parts), REDACTORS[which]
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(borders)]
    assert split(redactor, pieces) == mask(text, redactor, Counter())
    for place in borders:
        before, after = text[:place], text[place:]
        for cut in redactor.cuts(before):
            apart = redactor.spans(before[:cut]) + [
                one.moved(cut) for one in redactor.spans(before[cut:] + after)
            ]
            assert sorted(apart) == redactor.spans(text)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It is so. Or not? Yes!  No", ["It is so.", " Or not?", " Yes!", "  No"]),
        ("Ask Magda K. Björklund, P.O. Box 12. Then go.", ["Ask Magda K. Björklund, P.O. Box 12. Then go."]),
        ("See Mr. Holm at 4 Main Str. Oslo", ["See Mr. Holm at 4 Main Str. Oslo"]),
        (
            "It was in 1903. He left (at last.) She too",
            ["It was in 1903.", " He left (at last.)", " She too"],
        ),
        ("a" * 601 + "K. Be", ["a" * 600, "aK.", " Be"]),
        ("a" * 600 + "K. Be", ["a" * 600, "K.", " Be"]),
        ("是的。不\n\nyes", ["是的。", "不", "\n\nyes"]),
    ],
)
def test_a_name_or_an_address_is_not_cut_in_two(text: str, sentences: list[str]) -> None:
    assert [part for _, part in segments.segments(text)] == sentences


def test_no_more_is_held_back_than_a_word_or_a_number() -> None:
    flow = Flow(Way(PATTERNS), Counter())
    assert flow.push("Well, hello wor") == "Well, hello"
    assert flow.push("ld it is ") == " world it is"
    assert flow.push("call +44 7700 ") == " call"
    assert flow.push("900 ") == ""
    assert flow.push("123 now ") == " [PHONE_NUMBER] now"
    assert flow.push("日本語の文") == " 日本語の文"
    assert flow.end() == ""
    both = Flow(Way(Together([PATTERNS, Lines()])), Counter())
    assert both.push("It is so. Or is it not, said anna") == "It is so."
    assert both.push("@b.org?\n\nYes. 是的。不") == " Or is it not, said [EMAIL_ADDRESS]?\n\nYes. 是的。"
    assert sum(len(both.push("words ")) for _ in range(1000)) > 5300


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "1 " * 50_000, "aa11 " * 20_000, "@" * 100_000, "1." * 50_000, "(" * 100_000]
)
def test_no_text_takes_for_ever(text: str) -> None:
    """A pattern that looks back again and again would need minutes here: the time-out of the test says so."""
    PATTERNS.spans(text)


@pytest.mark.parametrize("space", ["\n" * 100_000, "\n " * 50_000, " " * 100_000, "\n\t\r" * 30_000])
def test_no_space_takes_for_ever(space: str) -> None:
    text = f"Hi.{space}"
    assert "".join(part for _, part in segments.segments(text)) == text


@given(st.lists(st.sampled_from([" ", "\n", "\t", "a", "B", ".", "。", '"']), max_size=14))
@settings(max_examples=500, deadline=None)
def test_paragraphs_end_where_two_lines_do(letters: list[str]) -> None:
    """As a pattern has it that tries every part of a space."""
    text = "".join(letters)
    ends = {match.start() for match in re.finditer(r"\s*?\n\s*?\n\s*(?=\S)", text)} - {0}
    assert ends <= set(segments.cuts(text))
    plain = text.replace(".", "").replace("。", "")
    ends = {match.start() for match in re.finditer(r"\s*?\n\s*?\n\s*(?=\S)", plain)} - {0}
    assert ends == set(segments.cuts(plain))
