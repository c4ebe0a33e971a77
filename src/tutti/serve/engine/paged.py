"""The engine of models that cannot be served in slots: transformers' continuous batching, over pages.

It knows more kinds of attention (windows, sinks, caps on scores), and is slower (docs/how-to/serve.md). It schedules;
tokens are drawn here, with everything that a request may ask for, and handed to it as the only likely ones.

Shapes: n texts that get a token, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor

from tutti.serve.engine.draw import Dice, draw, likeliest
from tutti.serve.engine.grammar import rule_out
from tutti.serve.engine.paged_trial import Trial
from tutti.serve.engine.request import End, Reason, Request
from tutti.serve.engine.slots import Unsupported
from tutti.serve.engine.teller import Teller
from tutti.serve.engine.thread import EngineThread, Full

#: Tokens of a page, and of prompts that are read in one pass beside those that are written.
_PAGE_TOKENS, _READING_TOKENS = 256, 256
#: How often who has gone is looked for while texts are written.
_LOOK_SECONDS = 0.05
#: Texts that take no token for so long are wedged.
_WEDGED_SECONDS = 30.0


@dataclass(eq=False)
class _Text:
    """A request that is being written, or waits for pages."""

    name: str
    request: Request
    teller: Teller
    dice: Dice
    over: bool = False


class PagedEngine(EngineThread[Request]):
    """Of `texts` at a time, each of at most `context` tokens; `queue_length`: see `Engine`.

    Raises:
        Unsupported: transformers does not serve this model so, or not rightly.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        texts: int,
        context: int,
        end_tokens: set[int],
        queue_length: int,
    ) -> None:
        super().__init__()
        whole: Any = model
        self._model = whole.eval()
        self._tokenizer = tokenizer
        self._most, self._context, self._ends = texts, context, end_tokens
        self._queue_length = queue_length
        self._names = itertools.count()
        self._texts: dict[str, _Text] = {}
        self._waiting = 0  # come in, and not among `_texts` yet
        self._telling = threading.RLock()  # two threads tell: this one, and that of transformers
        self._drawn = time.monotonic()
        self._manager: Any = None
        try:
            if getattr(self._model.config, "attn_logit_softcapping", None) is not None:
                self._model.set_attn_implementation("eager")  # torch's own attention leaves the cap out
            trial = Trial(self._model, context)
            self._manager = self._made()
            self._manager.start()
            self.begin()
            trial.require(self)
        except Unsupported:
            self._stop()
            raise
        except Exception as error:
            self._stop()
            raise Unsupported(f"{type(model).__name__} cannot be served by transformers: {error}") from error

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._context

    @property
    def end_tokens(self) -> set[int]:
        """By which the model says that a text ends."""
        return self._ends

    @property
    def load(self) -> tuple[int, int]:
        """Requests that are written, and that wait."""
        every = len(self._texts)
        return min(every, self._most), max(0, every - self._most) + self._waiting

    @property
    def stopped(self) -> str | None:
        if (found := super().stopped) is not None:
            return found
        if self._texts and time.monotonic() - self._drawn > _WEDGED_SECONDS:
            return f"no token was drawn for {_WEDGED_SECONDS:.0f} s"
        return None

    def submit(self, request: Request) -> None:
        """As `Engine.submit`."""
        request.require_room(self.context)
        self._let_in(request)

    def _count_in(self, asked: Request) -> None:
        if len(self._texts) + self._waiting >= self._most + self._queue_length:
            raise Full
        self._waiting += 1

    def _made(self) -> Any:
        """The scheduler of transformers, with our way to draw."""
        pages = self._most * math.ceil(self._context / _PAGE_TOKENS) + self._most
        manager = self._model.init_continuous_batching(
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=self._context
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=_PAGE_TOKENS,
                num_blocks=pages,
                max_batch_tokens=_READING_TOKENS + self._most,
                max_requests_per_batch=self._most,
                use_async_batching=False,
            ),
        )
        processors = manager.logit_processor
        drawing = _Drawing(self)
        processors.logits_processor.append(drawing)
        processors.tensors_required, processors.do_processing = 1, True
        processors.supported_keys = drawing.supported_kwargs
        return manager

    # This thread ---------------------------------------------------------------------------------------------

    def _round(self) -> None:
        if self._manager is None:  # it broke, and begins again
            self._manager = self._made()
            self._manager.start()
        for request in self._arrived(wait=not self._texts):
            self._begin_text(request)
        now = time.monotonic()
        for text in list(self._texts.values()):
            if text.request.cancelled:
                self._end(text, "cancelled")
            elif text.request.deadline is not None and now > text.request.deadline:
                self._end(text, "timeout")
        if not self._texts:
            return
        if not self._manager.is_running():
            raise RuntimeError("transformers' thread has ended")
        output = self._manager.get_result(timeout=_LOOK_SECONDS)
        if output is not None and output.error is not None and output.request_id in self._texts:
            self._end(self._texts[output.request_id], "error", output.error)

    def _begin_text(self, request: Request) -> None:
        name = f"text-{next(self._names)}"
        text = _Text(name, request, Teller(request, self._tokenizer, self._ends), Dice(request.sampling.seed))
        with self._lock:
            self._waiting -= 1
            if not self._texts:
                self._drawn = time.monotonic()
            self._texts[name] = text
        room = self._context - len(request.prompt)
        self._manager.add_request(request.prompt, name, max_new_tokens=room + 1, text=text)

    def _farewell(self, problem: str | None) -> None:
        reason: Reason = "cancelled" if problem is None else "error"
        for text in list(self._texts.values()):
            self._end(text, reason, problem)
        for request in self._arrived(wait=False):
            with self._lock:
                self._waiting -= 1
            request.deliver(End(reason, len(request.prompt), 0, 0, problem))
        self._leave_manager()

    def _leave_manager(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.stop(block=True, timeout=_WEDGED_SECONDS, hard_stop=True)

    def _end(self, text: _Text, reason: Reason, problem: str | None = None) -> None:
        with self._telling:
            if text.over:
                return
            text.over = True
            if self._manager is not None:
                self._manager.cancel_request(text.name)
            text.teller.end(reason, problem=problem)
        with self._lock:
            self._texts.pop(text.name, None)

    def _stop(self) -> None:
        if self._thread.is_alive():
            self.close()
        else:
            self._leave_manager()

    # The thread of transformers ------------------------------------------------------------------------------

    def draw_for(self, texts: list[_Text], logits: Tensor) -> list[int]:
        """A token for each of `texts` by `logits` fp32 [n, V], which is told."""
        self._drawn = time.monotonic()
        with self._telling:
            alive = [(row, text) for row, text in enumerate(texts) if not text.over]
            found = [0] * len(texts)
            if not alive:
                return found
            rows = logits[[row for row, _ in alive]]
            permitted = rule_out(rows, [text.request.grammar for _, text in alive])
            tokens = draw(permitted, [t.request.sampling for _, t in alive], [t.dice for _, t in alive])
            for place, ((row, text), token) in enumerate(zip(alive, tokens, strict=True)):
                told = text.request.sampling.logprobs
                likely = () if told is None else likeliest(rows[place], token, told)
                reason = text.teller.say(token, likely)
                if reason is None and len(text.request.prompt) + text.teller.written >= self._context:
                    reason = "length"
                if reason is not None:
                    self._end(text, reason)
                found[row] = token
        return found


class _Drawing(ContinuousBatchingLogitsProcessor):
    """Between the logits of transformers and its choice of the likeliest."""

    def __init__(self, engine: PagedEngine) -> None:
        self.supported_kwargs = {"text": _Text}
        self.ignored_kwargs = ()
        self._engine = engine
        self._texts: list[_Text] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Any) -> Tensor:
        self._texts = [one.state.logit_processor_kwargs["text"] for one in requests_with_new_token]
        return torch.zeros(len(self._texts), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        count = len(self._texts)  # rows behind are filling
        tokens = self._engine.draw_for(self._texts, scores[:count])
        chosen = torch.zeros_like(scores)
        chosen[torch.arange(count), torch.tensor(tokens, device=scores.device)] = 1.0
        return chosen
