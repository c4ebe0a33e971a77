"""What a gateway and its worker know of each other; what a worker is told is the first line of its standard input."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutti.serve.release import Version
from tutti.serve.settings import Settings

#: Where the gateway asks how it is; no client comes there.
VITALS = "/vitals"
#: A worker's exit code where the user has to mend something: to start again would be of no use.
HOPELESS = 2


@dataclass(frozen=True)
class Order:
    """`place`: of the model; `version`: what it has to be (None: whatever lies there); `socket`: where to listen."""

    place: Path
    version: Version | None
    settings: Settings
    socket: Path

    def line(self) -> str:
        """For the worker."""
        settings = {
            name: str(one) if isinstance(one, Path) else one for name, one in asdict(self.settings).items()
        }
        version = None if self.version is None else self.version.model_dump(mode="json")
        told = {
            "place": str(self.place),
            "version": version,
            "settings": settings,
            "socket": str(self.socket),
        }
        return json.dumps(told) + "\n"

    @classmethod
    def read(cls, line: str) -> Order:
        """What `line` wrote."""
        told: dict[str, Any] = json.loads(line)
        settings = told["settings"]
        for name in ("documents", "embedder"):
            settings[name] = None if settings[name] is None else Path(settings[name])
        version = told["version"]
        return cls(
            Path(told["place"]),
            None if version is None else Version.model_validate_json(json.dumps(version)),
            Settings(**settings),
            Path(told["socket"]),
        )
