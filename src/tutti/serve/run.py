"""`tutti serve`: which of three it is to be: one process, a gateway with workers, a guard of what is elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tutti.config import ServiceConfig
from tutti.core.errors import ConfigError
from tutti.serve.release import is_registry
from tutti.serve.settings import Settings
from tutti.web.door import Door


def serve(
    place: Path | str,
    door: Door,
    settings: Settings,
    rules: ServiceConfig,
    say: Callable[[str], None],
    processes: str | None = None,
) -> None:
    """Serve the model of `place`, or what is released there, until told to stop (SIGTERM, Ctrl-C), then answer what was
    begun; a text is the URL of a service elsewhere, which is guarded. `processes`: that compute behind a gateway, such
    as `2` or `2:6` (None: of a model none but this one).

    Raises:
        TuttiError: there is no such model, it cannot be served, or the door cannot be opened.
    """
    try:
        from tutti.serve.gateway.run import serve_elsewhere, serve_gateway
        from tutti.serve.gateway.scale import Bounds
    except ImportError as error:
        raise ConfigError(
            f"`tutti serve` needs the package {error.name}", "install it: pip install 'tutti[serve]'"
        ) from error
    if isinstance(place, str):
        if processes is not None or settings != Settings(most_texts=settings.most_texts):
            raise ConfigError(
                f"{place} computes elsewhere: what a model is computed with cannot be chosen here",
                "leave out --processes, --name and what belongs to the model and its engine",
            )
        if door.with_page:
            raise ConfigError(
                f"{place} computes elsewhere, and does not say what could be tried with it",
                "leave out --page",
            )
        serve_elsewhere(place, door, rules, say)
        return
    if processes is not None or is_registry(place):
        serve_gateway(place, door, settings, rules, Bounds.read(processes or "1"), say)
        return
    from tutti.serve.alone import serve_model  # and torch with it, which a gateway does without

    serve_model(Path(place), door, settings, rules, say)
