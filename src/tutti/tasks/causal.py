"""Causal language modelling: predict the next token of the same document.

Works for any Hugging Face `…ForCausalLM`. How a model is run is found out when the objective is made, by
trying: two tiny documents are computed alone by the untouched model, then packed by this objective; only
what gives the same numbers is used. So an architecture that nobody has thought of trains correctly too, and
`notice` says what it costs.

The objective, not the model inside it, must be the root that FSDP shards: the head's weight is used here.

Shapes: B samples, S tokens, N = B·S, D model width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutti.core import Batch, LossSum, ModelError, Objective
from tutti.tasks.chunked_loss import IGNORED, chunked_cross_entropy
from tutti.tasks.packing import ATTENTION, causal_only, is_plain, unpack


class CausalLanguageModelling(Objective):
    """Next-token cross-entropy of `model` (a Hugging Face `…ForCausalLM`).

    Batches: `input_ids` [B, S], `labels` [B, S] (shifted already; −100: no target) and `position_ids` [B, S]
    that restart at 0 where a document begins (left out: one document a sample).

    `notice` says in a sentence what this architecture does not allow ("" when everything fast is in use).

    Raises:
        ModelError: the model cannot be run on tokens.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.notice = ""
        self._unpack = False
        self._takes_positions = "position_ids" in inspect.signature(_body(model).forward).parameters
        self._chunked = True
        if all(parameter.device.type != "meta" for parameter in model.parameters()):
            self._find_out()

    def forward(self, batch: Batch) -> LossSum:
        """Sum of −log p(label) over the labels of `batch` that are not −100, and their number."""
        labels = batch["labels"]
        rows, row_labels = batch["input_ids"], labels
        positions = batch.get("position_ids")
        plain = is_plain(positions)
        if self._unpack and positions is not None and not plain:
            rows, row_labels = unpack(rows, labels, positions, IGNORED)
        total = self._total(rows, row_labels, None if plain or self._unpack else positions)
        return LossSum(total, (labels != IGNORED).sum())

    def count_targets(self, batch: Batch) -> int:
        """Labels of `batch` that are not −100."""
        return int((batch["labels"] != IGNORED).sum())

    def _total(self, input_ids: Tensor, labels: Tensor, positions: Tensor | None) -> Tensor:
        flat = labels.reshape(-1)
        if self._chunked:
            hidden = self._run(_body(self.model), input_ids, positions).last_hidden_state
            head = _head(self.model)
            assert head is not None
            return chunked_cross_entropy(hidden.flatten(0, 1), head.weight, flat, head.bias)
        logits = self._run(self.model, input_ids, positions).logits.flatten(0, 1)
        return F.cross_entropy(logits.float(), flat, ignore_index=IGNORED, reduction="sum")

    def _run(self, module: nn.Module, input_ids: Tensor, positions: Tensor | None) -> Any:
        known = {} if positions is None or not self._takes_positions else {"position_ids": positions}
        with causal_only(positions is None):
            return module(input_ids=input_ids, use_cache=False, **known)

    def _find_out(self) -> None:
        """Settle how this model is run, by comparing with what it computes for documents alone."""
        model: Any = self.model
        original = model.config._attn_implementation
        with _quiet(model), torch.no_grad():
            trial = _trial(model)
            try:
                alone = [model(input_ids=ids, use_cache=False).logits for ids in trial.alone]
                whole = model(input_ids=trial.packed, use_cache=False).logits
            except Exception as error:
                raise ModelError(
                    f"{type(model).__name__} cannot be run: {_first_line(error)}",
                    "check the numbers of its configuration",
                ) from error
            expected = torch.cat(alone, dim=1)
            packs = False
            for attention in [ATTENTION, original] if original == "sdpa" else [original]:
                model.set_attn_implementation(attention)
                packs = self._packs(trial, expected, whole)
                if packs:
                    break
            self._unpack = not packs
            if self._unpack:
                rows, _ = unpack(trial.packed, trial.packed, trial.positions, IGNORED)
                short, long = self._run(model, rows, None).logits.unbind()
                if not _same(torch.cat([short[:5], long])[None], expected):
                    raise ModelError(
                        f"{type(model).__name__} is not causal: a token's prediction depends on what follows it",
                        "choose an architecture made for causal language modelling",
                    )
            self._chunked = self._head_explains(trial)
        remarks = []
        if self._unpack:
            remarks.append(
                "keeps documents apart only as separate rows, so packed samples cost more time and memory"
            )
        if not self._chunked:
            remarks.append(
                "changes its logits after the head, so they are computed as a whole and need more memory"
            )
        if getattr(model.config, "output_router_logits", False):
            remarks.append("asks for a router loss, which is not added")
        self.notice = f"{type(model).__name__} {'; and it '.join(remarks)}" if remarks else ""

    def _packs(self, trial: _Trial, expected: Tensor, whole: Tensor) -> bool:
        if not self._takes_positions:
            return False
        try:
            packed = self._run(self.model, trial.packed, trial.positions).logits
            plain = self._run(self.model, trial.packed, None).logits
        except Exception:  # not every architecture takes every attention: another is tried
            return False
        return _same(packed, expected) and _same(plain, whole)

    def _head_explains(self, trial: _Trial) -> bool:
        """Whether the logits are the head's output as it is, and its input the body's output.

        The head's output is blown up on the way: soft caps do nothing to the small logits of a fresh model.
        """
        head = _head(self.model)
        if head is None:
            return False
        seen: list[Tensor] = []

        def blow_up(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seen.extend([inputs[0], output * (100 / output.abs().max())])
            return seen[1]

        hook = head.register_forward_hook(blow_up)
        try:
            logits = self._run(self.model, trial.packed, None).logits
            hidden = self._run(_body(self.model), trial.packed, None).last_hidden_state
        except (AttributeError, TypeError):
            return False
        finally:
            hook.remove()
        return len(seen) == 2 and _same(logits, seen[1]) and _same(hidden, seen[0])


class _Trial(NamedTuple):
    """Two documents, alone ([1, 5] and [1, 7]) and packed ([1, 12])."""

    alone: tuple[Tensor, Tensor]
    packed: Tensor
    positions: Tensor


def _trial(model: nn.Module) -> _Trial:
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = (torch.arange(12, device=device) * 7919 + 11).remainder(vocabulary)[None]
    positions = torch.cat([torch.arange(5, device=device), torch.arange(7, device=device)])[None]
    return _Trial((ids[:, :5], ids[:, 5:]), ids, positions)


def _same(some: Tensor, expected: Tensor) -> bool:
    """Equal to rounding; a leak between documents changes the logits by far more."""
    if some.shape != expected.shape:
        return False
    tolerance = 1e-4 if expected.dtype == torch.float32 else 3e-2
    return bool((some - expected).abs().max() <= tolerance * expected.abs().max())


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Dropout off for the trial."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _body(model: Any) -> nn.Module:
    """The model without its head."""
    body: nn.Module = model.base_model
    return body


def _head(model: Any) -> nn.Linear | None:
    """The head, where it is one matrix (and perhaps a bias)."""
    head = model.get_output_embeddings()
    return head if isinstance(head, nn.Linear) else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
