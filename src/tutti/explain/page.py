"""Explanations as a page: the text, each word shaded by what it is worth, and the same in a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tutti.explain.explain import Explanation

_STYLE = """
:root { color-scheme: light; font: 16px/1.7 system-ui, sans-serif; color: #1b1b1b; background: #fff }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2.5rem }
p.text { font-size: 1.1rem }
mark { color: inherit; border-radius: .2em; padding: .1em .15em }
mark.for { border-bottom: 3px solid #1f6fb2 } mark.against { border-bottom: 3px dashed #b3541e }
table { border-collapse: collapse; font-size: .9rem } th, td { padding: .1rem .8rem .1rem 0; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
"""
#: Words that are worth less than this share of the most are not shaded.
_FAINT = 0.05


def write_explanations(title: str, explained: Iterable[Sequence[Explanation]]) -> str:
    """The page, in HTML, with nothing that is fetched from elsewhere; `explained`: of each text its explanations."""
    body = [
        f"<h1>{escape(title)}</h1>",
        '<p>Words on blue, underlined, speak <mark class="for">for</mark> what the model says; on orange, with '
        'dashes, <mark class="against">against</mark> it. Numbers are log-odds: 1 more makes the odds 2.7 times as '
        "high.</p>",
    ]
    for explanations in explained:
        body += [_one(explanation) for explanation in explanations] or [
            "<p>Nothing was found in this text.</p>"
        ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _one(explanation: Explanation) -> str:
    what = escape(explanation.label)
    if explanation.entity is not None:
        what = f"“{escape(explanation.entity['text'])}” is {what}"
    texts = [_shaded(explanation, part) for part in explanation.reading.parts]
    order = sorted(
        zip(explanation.reading.words, explanation.weights, strict=True), key=lambda one: -abs(one[1])
    )
    lines = "".join(
        f'<tr><td>{escape(word.text)}</td><td class="number">{weight:+.2f}</td></tr>'
        for word, weight in order
    )
    return (
        f"<section><h2>{what} <small>({explanation.chance:.1%})</small></h2>\n"
        + "\n".join(texts)
        + "\n<details><summary>Every word, by what it is worth</summary>\n<table>"
        f'<thead><tr><th scope="col">word</th><th scope="col">worth</th></tr></thead><tbody>{lines}</tbody></table>'
        f"<p>The text: {explanation.log_odds:+.2f}; with every word hidden: {explanation.without:+.2f}; by "
        f"{explanation.method}.</p></details></section>"
    )


def _shaded(explanation: Explanation, part: str) -> str:
    text = explanation.reading.parts[part]
    most = max((abs(weight) for weight in explanation.weights), default=0.0)
    shown, reached = list[str](), 0
    for word, weight in zip(explanation.reading.words, explanation.weights, strict=True):
        if word.part != part or word.start < reached:
            continue
        shown += [escape(text[reached : word.start]), _word(word.text, weight, most)]
        reached = word.end
    return f'<p class="text">{"".join(shown)}{escape(text[reached:])}</p>'


def _word(text: str, weight: float, most: float) -> str:
    share = abs(weight) / most if most else 0.0
    if share < _FAINT:
        return escape(text)
    side, colour = ("for", "63 142 211") if weight > 0 else ("against", "236 140 80")
    return (
        f'<mark class="{side}" style="background: rgb({colour} / {0.55 * share:.2f})" '
        f'title="{weight:+.2f}">{escape(text)}</mark>'
    )
