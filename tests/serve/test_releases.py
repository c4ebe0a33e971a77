"""The directory of releases: what is served after what was done, and that nothing else counts."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import xxhash
from served_tasks import write_task
from transformers import LlamaConfig, LlamaForCausalLM

from served_models import bytes_tokenizer
from tutti.cli import run
from tutti.config import load_config
from tutti.config.dump import dump_config
from tutti.core.errors import ConfigError, ModelError, RunError, TuttiError
from tutti.serve.release import Registry, listing
from tutti.serve.release.content import marks_of, require_unchanged
from tutti.serve.release.deploying import deploy
from tutti.serve.release.standing import Deed, state_after
from tutti.trained import load_causal


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("models") / "labels", "classify")


@pytest.fixture
def releases(tmp_path: Path, model: Path) -> Registry:
    deploy(model, tmp_path / "releases", None, "the first", lambda _: None)
    return Registry(tmp_path / "releases")


def test_a_version_says_what_it_is_made_of(releases: Registry, model: Path) -> None:
    written = json.loads((releases.directory / "versions" / "0001.json").read_text())
    assert written["place"] == str(model) and written["note"] == "the first" and written["version"] == 1
    config = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()
    assert written["lineage"] == {"run": None, "step": None, "config_sha256": config, "data": None}
    marks = {mark["name"]: (mark["size_bytes"], mark["xxh3_128"]) for mark in written["files"]}
    weights = (model / "model.safetensors").read_bytes()
    assert marks["model.safetensors"] == (len(weights), xxhash.xxh3_128_hexdigest(weights))
    assert set(marks) == {path.name for path in model.iterdir()}
    (line,) = (releases.directory / "releases.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["deed"], told["version"], told["why"]) == ("deployed", 1, "the first")


def test_a_history_step_by_step(releases: Registry, model: Path) -> None:
    def so() -> tuple[int | None, int | None, int | None]:
        state = releases.state
        return state.serving, state.canary, state.previous

    assert so() == (1, None, None)
    releases.deploy(model, None, "")
    assert so() == (2, None, 1)
    releases.deploy(model, 10.0, "")
    assert so() == (2, 3, 1) and releases.state.percent == 10
    releases.deploy(model, 0.0, "")  # another canary instead
    assert so() == (2, 4, 1) and releases.state.standings[3].state == "retired"
    assert releases.promote() == 4
    assert so() == (4, None, 2)
    releases.roll_back(why="slow")
    assert so() == (2, None, 1)
    back = releases.state.standings[4]
    assert (back.state, back.why) == ("rolled back", "slow")
    releases.roll_back(4)  # somebody wants it all the same
    assert so() == (4, None, 1) and releases.state.standings[2].state == "rolled back"
    releases.deploy(model, 50.0, "")
    releases.roll_back()  # the canary goes, and nothing else
    assert so() == (4, None, 1) and releases.state.standings[5].state == "rolled back"
    releases.roll_back()
    assert so() == (1, None, None)
    with pytest.raises(RunError, match=r"nothing .* to roll back to"):
        releases.roll_back()
    states = {line["version"]: line["state"] for line in listing(releases)["versions"]}
    assert states == {1: "serving", 2: "rolled back", 3: "retired", 4: "rolled back", 5: "rolled back"}
    assert len(releases.deeds) == 10 and releases.deeds[0].version == 1


def test_only_what_is_served_is_rolled_back_by_itself(releases: Registry, model: Path) -> None:
    releases.deploy(model, None, "")
    assert releases.roll_back(only=1, why="late") is None and releases.state.serving == 2
    releases.deploy(model, 5.0, "")
    assert releases.roll_back(only=2, why="late", by="x") is not None
    state = releases.state
    assert (state.serving, state.canary, state.standings[2].by) == (1, 3, "x")


def test_a_canary_that_is_named_to_go_back_to_serves_and_is_none_any_more(
    releases: Registry, model: Path
) -> None:
    releases.deploy(model, None, "")
    releases.deploy(model, 5.0, "")
    releases.roll_back(3)
    state = releases.state
    assert (state.serving, state.canary, state.percent) == (3, None, 0.0)
    assert releases.roll_back(only=3, why="errors") is not None
    state = releases.state
    assert (state.serving, state.canary, state.standings[3].state) == (1, None, "rolled back")


def test_a_version_that_was_rolled_back_is_nothing_to_go_back_to() -> None:
    def deed(what: str, version: int, **more: object) -> Deed:
        return Deed.model_validate({"time": 0.0, "deed": what, "version": version, "by": "x", **more})

    done = [deed("deployed", 1), deed("deployed", 2), deed("rolled_back", 2, to=1), deed("deployed", 3)]
    assert state_after(done).previous == 1
    assert state_after([]).serving is None


def test_a_model_that_changed_or_went_is_found_out(tmp_path: Path, model: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(model, own)
    version = deploy(own, tmp_path / "releases", None, "", lambda _: None)
    require_unchanged(version)
    weights = own / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"version 1 has changed: .*model\.safetensors"):
        require_unchanged(version)
    content[-1] ^= 1
    weights.write_bytes(content)
    require_unchanged(version)
    (own / "added.json").write_text("{}")
    with pytest.raises(ModelError, match="is new there"):
        require_unchanged(version)
    (own / "added.json").unlink()
    (own / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is gone"):
        require_unchanged(version)
    shutil.rmtree(own)
    with pytest.raises(ModelError, match="version 1 is gone"):
        require_unchanged(version)


def test_a_run_whose_export_is_served_changes_with_it(tmp_path: Path) -> None:
    """What is loaded is what is compared, whatever else lies beside it."""
    place = tmp_path / "run"
    words = [f"runs={tmp_path}", "name=run", f"data.source={tmp_path}", "replicas=1"]
    (place / "checkpoints").mkdir(parents=True)
    (place / "config.yaml").write_text(dump_config(load_config(None, words)))
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(place / "export")
    bytes_tokenizer().save_pretrained(place / "export")
    loaded, _, _ = load_causal(place)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    before = {mark.name: mark for mark in marks_of(place)}
    assert {"config.yaml", "export/model.safetensors", "export/tokenizer.json"} <= set(before)
    (place / "checkpoints" / "a").write_text("of a step that is not loaded")
    assert {mark.name: mark for mark in marks_of(place)} == before
    LlamaForCausalLM(config).save_pretrained(place / "export")
    after = {mark.name: mark for mark in marks_of(place)}
    assert [name for name in before if after[name] != before[name]] == ["export/model.safetensors"]


def test_what_cannot_be_served_does_not_count(tmp_path: Path, model: Path, releases: Registry) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    before = (releases.directory / "releases.jsonl").read_text()
    for place in (broken, tmp_path / "none"):
        with pytest.raises(TuttiError):
            deploy(place, releases.directory, None, "", lambda _: None)
        with pytest.raises(TuttiError):
            deploy(place, tmp_path / "new", None, "", lambda _: None)
    assert (releases.directory / "releases.jsonl").read_text() == before
    assert not (tmp_path / "new").exists()


def test_one_clear_error_each(tmp_path: Path, model: Path, releases: Registry) -> None:
    with pytest.raises(RunError, match="there is no directory"):
        Registry(tmp_path / "none")
    with pytest.raises(RunError, match="holds no releases"):
        Registry(model)
    with pytest.raises(RunError, match="holds something else"):
        deploy(model, model.parent, None, "", lambda _: None)
    with pytest.raises(RunError, match=r"no version 7 .*\n.*there are: 1"):
        releases.roll_back(7)
    with pytest.raises(RunError, match="version 1 serves already"):
        releases.roll_back(1)
    with pytest.raises(RunError, match="no canary"):
        releases.promote()
    with pytest.raises(RunError, match="serves nothing yet"):
        deploy(model, tmp_path / "new", 10, "", lambda _: None)
    with pytest.raises(ConfigError, match="share"):
        deploy(model, releases.directory, 101, "", lambda _: None)
    (releases.directory / "releases.jsonl").write_text("{}\n")
    with pytest.raises(RunError, match="cannot be read"):
        _ = releases.state


def test_one_process_at_a_time_writes(releases: Registry, model: Path) -> None:
    descriptor = os.open(releases.directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(RunError, match="another process is writing"):
        releases.deploy(model, None, "")
    os.close(descriptor)
    assert releases.deploy(model, None, "").version == 2


def test_a_walk_on_the_command_line(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    where = str(tmp_path / "releases")

    def tutti(*words: str) -> tuple[int, str, str]:
        code = run(list(words))
        said = capfd.readouterr()
        return code, said.out, said.err

    code, _, told = tutti("deploy", str(model), "--to", where, "--note", "the first")
    assert code == 0 and f"version 1 of {where} serves" in told and f"tutti serve {where}" in told
    code, _, told = tutti("deploy", str(model), "--to", where, "--canary", "10")
    assert code == 0 and "version 2" in told and "10 % of requests" in told
    assert f"tutti deploy --promote --to {where}" in told
    code, shown, _ = tutti("releases", where)
    assert code == 0 and "canary, 10 %" in shown and "the first" in shown and str(model) in shown
    code, shown, _ = tutti("releases", where, "--json")
    found = json.loads(shown)
    assert (found["serving"], found["canary"], found["percent"]) == (1, 2, 10)
    assert [line["deed"] for line in found["history"]] == ["deployed", "deployed"]
    assert tutti("deploy", "--promote", "--to", where)[0] == 0
    code, _, told = tutti("rollback", where, "--note", "too slow")
    assert code == 0 and "version 2" in told and "version 1 serves" in told
    assert "too slow" in tutti("releases", where)[1]
    code, shown, _ = tutti("deploy", str(model), "--to", where, "--canary-header", "--json")
    assert code == 0 and (json.loads(shown)["version"], json.loads(shown)["percent"]) == (3, 0)
    for words in (
        ["deploy", "--to", where],
        ["deploy", str(model), "--promote", "--to", where],
        ["deploy", str(model), "--to", where, "--canary", "5", "--canary-header"],
        ["releases", str(tmp_path / "none")],
        ["rollback", where, "9"],
    ):
        code, shown, told = tutti(*words)
        assert code == 2 and shown == "" and told.startswith("error: ") and "→" in told
