"""What the service says about itself: redacted, since an error may hold what somebody asked."""

from __future__ import annotations

import logging
from collections import Counter

from tutti.serve.guard.redact import Patterns, mask


class Redacted(logging.Formatter):
    """What `inner` makes of a record, its traceback among it, without personal data."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self._inner, self._patterns = inner or logging.Formatter(), Patterns()

    def format(self, record: logging.LogRecord) -> str:
        return mask(self._inner.format(record), self._patterns, Counter())


def redact_logs(logger: logging.Logger) -> None:
    """Have all that `logger` writes redacted."""
    for handler in logger.handlers:
        handler.setFormatter(Redacted(handler.formatter))
