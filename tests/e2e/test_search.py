"""`tutti tune` with real runs of tiny models: the best is kept, a bad trial fails alone, losers stop early, kills cost
nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from commands import at_step, is_alive, started, wait_for_step, worker_pid, write_config
from optuna.distributions import FloatDistribution

import tutti
from encoders import write_encoder, write_intents
from tutti import api
from tutti.cli import run as tutti_command
from tutti.config import Config, load_config
from tutti.core import read_events
from tutti.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LaunchError,
    RunError,
    TrainingError,
    TuttiError,
)
from tutti.core.rundir import RunDirectory
from tutti.observe import list_runs

STEPS = 60
#: From rates that learn nothing to one that ends in numbers that are none.
RATES = "search.train.learning_rate=1e-6..1e8"
TRIALS = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("search")
    write_config(
        place,
        replicas=1,
        data={"source": "text.txt", "sequence": 16, "cache": "cache", "tokenizer": "characters"},
        train={"steps": STEPS, "batch": 32, "precision": "fp32", "learning_rate": 0.01},
        evaluate={"every": STEPS // 10, "samples": 8},
        checkpoint={"every": STEPS // 6},
    )
    return place


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`place`, as the current directory."""
    monkeypatch.chdir(place)
    return place


def config_of(name: str, *words: str) -> Config:
    return load_config("c.yaml", [f"name={name}", *words])


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    """A search that nobody disturbed."""
    before = Path.cwd()
    os.chdir(place)
    try:
        return api.tune(config_of("whole", RATES), trials=TRIALS, console=False)
    finally:
        os.chdir(before)


def lines_of(report: dict[str, Any], state: str) -> list[dict[str, Any]]:
    return [line for line in report["trials"] if line["state"] == state]


def test_the_best_is_found_kept_and_trained_again_from_its_file(here: Path, found: dict[str, Any]) -> None:
    assert (found["state"], found["goal"], found["larger_is_better"]) == (
        "finished",
        "validation loss",
        False,
    )
    assert [line["trial"] for line in found["trials"]] == list(range(TRIALS))
    assert found["trials"][0]["settings"] == {"train.learning_rate": 0.01}
    complete = lines_of(found, "complete")
    assert found["best"] == min(complete, key=lambda line: line["value"])
    for line in complete:  # what the run says of itself
        report = tutti.show_run(Path(line["run"]))
        assert (report["validation_loss"], report["state"]) == (line["value"], "finished")
        assert report["config"]["train"]["learning_rate"] == line["settings"]["train.learning_rate"]
    directory = Path(found["directory"])
    assert json.loads((directory / "search.json").read_text()) == found
    page = (directory / "search.md").read_text()
    assert f"**Best: validation loss {found['best']['value']:.4f}** in trial {found['best']['trial']}" in page
    best = load_config(directory / "best.yaml")
    assert (best.name, best.search) == ("whole", {})
    assert best.train.learning_rate == found["best"]["settings"]["train.learning_rate"]
    again = api.train(best, console=False)
    assert again["validation_loss"] == found["best"]["value"]
    # An ordinary run, with which everything can be done.
    run = Path(found["best"]["run"])
    (text,) = api.generate(run, ["the model"], new_tokens=4)
    assert text
    assert api.evaluate(run, samples=8)["loss"] == pytest.approx(found["best"]["value"], abs=1e-5)
    assert len(list_runs(directory / "trials")) == len([line for line in found["trials"] if line["run"]])


def test_losers_keep_what_says_how_they_went_but_no_weights(here: Path, found: dict[str, Any]) -> None:
    for line in found["trials"]:
        if line["run"] is None or line["trial"] == found["best"]["trial"]:
            continue
        run = RunDirectory(Path(line["run"]))
        assert run.report_json.is_file() and run.config.is_file() and list(run.events.glob("*.jsonl"))
        assert not run.checkpoints.exists() and not run.export.exists()
    weights = {path.parents[1].name for path in Path(found["directory"]).rglob("*.safetensors")}
    assert weights == {str(found["best"]["trial"])}


def test_a_trial_with_bad_numbers_fails_alone_with_its_reason(here: Path, found: dict[str, Any]) -> None:
    failed = lines_of(found, "failed")
    assert failed and len(failed) < TRIALS
    for line in failed:
        assert line["settings"]["train.learning_rate"] > 1
        assert line["reason"].startswith("step ") and line["value"] is None
        assert (
            f"trial {line['trial']}: {line['reason']}" in (Path(found["directory"]) / "search.md").read_text()
        )


