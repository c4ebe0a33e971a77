"""What goes wrong inside a worker is told once, with rank, step and the next move."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from commands import Here, at_step, events_of, refused, write_config, write_text
from torch import Tensor, nn

import tutti
from runs import regression
from tutti.core import TuttiError
from tutti.train.checkpoints import newest_valid

SETTINGS = {
    "workers": 2,
    "batch": 8,
    "steps": 40,
    "train__precision": "fp32",
    "checkpoint__every": 5,
    "sync__membership": "fixed",  # one world, in which ranks have the numbers that are told here
}


class TurnsBad(nn.Module):
    """From its `bad_at`-th training pass on, on the rank that first comes to it, the second layer gives NaN."""

    def __init__(self, bad_at: int) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.bad_at, self.passes = bad_at, 0
        self.second.register_forward_hook(self._spoil)

    def _spoil(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output * float("nan") if self.passes >= self.bad_at else output

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training and torch.is_grad_enabled()
        return self.last(torch.tanh(self.second(self.first(x)))).squeeze(-1)


def raises_on_rank_1(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of somebody who made a mistake: it fails on one rank, at its 8th call there."""
    raises_on_rank_1.calls = getattr(raises_on_rank_1, "calls", 0) + 1  # type: ignore[attr-defined]
    if os.environ["RANK"] == "1" and raises_on_rank_1.calls == 8:  # type: ignore[attr-defined]
        raise KeyError("no such label: 'cat'")
    return ((outputs - targets) ** 2).mean()


def test_nan_names_step_and_layer_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TuttiError) as caught:
        # One pass is the rehearsal's, and the rank that leads makes two in steps 10 and 20: its own, 28, is the first.
        tutti.fit(TurnsBad(31), nn.MSELoss(), regression(64), name="nan", runs=str(tmp_path), **SETTINGS)
    message = str(caught.value)
    assert "step 28" in message and "second" in message and "--resume" in message
    assert "last" not in message.split("→")[0]  # the first bad layer, not what came after it
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err
    run = tmp_path / "nan"
    assert len(events_of(run, "restart")) == 0  # it would only happen again
    good = newest_valid(run / "checkpoints")  # what was saved before is whole
    assert good is not None and 5 <= int(good.name.removeprefix("step-")) < 28


def test_an_exception_on_one_rank_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with pytest.raises(TuttiError) as caught:
        tutti.fit(
            nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)),
            raises_on_rank_1,
            regression(64),
            name="one",
            runs=str(tmp_path),
            **SETTINGS,
        )
    message = str(caught.value)
    assert "Rank 1" in message and "KeyError" in message and "cat" in message
    assert "at step" in message and "--resume" in message
    assert message.count("cat") == 1
    log = tmp_path / "one" / "logs" / "rank-1.log"
    assert str(log) in message
    assert "raises_on_rank_1" in log.read_text()  # the traceback is there, for who wants it
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err + message
    assert time.monotonic() - began < 60
    assert events_of(tmp_path / "one", "restart") == []


def test_a_disk_that_fills_up_in_mid_run(tutti_here: Here, tmp_path: Path) -> None:
    """It is said once, and after some space was freed the run goes on from its last whole checkpoint."""
    import shutil
    import subprocess

    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    write_config(tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"this machine lets nobody mount: {mounted.stderr.decode().strip()}")
    try:

        def fill() -> None:
            with (small / "filler").open("wb") as file:
                try:
                    while True:
                        file.write(bytes(1 << 16))
                        file.flush()
                except OSError:
                    pass

        with at_step(small / "r", 25, fill):
            answer = tutti_here("train", "c.yaml", "runs=small", "train.steps=5000")
        refused(answer, "small", "full")
        (small / "filler").unlink()
        done = tutti_here("train", "c.yaml", "runs=small", "train.steps=60", "--resume", "--json")
        assert (done.code, done.json["steps"]) == (0, 60), done.said
        assert events_of(small / "r", "resumed")[-1]["step"] == 20
    finally:
        subprocess.run(["umount", "-l", small], check=False)


# What a resume does not accept ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 steps with two checkpoints, for others to copy."""
    from tutti.cli import run

    directory = tmp_path_factory.mktemp("trained")
    write_config(directory)
    before = Path.cwd()
    os.chdir(directory)
    try:
        assert run(["train", "c.yaml", "train.steps=20", "checkpoint.every=10", "--json"]) == 0
    finally:
        os.chdir(before)
    return directory


@pytest.fixture
def copied(trained: Path, tutti_here: Here, tmp_path: Path) -> Here:
    """`tutti` in a directory with a copy of the trained run."""
    import shutil

    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tutti_here


