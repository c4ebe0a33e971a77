"""How long and how fast, where the user leaves it to us and a model learns from labelled examples."""

from __future__ import annotations

import math
from typing import Any

from tutti.config import Config
from tutti.sync.batches import BatchSizes

_LANGUAGE_STEPS = 1000
#: Samples of a step; where groups of texts are samples, so many texts.
ORDINARY_BATCH, _TEXTS = 32, 64
#: Examples that are seen over a whole run, the least and most epochs that this may take, and the least steps.
_SEEN, _LEAST_EPOCHS, _MOST_EPOCHS, _LEAST_STEPS = 100_000, 3, 20, 100
#: Of BERT-base (110M parameters); smaller models take larger steps.
_RATE, _RATE_PARAMETERS = 5e-5, 110e6
_LOWEST_RATE, _HIGHEST_RATE = 1e-5, 5e-4
#: The best rate of each `tune.method`, in times that of a model that learns whole: measured with equal budgets
#: (benchmarks/tuning). What is added to a model begins at nothing and is small, so it has far to go.
_TIMES = {"full": 1, "last": 3, "lora": 10, "adalora": 40, "ia3": 150, "prompt": 500}

#: What a new head learns at, in times the rate of a trained model that learns whole (docs/explanation/recipes.md).
_HEAD_TIMES = 10
#: And at most; who sets a large rate has a reason, but not one to lose the head by.
_HEAD_RATE = 3e-3

#: What `recipe: auto` sets, where it was measured to help (docs/how-to/labels.md): of a few hundred examples that are
#: seen many times each, the same does harm.
_R_DROP, _AVERAGE, _R_DROP_TASKS, _R_DROP_EXAMPLES = 1.0, 0.2, ("classify", "relate"), 5_000


def choose_batch(together: int) -> tuple[int, str]:
    """Samples of a step, where `together` texts are one sample, and the reason."""
    if together == 1:
        return ORDINARY_BATCH, "what a step takes where nothing is said"
    batch = max(1, _TEXTS // together)
    return batch, f"groups of {together}: {batch * together} texts a step"


def choose_steps(
    epochs: float | None, samples: int, batches: BatchSizes, *, labelled: bool, passes: int = 1
) -> tuple[int, str]:
    """Steps of a run over `samples` with `batches` a step, and the reason. `passes`: of a sample in each step."""
    if epochs is not None:
        return batches.steps_for(epochs * samples), f"{epochs:g} epochs of {samples:,} samples"
    if not labelled:
        return _LANGUAGE_STEPS, "what a first run takes; say how many, or train.epochs"
    seen = _SEEN // passes
    epochs = min(_MOST_EPOCHS, max(_LEAST_EPOCHS, round(seen / samples)))
    steps = batches.steps_for(epochs * samples)
    if steps < _LEAST_STEPS:
        return (
            _LEAST_STEPS,
            f"{epochs} epochs of {samples:,} examples would be {steps} steps, too few to learn",
        )
    return steps, (
        f"{epochs} epochs of {samples:,} examples: about {seen:,} are seen in {_LEAST_EPOCHS} to {_MOST_EPOCHS} epochs"
    )


def against_learning_by_heart(
    config: Config, examples: int, *, pretrained: bool, dropout: bool
) -> tuple[Config, list[str]]:
    """`config` with what `recipe: auto` sets for so many training `examples`, of what stands at its default; and why.

    `pretrained`, `dropout`: whether the model was trained before, and has any.
    """
    if config.recipe != "auto":
        return config, []
    own, train, kind = config.regularise, config.train, config.task.kind
    if own.r_drop:  # the user's, or of the run that goes on
        return config, []
    obstacles = {
        f"task.kind {kind} was not measured with it": kind not in _R_DROP_TASKS,
        "what distil, task.contrast or regularise.adversarial compute excludes it": bool(
            config.distil.teachers or config.task.contrast or own.adversarial
        ),
        "it was measured with trained models, and this one begins with nothing": not pretrained,
        "the model has no dropout, by which two passes would differ": not dropout,
        f"with fewer than {_R_DROP_EXAMPLES:,} it was measured to do harm": examples < _R_DROP_EXAMPLES,
    }
    if against := [why for why, stands in obstacles.items() if stands]:
        return config, [f"recipe: auto sets no R-Drop for {examples:,} examples: {against[0]}"]
    said = [
        f"regularise.r_drop = {_R_DROP:g}: {examples:,} examples of a trained model; two passes must agree"
    ]
    updates: dict[str, Any] = {"regularise": own.model_copy(update={"r_drop": _R_DROP})}
    if not train.average and config.sync.policy != "server":
        updates["train"] = train.model_copy(update={"average": _AVERAGE})
        said.append(
            f"train.average = {_AVERAGE:g}: what is judged is the average of the last fifth's weights"
        )
    return config.model_copy(update=updates), said


def tuning_rate(parameters: int, method: str) -> tuple[float, str]:
    """Peak learning rate of AdamW for a trained model of so many `parameters`, tuned by `method`, and the reason."""
    rate = min(_HIGHEST_RATE, max(_LOWEST_RATE, _RATE * math.sqrt(_RATE_PARAMETERS / parameters)))
    reason = f"a trained model of {parameters / 1e6:.3g}M parameters is tuned, not trained"
    if (times := _TIMES[method]) > 1:
        rate, reason = rate * times, f"{reason}; tune.method {method} takes {times} times the rate"
    return float(f"{rate:.2g}"), reason


def choose_head_rate(method: str, rate: float, *, new: bool) -> tuple[float, str]:
    """How many times `rate` the head of a model learns at that is tuned by `method`, and the reason.

    `rate`: of AdamW. `new`: whether the head knows nothing yet, while the rest does.
    """
    times = min(_HEAD_TIMES / _TIMES[method], _HEAD_RATE / rate) if new else 1.0
    return max(1.0, float(f"{times:.2g}")), "the head is new, and what it stands on is trained already"
