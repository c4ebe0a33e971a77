"""`tutti`: one thin file per verb over `tutti.api` and its like; a notebook can do all that the command line can.

Verbs import what they need when they run, so that help answers without loading torch.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import typer

from tutti.cli import (
    alerts,
    chaos,
    combine,
    compress,
    dashboard,
    doctor,
    evaluate,
    explain,
    export,
    failures,
    find_rate,
    generate,
    init,
    join,
    keys,
    label,
    predict,
    prepare,
    profile,
    release,
    runs,
    schema,
    serve,
    train,
    tune,
    validate,
)
from tutti.core.errors import TuttiError
from tutti.core.surroundings import settle_torch

app = typer.Typer(
    name="tutti",
    help="All your machines, one model: from text to a trained language model.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    init.init,
    validate.validate,
    schema.schema,
    doctor.doctor,
    prepare.prepare,
    train.train,
    profile.profile,
    find_rate.find_rate,
    tune.tune,
    join.join,
    chaos.chaos,
    evaluate.evaluate,
    generate.generate,
    serve.serve,
    dashboard.dashboard,
    release.deploy,
    release.rollback,
    release.releases,
    predict.predict,
    explain.explain,
    label.label,
    compress.compress,
    combine.combine,
    export.export,
):
    app.command()(verb)
app.add_typer(runs.app, name="runs")
app.add_typer(keys.app, name="keys")
app.add_typer(alerts.app, name="alerts")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `tutti` command: runs one verb and ends the process.

    Exit codes: 0 done, 1 a defect of Tutti, 2 something for the user to mend, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names and consoles need not be Unicode
            stream.reconfigure(errors="backslashreplace")
    # Bars of libraries would stand in the middle of ours; they read this when they are imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    settle_torch()
    code = run(list(sys.argv[1:] if arguments is None else arguments))
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # the reader has gone (`tutti … | head`); the interpreter would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one verb, turn whatever goes wrong into one message, and return the exit code."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    json_output = "--json" in options
    try:
        code = app(arguments, prog_name="tutti", standalone_mode=False)
    except TuttiError as error:
        return failures.user_error(error, json_output)
    except (KeyboardInterrupt, typer.Abort):
        return failures.interrupted(json_output)
    except BrokenPipeError:
        return 0
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # Typer has seen it first
            return 0
        return error.code if isinstance(error.code, int) else failures.DEFECT
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
            return failures.USER
        if hasattr(error, "format_message"):
            return failures.usage_error(error, json_output)
        return failures.defect(error, json_output)
    if code == failures.INTERRUPTED:  # Typer has made this of a KeyboardInterrupt
        return failures.interrupted(json_output)
    return code if isinstance(code, int) else 0
