"""How a model is made smaller, in a word: `int8`, `int4-gptq`, `layers:4+channels:0.5+onnx+int8`.

A recipe is words joined by `+`. Whatever their order: layers, heads and channels are taken out first and what is
left learns again, then single weights become zero, and at last all are written in fewer bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from tutti.compress.prune import Criterion
from tutti.compress.quantize import Scheme
from tutti.core import ConfigError

#: Ways to write weights, with what they are for.
SCHEMES = {
    "int8": (Scheme(), "8 bits; inputs of layers too, as they come"),
    "int8-mixed": (Scheme(tables=4), "the same, and 4 bits for tables of vectors"),
    "int8-weights": (
        Scheme(arithmetic="weights"),
        "8 bits on disk, fp32 in memory: inputs stay what they are",
    ),
    "int4": (Scheme(4, tables=4), "4 bits on disk, rounded as they are nearest; 8 in memory"),
    "int4-gptq": (Scheme(4, method="gptq", tables=4), "the same, columns to come mend what rounding spoilt"),
    "int4-awq": (Scheme(4, method="awq", tables=4), "the same, more of the grid for large inputs"),
}
#: What onnxruntime computes here, beside fp32.
_ONNX_SCHEMES = ("int8", "int8-mixed")
_CRITERIA: tuple[str, ...] = get_args(Criterion)
WORDS = "fp32, onnx, layers:NUMBER, heads:SHARE, channels:SHARE, " + ", ".join(
    [*(f"{criterion}:SHARE" for criterion in _CRITERIA), *SCHEMES]
)


@dataclass(frozen=True)
class Recipe:
    """`layers`: that stay; `heads`, `channels`: share of the attention heads and of the feed-forward channels that
    stays; `zeros`: share of the weights that becomes zero, by `criterion`; `scheme`: of the weights (None: fp32);
    `onnx`: computed by onnxruntime. `name`: as the user writes it."""

    name: str
    layers: int | None = None
    heads: float | None = None
    channels: float | None = None
    criterion: Criterion = "wanda"
    zeros: float = 0.0
    scheme: Scheme | None = None
    onnx: bool = False

    @property
    def smaller(self) -> bool:
        """Whether parts are taken out, after which the model has to learn again."""
        return any(part is not None for part in (self.layers, self.heads, self.channels))

    @classmethod
    def of(cls, text: str) -> Recipe:
        """From words joined by `+`.

        Raises:
            ConfigError: a word is not known, is there twice, or does not go with the others.
        """
        recipe, seen = cls(text), set[str]()
        scheme = None
        for word in text.split("+"):
            kind, _, number = word.partition(":")
            topic = "a way to write weights" if kind in SCHEMES else "zeros" if kind in _CRITERIA else kind
            if topic in seen:
                raise ConfigError(f"'{text}' says {topic} twice", "say it once")
            seen.add(topic)
            if kind in SCHEMES and not number:
                scheme = kind
                recipe = replace(recipe, scheme=SCHEMES[kind][0])
            elif word == "onnx":
                recipe = replace(recipe, onnx=True)
            elif word != "fp32":
                recipe = _taking_out(recipe, kind, number)
        if recipe.onnx and scheme is not None and scheme not in _ONNX_SCHEMES:
            raise ConfigError(
                f"'{text}': onnxruntime computes fp32, int8 and int8-mixed here",
                "write onnx, onnx+int8 or onnx+int8-mixed",
            )
        return recipe


def _taking_out(recipe: Recipe, kind: str, number: str) -> Recipe:
    if kind == "layers":
        if not number.isdecimal() or int(number) == 0:
            raise ConfigError(f"'{recipe.name}': {number!r} is no number of layers", "write layers:4, say")
        return replace(recipe, layers=int(number))
    if kind not in ("heads", "channels", *_CRITERIA):
        raise ConfigError(
            f"'{recipe.name}' is no recipe: {f'{kind}:{number}' if number else kind!r} is not known",
            f"join with +: {WORDS}",
        )
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ConfigError(f"'{recipe.name}': {number!r} is no share", f"write {kind}:0.5, say")
    if kind == "heads":
        return replace(recipe, heads=share)
    if kind == "channels":
        return replace(recipe, channels=share)
    return replace(recipe, criterion="wanda" if kind == "wanda" else "magnitude", zeros=share)


BEFORE = Recipe("fp32")


def ladder(layers: int, written: str) -> list[str]:
    """Fewer and fewer of `layers`, and at last half of the channels; `written` as this says."""
    fewer = [round(layers * share) for share in (5 / 6, 2 / 3, 1 / 2)]
    steps = [f"layers:{count}+{written}" for count in dict.fromkeys(fewer) if 0 < count < layers]
    return [*steps, f"{steps[-1]}+channels:0.5"] if steps else [f"channels:0.5+{written}"]
