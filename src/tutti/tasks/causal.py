"""Causal language modelling: predict the next token of the same document.

Works for any Hugging Face `…ForCausalLM`; how one is run is its `Manner`.

The objective, not the model inside it, must be the root that FSDP shards: the head's weight is used here.

Shapes: B samples, S tokens, N = B·S, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutti.core import Batch, LossSum, Objective
from tutti.tasks.chunked_loss import IGNORED, chunked_cross_entropy, chunked_cross_entropy_and
from tutti.tasks.manner import Manner, body_of, find_manner, head_of, passed_over, run_model
from tutti.tasks.packing import Rows, is_plain, unpack
from tutti.tasks.terms import Addend, LossTerm, Tally, added_to_whole_logits

#: (hidden [N, D], weight [V, D], labels [N], bias [V] or None) → the sum of the loss over the labels.
HeadLoss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class CausalLanguageModelling(Objective):
    """Next-token cross-entropy of `model` (a Hugging Face `…ForCausalLM`).

    Batches: `input_ids` [B, S], `labels` [B, S] (shifted already; −100: no target) and `position_ids` [B, S]
    that restart at 0 where a document begins (left out: one document a sample).

    `manner`: how it is run; None: found out, for which the model has to be in memory.

    Raises:
        ModelError: the model cannot be run on tokens.
    """

    def __init__(self, model: nn.Module, manner: Manner | None = None) -> None:
        super().__init__(model)
        self.manner = find_manner(model) if manner is None else manner
        if manner is not None:
            model.set_attn_implementation(manner.attention)  # type: ignore[operator]
        #: What a layout changes: the loss of a head that is split, and what this rank computes of the rows.
        self.head_loss: HeadLoss = chunked_cross_entropy
        self.take_part: Callable[[Rows], Rows] = lambda rows: rows
        #: What is added to the loss while the model trains; a layout that splits sequences or the head has none.
        self.term: LossTerm | None = None
        self._added: list[Tensor] = []

    @property
    def notice(self) -> str:
        """What this architecture does not allow, in a sentence ("" when everything fast is in use)."""
        return self.manner.notice

    def forward(self, batch: Batch) -> LossSum:
        """Sum of −log p(label) over the labels of `batch` that are not −100, and their number."""
        rows = self.rows(batch)
        targets = (rows.labels != IGNORED).sum()
        addend = self.term.of(batch) if self.term is not None and self.training else None
        if addend is None:
            return LossSum(self.total(rows), targets)
        tally = Tally(addend, rows.labels.device)
        self._added.append(tally.total)
        return LossSum(self.total(rows, (tally, self._places(batch))), targets)

    def added(self) -> float:
        total = float(torch.stack(self._added).sum()) if self._added else 0.0
        self._added.clear()
        return total

    @torch.no_grad()
    def predict(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Run the model on `batch`. What comes back gives the logits [n, V] (fp32) at places [n] of it."""
        output, head = self._output(self.rows(batch))
        places = self._places(batch)
        given = (places >= 0).nonzero().squeeze(1)
        row = places.new_zeros(batch["input_ids"].numel()).index_copy_(0, places[given], given)

        def logits(wanted: Tensor) -> Tensor:
            some = output[row[wanted]]
            if head is not None:
                with torch.autocast(some.device.type, enabled=False):
                    some = F.linear(some, head.weight.to(some.dtype)).float()
                    some = some if head.bias is None else some + head.bias
            return some.float()

        return logits

    def count_targets(self, batch: Batch) -> int:
        """Labels of `batch` that are not −100."""
        return int((batch["labels"] != IGNORED).sum())

    def rows(self, batch: Batch) -> Rows:
        """`batch` as this architecture takes it, and of that this rank's part."""
        ids, labels, positions = batch["input_ids"], batch["labels"], batch.get("position_ids")
        if is_plain(positions):
            positions = None
        elif self.manner.unpack:
            assert positions is not None
            ids, labels = unpack(ids, labels, positions, IGNORED)
            positions = None
        return self.take_part(Rows.of(ids, labels, positions))

    def total(self, rows: Rows, addition: tuple[Addend, Tensor] | None = None) -> Tensor:
        """The sum of the loss over the labels of `rows`, a scalar. `addition`: what is added, and `_places`."""
        labels = rows.labels.reshape(-1)
        output, head = self._output(rows)
        if head is None:
            logits = output.float()
            loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
            if addition is not None:
                targets = (labels != IGNORED).nonzero().squeeze(1)
                loss = loss + added_to_whole_logits(*addition, logits, targets)
            return loss
        if addition is not None:
            total: Tensor = chunked_cross_entropy_and(*addition, output, head.weight, labels, head.bias)
            return total
        return self.head_loss(output, head.weight, labels, head.bias)

    def _output(self, rows: Rows) -> tuple[Tensor, nn.Linear | None]:
        """What goes into the head [N, D], and the head; or the logits [N, V], where they are not the head's output."""
        takes = self.manner.takes_positions
        if not self.manner.chunked:
            logits: Tensor = run_model(self.model, rows, takes).logits
            return logits.flatten(0, 1), None
        head = head_of(self.model)
        assert head is not None
        if self.manner.bare_head:
            hidden = run_model(body_of(self.model), rows, takes).last_hidden_state
        else:
            with passed_over(head):
                hidden = run_model(self.model, rows, takes).logits
        return hidden.flatten(0, 1), head

    def _places(self, batch: Batch) -> Tensor:
        """Where in `batch` each token of `rows(batch)` comes from, [N] (−100: from nowhere); see `terms.Addend`."""
        ids = batch["input_ids"]
        places = torch.arange(ids.numel(), device=ids.device).view(ids.shape)
        return self.rows({**batch, "labels": places}).labels.reshape(-1)
