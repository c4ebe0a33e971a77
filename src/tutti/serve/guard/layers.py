"""All layers, one around the other."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.registry import Collector
from starlette.types import ASGIApp

from tutti.config.service import FilterConfig, RedactConfig, ServiceConfig
from tutti.serve.guard.audit import Audit
from tutti.serve.guard.bounds import Bounds
from tutti.serve.guard.exchange import Exchange
from tutti.serve.guard.harm import Classifier, Function, Words
from tutti.serve.guard.keyring import Keyring, OneKey
from tutti.serve.guard.keys import Keys, Ring
from tutti.serve.guard.metrics import Metrics, Vitals
from tutti.serve.guard.passing import Passing, Rules
from tutti.serve.guard.recorded import Recorded
from tutti.serve.guard.redact import BySentence, Patterns, Presidio, Redactor, Tagger, Together
from tutti.serve.guard.texts import Judge, Way
from tutti.serve.guard.traces import Traces


class Guard:
    """All that `settings` say, ready. `key`: the only one, where they name no file of keys.

    Raises:
        TuttiError: something that they name is not there, or cannot be used.
    """

    def __init__(self, key: str, settings: ServiceConfig | None = None) -> None:
        self._settings = settings = settings or ServiceConfig()
        #: Of the application that it is around.
        self.metrics: Metrics | None = None
        self._ring: Ring = OneKey(key)
        if settings.keys is not None:
            self._ring = ring = Keyring(Path(settings.keys))
            ring.check()
        self._audit = Audit(settings.audit) if settings.audit.file is not None else None
        self._traces = Traces.where_wanted()
        (asked, answered), judges = _redactors(settings.redact), _judges(settings.filter)
        self._rules = Rules(
            inward=Way(asked if settings.redact.inputs else None, judges if settings.filter.inputs else ()),
            outward=Way(
                answered if settings.redact.outputs else None, judges if settings.filter.outputs else ()
            ),
            written_down=asked if settings.audit.log_prompts else None,
            new_tokens=settings.limits.new_tokens,
            texts=settings.limits.texts,
        )

    def around(self, app: ASGIApp, vitals: Vitals | None = None, more: Collector | None = None) -> ASGIApp:
        """`app` behind all layers. `vitals`: of what computes, for the metrics; `more`: that are told beside."""
        metrics = self.metrics = Metrics(vitals, more)

        def notice(exchange: Exchange) -> None:
            metrics.notice(exchange)
            if self._audit is not None:
                self._audit.notice(exchange)
            if self._traces is not None:
                self._traces.notice(exchange)

        bounds = Bounds(Passing(metrics.beside(app), self._rules), self._settings.limits)
        return Recorded(Keys(bounds, self._ring), notice)


def _redactors(settings: RedactConfig) -> tuple[Redactor, Redactor]:
    """Of what is asked, which is there as a whole, and of what is answered, which comes bit by bit."""
    models: list[Redactor] = []
    if settings.model is not None:
        models.append(Tagger(Path(settings.model), settings.labels))
    if settings.presidio:
        models.append(Presidio())
    patterns = Patterns()
    if not models:
        return patterns, patterns
    return Together([patterns, *models]), Together([patterns, *map(BySentence, models)])


def _judges(settings: FilterConfig) -> tuple[Judge, ...]:
    if not (settings.inputs or settings.outputs):
        return ()
    found: list[Judge] = [Words()] if settings.words else []
    if settings.model is not None:
        found.append(Classifier(Path(settings.model), settings.labels, settings.chance))
    if settings.function is not None:
        found.append(Function(settings.function))
    return tuple(found)
