"""What a user sees when something goes wrong: one message, never a raw traceback."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from typing import Any

from tutti.core.errors import TuttiError

#: Exit codes.
DEFECT, USER, INTERRUPTED = 1, 2, 130


def report(kind: str, message: str, hint: str, json_output: bool, **more: Any) -> None:
    """Print one error: text on stderr, or `{"error": …}` on stdout."""
    if json_output:
        error = {"type": kind, "message": message, "hint": hint} | more
        print(json.dumps({"error": error}, indent=2, ensure_ascii=False))
        return
    text = f"{kind}: {message}" if kind == "defect" else f"error: {message}"
    print(f"{text}\n  → {hint}" if hint else text, file=sys.stderr)


def user_error(error: TuttiError, json_output: bool) -> int:
    """The user's to mend: the message and the next move."""
    problems = getattr(error, "problems", None)
    more = {"problems": [problem.as_dict() for problem in problems]} if problems else {}
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == TuttiError.__module__)
    report(kind, error.problem, error.hint, json_output, **more)
    return USER


def usage_error(error: Exception, json_output: bool) -> int:
    """A verb or option that does not exist, or is missing."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "tutti"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    report("UsageError", message, f"`{command} --help` shows what there is", json_output)
    return USER


def interrupted(json_output: bool) -> int:
    """Ctrl-C."""
    report("Interrupted", "interrupted", "", json_output)
    return INTERRUPTED


def defect(error: BaseException, json_output: bool) -> int:
    """Anything else is Tutti's fault: where, in one line, and the whole story in a file."""
    trace = "".join(traceback.format_exception(error))
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else "unknown place"
    words = " ".join(str(error).split())[:300]
    message = f"this is a defect of Tutti: {type(error).__name__}{': ' if words else ''}{words} (at {place})"
    saved = _save(trace)
    hint = f"please report it with the whole traceback in {saved}" if saved else "please report it"
    report("defect", message, hint, json_output, traceback=saved)
    return DEFECT


def _save(trace: str) -> str:
    story = f"{' '.join(sys.argv)}\nPython {sys.version}\n\n{trace}"
    try:
        with tempfile.NamedTemporaryFile("wb", prefix="tutti-defect-", suffix=".txt", delete=False) as file:
            file.write(story.encode("utf-8", "backslashreplace"))
        return file.name
    except OSError:  # a full disk may be the very reason
        return ""
