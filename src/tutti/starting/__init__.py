"""From a configuration to a run that may start: its text, a value for every `auto`, and every refusal that can come
before a worker starts."""

from tutti.starting.preparing import prepare
from tutti.starting.resuming import check_run, text_has_changed
from tutti.starting.start import start_run

__all__ = ["check_run", "prepare", "start_run", "text_has_changed"]
