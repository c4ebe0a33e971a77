"""One worker as the gateway has it: started, listened to, ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import psutil

from tutti.serve.gateway.order import HOPELESS, VITALS, Order
from tutti.serve.guard.redact import Patterns, mask

#: How often a worker is asked how it is.
_EVERY_SECONDS = 0.5
#: One that has not said for so long how it is gets no more requests while others do.
_SILENT_SECONDS = 1.5
#: And for so long: it is wedged, and replaced. The same for one that says that its engine does nothing.
_WEDGED_SECONDS, _ILL_SECONDS = 10.0, 2.0
#: One that is loading its model may take as long as it likes while it computes, or reads; one that does neither for so
#: long hangs, and is replaced.
_IDLE_SECONDS, _LOOK_SECONDS = 120.0, 1.0
#: To go when it was told to; then it is killed.
_LEAVING_SECONDS = 10.0
_KEPT_LINES = 30


class Progress:
    """How long somebody has done nothing. `start`: the time when he began."""

    def __init__(self, start: float) -> None:
        self._since = start
        self._done = (-1.0, -1)

    def idle(self, now: float, cpu_seconds: float, bytes_read: int) -> float:
        """Seconds since either of the two, which only grow, last did (processor time by more than a hundredth)."""
        seconds, size = self._done
        if cpu_seconds > seconds + 0.01 or bytes_read > size:
            self._done, self._since = (cpu_seconds, bytes_read), now
        return now - self._since


@dataclass(frozen=True)
class Load:
    """What computes and what waits, as the worker last said."""

    served: int = 0
    waiting: int = 0


class Worker:
    """`name`: in messages. `say`: what is told of it."""

    def __init__(self, name: str, order: Order, threads: int, say: Callable[[str], None]) -> None:
        self.name, self._order, self._threads, self._say = name, order, threads, say
        self.in_flight = 0
        self.load = Load()
        self.ready_since: float | None = None  # by time.monotonic
        self.leaving = False
        #: How it ended; None: it has not.
        self.ended: str | None = None
        #: Whether it would end the same way again.
        self.hopeless = False
        self._doubted = False
        self._heard = self._works = 0.0
        self._problem: str | None = None
        self._stopped: str | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._patterns = Patterns()
        connector = aiohttp.UnixConnector(str(order.socket), limit=0, keepalive_timeout=30)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        self.session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )
        self._process: asyncio.subprocess.Process | None = None
        self._hangs = False
        self._life = asyncio.create_task(self._live())

    @property
    def is_ready(self) -> bool:
        """Whether requests may be sent to it."""
        return self._serves and not self._doubted

    @property
    def _serves(self) -> bool:
        return self.ready_since is not None and self.ended is None and not self.leaving

    @property
    def is_well(self) -> bool:
        """Whether it is ready, and said so a moment ago."""
        return self.is_ready and self._problem is None and time.monotonic() - self._heard < _SILENT_SECONDS

    @property
    def illness(self) -> str | None:
        """Why it has to be replaced; None: it has not."""
        if self._hangs and self.ended is None and not self.leaving:
            return f"it has neither computed nor read for {_IDLE_SECONDS:.0f} s, and is not ready"
        if not self._serves:
            return None
        now = time.monotonic()
        if now - self._heard > _WEDGED_SECONDS:
            return f"it has not answered for {_WEDGED_SECONDS:.0f} s"
        return self._stopped if now - self._works > _ILL_SECONDS else None

    def doubt(self) -> None:
        """It did not answer a request: it gets no more until it says that it can."""
        self._doubted = True

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While a request is with it, it is not ended."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def leave(self, patience_seconds: float) -> None:
        """Take nothing new on, answer what is in flight, and end."""
        self.leaving = True
        if self.ready_since is None:
            await self.kill()
            return
        until = time.monotonic() + patience_seconds
        while self.in_flight and self.ended is None and time.monotonic() < until:
            await asyncio.sleep(0.02)
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVING_SECONDS):
                await asyncio.shield(self._life)
        await self.kill()

    async def kill(self) -> None:
        """End it now; who waits for it sees the connection break."""
        self.leaving = True
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        if self._process is None:
            self._life.cancel()
        with suppress(asyncio.CancelledError):
            await self._life
        await self.session.close()

    # Its life ------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        surroundings = os.environ | {"PYTHONUNBUFFERED": "1"}
        surroundings.setdefault("OMP_NUM_THREADS", str(self._threads))
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tutti.serve.gateway.work",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=surroundings,
                start_new_session=True,  # Ctrl-C is for the gateway
            )
        except OSError as error:  # no process, memory or descriptor is left: it is tried again
            self.ended = f"it could not be started: {error}"
            return
        assert process.stdin is not None
        process.stdin.write(self._order.line().encode())
        listening = asyncio.create_task(self._listen(process))
        asking, watching = asyncio.create_task(self._ask()), asyncio.create_task(self._watch(process.pid))
        try:
            code = await process.wait()
        finally:
            asking.cancel()
            watching.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await listening
        listening.cancel()
        self.hopeless = code == HOPELESS
        self.ended = self._how_it_ended(code)
        with suppress(OSError):
            self._order.socket.unlink(missing_ok=True)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while not process.stdout.at_eof():
            try:
                line = await process.stdout.readline()
            except ValueError:  # too long to be of any use
                continue
            text = mask(line.decode("utf-8", "replace").rstrip(), self._patterns, Counter())
            if text:
                self._lines.append(text)
                self._say(f"[{self.name}] {text}")

    async def _ask(self) -> None:
        while True:
            with suppress(aiohttp.ClientError, OSError, ValueError, TimeoutError):
                async with asyncio.timeout(_WEDGED_SECONDS):
                    self._note(await self.vitals())
            await asyncio.sleep(_EVERY_SECONDS if self.ready_since is not None else 0.1)

    async def _watch(self, pid: int) -> None:
        """Until it is ready: see whether it gets on."""
        progress = Progress(time.monotonic())
        with suppress(psutil.Error):  # it has ended: somebody waits for that
            process = psutil.Process(pid)
            while self.ready_since is None:
                times = process.cpu_times()
                idle = progress.idle(time.monotonic(), times.user + times.system, _bytes_read(process))
                self._hangs = idle > _IDLE_SECONDS
                await asyncio.sleep(_LOOK_SECONDS)
            self._hangs = False

    async def vitals(self) -> dict[str, Any]:
        """What it says of itself. Raises aiohttp.ClientError."""
        async with self.session.get(f"http://worker{VITALS}") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    def _note(self, vitals: dict[str, Any]) -> None:
        now = time.monotonic()
        self._heard, self._problem, self._stopped = now, vitals["problem"], vitals["stopped"]
        self.load = Load(vitals["served"], vitals["waiting"])
        if self._stopped is None:
            self._works, self._doubted = now, False
            self.ready_since = self.ready_since or now

    def _how_it_ended(self, code: int) -> str:
        if self.hopeless:
            said = [line for line in self._lines if line.startswith("error: ")]
            told = list(self._lines)[self._lines.index(said[-1]) :] if said else list(self._lines)[-1:]
            return " ".join(part.strip() for part in told).removeprefix("error: ")
        if code < 0:
            with suppress(ValueError):
                return f"it was ended by {signal.Signals(-code).name}"
        last = self._lines[-1] if self._lines else "it said nothing"
        return f"it ended with exit code {code}: {last}"


def _bytes_read(process: psutil.Process) -> int:
    """From whatever storage, where the system tells."""
    try:
        return int(process.io_counters().read_chars)  # type: ignore[attr-defined,unused-ignore]
    except (AttributeError, psutil.AccessDenied, NotImplementedError):
        return 0
