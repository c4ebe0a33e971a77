"""What an encoder-decoder learns: the next token of what it writes, given what it reads and has written.

Shapes: B examples, S tokens to read, T tokens to write, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tutti.core import Batch, LossSum, Objective
from tutti.tasks.chunked_loss import IGNORED


class EncoderDecoder(Objective):
    """Cross-entropy of a Hugging Face `…ForConditionalGeneration`.

    Batches: `input_ids` and `attention_mask` [B, S], `labels` [B, T] (−100: no target).
    """

    def forward(self, batch: Batch) -> LossSum:
        """Sum of −log p(label) over the labels of `batch` that are not −100, and their number."""
        model: Any = self.model
        labels = batch["labels"]
        logits: Tensor = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels=labels),
            use_cache=False,
        ).logits
        total = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return LossSum(total, (labels != IGNORED).sum())

    def count_targets(self, batch: Batch) -> int:
        """Labels of `batch` that are not −100."""
        return int((batch["labels"] != IGNORED).sum())
