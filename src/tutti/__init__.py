"""Tutti: all your machines, one model.

    import tutti
    report = tutti.train(tutti.load_config("demo.yaml"))

The public API; `tutti.cli` calls nothing else. Names are imported when they are first used, because torch takes
seconds and `tutti --help` should not.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tutti.api import (
        chaos,
        chaos_report,
        combine,
        compare_runs,
        compress,
        dashboard,
        doctor,
        evaluate,
        explain,
        export,
        generate,
        join,
        label,
        list_runs,
        predict,
        prepare,
        profile,
        show_run,
        train,
        try_alerts,
        tune,
        watch_alerts,
    )
    from tutti.config import Config, load_config
    from tutti.core.errors import TuttiError
    from tutti.fitting import FitResult, fit
    from tutti.search.rate import find_rate
    from tutti.serving import deploy, promote, releases, rollback, serve

_WHERE = {
    "Config": "tutti.config",
    "FitResult": "tutti.fitting",
    "TuttiError": "tutti.core.errors",
    "chaos": "tutti.disturbing",
    "chaos_report": "tutti.disturbing",
    "combine": "tutti.api",
    "compare_runs": "tutti.api",
    "compress": "tutti.api",
    "dashboard": "tutti.observe.dashboard.show",
    "deploy": "tutti.serving",
    "doctor": "tutti.api",
    "evaluate": "tutti.api",
    "explain": "tutti.api",
    "export": "tutti.api",
    "find_rate": "tutti.search.rate",
    "fit": "tutti.fitting",
    "generate": "tutti.api",
    "join": "tutti.api",
    "list_runs": "tutti.api",
    "load_config": "tutti.config",
    "label": "tutti.api",
    "predict": "tutti.api",
    "prepare": "tutti.api",
    "profile": "tutti.api",
    "promote": "tutti.serving",
    "releases": "tutti.serving",
    "rollback": "tutti.serving",
    "serve": "tutti.serving",
    "show_run": "tutti.api",
    "train": "tutti.api",
    "try_alerts": "tutti.alerting",
    "tune": "tutti.api",
    "watch_alerts": "tutti.alerting",
}

__all__ = [
    "Config",
    "FitResult",
    "TuttiError",
    "chaos",
    "chaos_report",
    "combine",
    "compare_runs",
    "compress",
    "dashboard",
    "deploy",
    "doctor",
    "evaluate",
    "explain",
    "export",
    "find_rate",
    "fit",
    "generate",
    "join",
    "label",
    "list_runs",
    "load_config",
    "predict",
    "prepare",
    "profile",
    "promote",
    "releases",
    "rollback",
    "serve",
    "show_run",
    "train",
    "try_alerts",
    "tune",
    "watch_alerts",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tutti' has no attribute {name!r}")
    found = getattr(importlib.import_module(_WHERE[name]), name)
    # Importing a room binds its name here: `train` and `evaluate` must go on to mean the functions.
    for shadowed in ("train", "evaluate", "compress", "serve", "explain"):
        if isinstance(globals().get(shadowed), ModuleType):
            globals()[shadowed] = getattr(importlib.import_module(_WHERE[shadowed]), shadowed)
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
