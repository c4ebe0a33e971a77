"""What is to be broken, when, and whose: a line of text for each kind of trouble, and a seed.

    --kill 30s@2                  at 30 s, replica 2
    --kill every:60s              once a minute on average, a replica that the seed chooses
    --stop 20s+5s@1               at 20 s, for 5 s
    --slow every:2m+30s:50%@0     every two minutes on average, for 30 s, at half speed
    --cut 40s+10s@2               at 40 s, for 10 s

Times count from the run's first finished step. `every` draws exponential gaps (a Poisson process), so that trouble
comes as machines fail: independently of what came before. All draws follow from the seed and from the line alone; what
the run does changes nothing in them.
"""

from __future__ import annotations

import heapq
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tutti.core.errors import ConfigError

#: What can be done to a replica: its processes end, stand still, run at a fraction of the time, or reach nobody.
KINDS = ("kill", "stop", "slow", "cut")

_TIME = r"\d+(?:\.\d+)?(?:ms|s|m|h)"
_LINE = re.compile(
    rf"(?P<every>every:)?(?P<at>{_TIME})(?:\+(?P<seconds>{_TIME}))?(?::(?P<percent>\d+(?:\.\d+)?)%)?(?:@(?P<replica>\d+))?"
)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_FORMS = {
    "kill": "WHEN[@REPLICA], for example 30s@2 or every:60s",
    "stop": "WHEN+LENGTH[@REPLICA], for example 20s+5s@1 or every:60s+5s",
    "slow": "WHEN+LENGTH:SPEED%[@REPLICA], for example 10s+30s:50%@0",
    "cut": "WHEN+LENGTH[@REPLICA], for example 40s+10s@2",
}


@dataclass(frozen=True)
class Line:
    """One kind of trouble: at `at` seconds, or every `at` seconds on average; `replica` None: the seed chooses.

    `seconds`: how long (0 for a kill); `speed`: the fraction of time that a slowed replica runs.
    """

    kind: str
    text: str
    at: float
    repeats: bool
    seconds: float
    speed: float
    replica: int | None


@dataclass(frozen=True)
class Disturbance:
    """What happens `at` seconds after the first finished step, to whom, and for how long."""

    at: float
    kind: str
    replica: int
    seconds: float = 0.0
    speed: float = 1.0


def read_line(kind: str, text: str) -> Line:
    """What `text` says about `kind`.

    Raises:
        ConfigError: it cannot be understood.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no disturbance '{kind}'", f"there are: {', '.join(KINDS)}")
    found = _LINE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"--{kind} {text!r} cannot be understood",
            f"write {_FORMS[kind]}; times are 500ms, 30s, 1.5m or 2h, and never below 0",
        )
    at = _seconds(found["at"])
    seconds = None if found["seconds"] is None else _seconds(found["seconds"])
    percent = None if found["percent"] is None else float(found["percent"])
    problem = _problem(kind, bool(found["every"]), at, seconds, percent)
    if problem:
        raise ConfigError(f"--{kind} {text}: {problem}", f"write {_FORMS[kind]}")
    return Line(
        kind=kind,
        text=text.strip(),
        at=at,
        repeats=found["every"] is not None,
        seconds=seconds or 0.0,
        speed=1.0 if percent is None else percent / 100,
        replica=None if found["replica"] is None else int(found["replica"]),
    )


def _problem(kind: str, repeats: bool, at: float, seconds: float | None, percent: float | None) -> str:
    if repeats and at == 0:
        return "every 0 s would be without end"
    if kind == "kill" and seconds is not None:
        return "a kill has no length; its replica is started again at once"
    if kind != "kill" and not seconds:
        return f"a {kind} needs a length above 0"
    if kind == "slow" and (percent is None or not 1 <= percent <= 99):
        return "a slow-down needs a speed between 1% and 99%"
    if kind != "slow" and percent is not None:
        return "only --slow has a speed"
    return ""


def _seconds(text: str) -> float:
    unit = re.sub(r"[\d.]", "", text)
    return float(text.removesuffix(unit)) * _UNITS[unit]


def read_schedule(schedule: Mapping[str, Sequence[str]]) -> list[Line]:
    """Lines by kind, as the command line or a file gives them.

    Raises:
        ConfigError: a line cannot be understood, or there is none.
    """
    lines = [read_line(kind, text) for kind, texts in schedule.items() for text in texts]
    if not lines:
        raise ConfigError(
            "nothing is to be disturbed", f"give at least one --kill {_FORMS['kill']}, or another kind"
        )
    return lines


def load_schedule(path: Path) -> dict[str, list[str]]:
    """The YAML file at `path`: for each kind a line or a list of lines.

    Raises:
        ConfigError: it cannot be read, or says something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"the schedule {path} cannot be read: {error}", "check the path and the YAML"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"the schedule {path} holds no mapping",
            "write for example `kill: every:60s` and `stop: [20s+5s@1]`",
        )
    lines: dict[str, list[str]] = {}
    for kind, texts in content.items():
        listed = texts if isinstance(texts, list) else [texts]
        if kind not in KINDS or not all(isinstance(text, str) for text in listed):
            raise ConfigError(
                f"the schedule {path} says {kind!r}: {texts!r}",
                f"keys are {', '.join(KINDS)}; each has a line such as '30s@2', or a list of lines",
            )
        lines[kind] = listed
    return lines


def draw(lines: Sequence[Line], seed: int, replicas: int) -> Iterator[Disturbance]:
    """Everything that will happen, ordered by time; without end if a line repeats."""
    seen: dict[tuple[str, str], int] = {}
    streams = []
    for line in lines:
        number = seen[line.kind, line.text] = seen.get((line.kind, line.text), -1) + 1
        dice = random.Random(f"{seed} {line.kind} {line.text} {number}")
        streams.append(_occurrences(line, dice, replicas))
    return heapq.merge(*streams, key=lambda disturbance: disturbance.at)


def _occurrences(line: Line, dice: random.Random, replicas: int) -> Iterable[Disturbance]:
    at = 0.0
    while True:
        at += dice.expovariate(1 / line.at) if line.repeats else line.at
        replica = dice.randrange(replicas) if line.replica is None else line.replica
        yield Disturbance(at, line.kind, replica, line.seconds, line.speed)
        if not line.repeats:
            return
