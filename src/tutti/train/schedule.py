"""The course of the learning rate over a run: a pure function of the step.

So a resumed run needs no schedule state, and every rank comes to the same number.
"""

from __future__ import annotations

import math

#: Share of the run over which `wsd` decays.
WSD_DECAY = 0.2


def learning_rate_factor(step: int, steps: int, warmup: int, schedule: str, final: float) -> float:
    """Share of the peak learning rate at `step` (1…`steps`) of a run of `steps`.

    Warm-up: step / warmup, so that step `warmup` is the first at the peak. Afterwards, with p running from 0
    at the end of the warm-up to 1 at the last step:

        cosine    final + (1 − final) (1 + cos π p) / 2
        linear    1 − (1 − final) p
        wsd       1, then linear to `final` over the last fifth of the run
        constant  1
        rising    final^(1 − p), with p from 0 at the first step, and no warm-up (L. Smith 2015, arXiv 1506.01186)

    Steps beyond the last one stay at the last one's value.

    Raises:
        ValueError: `step` is below 1, or `schedule` is none of these.
    """
    if step < 1:
        raise ValueError(f"steps are counted from 1, not {step}")
    if schedule not in ("cosine", "linear", "wsd", "constant", "rising"):
        raise ValueError(f"there is no schedule '{schedule}'")
    if schedule == "rising":
        return float(final ** max(0.0, 1 - (step - 1) / max(steps - 1, 1)))
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    decay = steps - warmup
    if schedule == "wsd":
        decay = min(decay, round(WSD_DECAY * steps))
    into = step - (steps - decay)  # steps of decay done
    progress = min(1.0, max(0.0, into / decay)) if decay > 0 else float(step > steps)
    if schedule == "cosine":
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - (1.0 - final) * progress
