"""Alerts on their way, in a thread of their own: who waits for a receiver is nobody but this thread."""

from __future__ import annotations

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
    """Delivers to `receivers`, one alert after the other. `warn` gets a sentence when a receiver fails, and is not told
    again before it has taken one."""

    def __init__(
        self,
        receivers: Sequence[Receiver],
        warn: Callable[[str], None],
        again_seconds: Sequence[float] = _AGAIN_SECONDS,
    ) -> None:
        self._receivers, self._warn, self._again = receivers, warn, again_seconds
        self._waiting: queue.Queue[Alert | None] = queue.Queue(_MOST_WAITING)
        self._failing: set[int] = set()  # their numbers
        self._ending = threading.Event()
        #: Alerts that a receiver never got.
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)
        self._thread.start()

    def send(self, alert: Alert) -> None:
        """Have it delivered; returns at once."""
        try:
            self._waiting.put_nowait(alert)
        except queue.Full:
            self.lost += len(self._receivers)

    def stop(self, timeout_seconds: float = 15.0) -> None:
        """Deliver what waits, without trying again, but wait no longer than so for it."""
        self._ending.set()
        try:
            self._waiting.put(None, timeout=1.0)
        except queue.Full:
            return
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while (alert := self._waiting.get()) is not None:
            for number in range(len(self._receivers)):
                self._deliver(number, alert)

    def _deliver(self, number: int, alert: Alert) -> None:
        for pause in (*self._again, None):
            try:
                self._receivers[number].send(alert)
            except Exception as error:  # whatever a receiver does is no business of the run
                problem = f"{error}"
            else:
                self._failing.discard(number)
                return
            if pause is None or self._ending.wait(pause):
                break
        self.lost += 1
        if number not in self._failing:
            self._failing.add(number)
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
