"""What hides personal data in what a service is asked and says: patterns, a model, Presidio."""

from tutti.redact import Patterns, Redactor, Span, Together, mask
from tutti.serve.guard.redact.model import Tagger
from tutti.serve.guard.redact.presidio import Presidio
from tutti.serve.guard.redact.sentences import BySentence

__all__ = ["BySentence", "Patterns", "Presidio", "Redactor", "Span", "Tagger", "Together", "mask"]
