"""A causal model that reads and writes many texts at once, each in a slot of one key-value cache.

Everything in a block but attention looks at one token at a time. So the tokens of a turn, whoever they belong to, go
through the model as one row [1, T]: the newest of every text that is being written, and pieces of prompts that are
being read. Attention alone looks at the slots. It is handed to transformers under a name of its own, so every
architecture that asks transformers for its attention, and takes positions, can be served; whether it can is found out
by trying (`SlotModel.check`).

Shapes: T tokens of a turn, R slots, H heads of queries, K of keys (G = H ÷ K share one), C tokens of a slot, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tutti.serve.engine.cache import KeyValueSlots, Part, Turn
from tutti.serve.engine.lean import Lean

_ATTENTION = "tutti-slots"
#: Of `check`: what is wrong may be so much of what attention does at all, and so many times what rounding does.
_OF_ATTENTION, _OF_ROUNDING = 0.02, 4.0
#: What some architectures want of attention and is not done here.
_SPECIAL = ("softcap", "s_aux", "position_bias")


class Unsupported(Exception):
    """The architecture cannot be served in slots; says why."""


class SlotModel:
    """`model` with `slots` texts of at most `context` tokens each, whose keys and values are kept as `cached` (None: as
    the model computes them).

    Raises:
        Unsupported: its architecture computes attention, or positions, in a way of its own.
    """

    def __init__(self, model: nn.Module, slots: int, context: int, cached: torch.dtype | None = None) -> None:
        taken = inspect.signature(model.forward).parameters
        if missing := {"position_ids", "logits_to_keep"} - taken.keys():
            raise Unsupported(f"{type(model).__name__} takes no {' and no '.join(sorted(missing))}")
        self.context = context
        whole: Any = model.eval()
        self._model = whole
        self._device = next(model.parameters()).device
        AttentionInterface.register(_ATTENTION, _attend)
        before = str(self._model.config._attn_implementation)
        own = "sdpa" if before == _ATTENTION else before
        for lean in (Lean.of(whole, context), None):
            self._lean = lean
            self.cache = KeyValueSlots(slots, context, cached)
            try:
                self.check(own)
                break
            except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
                if lean is None:
                    whole.set_attn_implementation(before)
                    raise Unsupported(f"{type(model).__name__} cannot be served in slots: {error}") from error
        if self._lean is not None:
            self._lean.rest_others()
        self.cache = KeyValueSlots(slots, context, cached)

    @torch.inference_mode()
    def run(self, turn: Turn, tokens: Sequence[int], wanted: Sequence[int]) -> Tensor:
        """Logits [len(wanted), V], fp32, after the tokens at places `wanted` of the turn's `tokens` [T]."""
        ids = torch.tensor(tokens, device=self._device)
        if self._lean is not None:
            return self._lean.run(ids, turn, self.cache, wanted)
        global _now
        _now = (turn, self.cache)
        try:
            output = self._model(
                input_ids=ids[None],
                position_ids=turn.positions.to(self._device)[None],
                use_cache=False,
                logits_to_keep=torch.tensor(wanted, device=self._device),
            )
        finally:
            _now = None
        logits: Tensor = output.logits[0].float()
        return logits

    @torch.inference_mode()
    def check(self, attention: str) -> None:
        """Compare with what the model says by its own `attention`: two texts, read in pieces and written on.

        Raises:
            RuntimeError: it is not the same.
        """
        length = min(24, self.context)
        vocabulary = self._model.get_input_embeddings().weight.shape[0]
        drawn = torch.randint(0, vocabulary, (2, length), generator=torch.Generator().manual_seed(0))

        def plainly(ids: Tensor) -> Tensor:
            logits: Tensor = self._model(input_ids=ids.to(self._device), use_cache=False).logits
            return logits[:, -1].float()

        self._model.set_attn_implementation(attention)
        expected, alone = plainly(drawn), torch.cat([plainly(row[None]) for row in drawn])
        effect = (expected - plainly(drawn[:, -1:])).abs().max()
        rounding = (expected - alone).abs().max()  # of 8 bits it goes by who else is there
        self._model.set_attn_implementation(_ATTENTION)
        texts, last, cut = drawn.tolist(), min(1, self.cache.slots - 1), length // 2
        self.run(Turn([], [Part(0, 0, cut)]), texts[0][:cut], [0])
        for step in range(cut, length - 1):
            parts = [Part(0, step, 1)]
            if last and step == cut:  # the second text comes while the first is written
                self.run(Turn(parts, [Part(1, 0, step)]), [texts[0][step], *texts[1][:step]], [0])
                self.run(Turn([], [Part(1, step, 1)]), [texts[1][step]], [0])
            else:
                parts += [Part(1, step, 1)] if last else []
                self.run(Turn(parts, []), [texts[part.slot][step] for part in parts], [0])
        parts = [Part(slot, length - 1, 1) for slot in range(1 + last)]
        found = self.run(Turn(parts, []), [texts[part.slot][-1] for part in parts], range(len(parts)))
        wrong = (found - expected[: len(parts)]).abs().max()
        if not wrong <= _OF_ATTENTION * effect + _OF_ROUNDING * rounding:
            raise RuntimeError(
                f"what it says in slots is off by {float(wrong / effect):.0%} of what attention does"
            )


#: What the attention of the present pass belongs to.
_now: tuple[Turn, KeyValueSlots] | None = None


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    """query [1, H, T, D], key, value [1, K, T, D] → [1, T, H, D]; keys and values stay in their slots."""
    assert _now is not None, "a model in slots is run by SlotModel"
    turn, cache = _now
    window = rest.get("sliding_window")
    if any(rest.get(name) is not None for name in _SPECIAL) or (
        window is not None and window < cache.capacity
    ):
        raise RuntimeError("it wants a kind of attention that is not known here")
    scale = rest.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    own = [part[0].transpose(0, 1) for part in (query, key, value)]
    return cache.attend(module.layer_idx, turn, own[0], own[1], own[2], scale)[None], None
