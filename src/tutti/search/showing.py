"""What is said of a short run while it goes on, in one line now and then."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tutti.core.say import Say
from tutti.observe.tail import Tail, number

_EVERY_SECONDS = 0.5
#: Of all steps, between two lines.
_SHARE = 1 / 8


@contextmanager
def shown(run: Path, steps: int, say: Say) -> Iterator[None]:
    """Meanwhile the steps of the run at `run`, `steps` in all, are told as they come, with their rate and loss."""
    over = threading.Event()

    def watch() -> None:
        tail, told = Tail(run), 0
        while not over.wait(_EVERY_SECONDS):
            made = [event for event in tail.poll() if event["kind"] == "step" and number(event.get("loss"))]
            if made and (step := int(made[-1]["step"])) >= told + steps * _SHARE:
                told = step
                rate, loss = number(made[-1].get("learning_rate")), number(made[-1]["loss"])
                say(f"step {step}/{steps} · learning rate {rate:.1e} · loss {loss:.3f}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
