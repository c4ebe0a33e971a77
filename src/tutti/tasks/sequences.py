"""What an encoder-decoder learns: the next token of what it writes, given what it reads and has written.

Shapes: B examples, S tokens to read, T tokens to write, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutti.core import Batch, LossSum, Objective
from tutti.tasks.chunked_loss import IGNORED
from tutti.tasks.terms import LossTerm, Tally, added_to_whole_logits


class EncoderDecoder(Objective):
    """Cross-entropy of a Hugging Face `…ForConditionalGeneration`.

    Batches: `input_ids` and `attention_mask` [B, S], `labels` [B, T] (−100: no target).
    """

    #: What is added to the loss while the model trains.
    term: LossTerm | None = None

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._added: list[Tensor] = []

    def forward(self, batch: Batch) -> LossSum:
        """Sum of −log p(label) over the labels of `batch` that are not −100, and their number."""
        addend = self.term.of(batch) if self.term is not None and self.training else None
        labels, logits = batch["labels"].flatten(), self._logits(batch)
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        if addend is not None:
            tally = Tally(addend, labels.device)
            self._added.append(tally.total)
            places = torch.arange(len(labels), device=labels.device)
            total = total + added_to_whole_logits(tally, places, logits, (labels != IGNORED).nonzero()[:, 0])
        return LossSum(total, (labels != IGNORED).sum())

    def added(self) -> float:
        total = float(torch.stack(self._added).sum()) if self._added else 0.0
        self._added.clear()
        return total

    @torch.no_grad()
    def predict(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Run the model on `batch`. What comes back gives the logits [n, V] (fp32) at places [n] of its labels."""
        return self._logits(batch).__getitem__

    def _logits(self, batch: Batch) -> Tensor:
        """[B · T, V], fp32."""
        model: Any = self.model
        logits: Tensor = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=_behind_start(model, batch["labels"]),
            use_cache=False,
        ).logits
        return logits.float().flatten(0, 1)

    def count_targets(self, batch: Batch) -> int:
        """Labels of `batch` that are not −100."""
        return int((batch["labels"] != IGNORED).sum())


def _behind_start(model: Any, labels: Tensor) -> Tensor:
    """What the decoder is given to write `labels` [B, T]: the same, one place later, behind the mark that begins."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        ids: Tensor = model.prepare_decoder_input_ids_from_labels(labels=labels)
        return ids
    config = model.config
    moved = labels.new_full(labels.shape, config.decoder_start_token_id)
    moved[:, 1:] = labels[:, :-1]
    return moved.masked_fill(moved == IGNORED, config.pad_token_id)
