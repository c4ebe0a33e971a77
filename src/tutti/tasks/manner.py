"""How an architecture can be run, found out by trying it.

Two tiny documents are computed alone by the untouched model, then packed in each way that Tutti knows; only
what gives the same numbers is used. So an architecture that nobody has thought of trains correctly too, and
`notice` says what it costs.

Shapes: B samples, S tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutti.core import ModelError
from tutti.tasks.chunked_loss import IGNORED
from tutti.tasks.packing import ATTENTION, Rows, attending, unpack


@dataclass(frozen=True)
class Manner:
    """What an architecture allows; a property of its kind, not of its weights or depth.

    attention: the attention implementation that it runs under.
    takes_positions: its body takes `position_ids`.
    unpack: documents are kept apart only as rows of their own.
    chunked: its logits are the head's output as it is, so the loss can be computed chunk by chunk.
    bare_head: the head reads the body's output as it is.
    notice: in a sentence what it does not allow ("" when everything fast is in use).
    """

    attention: str
    takes_positions: bool
    unpack: bool
    chunked: bool
    bare_head: bool
    notice: str


def body_of(model: Any) -> nn.Module:
    """The model without its head."""
    body: nn.Module = model.base_model
    return body


def head_of(model: Any) -> nn.Linear | None:
    """The head, where it is one matrix (and perhaps a bias)."""
    head = model.get_output_embeddings()
    return head if isinstance(head, nn.Linear) else None


@contextlib.contextmanager
def passed_over(head: nn.Module) -> Iterator[None]:
    """While this is open `head` hands on what it is given."""
    head.forward = _identity
    try:
        yield
    finally:
        del head.forward


def _identity(hidden: Tensor) -> Tensor:
    return hidden


def run_model(module: nn.Module, rows: Rows, takes_positions: bool = True) -> Any:
    """Call `module` (a model or its body) on `rows`."""
    known: dict[str, Tensor] = {}
    if rows.positions is not None and takes_positions:
        known["position_ids"] = rows.positions
    if rows.length != rows.input_ids.shape[1]:
        # A piece of each row: transformers is not to look for documents in it, but to ask for the whole rows' mask.
        known["attention_mask"] = rows.input_ids.new_ones(len(rows.input_ids), rows.length)
    with attending(rows):
        return module(input_ids=rows.input_ids, use_cache=False, **known)


def find_manner(model: nn.Module) -> Manner:
    """Settle how `model` (a Hugging Face `…ForCausalLM` in memory) is run; it is left under that attention.

    Raises:
        ModelError: the model cannot be run on tokens, or is not causal.
    """
    whole: Any = model
    original = whole.config._attn_implementation
    takes_positions = "position_ids" in inspect.signature(body_of(model).forward).parameters
    with quiet(model), torch.no_grad():
        trial = _trial(model)
        try:
            alone = [model(input_ids=ids, use_cache=False).logits for ids in trial.alone]
            together = model(input_ids=trial.packed, use_cache=False).logits
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} cannot be run: {_first_line(error)}",
                "check the numbers of its configuration",
            ) from error
        expected = torch.cat(alone, dim=1)
        candidates = [ATTENTION, original] if original == "sdpa" else [original]
        packs = takes_positions and any(_packs(model, name, trial, expected, together) for name in candidates)
        if not packs and not any(_runs_rows(model, name, trial, expected) for name in candidates):
            raise ModelError(
                f"{type(model).__name__} is not causal: a token's prediction depends on what follows it",
                "choose an architecture made for causal language modelling",
            )
        chunked, bare_head = _head_explains(model, trial)
    remarks = []
    if not packs:
        remarks.append(
            "keeps documents apart only as separate rows, so packed samples cost more time and memory"
        )
    if not chunked:
        remarks.append(
            "changes its logits after the head, so they are computed as a whole and need more memory"
        )
    if getattr(whole.config, "output_router_logits", False):
        remarks.append("asks for a router loss, which is not added")
    notice = f"{type(model).__name__} {'; and it '.join(remarks)}" if remarks else ""
    return Manner(whole.config._attn_implementation, takes_positions, not packs, chunked, bare_head, notice)


def _packs(model: Any, attention: str, trial: _Trial, expected: Tensor, together: Tensor) -> bool:
    """Whether documents in one row stay apart under `attention`, which the model is left under."""
    model.set_attn_implementation(attention)
    try:
        packed = run_model(model, _rows(trial.packed, trial.positions)).logits
        plain = run_model(model, _rows(trial.packed)).logits
    except Exception:  # not every architecture takes every attention: another is tried
        return False
    return _same(packed, expected) and _same(plain, together)


def _runs_rows(model: Any, attention: str, trial: _Trial, expected: Tensor) -> bool:
    """Whether documents as rows, padded behind, are computed as they are alone, under `attention`."""
    model.set_attn_implementation(attention)
    rows, _ = unpack(trial.packed, trial.packed, trial.positions, IGNORED)
    try:
        short, long = run_model(model, _rows(rows)).logits.unbind()
    except Exception:
        return False
    return _same(torch.cat([short[:5], long])[None], expected)


def explains_logits(model: nn.Module, run: Callable[[nn.Module], Any]) -> tuple[bool, Tensor | None]:
    """Whether the logits that `run(model)` gives are the head's output as it is; and what the head was given.

    The head's output is blown up on the way: soft caps do nothing to the small logits of a fresh model.
    """
    head = head_of(model)
    if head is None:
        return False, None
    seen: list[Tensor] = []

    def blow_up(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.extend([inputs[0], output * (100 / output.abs().max())])
        return seen[1]

    hook = head.register_forward_hook(blow_up)
    try:
        logits = run(model).logits
    except (AttributeError, TypeError):
        return False, None
    finally:
        hook.remove()
    if len(seen) != 2 or not _same(logits, seen[1]):
        return False, None
    return True, seen[0]


def _head_explains(model: nn.Module, trial: _Trial) -> tuple[bool, bool]:
    """Whether the logits are the head's output as it is, and whether its input is the body's output."""
    rows = _rows(trial.packed)
    explains, given = explains_logits(model, lambda whole: run_model(whole, rows))
    if given is None:
        return False, False
    try:
        hidden = run_model(body_of(model), rows).last_hidden_state
    except (AttributeError, TypeError):
        return False, False
    return explains, _same(hidden, given)


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


def _rows(ids: Tensor, positions: Tensor | None = None) -> Rows:
    return Rows.of(ids, ids, positions)


def _same(some: Tensor, expected: Tensor) -> bool:
    """Equal to rounding; a leak between documents changes the logits by far more."""
    if some.shape != expected.shape:
        return False
    tolerance = 1e-4 if expected.dtype == torch.float32 else 3e-2
    return bool((some - expected).abs().max() <= tolerance * expected.abs().max())


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Dropout off for the trial."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
