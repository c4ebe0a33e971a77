"""`tutti compress` on a real run of a tiny encoder, from its checkpoint to a directory that answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from encoders import write_encoder, write_intents
from tutti import api
from tutti.cli import run as tutti_command
from tutti.compress import compress, session
from tutti.compress.asked import AskedSubject
from tutti.compress.make import Maker
from tutti.compress.recipes import Recipe
from tutti.compress.timing import Timing, time_packages
from tutti.config import load_config
from tutti.core import ConfigError, ModelError, RunError, read_events
from tutti.package import open_package, publish_package

QUESTIONS = ["my card is lost", "what is the exchange rate", "the transfer is late"]
INTENTS = ["lost_card", "exchange", "late_transfer"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model knows three intents."""
    place = tmp_path_factory.mktemp("compress")
    words = [
        *("name=intents", f"runs={place / 'runs'}", "task=classify", f"data.source={write_intents(place)}"),
        *(f"model={write_encoder(place / 'bert')}", f"data.cache={place / 'cache'}", "data.sequence=32"),
        *("data.validation=0.25", "train.precision=fp32", "train.learning_rate=3e-3", "train.steps=120"),
        *("train.batch=16", "replicas=1", "train.head_rate=1.5"),
    ]
    api.train(load_config(None, words), console=False)
    return place / "runs" / "intents"


@pytest.fixture(scope="module")
def report(run: Path) -> dict[str, Any]:
    """Of several recipes at once: opening processes takes seconds."""
    recipes = ["int4-awq", "layers:1+onnx+int8"]
    return api.compress(run, recipes=recipes, target="<5% worse", recovery_steps=60, console=False)


def test_the_table_tells_the_truth_of_each_recipe(run: Path, report: dict[str, Any]) -> None:
    lines = {line["recipe"]: line for line in report["lines"]}
    assert list(lines) == ["fp32", "onnx", "int4-awq", "layers:1+onnx+int8"]
    accuracy = api.evaluate(run)["accuracy"]
    assert lines["fp32"]["quality"]["accuracy"] == pytest.approx(accuracy)
    assert accuracy > 0.9
    assert lines["onnx"]["quality"]["accuracy"] == pytest.approx(accuracy)
    assert lines["fp32"]["times_smaller"] == 1
    assert lines["int4-awq"]["weight_bytes"] < 0.6 * lines["fp32"]["weight_bytes"]
    assert lines["layers:1+onnx+int8"]["weight_bytes"] < lines["onnx"]["weight_bytes"]
    for line in lines.values():
        assert line["worse"] == pytest.approx(1 - line["quality"]["accuracy"] / accuracy)
        assert line["memory_bytes"] > 0
        assert 0 < line["seconds_batch_1"] < line["seconds_batch_32"] * 2
    assert json.loads((run / "compression.json").read_text()) == report
    page = (run / "compression.md").read_text()
    assert all(f"| {name} |" in page or f"| **{name}** |" in page for name in lines)
    assert not list(run.glob(".compress-*")), "nothing is left lying about"


def test_what_is_kept_answers(run: Path, report: dict[str, Any]) -> None:
    kept = Path(report["directory"])
    assert kept == run / "compressed"
    assert report["kept"] in ("int4-awq", "layers:1+onnx+int8")
    assert [one["label"] for one in api.predict(kept, QUESTIONS)] == INTENTS
    assert (kept / "README.md").read_text() == (run / "compression.md").read_text()


