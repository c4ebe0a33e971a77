"""Personal data in texts: found by patterns as spans, and replaced by their kinds."""

from tutti.redact.patterns import KINDS, Patterns
from tutti.redact.spans import Redactor, Span, Together, mask

__all__ = ["KINDS", "Patterns", "Redactor", "Span", "Together", "mask"]