def test_a_trial_that_falls_behind_is_stopped_early(here: Path, found: dict[str, Any]) -> None:
    pruned = lines_of(found, "pruned")
    assert pruned, "choose another seed: none of these trials is worse than half of the others"
    made = []
    for line in pruned:
        made.append(max(event["step"] for event in read_events(Path(line["run"]), "step")))
        assert made[-1] >= 0.3 * STEPS
        assert line["value"] > found["best"]["value"]
    # What falls behind shortly before its end may be there before it hears so.
    assert min(made) < STEPS


def test_it_tries_what_plain_optuna_proposes_for_what_was_found(here: Path, found: dict[str, Any]) -> None:
    recorded = optuna.load_study(
        study_name="tutti", storage=f"sqlite:///{found['directory']}/study.db"
    ).trials
    space = {"train.learning_rate": FloatDistribution(1e-6, 1e8, log=True)}
    for line in found["trials"][1:]:
        theirs = optuna.create_study()
        theirs.add_trials(recorded[: line["trial"]])
        seed = int(np.random.SeedSequence([0, line["trial"]]).generate_state(1)[0])
        theirs.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=6)
        assert theirs.ask(space).params == line["settings"]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_ctrl_c_and_a_kill_cost_nothing(here: Path, found: dict[str, Any]) -> None:
    """Stopped in one trial, killed in another: the trials are those of a search that nobody disturbed."""
    killed = next(line["trial"] for line in lines_of(found, "complete") if line["trial"] > 0)
    count = killed + 2
    words = ["tune", "c.yaml", "name=hit", RATES]
    trials = here / "runs" / "hit-search" / "trials"
    began = time.time()
    with started(here, *words, "--trials", str(count)) as command:
        wait_for_step(trials / "0", 15, began, lambda: command.process.poll() is None, 240)
        command.signal_group(signal.SIGINT)
        answer = command.end(240)
    assert answer.code == 130 and answer.out.rstrip().splitlines()[-1].endswith(" --resume"), answer.said
    began = time.time()
    with started(here, *words, "--resume") as command:
        wait_for_step(trials / str(killed), 30, began, lambda: command.process.poll() is None, 240)
        worker = worker_pid(trials / str(killed), 0)
        os.kill(command.process.pid, signal.SIGKILL)
        command.process.wait()
        while is_alive(worker):  # it sees within a second that its launcher is gone
            time.sleep(0.1)
    report = api.tune(config_of("hit", RATES), resume=True, console=False)
    assert (report["state"], report["trials_planned"], len(report["trials"])) == ("finished", count, count)
    keys = ("trial", "state", "value", "settings")
    assert [{key: line[key] for key in keys} for line in report["trials"]] == [
        {key: line[key] for key in keys} for line in found["trials"][:count]
    ]
    assert len(list(read_events(trials / "0", "launched"))) == 2
    # Killed before its first save was whole, it begins again, in a fresh directory.
    assert len(list(read_events(trials / str(killed), "launched"))) in (1, 2)
    made = [event["step"] for event in read_events(trials / "0", "step")]
    assert made == list(range(1, STEPS + 1)), "what was saved was not made again"


def test_a_search_goes_on_to_more_trials_and_not_with_other_settings(here: Path) -> None:
    choice = "search.train.optimizer=[adamw, muon]"
    config = config_of("more", choice, "train.steps=4", "evaluate.every=4")
    report = api.tune(config, trials=1, console=False)
    assert [line["settings"] for line in report["trials"]] == [{"train.optimizer": "adamw"}]
    with pytest.raises(RunError, match=r"there is a search at .*more-search already"):
        api.tune(config, console=False)
    same = config_of("more", "train.steps=4", "evaluate.every=4")
    for other, said in (
        (config_of("more", "search.train.optimizer=[muon, adamw]"), "tries other values"),
        (config_of("more", choice, "train.steps=5"), "begun with train.steps = 4, not 5"),
        (config_of("more", choice, "train.steps=4", "evaluate.every=4", "model=70K"), "model.size = 60K"),
    ):
        with pytest.raises(CheckpointError, match=said):
            api.tune(other, resume=True, console=False)
    report = api.tune(same, trials=2, resume=True, console=False)
    assert (report["trials_planned"], len(report["trials"])) == (2, 2)