def test_what_is_kept_is_measured_on_the_data_of_its_run(
    run: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    kept = Path(report["directory"])
    line = next(line for line in report["lines"] if line["recipe"] == report["kept"])
    measured = api.evaluate(kept)
    assert measured["accuracy"] == pytest.approx(line["quality"]["accuracy"])
    assert (measured["run"], measured["split"]) == (str(kept), "validation")
    assert api.evaluate(kept, split="train", samples=9)["targets"] == 9
    alone = tmp_path / "alone" / "compressed"
    shutil.copytree(kept, alone)
    with pytest.raises(RunError, match="does not lie in the run that it was made from"):
        api.evaluate(alone)
    said = json.loads((alone / "tutti.json").read_text())
    (alone / "tutti.json").write_text(json.dumps(said | {"made_from": said["made_from"] | {"step": 77}}))
    shutil.copytree(alone, run / "earlier")
    assert api.evaluate(run / "earlier")["step"] == 77, "that it was made from, not the run's of today"
    shutil.rmtree(run / "earlier")
    with pytest.raises(RunError, match="and no run"):
        api.export(alone)
    (alone / "tutti.json").write_text(json.dumps(said | {"made_from": said["made_from"] | {"data": "other"}}))
    shutil.copytree(alone, run / "foreign")
    with pytest.raises(RunError, match="was made from another run than"):
        api.evaluate(run / "foreign")
    shutil.rmtree(run / "foreign")


def test_fewer_layers_learn_again_from_what_they_were(run: Path, report: dict[str, Any]) -> None:
    again = api.show_run(run / "recovered" / "layers-1")
    assert again["steps"] == 60
    config = load_config(run / "recovered" / "layers-1" / "config.yaml")
    assert config.distil.teachers == [str(run)]
    assert config.train.head_rate == 1, "its head is no new one"
    with pytest.raises(RunError, match="was a training of other steps"):
        Maker(AskedSubject.of(run), run, recovery_steps=5).make(Recipe.of("layers:1"))
    subject = AskedSubject.of(run)
    went_on = replace(subject, step=240)
    said = f"began with the model of step {subject.step} of {run}; now it is that of step 240"
    with pytest.raises(RunError, match=said):
        Maker(went_on, run, recovery_steps=60).make(Recipe.of("layers:1"))


def test_learning_again_goes_on_where_it_was_interrupted(
    run: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    place = run / "recovered" / "layers-1"
    steps = sorted(place.glob("checkpoints/step-*"), key=lambda path: int(path.name.partition("-")[2]))
    shutil.rmtree(steps[-1])
    (place / "checkpoints" / "LATEST").unlink()
    (place / "report.json").write_text('{"state": "interrupted"}')
    Maker(AskedSubject.of(run), tmp_path, recovery_steps=60).make(Recipe.of("layers:1"))
    assert api.show_run(place)["state"] == "finished"
    assert [event["step"] for event in read_events(place, "resumed")] == [int(steps[-2].name[5:])]


def test_a_pupil_needs_its_teacher_only_while_it_learns(run: Path, report: dict[str, Any]) -> None:
    away = run.with_name("elsewhere")
    pupil = run / "recovered" / "layers-1"
    export = run / "export"
    export.rename(away)
    try:
        assert [one["label"] for one in api.predict(pupil, QUESTIONS)] == INTENTS
    finally:
        away.rename(export)


def test_every_way_to_compute_gives_the_same(run: Path, tmp_path: Path) -> None:
    subject = AskedSubject.of(run)
    maker = Maker(subject, tmp_path)
    rows = subject.rows(8)
    batch = subject.job.task.batch(rows, subject.job.prepared.pad)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(run / "export")(**inputs).logits.numpy()
        for text, off in (("fp32", 1e-4), ("onnx", 1e-4), ("int8-weights", 0.15), ("onnx+int8-mixed", 1.5)):
            model = open_package(maker.make(Recipe.of(text)).directory).objective.model
            np.testing.assert_allclose(model(**inputs).logits.numpy(), expected, atol=off, err_msg=text)
    # Any number of rows and tokens, not those that the example had.
    one = {name: tensor[:1, :4] for name, tensor in inputs.items()}
    onnx = open_package(tmp_path / "onnx").objective.model
    assert onnx(**one).logits.shape == (1, 3)


def test_onnxruntime_says_what_the_run_does(run: Path, tmp_path: Path) -> None:
    """By nothing but what the directory holds: logits within 1e-4, the same accuracy."""
    made = api.export(run, tmp_path / "onnx", format="onnx")
    session = onnxruntime.InferenceSession(str(made / "model.onnx"), providers=["CPUExecutionProvider"])
    batch = AutoTokenizer.from_pretrained(made)(QUESTIONS, padding=True, return_tensors="np")
    (found,) = session.run(
        ["logits"], {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    )
    plain = AutoModelForSequenceClassification.from_pretrained(run / "export").eval()
    with torch.no_grad():
        expected = plain(**{name: torch.from_numpy(value) for name, value in batch.items()}).logits
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    names = AutoConfig.from_pretrained(made).id2label
    assert [names[int(number)] for number in found.argmax(1)] == INTENTS


@pytest.mark.slow
def test_what_learned_with_rounding_is_handed_on_like_any_other(tmp_path: Path) -> None:
    words = [
        *("name=rounds", f"runs={tmp_path}", "task=classify", f"data.source={write_intents(tmp_path)}"),
        *(
            f"model={write_encoder(tmp_path / 'bert')}",
            f"data.cache={tmp_path / 'cache'}",
            "data.sequence=32",
        ),
        *("data.validation=0.25", "train.precision=fp32", "train.steps=10", "train.batch=16", "replicas=1"),
        "tune={quantize: int8}",
    ]
    api.train(load_config(None, words), console=False)
    run = tmp_path / "rounds"
    subject = AskedSubject.of(run)
    inputs = subject.inputs()
    made = api.export(run, tmp_path / "onnx", format="onnx")
    session = onnxruntime.InferenceSession(str(made / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
    plain = AutoModelForSequenceClassification.from_pretrained(run / "export").eval()
    smaller = open_package(Maker(subject, tmp_path).make(Recipe.of("onnx+int8")).directory).objective.model
    with torch.no_grad():
        expected = plain(**inputs).logits.numpy()
        np.testing.assert_allclose(subject.model(**inputs).logits.numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(smaller(**inputs).logits.numpy(), expected, atol=0.2)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_misses_the_target_is_not_kept(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compress", str(run), "--try", "int8", "--to", str(tmp_path / "none")]
    assert tutti_command([*words, "--target", "500x smaller"]) == 2
    said = capsys.readouterr().err
    assert "no recipe meets the target; nothing is kept" in said
    assert "x smaller, not 500x" in said
    assert not (tmp_path / "none").exists()
    assert json.loads((run / "compression.json").read_text())["kept"] is None


def test_what_cannot_be_made_smaller_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    with pytest.raises(RunError, match="exists and is no model that"):
        api.compress(run, destination=tmp_path / "mine", console=False)
    with pytest.raises(ConfigError, match="is no recipe"):
        api.compress(run, recipes=["int7"], console=False)
    with pytest.raises(ModelError, match="2 layers, of which 9 are to stay"):
        Maker(AskedSubject.of(run), tmp_path).make(Recipe.of("layers:9"))
    assert tutti_command(["compress", str(tmp_path / "nothing")]) == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose"


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("heads:0.5", "how wide its heads are"),
        ("layers:9", "2 layers, of which 9 are to stay"),
        ("layers:1+channels:0.99", "none would go"),
    ],
)
def test_what_can_be_known_is_refused_before_anything_is_made(run: Path, recipe: str, said: str) -> None:
    shown: list[str] = []
    with pytest.raises(ModelError, match=said):
        compress(run, recipes=["int8-weights", recipe], say=shown.append)
    assert shown == [], "nothing was begun"


@pytest.fixture
def twin(run: Path, tmp_path: Path) -> Path:
    """A run like `run`, for tests that leave something in it."""
    return Path(
        shutil.copytree(run, tmp_path / "twin", ignore=shutil.ignore_patterns("recovered", "compress*"))
    )


def test_a_recipe_that_fails_does_not_take_the_others_along(twin: Path) -> None:
    """In the middle of it: that of another training lies where this one would learn again."""
    (twin / "recovered" / "layers-1").mkdir(parents=True)
    shutil.copy(twin / "config.yaml", twin / "recovered" / "layers-1" / "config.yaml")
    recipes = ["int8-weights", "layers:1", "int4"]
    with pytest.raises(RunError, match="not all recipes could be carried out") as caught:
        compress(twin, recipes=recipes, target="<99% worse", recovery_steps=5)
    assert "  layers:1: " in caught.value.problem and "was a training of other steps" in caught.value.problem
    report = json.loads((twin / "compression.json").read_text())
    assert [line["recipe"] for line in report["lines"] if line["recipe"] != "onnx"] == [
        "fp32",
        recipes[0],
        recipes[2],
    ]
    assert "was a training of other steps" in report["left_out"]["layers:1"]
    assert f"- layers:1: {report['left_out']['layers:1']}" in (twin / "compression.md").read_text()
    assert (
        f"{report['kept']}, the best of the others, is kept in {twin / 'compressed'}" in caught.value.problem
    )
    assert json.loads((twin / "compressed" / "tutti.json").read_text())["recipe"] == report["kept"]
    with pytest.raises(RunError, match=r"nothing is kept\n  int8-weights: .*\n  layers:1: .* of other steps"):
        compress(twin, recipes=recipes[:2], target="500x smaller", recovery_steps=5)
    with pytest.raises(RunError, match=r"^\S+layers-1 is there, and was a training of other steps"):
        compress(twin, recipes=["layers:1"], recovery_steps=5)


def test_a_model_that_cannot_be_timed_is_left_out(twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def time(directories: Sequence[Path], drill: object) -> list[Timing | ModelError]:
        died = ModelError("the model in int4 could not be timed: its process died")
        return [died if path.name == "int4" else Timing(1.0, 1.0, 1) for path in directories]

    monkeypatch.setattr(session, "time_packages", time)
    monkeypatch.setattr(AskedSubject, "usual", ("int4", "int8"))
    report = compress(twin, target="<99% worse")
    assert report["left_out"]["int4"] == "the model in int4 could not be timed: its process died"
    assert "int4" not in [line["recipe"] for line in report["lines"]]
    assert report["kept"] in ("int8", "onnx")
    (twin / "compression.json").unlink()
    with pytest.raises(
        RunError, match=r"not all recipes (.|\n)*  int4: the model in int4 could not be timed"
    ):
        compress(twin, recipes=["int4", "int8"], target="<99% worse")
    assert json.loads((twin / "compression.json").read_text())["kept"] == "int8"


def test_of_models_one_of_which_cannot_be_opened_the_others_are_timed(run: Path, tmp_path: Path) -> None:
    subject = AskedSubject.of(run)
    whole = Maker(subject, tmp_path).make(Recipe.of("int8")).directory
    (tmp_path / "nothing").mkdir()
    nothing, timed = time_packages([tmp_path / "nothing", whole], subject.drill())
    assert isinstance(nothing, ModelError) and "nothing could not be timed" in nothing.problem
    assert isinstance(timed, Timing) and 0 < timed.one < timed.many * 2


def test_a_package_replaces_a_package_through_a_link(run: Path, tmp_path: Path) -> None:
    maker = Maker(AskedSubject.of(run), tmp_path)
    first, second = (maker.make(Recipe.of(text)).directory for text in ("int8", "int4"))
    (tmp_path / "live").symlink_to(tmp_path / "real")
    publish_package(first, tmp_path / "live")
    publish_package(second, tmp_path / "live")
    assert json.loads((tmp_path / "real" / "tutti.json").read_text())["recipe"] == "int4"
    assert (tmp_path / "live").is_symlink()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "real").iterdir()} == {0o644}
    assert not list(tmp_path.glob(".real*"))


@pytest.mark.slow
def test_the_command_line_shows_the_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tutti_command(["compress", str(run), "--try", "int8", "--target", "<5% worse"]) == 0
    said = capsys.readouterr().out
    assert "int8 ← kept" in said
    assert f"tutti predict {run / 'compressed'}" in said.replace("\n", "")


def test_a_damaged_directory_is_said(run: Path, report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tutti.json").write_text('{"format": 1}')
    with pytest.raises(RunError, match="holds no compressed model"):
        api.predict(tmp_path, ["x"])
    broken = tmp_path / "broken"
    shutil.copytree(report["directory"], broken)
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer in .* is damaged"):
        api.predict(broken, ["x"])


def test_a_teacher_of_other_labels_or_words_is_refused(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "other.tsv"
    source.write_text("text\tlabel\n" + "".join(f"card {n} lost\t{'ab'[n % 2]}\n" for n in range(40)))
    words = [
        *("name=student", f"runs={tmp_path / 'runs'}", "task=classify", f"data.source={source}"),
        *(f"data.cache={tmp_path / 'cache'}", "data.sequence=32", "train.precision=fp32", "train.steps=2"),
        *("replicas=1", f"distil={run}"),
    ]
    with pytest.raises(ModelError, match="made for other labels"):
        api.train(load_config(None, [*words, f"model={run / 'export'}"]), console=False)
    renamed = [f"data.source={write_intents(tmp_path)}", "model=100K", "data.vocabulary=300"]
    with pytest.raises(ModelError, match="has another tokenizer"):
        api.train(load_config(None, [*words, *renamed]), console=False)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_vectors_learn_again_from_what_they_were(tmp_path: Path) -> None:
    pairs = [
        {"query": f"{word} {n}", "text": f"about {word}"}
        for word in ("lost", "fee", "late")
        for n in range(20)
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    words = [
        *(
            "name=near",
            f"runs={tmp_path / 'runs'}",
            "task={kind: embed, together: 4}",
            f"data.source={source}",
        ),
        *(
            f"model={write_encoder(tmp_path / 'bert')}",
            f"data.cache={tmp_path / 'cache'}",
            "data.sequence=32",
        ),
        *("data.validation=0.25", "train.precision=fp32", "train.steps=20", "train.batch=2", "replicas=1"),
    ]
    api.train(load_config(None, words), console=False)
    report = api.compress(
        tmp_path / "runs" / "near", recipes=["layers:1"], target="<99% worse", recovery_steps=5, console=False
    )
    assert report["kept"] == "layers:1"
    recovered = tmp_path / "runs" / "near" / "recovered" / "layers-1"
    assert load_config(recovered / "config.yaml").distil.teachers == [str(tmp_path / "runs" / "near")]
