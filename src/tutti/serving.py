"""A model in production: served, and its versions released. Needs no torch until something is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutti.config import load_service
from tutti.core.address import is_url
from tutti.core.say import printer
from tutti.serve import EngineChoice, Weights
from tutti.serve import Settings as ServeSettings
from tutti.serve import serve as serve_model
from tutti.serve.release import Registry, listing
from tutti.web.door import Door


def serve(
    model: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    slots: int = 8,
    context: int | None = None,
    queue: int | None = None,
    weights: Weights = "auto",
    engine: EngineChoice = "auto",
    documents: Path | None = None,
    embedder: Path | None = None,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
    insecure: bool = False,
    page: bool | None = None,
    settings: Path | None = None,
    overrides: Sequence[str] = (),
    processes: str | None = None,
) -> None:
    """Answer programs with the model of a run, of `compress`, or of a Hugging Face directory, or with what `deploy` has
    released to a directory, until told to stop by SIGTERM or Ctrl-C; what was begun is answered first.

    `model`: a URL, too, of a service that speaks as OpenAI's does: it computes, and is guarded here.
    `slots`: texts that are written at the same time; `context`: tokens of a prompt with its answer (None: what the
    model can see, up to 4096). `queue`: requests that may wait beside them (None: 64), or texts of a model that does
    not write (None: 1024). `documents`: a folder from which questions are answered; `embedder`: a model that makes
    vectors, by which it is searched, too. `weights`, `engine`: see `tutti serve --help`. The key
    that clients need is that of the environment's TUTTI_API_KEY, or a new one, which is printed.
    `settings`: a file that says who else may ask, how much, and what is hidden or refused; `overrides`: of it, such as
    `keys=keys.json`. `processes`: so many compute behind a gateway, such as `2`, or `2:6` by load.

    Raises:
        TuttiError: there is no such model, it cannot be served so, or the address cannot be had.
    """
    door = Door(host, port, tls_certificate, tls_key, insecure, page)
    guard = load_service(settings, overrides)
    what = ServeSettings(
        name, slots, context, queue, weights, engine, documents, embedder, guard.limits.texts
    )
    place = model if isinstance(model, str) and is_url(model) else Path(model)
    serve_model(place, door, what, guard, printer(True), processes)


def deploy(
    model: Path, to: Path, *, canary: float | None = None, note: str = "", console: bool = True
) -> dict[str, Any]:
    """Make the model of a run, of `compress`, or of a Hugging Face directory the next version of the releases in `to`,
    for everybody or, as a `canary`, for so many percent of all requests (0: who asks for it by header).

    Raises:
        TuttiError: there is no such model, it cannot be served, or the releases cannot be written.
    """
    from tutti.serve.release.deploying import deploy as release  # and torch with it

    version = release(model, to, canary, note, printer(console))
    return version.model_dump(mode="json") | {"percent": canary, "next": listing(Registry(to))["next"]}


def promote(to: Path, *, note: str = "") -> dict[str, Any]:
    """Let the canary of the releases in `to` answer everybody.

    Raises:
        RunError: there is none.
    """
    registry = Registry(to)
    return {"version": registry.promote(note), "next": listing(registry)["next"]}


def rollback(directory: Path, version: int | None = None, *, note: str = "") -> dict[str, Any]:
    """Take the canary away, or where there is none (or a `version` is named) serve the former one (or that one).

    Raises:
        RunError: there is nothing to go back to, or no such version.
    """
    registry = Registry(directory)
    deed = registry.roll_back(version, why=note)
    assert deed is not None
    found = listing(registry)
    return {"version": deed.version, "serving": found["serving"], "next": found["next"]}


def releases(directory: Path) -> dict[str, Any]:
    """Every version of the releases in `directory`, with its standing, and what was done.

    Raises:
        RunError: there are none, or they cannot be read.
    """
    return listing(Registry(directory))
