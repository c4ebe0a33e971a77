"""Personal data that has a form of its own: found by pattern, and by check digits where there are any.

A text falls into *chunks* that no pattern looks beyond: a word, or words that may belong to one number because a single
space stands between digits (`+44 7700 900 123`) or between groups of four (`GB29 NWBK 6016 …`). Where a chunk ends
depends on the word before the space and on the first letter after it. So in a stream only the last chunk has to be held
back, and what was found in the others stays true whatever comes. Signs of writings without spaces are borders too.

Not found: names and addresses (a model finds these), numbers spread over lines, digits of other writings than ASCII,
data that somebody disguised (`anna at example dot org`).
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Collection, Iterator

from tutti.redact.numbers import has_a_brand, is_iban, passes_luhn
from tutti.redact.spans import Span

_Find = Callable[[str], Iterator[Span]]

#: Writings that put no space between words.
_UNSPACED = (
    "\u1100-\u11ff\u2e80-\u312f\u3130-\u318f\u31a0-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef"
)
_GAP = re.compile(rf"(?P<sign>[{_UNSPACED}])|\s+")
_SPACES = " \t\u00a0\u2009\u202f"
#: A word after which a number may go on, and how it does; the same of an IBAN.
_NUMBER, _MORE_NUMBER = re.compile(r"(?:[0-9)]|^[-–/.()+]+)\Z"), re.compile(r"[0-9(+\-–/.]")
_FOUR, _MORE_FOUR = re.compile(r"(?:^|[^A-Za-z0-9])[A-Za-z0-9]{4}\Z"), re.compile(r"[A-Za-z0-9]")
#: More of a word need not be looked at.
_TAIL = 8


#: A line without any of this holds nothing that a pattern finds.
_WORTH = re.compile(r"[0-9@]|://|::|sk-|A[KS]IA|gh[pousr]_|github_pat_|glpat-|xox|AIza|hf_|[rs]k_|eyJ")


class Patterns:
    """The redactor that is always there. `kinds`: those to find; None: all. `sure`: nothing that may as well be
    something else: for text to learn from, where what is hidden wrongly is lost.

    Lines are looked at one by one (a line end is always a cut), and those in which nothing can be found not at all:
    of most text that is nearly all.
    """

    slow = False

    def __init__(self, kinds: Collection[str] | None = None, *, sure: bool = False) -> None:
        self._finders = [find for kind, find in _FINDERS if kinds is None or kind in kinds]
        self._sure = sure

    def spans(self, text: str) -> list[Span]:
        found: list[Span] = []
        end = 0
        while worth := _WORTH.search(text, end):
            start = text.rfind("\n", end, worth.start()) + 1 or end
            end = text.find("\n", worth.end())
            end = len(text) if end < 0 else end
            found += [span.moved(start) for span in self._in_line(text[start:end])]
        return found

    def _in_line(self, text: str) -> list[Span]:
        found: list[Span] = []
        borders = [0, *self.cuts(text), len(text)]
        for start, end in itertools.pairwise(borders):
            while start < end and (gap := _GAP.match(text, start, end)):
                start = gap.end()
            chunk = text[start:end]
            for find in self._finders if chunk else ():
                found += [
                    span.moved(start) for span in find(chunk) if not self._sure or _is_sure(span, chunk)
                ]
        return sorted(found)

    def cuts(self, text: str) -> list[int]:
        found, word = [], 0
        for gap in _GAP.finditer(text):
            start, end = gap.span()
            before, word = text[max(word, start - _TAIL) : start], end
            if gap["sign"]:
                found += [start, end]
            elif gap[0][0] not in _SPACES or not _may_join(before, gap[0], text[end : end + 1]):
                found.append(start)
        return sorted(set(found))


def _may_join(before: str, gap: str, after: str) -> bool:
    """Whether what stands before `gap` and what comes after it may be one number; `after` is empty where nothing has
    come yet."""
    return len(gap) == 1 and any(
        word.search(before) and (not after or more.match(after))
        for word, more in ((_NUMBER, _MORE_NUMBER), (_FOUR, _MORE_FOUR))
    )


def _each(
    kind: str, pattern: str, check: Callable[[re.Match[str]], bool] = bool, needs: str = ""
) -> tuple[str, _Find]:
    compiled = re.compile(pattern)

    def find(chunk: str) -> Iterator[Span]:
        if needs in chunk:
            for match in compiled.finditer(chunk):
                if check(match):
                    yield Span(*match.span(), kind)

    return kind, find


def _is_ipv6(match: re.Match[str]) -> bool:
    try:
        ipaddress.IPv6Address(match[0])
    except ValueError:
        return False
    return any(letter not in ":" for letter in match[0])


_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?= ?[A-Za-z0-9])")
_IBAN = re.compile(r"[A-Za-z0-9]{4}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?(?![A-Za-z0-9])")


def _ibans(chunk: str) -> Iterator[Span]:
    for start in _IBAN_START.finditer(chunk):
        match = _IBAN.match(chunk, start.start())
        words = match[0].split(" ") if match else []
        while words:  # what follows it may look like a part of it
            text = " ".join(words)
            if is_iban(text):
                yield Span(start.start(), start.start() + len(text), "IBAN_CODE")
                break
            words.pop()


_DIGITS = re.compile(r"[0-9]+(?:[ \u00a0-][0-9]+)*")
_GROUP = re.compile(r"[0-9]+")
_CARD_DIGITS, _CARD_GROUPS = range(12, 20), 5


def _cards(chunk: str) -> Iterator[Span]:
    """Up to five groups of digits that make 12 to 19 together and pass Luhn's check; from each the longest."""
    for run in _DIGITS.finditer(chunk):
        groups = [match.span() for match in _GROUP.finditer(chunk, *run.span())]
        for first, (start, _) in enumerate(groups):
            digits, ends = "", list[int]()
            for begin, end in groups[first : first + _CARD_GROUPS]:
                digits += chunk[begin:end]
                if len(digits) > _CARD_DIGITS[-1]:
                    break
                if len(digits) in _CARD_DIGITS and digits[0] in "123456" and passes_luhn(digits):
                    ends.append(end)
            if ends:
                yield Span(start, ends[-1], "CREDIT_CARD")


