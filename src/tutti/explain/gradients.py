"""Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365), by Captum: words that grow from nothing to
what they are, and what each adds on the way. The worth of all words is the difference between the text and nothing; by
how much it is not, as the way is taken in steps, is told as the gap.

Shapes: n variants of a row, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tutti.core.errors import ModelError
from tutti.core.types import module_device
from tutti.explain.ablation import Weighed
from tutti.explain.claims import Claim
from tutti.explain.words import Reading
from tutti.models.quantized import QuantizedLinear
from tutti.package import Asker
from tutti.tasks.task import run_encoder

#: Steps of the way, and how many are computed at once.
_STEPS, _AT_ONCE = 64, 16


def has_gradients(asker: Asker) -> bool:
    """Whether the model computes in numbers that have them."""
    model: Any = getattr(asker.objective, "model", None)
    if not hasattr(model, "get_input_embeddings") or not any(True for _ in model.parameters()):
        return False
    return not any(isinstance(module, QuantizedLinear) for module in model.modules())


def by_gradients(
    asker: Asker, reading: Reading, hidden: int, claims: Sequence[Claim], *, multiple: bool
) -> list[tuple[Weighed, float]]:
    """What each word is worth to each of the `claims` about the row of `reading`, and the gap.

    Raises:
        ModelError: the model has no gradients.
    """
    from captum.attr import LayerIntegratedGradients

    if not has_gradients(asker):
        raise ModelError(
            "this model computes in whole numbers, or in another program: there are no gradients",
            "leave the method out, or take ablation",
        )
    asker.objective.eval()
    model: Any = asker.objective.model
    device = module_device(asker.objective)
    row = reading.row

    def logits(ids: Tensor) -> Tensor:
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "token_type_ids" in row:
            batch["token_type_ids"] = torch.tensor([row["token_type_ids"]], device=device).expand(
                len(ids), -1
            )
        with asker.context:
            return run_encoder(model, batch)

    whole = torch.tensor([row["input_ids"]], device=device)
    nothing = torch.tensor(
        [reading.without([False] * len(reading.words), hidden)["input_ids"]], device=device
    )
    found = []
    for claim in claims:

        def sure(ids: Tensor, claim: Claim = claim) -> Tensor:
            return claim.log_odds_of(logits(ids), row.get("starts", ()), multiple=multiple)

        with torch.no_grad():
            ends = [float(sure(ids)) for ids in (whole, nothing)]
        parts = LayerIntegratedGradients(sure, model.get_input_embeddings()).attribute(
            whole, baselines=nothing, n_steps=_STEPS, internal_batch_size=_AT_ONCE
        )
        tokens = parts.detach().sum(-1)[0]
        weights = [float(tokens[list(word.tokens)].sum()) for word in reading.words]
        found.append((Weighed(ends[0], ends[1], weights), sum(weights) - (ends[0] - ends[1])))
    return found
