"""Translation and summarisation: a model that is given one text writes another, and the field's metrics of that.

Metrics are between 0 and 100, as they are usually printed: BLEU and chrF by sacreBLEU, ROUGE by Google's `rouge-score`,
each of a whole part. Where references are Chinese, Japanese or Korean there are no spaces between words to go by: BLEU
and ROUGE count signs there, and words of any alphabet elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from tutti.tasks.talk import Message
from tutti.tasks.task import Example, Record, RowEncoder
from tutti.tasks.writing import Writing

#: Kana, Chinese characters, Hangul.
_SIGNS = "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]"
_WORDS = re.compile(rf"{_SIGNS}|(?:(?!{_SIGNS})\S)+")
_ROUGE = ("rouge1", "rouge2", "rougeL")


class Rewrite(Writing):
    """Examples `{given, wanted}`."""

    #: Nothing but the two texts, each with its end: the task is in the weights, not in words.
    template = "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
    long = "of what is given the end is cut off"
    #: What the two fields are called.
    names: ClassVar[tuple[str, str]]

    def example(self, record: Record, *, labelled: bool = True) -> Example:
        given, wanted = self.names
        example = {"given": self.text_field(record, given)}
        if labelled or self.has(record, wanted):
            example["wanted"] = self.text_field(record, wanted)
        return example

    def texts(self, example: Example) -> list[str]:
        return list(example.values())

    def talk(self, example: Example) -> list[Message]:
        said = [{"role": "assistant", "content": example["wanted"]}] if "wanted" in example else []
        return [*self.given(example), *said]

    def given(self, example: Example) -> list[Message]:
        return [{"role": "user", "content": example["given"]}]

    def fit(self, example: Example, encoder: RowEncoder, over: int) -> Example:
        tokens = encoder.tokenizer.encode(example["given"], add_special_tokens=False)
        kept = max(1, len(tokens.ids) - over)
        if kept >= len(tokens.ids):
            return example
        return example | {"given": example["given"][: tokens.offsets[kept - 1][1]]}

    def score(self, written: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        return self.compare([text.strip() for text in written], [example["wanted"] for example in examples])

    @abstractmethod
    def compare(self, written: list[str], wanted: list[str]) -> dict[str, float]:
        """Metrics of what was `written` against what was `wanted`."""


class Translate(Rewrite):
    """`source` in one language, `target` in another."""

    kind = "translate"
    asked = "source"
    names = ("source", "target")

    def compare(self, written: list[str], wanted: list[str]) -> dict[str, float]:
        import sacrebleu  # not needed until a model translates

        by = "char" if in_signs(wanted) else "13a"
        return {
            # force: texts whose signs stand apart are what the user's files hold.
            "bleu": float(sacrebleu.corpus_bleu(written, [wanted], tokenize=by, force=True).score),
            "chrf": float(sacrebleu.corpus_chrf(written, [wanted]).score),
        }


class Summarise(Rewrite):
    """A `text`, and its `summary`."""

    kind = "summarise"
    names = ("text", "summary")

    def compare(self, written: list[str], wanted: list[str]) -> dict[str, float]:
        from rouge_score.rouge_scorer import RougeScorer  # not needed until a model summarises

        scorer: Any = RougeScorer(_ROUGE, tokenizer=Words())  # type: ignore[no-untyped-call]
        found = [scorer.score(reference, text) for reference, text in zip(wanted, written, strict=True)]
        return {name: 100 * sum(one[name].fmeasure for one in found) / len(found) for name in _ROUGE}


class Words:
    """What ROUGE counts. Of texts in ASCII, what its own tokenizer does, which knows no other letters."""

    def tokenize(self, text: str) -> list[str]:
        """Signs, and words of other scripts in lower case, with the vowels and accents that are characters of their
        own."""
        return _WORDS.findall("".join(one if _of_a_word(one) else " " for one in text.lower()))


def _of_a_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def in_signs(texts: Sequence[str]) -> bool:
    """Whether a third or more of the letters of `texts` are signs of Chinese, Japanese or Korean."""
    letters = sum(sum(map(str.isalpha, text)) for text in texts)
    return 3 * sum(len(re.findall(_SIGNS, text)) for text in texts) >= max(1, letters)
