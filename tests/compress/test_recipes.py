"""What users write: recipes and targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutti.compress.asked import AskedSubject
from tutti.compress.quantize import Scheme
from tutti.compress.recipes import SCHEMES, Recipe, ladder
from tutti.compress.table import Line, Metric, as_markdown
from tutti.compress.target import Target
from tutti.compress.timing import Timing
from tutti.compress.writer import WriterSubject
from tutti.core import ConfigError, write_json_atomically


def test_a_recipe_says_all_that_is_done() -> None:
    recipe = Recipe.of("layers:4+heads:0.75+channels:0.5+wanda:0.3+int4-gptq")
    assert (recipe.layers, recipe.heads, recipe.channels) == (4, 0.75, 0.5)
    assert (recipe.criterion, recipe.zeros) == ("wanda", 0.3)
    assert recipe.scheme == Scheme(4, method="gptq", tables=4)
    assert recipe.smaller
    assert not recipe.onnx
    onnx = Recipe.of("int8+onnx")
    assert (onnx.onnx, onnx.scheme, onnx.smaller) == (True, Scheme(), False)
    assert Recipe.of("fp32") == Recipe("fp32")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int9", "'int9' is not known"),
        ("layers:0", "'0' is no number of layers"),
        ("layers:all", "'all' is no number of layers"),
        ("channels:1.5", r"'1\.5' is no share"),
        ("wanda", "'' is no share"),
        ("int8+int4", "a way to write weights twice"),
        ("wanda:0.5+magnitude:0.5", "zeros twice"),
        ("onnx+int4", "onnxruntime computes fp32, int8 and int8-mixed"),
        ("", "'' is not known"),
    ],
)
def test_what_is_no_recipe_is_said(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Recipe.of(text)


@pytest.mark.parametrize("layers", [1, 2, 6, 12])
def test_what_is_tried_can_be_done(layers: int) -> None:
    usual = [*AskedSubject.usual, *WriterSubject.usual]
    for text in [*usual, *ladder(layers, "onnx+int8"), *ladder(layers, "int8"), *SCHEMES]:
        recipe = Recipe.of(text)
        assert recipe.layers is None or 0 < recipe.layers < layers
    assert [Recipe.of(text).layers for text in ladder(6, "int8")] == [5, 4, 3, 3]


def test_a_target_says_what_is_missed() -> None:
    target = Target.of("4x smaller, 3x faster, <1% worse")
    assert target == Target(4, 3, 0.01)
    assert target.missed(4.0, 3.0, 0.01) == []
    assert target.missed(3.9, 2.5, 0.02) == [
        "3.90x smaller, not 4x",
        "2.50x faster (batch 1), not 3x",
        "2.00% worse, not at most 1.00%",
    ]
    assert str(target) == "4x smaller, 3x faster (batch 1), at most 1.00% worse"
    assert Target.of("2.5x smaller") == Target(smaller=2.5)
    assert str(Target.of("<0.5% worse")) == "at most 0.50% worse"
    with pytest.raises(ConfigError, match="'much smaller' is not understood"):
        Target.of("much smaller")


def test_exactly_what_may_be_lost_is_not_too_much() -> None:
    """Numbers of which computers make a little more than one per cent."""
    target, rising, falling = (
        Target.of("<1% worse"),
        Metric("accuracy"),
        Metric("perplexity", larger_is_better=False),
    )
    for quality, before in ((0.99, 1.0), (0.891, 0.9)):
        assert target.missed(1.0, 1.0, rising.worse({"accuracy": quality}, {"accuracy": before})) == []
    assert target.missed(1.0, 1.0, falling.worse({"perplexity": 10.1}, {"perplexity": 10.0})) == []
    more = rising.worse({"accuracy": 0.98999}, {"accuracy": 1.0})
    assert target.missed(1.0, 1.0, more) == ["1.00% worse, not at most 1.00%"]


def test_what_is_no_number_meets_no_target_and_stands_in_the_table(tmp_path: Path) -> None:
    metric, timing = Metric("perplexity", larger_is_better=False), Timing(1.0, 1.0, 1)
    before = Line("fp32", {"perplexity": 10.0}, 100, timing)
    broken = Line("int4", {"perplexity": float("nan")}, 10, timing)
    for line, other in ((broken, before), (before, broken)):
        assert Target.of("<1% worse").missed(*line.against(other, metric)) == [
            "nan% worse, not at most 1.00%"
        ]
    words = WriterSubject.words
    lines = [line.as_json(before, metric, words) for line in (before, broken)]
    report = {"run": "r", "metric": "perplexity", "target": "t", "kept": None, "judged": "j", "lines": lines}
    report |= {"rounded": {"heads:0.6": "0.5 of the heads stay"}, "left_out": {"onnx": "no onnx"}}
    write_json_atomically(tmp_path / "compression.json", report)
    read = json.loads((tmp_path / "compression.json").read_text())
    assert (read["lines"][1]["quality"], read["lines"][1]["worse"]) == ({"perplexity": None}, None)
    assert "| int4 | – | – |" in as_markdown(read, words)
    said = "\n\nRounded:\n\n- heads:0.6: 0.5 of the heads stay\n\nLeft out:\n\n- onnx: no onnx\n\n"
    assert said in as_markdown(report, words)
