"""`tutti alerts`: whether alerts arrive, and a process that looks after runs and services from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tutti.config import AlertsConfig, ServiceAlertsConfig, load_config, load_service
from tutti.core.errors import ConfigError
from tutti.core.rundir import RunDirectory
from tutti.launch.signals import stop_requests
from tutti.observe.alerts import (
    RunRules,
    Sender,
    ServiceRules,
    Watch,
    WatchedRun,
    WatchedService,
    receivers_of,
    send_trial,
)
from tutti.observe.alerts.watch import Watched
from tutti.observe.dashboard.keys import key_in, memory, with_keys
from tutti.observe.dashboard.service import ServicePage


def try_alerts(file: Path, *, service: bool = False) -> dict[str, str | None]:
    """Send a trial to every receiver of `file`, a configuration, or settings of a `service`. By receiver, why it did
    not take it, or None.

    Raises:
        ConfigError: the file is wrong, or names nobody.
    """
    alerts = load_service(file).alerts if service else load_config(file).alerts
    return send_trial(receivers_of(_told(alerts, str(file))), file.stem)


def watch_alerts(
    runs: Sequence[Path] = (),
    *,
    config: Path | None = None,
    services: Sequence[str] = (),
    settings: Path | None = None,
    key_variables: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Look after `runs` and `services` (addresses) until told to stop by SIGTERM or Ctrl-C, and tell whom their
    configurations name (or `config` for the runs, `settings` for the services) what is wrong. `key_variables`: as for
    `dashboard`.

    Raises:
        TuttiError: there is no such run, or nobody to tell.
    """
    if not runs and not services:
        raise ConfigError("there is nothing to look after", "name runs, or --service URL")
    watches: list[Watch] = []
    for run in runs:
        RunDirectory(run).require()
        alerts = load_config(config or RunDirectory(run).config).alerts
        section = _told(alerts, str(config or RunDirectory(run).config))
        groups = RunDirectory(run).groups
        for place in sorted(groups.iterdir()) if groups.is_dir() else [run]:
            watched = WatchedRun(place, RunRules.of(section), alerts.repeat_minutes * 60.0)
            watches.append(_watch(watched, section, say))
    pages = []
    if services:
        if settings is None:
            raise ConfigError("nobody is to be told of the services", "give --settings FILE with `alerts`")
        wanted = load_service(settings).alerts
        section = _told(wanted, str(settings))
        for url, variable in with_keys(services, key_variables):
            page = ServicePage(url, key_in(variable), memory() / "alerts").start()
            pages.append(page)
            rules, repeat = ServiceRules.of(section), wanted.repeat_minutes * 60.0
            watches.append(_watch(WatchedService(page.name, page.recent, rules, repeat), section, say))
    names = [*(run.name for run in runs), *(page.name for page in pages)]
    say(f"looking after {', '.join(names)}; Ctrl-C ends it")
    ended = threading.Event()
    try:
        with stop_requests(ended.set):
            for watch in watches:
                watch.start()
            ended.wait()
    finally:
        for page in pages:
            page.stop()
        for watch in watches:
            watch.stop()


def _watch(watched: Watched, section: dict[str, Any], say: Callable[[str], None]) -> Watch:
    return Watch([watched], Sender(receivers_of(section), say), say, tell=lambda alert: say(alert.line))


def _told(alerts: AlertsConfig | ServiceAlertsConfig, where: str) -> dict[str, Any]:
    """The section, in which somebody is to be told."""
    if not alerts.has_receivers:
        raise ConfigError(
            f"{where} names nobody to tell",
            "set alerts.webhook, alerts.email_to with alerts.smtp, or alerts.command",
        )
    return alerts.model_dump()