def state_of(run: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("checkpoints/**/*")) if p.is_file()
    }


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model=120K"], ["model.size = 60K, not 120K"]),
        (["train.seed=1"], ["train.seed = 0, not 1"]),
        (["train.batch=16"], ["train.batch = 8, not 16"]),
        (["data.sequence=16"], ["data.sequence = 32, not 16"]),
        (["train.optimizer=muon"], ["train.optimizer = adamw, not muon"]),
        (["name=other"], ["no run", "other"]),
    ],
    ids=lambda value: value[0] if len(value) == 1 else "",
)
def test_resume_with_another(overrides: list[str], parts: list[str], copied: Here) -> None:
    run = Path("runs/r")
    before, config = state_of(run), (run / "config.yaml").read_bytes()
    refused(copied("train", "c.yaml", "train.steps=30", "--resume", *overrides), *parts)
    assert state_of(run) == before
    # What was refused must not have changed the run: as it was, it can still go on.
    assert (run / "config.yaml").read_bytes() == config
    assert not Path("runs/other").exists()
    done = copied("train", "c.yaml", "train.steps=22", "--resume", "--json")
    assert (done.code, done.json["steps"]) == (0, 22), done.said


def test_a_rehearsal_that_was_cut_short_leaves_nothing_behind(copied: Here) -> None:
    run = Path("runs/r")
    left = run / "checkpoints" / ".rehearsal" / "step-0", run / ".rehearsal-export"
    for path in left:
        path.mkdir(parents=True)
        (path / "weights").write_bytes(b"many")
    answer = copied("train", "c.yaml", "train.steps=20", "--resume")
    assert answer.code == 0, answer.said
    assert not any(path.exists() for path in (left[0].parent, left[1]))


def test_resume_with_another_policy(copied: Here) -> None:
    answer = copied("train", "c.yaml", "train.steps=24", "sync=diloco", "sync.every=2", "--resume")
    assert answer.code == 0 and "state of policy allreduce is left out" in answer.out, answer.said
    assert events_of(Path("runs/r"), "finished")[-1]["step"] == 24


def test_resume_and_evaluate_with_other_text(copied: Here) -> None:
    write_text(Path("text.txt"), seed=1)
    answer = copied("train", "c.yaml", "train.steps=30", "--resume")
    refused(answer, "text")
    assert "fingerprint" not in answer.err
    refused(copied("evaluate", "r"), "text", "changed")
    refused(copied("export", "r", "--to", "out"), "text", "changed")
    assert not Path("out").exists()
    assert copied("generate", "r", "the", "--new-tokens", "3").code == 0  # the export has all that this needs


def test_an_existing_run_is_not_overwritten(copied: Here) -> None:
    before = state_of(Path("runs/r"))
    refused(copied("train", "c.yaml"), "exists already", "--resume", "name=")
    assert state_of(Path("runs/r")) == before


def test_only_damaged_checkpoints(copied: Here) -> None:
    for path in Path("runs/r/checkpoints").rglob("*.distcp"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    for words in (
        ["evaluate", "r"],
        ["export", "r", "--to", "out"],
        ["train", "c.yaml", "train.steps=30", "--resume"],
    ):
        refused(copied(*words), "sound checkpoint")
    assert not Path("out").exists()


def test_one_damaged_checkpoint_is_passed_over_and_said(copied: Here) -> None:
    for path in Path("runs/r/checkpoints/step-20").rglob("*.distcp"):
        path.write_bytes(path.read_bytes()[:-7])
    answer = copied("train", "c.yaml", "train.steps=22", "--resume")
    assert answer.code == 0, answer.said
    assert "step-20" in answer.out and "passed over" in answer.out
    assert events_of(Path("runs/r"), "resumed")[-1]["step"] == 10


def test_a_part_that_is_not_there(copied: Here) -> None:
    refused(copied("evaluate", "r", "--split", "test"), "test", "train, validation")
    refused(copied("evaluate", "r", "--split", "tset"), "tset", "train, validation")
    assert copied("evaluate", "r", "--split", "train", "--samples", "3", "--json").json["targets"] == 3 * 32


def test_resume_of_a_finished_run_changes_nothing(copied: Here) -> None:
    before = state_of(Path("runs/r"))
    answer = copied("train", "c.yaml", "train.steps=20", "checkpoint.every=10", "--resume")
    assert answer.code == 0, answer.said
    assert "finished" in answer.out
    assert state_of(Path("runs/r")) == before
