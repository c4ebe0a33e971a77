"""Results one by one on disk: a benchmark of many hours that is interrupted goes on where it was."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.network.arms import Arm
from benchmarks.network.setting import Setting

#: What was found, as JSON has it.
Result = dict[str, Any]


class Store:
    """Of one setting, below `directory`. A result is found again while the setting and its arm are what they were."""

    def __init__(self, directory: Path, setting: Setting) -> None:
        self._directory = directory
        self._setting = setting

    def get(self, kind: str, arm: Arm, *numbers: float) -> Result | None:
        """What was found for `arm` at `numbers` (a learning rate, a rate); None: nothing yet."""
        path = self._path(kind, arm, numbers)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def put(self, kind: str, arm: Arm, *numbers: float, result: Result) -> None:
        """Keep it."""
        path = self._path(kind, arm, numbers)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        beside.rename(path)

    def _path(self, kind: str, arm: Arm, numbers: tuple[float, ...]) -> Path:
        setting = self._setting
        decides: list[Any] = [arm.sync, arm.peer, kind]
        if kind not in ("convergence", "longer"):
            decides += [setting.compute_seconds, setting.optimizer_seconds, setting.timed_steps]
        slug = "-".join(
            [re.sub(r"[^a-z0-9]+", "_", arm.name.lower()), *(f"{number:g}" for number in numbers)]
        )
        return self._directory / kind / f"{slug}-{setting.digest(*decides)}.json"