_PHONE = re.compile(
    r"(?<![\w.+/-])(?:\+|\(\+?(?=[0-9]{1,5}\)))?[0-9](?:[ \u00a0.\-–/()]{0,3}[0-9]){5,18}(?![\w]|[.,][0-9])",
    re.ASCII,
)
#: What looks like a telephone number and is a date, a round number, or has a name of its own.
_NO_PHONE = re.compile(
    r"(?:[0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.](?:[0-9]{2}|[0-9]{4}))(?: .*)?"
    r"|[0-9]{1,3}(?:[ \u00a0][0-9]{3})*(?:[ \u00a0]000)+|[0-9]{3}([- ])[0-9]{2}\1[0-9]{4}"
)
_YEAR = re.compile(r"(?:19|20)[0-9]{2}")


def _phones(chunk: str) -> Iterator[Span]:
    """`+` and 7 to 15 digits (ITU-T E.164); as many in groups of which none is long; 10 or 11 that begin with 0."""
    for match in _PHONE.finditer(chunk):
        text = match[0]
        groups = _GROUP.findall(text)
        digits = sum(map(len, groups))
        if not 7 <= digits <= 15 or _NO_PHONE.fullmatch(text) or all(map(_YEAR.fullmatch, groups)):
            continue
        grouped = len(groups) > 1 and max(map(len, groups)) <= 8 and sum(len(one) == 1 for one in groups) <= 1
        decimal = "." in text and len(groups) == 2 and " " not in text
        if text.startswith("+") or (grouped and not decimal) or (digits in (10, 11) and text[0] == "0"):
            yield Span(*match.span(), "PHONE_NUMBER")


