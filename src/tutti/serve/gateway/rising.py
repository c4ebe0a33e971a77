"""A version on its way to its first request: its workers start, and one of them is asked the probe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tutti.core.errors import TuttiError
from tutti.serve.gateway.pool import Pool
from tutti.serve.gateway.probe import Probed, Question, ask_probe


class Rising:
    """`questions`: of the probe; none: there is none."""

    def __init__(self, pool: Pool, questions: Sequence[Question], say: Callable[[str], None]) -> None:
        self.pool, self._questions, self._say = pool, questions, say
        #: How it answered.
        self.probed: Probed | None = None
        self._probing: asyncio.Task[str | None] | None = None
        self._is_up = False
        self._why: str | None = None

    @property
    def failure(self) -> str | None:
        """Why nobody shall be answered by it; None: so far, nothing speaks against it."""
        if self.pool.failure is not None:
            return f"it cannot be started: {self.pool.failure}"
        if self.pool.keeps_dying is not None:
            return f"its workers keep dying: {self.pool.keeps_dying}"
        return self._why

    def is_up(self, before: Probed | None, margin: float) -> bool:
        """Whether it is ready; once it was, it is. `before`: how the version that serves now answered the probe; a
        share of right answers that is smaller by more than `margin` is a failure."""
        if not self._is_up and self.pool.is_full:
            if self._probing is None:
                self._probing = asyncio.create_task(self._probe(before, margin))
            if self._probing.done():
                self._why = self._probing.result()
                self._is_up = self._why is None
        return self._is_up

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        if self._probing is not None:
            self._probing.cancel()

    async def _probe(self, before: Probed | None, margin: float) -> str | None:
        """Why its answers are not good enough; None: they are."""
        if not self._questions:
            return None
        worker = self.pool.pick()
        if worker is None:
            return "its worker died before it could be asked the probe"
        try:
            self.probed = await ask_probe(worker, self._questions)
        except TuttiError as error:
            return str(error)
        except Exception as error:  # it died meanwhile
            return f"it could not be asked the probe: {type(error).__name__}: {error}"
        self._say(f"version {self.pool.version}, probe: {self.probed}")
        if before is None or self.probed.share >= before.share - margin:
            return None
        return f"quality: {self.probed} of the probe, and {before} before"
