"""Alerts on their way, in threads of their own: who waits for a receiver is nobody but its thread."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence

from tutti.observe.alerts.findings import Alert
from tutti.observe.alerts.receivers import Receiver

#: Seconds after which what could not be delivered is tried again.
_AGAIN_SECONDS = (2.0, 10.0)
_MOST_WAITING = 100


class Sender:
    """Delivers to `receivers`, to each one alert after the other, in a thread of its own. `warn`
    gets a sentence when a receiver fails, and is not told again before it has taken one."""

    def __init__(
        self,
        receivers: Sequence[Receiver],
        warn: Callable[[str], None],
        again_seconds: Sequence[float] = _AGAIN_SECONDS,
    ) -> None:
        self._ending = threading.Event()
        self._lines = [_Line(receiver, warn, again_seconds, self._ending) for receiver in receivers]

    @property
    def lost(self) -> int:
        """Alerts that a receiver never got."""
        return sum(line.lost for line in self._lines)

    def send(self, alert: Alert) -> None:
        """Have it delivered; returns at once."""
        for line in self._lines:
            line.send(alert)

    def stop(self, timeout_seconds: float = 15.0) -> None:
        """Deliver what waits, without trying again, but wait no longer than so for it."""
        self._ending.set()
        until = time.monotonic() + timeout_seconds
        for line in self._lines:
            line.close()
        for line in self._lines:
            line.join(max(0.0, until - time.monotonic()))


class _Line:
    """What waits for one receiver."""

    def __init__(
        self,
        receiver: Receiver,
        warn: Callable[[str], None],
        again_seconds: Sequence[float],
        ending: threading.Event,
    ) -> None:
        self._receiver, self._warn, self._again, self._ending = receiver, warn, again_seconds, ending
        self._waiting: queue.Queue[Alert | None] = queue.Queue(_MOST_WAITING)
        self._failing = False
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name=f"alerts to {receiver.name}", daemon=True)
        self._thread.start()

    def send(self, alert: Alert) -> None:
        try:
            self._waiting.put_nowait(alert)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Nothing comes any more."""
        with contextlib.suppress(queue.Full):  # then it is the process that ends it
            self._waiting.put_nowait(None)

    def join(self, timeout_seconds: float) -> None:
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while (alert := self._waiting.get()) is not None:
            self._deliver(alert)

    def _deliver(self, alert: Alert) -> None:
        for pause in (*self._again, None):
            try:
                self._receiver.send(alert)
            except Exception as error:  # whatever a receiver does is no business of the run
                problem = f"{error}"
            else:
                self._failing = False
                return
            if pause is None or self._ending.wait(pause):
                break
        self.lost += 1
        if not self._failing:
            self._failing = True
            self._warn(f"alerts: {problem}; lost: {alert.line}")


def send_trial(receivers: Sequence[Receiver], subject: str) -> dict[str, str | None]:
    """Tell every receiver that this is a trial; by name, why it did not take it, or None."""
    now = time.time()
    alert = Alert(subject, "trial", "trial", "trial", "this is what an alert looks like", now, now)
    results: dict[str, str | None] = {}
    for receiver in receivers:
        try:
            receiver.send(alert)
            results[receiver.name] = None
        except OSError as error:
            results[receiver.name] = str(error)
    return results