#: What makes digits a part of something longer.
_BEFORE, _AFTER = re.compile(r"(?:\w|[0-9][.,])\Z"), re.compile(r"\w|[.,][0-9]")


def _is_sure(span: Span, chunk: str) -> bool:
    """Whether what stands at `span` of `chunk` is hardly anything else than it looks like.

    No card: a part of a longer number or name, decimals, digits that no network of cards begins with. No telephone
    number: two short groups other than `555-0123` (numbers of a house and a flat, a post code), pairs of digits that do
    not begin as French numbers do (bytes). No address of a person: IP addresses that are not public, or of two groups
    (`std::vec` has many kin).
    """
    kind, text = span.kind, chunk[span.start : span.end]
    if kind == "CREDIT_CARD":
        alone = _BEFORE.search(chunk, 0, span.start) is None and _AFTER.match(chunk, span.end) is None
        return alone and has_a_brand("".join(_GROUP.findall(text)))
    if kind == "PHONE_NUMBER":
        groups = _GROUP.findall(text)
        lengths = [len(one) for one in groups]
        if "." in text and len(groups) == 4 and max(lengths) <= 3:  # looks like an IP address
            return False
        if set(lengths) == {2}:
            return len(groups) == 5 and text[0] == "0" != text[1]
        pair = len(groups) == 2 and text[0] in "123456789" and sum(lengths) < 10
        return not pair or ("-" in text and lengths == [3, 4])
    if kind == "IP_ADDRESS":
        try:
            public = ipaddress.ip_address(text).is_global
        except ValueError:  # 127.000.000.001
            return False
        return public and ("." in text or len([one for one in text.split(":") if one]) > 2)
    return True


_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_SECRETS = (
    r"sk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic, this service
    r"(?:AKIA|ASIA)[0-9A-Z]{16}",  # AWS
    r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_-]{20,}",
    r"xox[abeprs]-[A-Za-z0-9-]{10,}",  # Slack
    r"AIza[0-9A-Za-z_-]{35}",  # Google
    r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"[rs]k_(?:live|test)_[0-9a-zA-Z]{16,}",  # Stripe
    r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",  # JSON Web Tokens
)
_FINDERS: tuple[tuple[str, _Find], ...] = (
    _each(
        "URL_WITH_PASSWORD",
        r"[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/:@]{0,256}:[^\s/@]{1,256}@(?:\S*[^\s.,;:!?\"')\]])?",
        needs="://",
    ),
    _each(
        "EMAIL_ADDRESS",
        rf"[\w.!#$%&'*+/=?^`{{|}}~-]{{1,64}}@(?:{_LABEL}\.){{1,8}}[^\W\d_][\w-]{{1,62}}",
        needs="@",
    ),
    _each("API_KEY", rf"(?<![A-Za-z0-9])(?:{'|'.join(_SECRETS)})"),
    _each("IP_ADDRESS", rf"(?<![\w.])(?:{_BYTE}\.){{3}}{_BYTE}(?!\w|\.[0-9])", needs="."),
    _each("IP_ADDRESS", r"(?<![\w:.])[0-9A-Fa-f:]{2,39}(?![\w:])", _is_ipv6, needs="::"),
    _each("IP_ADDRESS", r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}(?![\w:])", needs=":"),
    _each(
        "US_SSN",
        r"(?<![\w-])(?!000|666|9[0-9][0-9])[0-9]{3}([- ])(?!00)[0-9]{2}\1(?!0000)[0-9]{4}(?![\w]|-[0-9])",
    ),
    ("IBAN_CODE", _ibans),
    ("CREDIT_CARD", _cards),
    ("PHONE_NUMBER", _phones),
)
#: What patterns can find.
KINDS = tuple(sorted({kind for kind, _ in _FINDERS}))
