"""Personal data in texts: found as spans, and replaced by their kinds, also in texts that come piece by piece."""

from tutti.serve.guard.redact.model import Tagger
from tutti.serve.guard.redact.patterns import Patterns
from tutti.serve.guard.redact.presidio import Presidio
from tutti.serve.guard.redact.spans import Redactor, Span, Together, mask

__all__ = ["Patterns", "Presidio", "Redactor", "Span", "Tagger", "Together", "mask"]
