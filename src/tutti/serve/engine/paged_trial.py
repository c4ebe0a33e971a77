"""Whether transformers' continuous batching says what a model says by itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tutti.serve.engine.request import End, Request, Sampling
from tutti.serve.engine.slots import Unsupported

if TYPE_CHECKING:
    from tutti.serve.engine.paged import PagedEngine

#: Of the trial: how far logits may be off, of what attention does to them and of what rounding does.
_OF_ATTENTION, _OF_ROUNDING = 0.05, 4.0
#: The trial takes this long at most.
_PATIENCE_SECONDS = 30.0


class Trial:
    """Two prompts that are read, and gone on from, at once: are their logits those that the model has by itself?"""

    def __init__(self, model: Any, context: int) -> None:
        vocabulary = model.get_input_embeddings().weight.shape[0]
        length = min(24, context - 2)
        drawn = torch.randint(0, vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
        self._prompts = drawn.tolist()
        with torch.inference_mode():
            own = model(input_ids=drawn.to(model.device), use_cache=False).logits[:, -1].float()
            last = model(input_ids=drawn[:, -1:].to(model.device), use_cache=False).logits[:, -1].float()
            following = torch.cat([drawn.to(model.device), own.argmax(-1)[:, None]], 1)
            alone = torch.cat(
                [
                    model(input_ids=row[None], use_cache=False).logits[:, -1].float()
                    for row in drawn.to(model.device)
                ]
            )
            then = model(input_ids=following, use_cache=False).logits[:, -1].float()
        self._expected = torch.stack([own, then], 1).log_softmax(-1).cpu()  # [2, 2, V]
        self._effect = float((own - last).abs().max())
        rounding = float((own - alone).abs().max())  # of 8 bits it goes by who else is there
        self._most_off = _OF_ATTENTION * self._effect + _OF_ROUNDING * rounding

    def require(self, engine: PagedEngine) -> None:
        """Raise Unsupported where they are not."""
        with _recorded(engine) as seen:
            ended = threading.Semaphore(0)

            def deliver(event: Any) -> None:
                if isinstance(event, End):
                    ended.release()

            for prompt in self._prompts:
                engine.submit(Request(prompt, 2, deliver, Sampling(temperature=0.0)))
            for _ in self._prompts:
                if not ended.acquire(timeout=_PATIENCE_SECONDS):
                    raise Unsupported("its trial did not end")
        for prompt, expected in zip(self._prompts, self._expected, strict=True):
            found = [logits for name, logits in seen if name == prompt]
            if not found:
                raise Unsupported("its trial wrote nothing")
            for one, other in zip(found, expected, strict=False):
                wrong = float((one.log_softmax(-1) - other).abs().max())
                if not wrong <= self._most_off:
                    raise Unsupported(
                        f"what it says so is off by {wrong / self._effect:.0%} of what attention does"
                    )


@contextlib.contextmanager
def _recorded(engine: PagedEngine) -> Iterator[list[tuple[list[int], Tensor]]]:
    """The logits of every prompt, as they are drawn from."""
    seen: list[tuple[list[int], Tensor]] = []
    draw_for = engine.draw_for

    def recording(texts: list[Any], logits: Tensor) -> list[int]:
        seen.extend(
            (text.request.prompt, logits[row].detach().clone().cpu()) for row, text in enumerate(texts)
        )
        return draw_for(texts, logits)

    engine.draw_for = recording  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del engine.draw_for
