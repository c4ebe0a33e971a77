"""`tutti train`: the main job."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from tutti.cli.failures import INTERRUPTED
from tutti.cli.output import Json, only_the_answer, print_json
from tutti.cli.validate import ConfigFile, Overrides
from tutti.launch.server import start_server

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint of the run.")]


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Let other machines take part by `tutti join` at this address."
        ),
    ] = None,
    here: Annotated[
        int | None, typer.Option(min=1, help="With --listen: how many of the replicas start on this machine.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --listen: the key that others need. Default: a new runs/NAME/join.key.",
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Train as the configuration says; everything about the run is kept in runs/NAME."""
    from tutti.config import load_config

    resolved = load_config(config, overrides or ())
    with only_the_answer(json_output):
        if "WORLD_SIZE" not in os.environ:  # torchrun starts its workers itself
            start_server()  # before this process imports torch, so that both do it at once
        from tutti import api

        report = api.train(
            resolved, resume=resume, console=not json_output, listen=listen, here=here, key=key
        )
    if json_output:
        print_json(report)
    elif "groups" in report:
        from tutti.core.rundir import RunDirectory
        from tutti.observe import Commands, print_groups_ending

        run = RunDirectory.of(resolved.runs, resolved.name).path
        words = ["train", str(config), *(overrides or ())]
        print_groups_ending(run, report, Commands(program(), f"{program()} {shlex.join(words)}"))
    elif report:  # of several ranks that torchrun started, one reports
        from tutti.core.rundir import RunDirectory
        from tutti.observe import Commands, print_ending

        run = RunDirectory.of(resolved.runs, resolved.name).path
        words = ["train", str(config), *(overrides or ())]
        print_ending(run, report, Commands(program(), f"{_launcher()} {shlex.join(words)}"))
    if report.get("state") == "interrupted":
        raise SystemExit(INTERRUPTED)  # what happened has been said already


def program() -> str:
    """What to type for `tutti` here: the very program that runs now, when it is not the one on the path."""
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("tutti", "__main__.py"):
        python = Path(sys.executable)
        on_path = shutil.which(python.name)
        return f"{python.name if on_path == str(python) else shlex.quote(_short(python))} -m tutti"
    found = shutil.which("tutti")
    if called.name != "tutti" or (found and Path(found).resolve() == called.resolve()):
        return "tutti"
    return shlex.quote(_short(called))


def _launcher() -> str:
    """What to type before `train` to start as many processes as there are now."""
    size, here = os.environ.get("WORLD_SIZE"), os.environ.get("LOCAL_WORLD_SIZE")
    if size is None:
        return program()
    several = f" --nnodes {int(size) // int(here)} …" if here and size != here else ""
    return f"torchrun{several} --nproc-per-node {here or size} -m tutti"


def _short(path: Path) -> str:
    """Relative to the current directory where that is shorter to type."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)
