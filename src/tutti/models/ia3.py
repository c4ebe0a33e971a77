"""IA3: a factor for each key, value and number that a feed-forward part passes on (Liu et al. 2022, arXiv 2205.05638).

Which layers those are goes by the architecture. peft knows it of some; here is what it leaves out.
"""

from __future__ import annotations

from typing import Any

from tutti.core import ModelError

#: Those that give keys and values, and the last of a feed-forward part, whose factors multiply what it reads.
_LAYERS = {
    **dict.fromkeys(("camembert", "electra", "xlm-roberta"), (["key", "value"], ["output.dense"])),
    "distilbert": (["k_lin", "v_lin"], ["ffn.lin2"]),
    "modernbert": (["Wqkv"], ["mlp.Wo"]),  # queries come out of the same matrix, as of GPT-2's
}


def ia3_settings(kind: str, **common: Any) -> Any:
    """peft's settings for a model of `kind` (`model_type`).

    Raises:
        ModelError: it is not known where the factors belong.
    """
    from peft import IA3Config
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

    if kind in _LAYERS:
        attention, feed_forward = _LAYERS[kind]
        return IA3Config(
            **common, target_modules=[*attention, *feed_forward], feedforward_modules=feed_forward
        )
    if kind not in KNOWN:
        raise ModelError(
            f"tune.method: ia3 is not possible with {kind}: it is not known which of its layers give keys and values",
            f"set tune.method: lora, or begin with one of {', '.join(sorted({*KNOWN, *_LAYERS}))}",
        )
    return IA3Config(**common)
