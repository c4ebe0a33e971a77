"""Masked language modelling: guess the tokens that are hidden in a text, from both sides.

Works for any Hugging Face `…ForMaskedLM`. Logits [N, V] are computed for the hidden tokens alone, and in chunks, where
the architecture's logits are the output of one matrix; where they are not, as a whole.

The objective, not the model inside it, must be the root that FSDP shards: the head's weight is used here.

Shapes: B samples, S tokens, N = B·S, M hidden tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutti.core import Batch, LossSum, ModelError, Objective
from tutti.tasks.chunked_loss import IGNORED, chunked_cross_entropy, default_chunk
from tutti.tasks.manner import explains_logits, head_of, passed_over, quiet


class MaskedLanguageModelling(Objective):
    """Cross-entropy of what `model` (a Hugging Face `…ForMaskedLM`) guesses.

    Batches: `input_ids` [B, S], `labels` [B, S] (−100: not hidden). Answers [B, 2]: tokens that were guessed right, and
    hidden ones.

    Raises:
        ModelError: the model cannot be run on tokens.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        with quiet(model), torch.no_grad():
            try:
                self._chunked, _ = explains_logits(model, _try)
                _try(model)
            except Exception as error:
                raise ModelError(
                    f"{type(model).__name__} cannot be run: {(str(error).splitlines() or [repr(error)])[0]}",
                    "check the numbers of its configuration",
                ) from error

    def forward(self, batch: Batch) -> LossSum:
        """Sum of −log p(label) over the labels of `batch` that are not −100, and their number."""
        labels = batch["labels"]
        flat = labels.flatten()
        output, head = self._output(batch["input_ids"])
        if head is None:
            total = F.cross_entropy(output.float(), flat, ignore_index=IGNORED, reduction="sum")
        else:
            total = chunked_cross_entropy(output, head.weight, flat, head.bias)
        if self.answers is not None:
            self.answer(_judge(output, head, labels))
        return LossSum(total, (labels != IGNORED).sum())

    def count_targets(self, batch: Batch) -> int:
        """Labels of `batch` that are not −100."""
        return int((batch["labels"] != IGNORED).sum())

    def _output(self, ids: Tensor) -> tuple[Tensor, nn.Linear | None]:
        """What goes into the head [N, D], and the head; or the logits [N, V], where they are not the head's output."""
        model: Any = self.model
        head = head_of(model) if self._chunked else None
        if head is None:
            logits: Tensor = model(input_ids=ids).logits
            return logits.flatten(0, 1), None
        with passed_over(head):
            hidden: Tensor = model(input_ids=ids).logits
        return hidden.flatten(0, 1), head


def _try(model: nn.Module) -> Any:
    """`model` on seven tokens."""
    table = model.get_input_embeddings().weight  # type: ignore[operator]
    ids = (torch.arange(7, device=table.device) * 7919 + 11).remainder(table.shape[0])
    return model(input_ids=ids[None])


@torch.no_grad()
def _judge(output: Tensor, head: nn.Linear | None, labels: Tensor) -> Tensor:
    """[B, 2] right guesses and hidden tokens of each row."""
    hidden = (labels != IGNORED).flatten().nonzero().squeeze(1)
    wanted = labels.flatten()[hidden]
    right = torch.zeros(labels.numel(), device=labels.device)
    chunk = len(wanted) or 1 if head is None else default_chunk(head.weight.shape[0], labels.device)
    for places, target in zip(torch.split(hidden, chunk), torch.split(wanted, chunk), strict=True):
        some = output[places]
        if head is not None:
            some = F.linear(some, head.weight.to(some.dtype))
            some = some if head.bias is None else some + head.bias.to(some.dtype)
        right[places] = (some.argmax(-1) == target).float()
    return torch.stack([right.view(labels.shape).sum(1), (labels != IGNORED).sum(1)], 1)
