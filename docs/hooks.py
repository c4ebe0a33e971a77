"""MkDocs hook: makes the reference pages that would go stale if they were written by hand."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

_WIDTH = "100"


def configuration_page() -> str:
    """Every key of a configuration, from the schema."""
    from tutti.config import reference_page

    return reference_page()


def service_page() -> str:
    """Every setting of a service, from the schema."""
    from tutti.config import service_page

    return service_page()


def command_line_page() -> str:
    """Every verb as `--help` shows it."""
    import typer

    from tutti.cli import app

    parts = [
        "# Command line\n",
        "Every verb takes `--json`, but for those that go on until they are stopped (`dashboard`, `serve`, "
        "`alerts watch`): one JSON object on standard output, and nothing else there. Exit codes: 0 done, "
        "1 a defect of Tutti, 2 something for you to mend (one message says what), 130 interrupted.\n",
        "This page is made from `tutti VERB --help`.\n",
    ]
    root: Any = typer.main.get_command(app)
    for words in _commands(root, ["tutti"]):
        parts += [f"## `{' '.join(words)}`\n", f"```text\n{_help(words[1:])}\n```\n"]
    return "\n".join(parts)


def _commands(command: Any, words: list[str]) -> list[list[str]]:
    """The words that call `command` and everything below it."""
    found = [words]
    for name, below in getattr(command, "commands", {}).items():
        found += _commands(below, [*words, name])
    return found


def _help(words: list[str]) -> str:
    from typer.testing import CliRunner

    from tutti.cli import app

    with patch("typer.core.HAS_RICH", False):  # plain text, without boxes
        result = CliRunner().invoke(app, [*words, "--help"], prog_name="tutti", env={"COLUMNS": _WIDTH})
    assert result.exit_code == 0, result.output
    return result.output.strip()


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those that lie in `docs/`."""
    from mkdocs.structure.files import File

    pages = {
        "reference/configuration.md": configuration_page,
        "reference/service.md": service_page,
        "reference/cli.md": command_line_page,
    }
    for path, make in pages.items():
        files.append(File.generated(config, path, content=make()))
    return files
