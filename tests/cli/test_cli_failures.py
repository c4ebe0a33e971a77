"""What goes wrong is said once, in one message, with the right exit code; a raw traceback never shows."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutti.cli import main
from tutti.core.errors import CheckpointError, TuttiError

Command = Callable[..., Any]


def raiser(error: BaseException) -> Any:
    def function(*args: object, **kwargs: object) -> None:
        raise error

    return function


def test_the_users_to_mend(command: Command, api: SimpleNamespace) -> None:
    api.show_run = raiser(CheckpointError("it is torn", "train again"))
    answer = command("runs", "show", "r")
    assert (answer.code, answer.out, answer.err) == (2, "", "error: it is torn\n  → train again\n")
    answer = command("runs", "show", "r", "--json")
    expected = {"type": "CheckpointError", "message": "it is torn", "hint": "train again"}
    assert (answer.code, answer.json, answer.err) == (2, {"error": expected}, "")


def test_a_subclass_is_named_by_what_it_is(command: Command, api: SimpleNamespace) -> None:
    api.show_run = raiser(type("Special", (CheckpointError,), {})("torn"))
    assert command("runs", "show", "r", "--json").json["error"]["type"] == "CheckpointError"
    api.show_run = raiser(TuttiError("x"))
    assert command("runs", "show", "r", "--json").json["error"]["type"] == "TuttiError"


def test_problems_of_a_configuration(command: Command) -> None:
    Path("c.yaml").write_text("train: {stepz: 3}\nreplicas: 0\n")
    for verb in ("validate", "prepare", "train"):
        answer = command(verb, "c.yaml")
        assert (answer.code, answer.out) == (2, "")
        assert "c.yaml:1:9: train.stepz: unknown key; did you mean 'steps'?" in answer.err
        problems = command(verb, "c.yaml", "--json").json["error"]["problems"]
        assert [(problem["line"], problem["path"]) for problem in problems] == [
            (1, "train.stepz"),
            (2, "replicas"),
        ]
        assert problems[0]["suggestions"] == ["steps"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train"], "Missing argument"),
        (["train", "c.yaml", "--resum"], "--resume"),
        (["evaluate", "r", "--samples", "x"], "--samples"),
        (["evaluate", "r", "--samples", "0"], "--samples"),
        (["evaluate", "r", "--split", "tset"], "the parts are train, validation and test"),
        (["evaluate", "r", "--split", "test", "--file", "x.tsv"], "give one of --file and --split"),
        (["runs", "compare", "r"], "name two runs or more"),
        (["runs", "lst"], "lst"),
        (["validate", "none.yaml"], "there is no file none.yaml"),
    ],
)
def test_wrong_words(words: list[str], said: str, command: Command) -> None:
    answer = command(*words)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    answer = command(*words, "--json")
    assert answer.code == 2
    assert set(answer.json) == {"error"}


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("[bold]"), AssertionError(), RecursionError("deep")]
)
def test_a_defect_is_owned(error: Exception, command: Command, api: SimpleNamespace) -> None:
    api.show_run = raiser(error)
    answer = command("runs", "show", "r")
    assert answer.code == 1
    assert "this is a defect of Tutti" in answer.err
    assert "Traceback" not in answer.err
    assert "in function" in answer.err
    saved = Path(answer.err.strip().rpartition(" in ")[2])
    assert "Traceback" in saved.read_text()
    saved.unlink()
    answer = command("runs", "show", "r", "--json")
    assert answer.json["error"]["type"] == "defect"
    Path(answer.json["error"]["traceback"]).unlink()


def test_interruption(command: Command, api: SimpleNamespace) -> None:
    api.show_run = raiser(KeyboardInterrupt())
    assert command("runs", "show", "r").code == 130
    answer = command("runs", "show", "r", "--json")
    assert (answer.code, answer.json["error"]["type"]) == (130, "Interrupted")


def test_a_reader_that_has_gone(command: Command, api: SimpleNamespace) -> None:
    api.show_run = raiser(BrokenPipeError(32, "Broken pipe"))
    answer = command("runs", "show", "r")
    assert (answer.code, answer.out, answer.err) == (0, "", "")


def test_main_ends_the_process(command: Command) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code == 2


def python(*arguments: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False, timeout=60, **more)


NO_TORCH = """
import sys
from tutti.cli import run
code = run(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


def test_as_a_module_and_without_torch(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a")
    assert b"doctor" in python("-c", NO_TORCH, "--help").stdout
    assert python("-c", NO_TORCH, "validate", "c.yaml", cwd=tmp_path).returncode == 0
    done = python("-m", "tutti", "validate", "none.yaml", cwd=tmp_path)
    assert (done.returncode, b"error: there is no file none.yaml" in done.stderr) == (2, True)


def test_a_pipe_that_closes_and_a_console_without_unicode(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "tutti", "schema"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    os.close(writer)
    assert done.stderr == b""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = python("-m", "tutti", "validate", "näme\udcff.yaml", cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    done = python("-m", "tutti", "validate", "näme\udcff.yaml", "--json", cwd=tmp_path)
    assert "error" in json.loads(done.stdout)


verbs = st.sampled_from(["validate", "train", "init", "prepare", "runs", "schema"])
known = ["train", "list", "c.yaml", "--json", "--resume", "--", "train.steps=3", "name=x", "--name", "--help"]
words = st.one_of(st.sampled_from(known), st.text(st.characters(exclude_characters="\0"), max_size=12))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(verbs, st.lists(words, max_size=4), st.binary())
def test_no_traceback_whatever_is_typed_and_written(
    in_process: Callable[[list[str]], tuple[int, str]], verb: str, typed: list[str], content: bytes
) -> None:
    Path("c.yaml").write_bytes(content)
    code, said = in_process([verb, "c.yaml", *typed])
    assert code in (0, 2), said
    assert "Traceback" not in said