@pytest.mark.distributed
def test_a_trial_whose_worker_dies_fails_alone(here: Path) -> None:
    """As it does when the memory is used up."""
    run = here / "runs" / "died-search" / "trials" / "0"
    config = config_of("died", "search.train.optimizer=[adamw, muon]", "watch.max_restarts=0")
    with at_step(run, 10, lambda: os.kill(worker_pid(run, 0), signal.SIGKILL)):
        report = api.tune(config, trials=2, console=False)
    first, second = report["trials"]
    assert (first["state"], second["state"], report["best"]["trial"]) == ("failed", "complete", 1)
    assert "killed by SIGKILL (out of memory?)" in first["reason"]


def test_where_all_trials_fail_one_error_says_so(here: Path) -> None:
    words = ["name=none", "train.steps=30", "evaluate.every=3"]
    with pytest.raises(TrainingError, match=r"all 2 trials failed; trial 0: step \d+: loss"):
        api.tune(config_of("none", "search.train.learning_rate=[1e9, 1e10]", *words), trials=2, console=False)
    report = json.loads((here / "runs" / "none-search" / "search.json").read_text())
    assert (report["state"], report["best"]) == ("failed", None)
    assert not (here / "runs" / "none-search" / "best.yaml").exists()


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["groups=2"], ConfigError, "a search is of one model, and groups: 2 are several"),
        (["data.validation=0"], DataError, "no validation part to judge settings by"),
        (["sync=auto", "replicas=2"], ConfigError, "sync: auto is measured anew before every run"),
        (["search.train.batch=[1, 2]", "replicas=4"], ConfigError, "train.batch"),
        (["data.source=nowhere.txt"], DataError, "nowhere"),
    ],
)
def test_what_is_no_search_is_refused_before_anything_starts(
    here: Path, words: list[str], kind: type[TuttiError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        api.tune(config_of("refused", *words), console=False)
    assert not (here / "runs" / "refused-search").exists()


def test_in_a_world_that_torchrun_started_it_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(key, value)
    with pytest.raises(LaunchError, match="torchrun started this one"):
        api.tune(config_of("refused"), console=False)


def test_there_is_nothing_to_go_on_with(here: Path) -> None:
    with pytest.raises(RunError, match="there is no search at"):
        api.tune(config_of("nothing"), resume=True, console=False)


def test_labels_two_at_a_time_with_nothing_said(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The usual settings are tried, by the task's own metric; cores are divided; the verb says what to type next."""
    write_encoder(here / "bert")
    (here / "i.yaml").write_text(
        "name: intents\ntask: classify\nmodel: bert\nreplicas: 1\n"
        f"data: {{source: {write_intents(here)}, cache: cache, sequence: 32, validation: 0.25}}\n"
        "train: {batch: 16, precision: fp32, learning_rate: 1e-3}\n"
    )
    code = tutti_command(["tune", "i.yaml", "--trials", "2", "--parallel", "2"])
    said = capfd.readouterr().out
    assert code == 0, said
    report = json.loads((here / "runs" / "intents-search" / "search.json").read_text())
    assert (report["goal"], report["larger_is_better"]) == ("accuracy", True)
    assert list(report["space"]) == [
        "train.learning_rate",
        "train.epochs",
        "train.batch",
        "train.weight_decay",
    ]
    first = {"train.learning_rate": 1e-3, "train.epochs": 20.0, "train.batch": 16, "train.weight_decay": 0.1}
    assert report["trials"][0]["settings"] == first
    assert report["space"]["train.epochs"]["values"] == [10.0, 20.0, 30.0]
    starts = [next(read_events(Path(line["run"]), "launched"))["time"] for line in report["trials"]]
    ends = [tutti.show_run(Path(line["run"]))["ended"] for line in report["trials"]]
    assert max(starts) < min(ends), "both trained at the same time"
    for part in ("matters most", "2 trials at a time, each with 1 worker of", "as the file says", "next:"):
        assert part in said
    best = report["best"]["run"]
    assert f"predict {best} 'your text'" in said
    assert tutti_command(["predict", best, "my card is lost", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["predictions"][0]["label"] in ("lost_card", "exchange", "late_transfer")


def test_the_verb_passes_tries_on_and_answers_in_json(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "c.yaml", "name=json", "train.steps=4", "evaluate.every=4", "--trials", "1", "--json"]
    assert tutti_command([*words, "--try", "train.optimizer=adamw,muon", "--try", "train.clip=0.5..2"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["space"] == {
        "train.optimizer": {"values": ["adamw", "muon"], "reason": None},
        "train.clip": {"values": {"low": 0.5, "high": 2, "log": False}, "reason": None},
    }
    assert tutti_command(["tune", "c.yaml", "--try", "train.optimiser=adamw,muon"]) == 2
    assert "did you mean 'train.optimizer'?" in capfd.readouterr().err
