"""Personal data in texts: found as spans, and replaced by their kinds, also in texts that come piece by piece."""

from tutti.serve.guard.redact.patterns import Patterns
from tutti.serve.guard.redact.spans import Redactor, Span, Together, mask
from tutti.serve.guard.redact.stream import Stream

__all__ = ["Patterns", "Redactor", "Span", "Stream", "Together", "mask"]
