"""Pages that repeat what the code says, say it as the code does."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import typer

import tutti
from tutti.cli import app
from tutti.observe.history import History

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_arrows_of_the_house_are_those_that_are_kept() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = settings["tool"]["importlinter"]["contracts"][0]
    page = (DOCS / "explanation" / "the-house.md").read_text(encoding="utf-8")
    assert "\n".join(contract["layers"]) in page


def test_the_house_shows_every_room() -> None:
    page = (DOCS / "explanation" / "the-house.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (ROOT / "src" / "tutti").glob("*/__init__.py")}
    assert all(f"`{room}/`" in page for room in rooms)


def test_every_field_of_the_report_is_explained() -> None:
    from tutti.observe.figures import compute_figures

    page = (DOCS / "reference" / "report.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ([^|]*)\|", page, re.MULTILINE))))
    assert set(compute_figures(Path("runs/none"), History())) <= explained


def test_every_field_of_a_search_is_explained(tmp_path: Path) -> None:
    from tutti.config import Choice, Config
    from tutti.search.directory import SearchDirectory
    from tutti.search.goal import Goal
    from tutti.search.outcome import Outcome
    from tutti.search.study import Study

    space = [Choice("train.optimizer", ("adamw", "muon"))]
    place = SearchDirectory(tmp_path / "s")
    place.create(lambda _: None)
    study = Study.create(place.study, space, 0, larger=False)
    study.ask()
    outcome = Outcome(place, Config(), Goal.of(Config()), space, {})
    found = outcome.write(study, 1, "running")
    section = (DOCS / "reference" / "run-directory.md").read_text(encoding="utf-8")
    section = section.partition("## A search")[2].partition("\n## ")[0]
    explained = set(re.findall(r"`(\w+)`", section))
    assert set(found) | set(found["trials"][0]) | set(found["space"]["train.optimizer"]) <= explained


def test_every_field_of_the_chaos_report_is_explained(tmp_path: Path) -> None:
    from tutti.observe.resilience import resilience_figures

    (tmp_path / "config.yaml").write_text("name: r\n")
    page = (DOCS / "reference" / "chaos.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ([^|]*)\|", page, re.MULTILINE))))
    assert set(resilience_figures(tmp_path)) <= explained


def test_every_field_of_a_profile_is_explained() -> None:
    from tutti.observe.profile import KINDS, judge, profile_json, read_profile

    counted = {"counters": {"user_seconds": 1.0, "delayed_seconds": 0.0, "major_faults": 0}}
    figures = read_profile(
        [
            {"kind": "profile", "rank": 0, "phase": "measuring", **counted},
            {"kind": "step", "rank": 0, "step": 1, "seconds": 1.0, "alone_seconds": 1.0, "cursor": [[0, 1]]},
            {"kind": "profile", "rank": 0, "phase": "tracing", **counted},
        ]
    )
    assert figures is not None
    found = profile_json("r", figures, judge(figures))
    page = (DOCS / "reference" / "profile.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(\w+)`", page))
    assert set(found) | set(found["verdict"]) | set(found["parts"]) | set(found["ranks"][0]) <= explained
    assert set(KINDS) <= explained


def test_every_kind_of_event_is_explained() -> None:
    page = (DOCS / "reference" / "run-directory.md").read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    kinds = set(re.findall(r"events\.write\(\s*\"(\w+)\"", source))
    assert len(kinds) > 10
    assert all(f"`{kind}`" in page for kind in kinds), kinds


def test_every_public_name_is_explained() -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    assert all(name in page for name in tutti.__all__)


def test_generated_pages_show_every_key_and_verb() -> None:
    hooks = _hooks()
    assert "`validation_source`" in hooks.configuration_page()
    assert "`body_bytes`" in hooks.service_page()
    page = hooks.command_line_page()
    verbs = (
        "init",
        "validate",
        "schema",
        "doctor",
        "prepare",
        "profile",
        "train",
        "join",
        "evaluate",
        "generate",
        "predict",
        "label",
        "export",
        "chaos",
        "compress",
        "tune",
        "find-rate",
        "serve",
        "dashboard",
        "deploy",
        "rollback",
        "releases",
    )
    runs = ("runs list", "runs show", "runs compare")
    keys = ("keys add", "keys list", "keys rotate", "keys revoke")
    alerts = ("alerts test", "alerts watch")
    assert all(f"## `tutti {verb}`" in page for verb in (*verbs, *runs, *keys, *alerts))
    assert "--resume" in page


def test_every_verb_takes_json_but_those_that_the_page_names() -> None:
    hooks = _hooks()
    root: Any = typer.main.get_command(app)
    without = set()
    for called in hooks._commands(root, []):
        command = root
        for word in called:
            command = command.commands[word]
        options = {option for parameter in command.params for option in parameter.opts}
        if not hasattr(command, "commands") and "--json" not in options:
            without.add(" ".join(called))
    (named,) = re.findall(r"takes `--json`, but for [^(]+\(([^)]+)\)", hooks.command_line_page())
    assert set(re.findall(r"`([^`]+)`", named)) == without


def _hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
