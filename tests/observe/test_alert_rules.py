"""Each rule, provoked by events as runs write them, and not by those that are as they should be."""

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.observe.synthetic import START, Recorder
from tutti.config import AlertsConfig, Config, ServiceAlertsConfig
from tutti.observe.alerts import Finding, RunRules, ServiceRules, WatchedRun, judge_run, judge_service
from tutti.observe.alerts.findings import SETTLE_SECONDS, Book
from tutti.observe.history import read_history
from tutti.observe.metrics import Sample
from tutti.observe.watch import read_signs


def found(r: Recorder, seconds: float, **rules: Any) -> dict[str, str]:
    """By key, what is said `seconds` after the start."""
    history = read_history(r.run)
    return {one.key: one.said for one in judge_run(r.run, history, RunRules(**rules), START + seconds)}


@pytest.fixture
def run(tmp_path: Path) -> Recorder:
    r = Recorder(tmp_path / "r")
    r.at(0, "launched", -1, resume=False)
    r.started(0)
    return r


def test_rules_of_the_configuration_are_these() -> None:
    assert RunRules.of(AlertsConfig().model_dump()) == RunRules()
    assert ServiceRules.of(ServiceAlertsConfig().model_dump()) == ServiceRules()
    assert Config().alerts.has_receivers is False


def test_a_run_that_does_well_is_left_alone(run: Recorder) -> None:
    now = run.steps(0, range(1, 101))
    everything = {"plateau_steps": 50, "slower_than": 0.5, "straggler": 1.2, "finished": True}
    assert found(run, now, **everything) == {}
    run.at(now, "validation", step=100, loss=0.4)
    run.at(now + 1, "finished", step=100, state="finished")
    assert found(run, now + 1e6, **everything) == {
        "finished 100": "the run has finished at step 100, validation loss 0.4000"
    }
    assert found(run, now + 1e6) == {}


@pytest.mark.parametrize("fields", [{"loss": math.nan}, {"gradient_norm": math.inf}])
def test_numbers_that_are_none(run: Recorder, fields: dict[str, float]) -> None:
    now = run.steps(0, range(1, 30))
    run.steps(now, [30], **{key: str(value) for key, value in fields.items()})
    assert "not finite" in found(run, now + 1)["numbers"]
    assert "numbers" not in found(run, now + 1, bad_numbers=False)
    now = run.steps(now, range(31, 60))  # fp16 skips such a step and goes on
    assert "numbers" not in found(run, now)


def test_a_loss_that_explodes(run: Recorder) -> None:
    now = run.steps(0, range(1, 81))
    assert "explosion" not in found(run, now)
    now = run.steps(now, range(81, 101), loss=4.9)
    said = found(run, now)["explosion"]
    # Means of twenty: the first of 5/√n, the lowest 5/√n from 61 to 80.
    first = sum(5 / math.sqrt(n) for n in range(1, 21)) / 20
    lowest = sum(5 / math.sqrt(n) for n in range(61, 81)) / 20
    share = (4.9 - lowest) / (first - lowest)
    assert said == f"the loss has risen to 4.900, by {share * 100:.1f} % of what it had fallen"


def test_noise_is_no_explosion(run: Recorder) -> None:
    now = 0.0
    for step in range(1, 201):
        now = run.steps(now, [step], loss=2.0 + 0.5 * math.sin(step * 1.7) - step * 1e-4)
    assert "explosion" not in found(run, now)


@pytest.mark.parametrize("fall", [0.0, 0.1])
def test_a_loss_that_hardly_falls_cannot_explode(run: Recorder, fall: float) -> None:
    """The lowest of many means lies below all others by chance: the last is not high because of it."""
    dice = random.Random(0)
    now = 0.0
    for step in range(1, 1201):
        loss = 2.0 + 0.3 * dice.gauss(0, 1) - fall * min(1.0, step / 600)
        now = run.steps(now, [step], loss=loss)
        assert step % 60 or "explosion" not in found(run, now), step


def test_fp16_forgives_gradients_that_overflow(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "r")
    r.at(0, "launched", -1, resume=False)
    r.started(0, precision="fp16")
    now = r.steps(r.steps(0, range(1, 30)), [30], gradient_norm="inf")
    assert "numbers" not in found(r, now)
    assert "loss" in found(r, r.steps(now, [31], loss="nan"))["numbers"]


def test_what_is_saved_seldom_by_plan_is_not_late(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "r")
    r.at(0, "launched", -1, resume=False)
    r.started(0, checkpoint_every=200)
    now = r.steps(0, range(1, 251))
    assert "checkpoint" not in found(r, now, checkpoint_minutes=1)
    now = r.steps(now, range(251, 305))  # half as long again
    assert "checkpoint" in found(r, now, checkpoint_minutes=1)


def test_a_run_that_failed_and_one_that_is_gone(run: Recorder) -> None:
    now = run.steps(0, range(1, 4))
    assert found(run, now + 30) == {}
    assert found(run, now + 100) == {"gone": "the run has stopped without a word after step 3"}
    run.at(now + 1, "interrupted", step=3)
    assert found(run, now + 100) == {}  # the user stopped it
    run.at(now + 200, "launched", -1, resume=True)
    run.at(now + 201, "error", 0, step=3, type="ValueError", message="no such thing")
    said = found(run, now + 300)
    assert said == {"failed": "the run failed: rank 0 failed at step 3: ValueError: no such thing"}


def test_a_death_that_may_heal_is_no_failure_yet(run: Recorder) -> None:
    now = run.steps(0, range(1, 4))
    run.at(now, "error", 1, step=3, type="PeerLost", message="replica 0 is gone", peer=True)
    assert found(run, now + 1) == {}
    judged = judge_run(run.run, read_history(run.run), RunRules(), START + now + 1, last=True)
    assert [one.key for one in judged] == ["failed"]  # nobody is left to heal it
    assert list(found(run, now + 31)) == ["failed"]
    run.at(now + 2, "restart", -1, attempt=1, reason="replica 0: worker 0 was killed", of_replica=None)
    assert found(run, now + 31) == {}


def test_a_run_whose_worker_was_killed_once_too_often_has_failed(run: Recorder) -> None:
    now = run.steps(0, range(1, 4))
    reason = "worker 0 was killed by SIGKILL"
    judged = judge_run(run.run, read_history(run.run), RunRules(), START + now + 1, gave_up=reason)
    assert [(one.key, one.said) for one in judged] == [("failed", f"the run failed: {reason}")]
    run.at(now, "error", 1, step=3, type="RuntimeError", message="Connection closed by peer", peer=True)
    run.at(now + 1, "gave_up", -1, reason=reason)  # as a second process sees it
    assert found(run, now + 2) == {"failed": f"the run failed: {reason}"}
    run.at(now + 10, "launched", -1, resume=True)
    assert found(run, now + 11) == {}


def test_a_full_disk_hides_no_alert(tmp_path: Path) -> None:
    book = Book("r", 600.0, tmp_path / "gone" / "alerts.jsonl")
    assert [alert.state for alert in book.compare([Finding("failed", "ended", "it failed")], 0)] == ["firing"]


def test_nothing_saved_for_long(run: Recorder) -> None:
    now = run.steps(0, range(1, 4))
    assert "checkpoint" not in found(run, now, checkpoint_minutes=1)
    now = run.steps(70, range(4, 6))
    assert "since it began" in found(run, now, checkpoint_minutes=1)["checkpoint"]
    run.at(now, "checkpoint", step=5)
    assert "checkpoint" not in found(run, now + 30, checkpoint_minutes=1)
    now = run.steps(now + 100, range(6, 8))
    assert "since the last checkpoint" in found(run, now, checkpoint_minutes=1)["checkpoint"]


def test_a_rank_that_hangs(run: Recorder) -> None:
    now = run.steps(0, range(1, 4))
    run.at(now, "stalled", -1, of_rank=1, message="rank 1 has not finished a step for 31.0 s")
    assert found(run, now + 1)["stalled 1"] == "rank 1 has not finished a step for 31.0 s"
    run.at(now + 2, "recovered", -1, of_rank=1, message="rank 1 goes on")
    assert found(run, now + 3) == {}


def test_a_lonely_worker_that_hangs_is_not_gone_while_its_launcher_lives(run: Recorder) -> None:
    now = run.steps(0, range(1, 4))
    run.at(now + 31, "stalled", -1, of_rank=0, message="rank 0 has given no sign of life for 31.0 s")
    launcher, last = run.run / "live/launcher.json", now + 250
    launcher.write_text(json.dumps({"rank": -1, "time": START + last}))
    for seconds in (now + 40, now + 100, last + 50):
        assert list(found(run, seconds)) == ["stalled 0"]
    assert read_signs(run.run) == {}  # it is nobody who could hang
    assert list(found(run, last + 61)) == ["gone"]


def test_a_plateau(run: Recorder) -> None:
    for step, loss in ((10, 3.0), (20, 2.0), (30, 2.1)):
        run.at(step, "validation", step=step, loss=loss)
    now = run.steps(0, range(1, 71))
    assert "plateau" not in found(run, now) and "plateau" not in found(run, now, plateau_steps=51)
    said = found(run, now, plateau_steps=50)["plateau"]
    assert said == "the validation loss has been no better than 2.0000 (step 20) for 50 steps"


def test_a_run_that_slows_down(run: Recorder) -> None:
    now = run.steps(0, range(1, 61))
    now = run.steps(now, range(61, 81), seconds=2.5)
    assert found(run, now, slower_than=0.41)["speed"] == "400 tokens/s over the last 20 steps, 1,000 is usual"
    assert "speed" not in found(run, now, slower_than=0.39)


def test_a_straggler(run: Recorder) -> None:
    for step in range(1, 41):
        for rank in range(3):
            slow = 0.2 if step <= 20 or rank != 2 else 0.5
            spoken = {"loss": 2.0, "tokens": 10, "seconds": 1.0} if rank == 0 else {}
            run.at(step, "step", rank, step=step, alone_seconds=slow, **spoken)
    assert found(run, 40, straggler=2) == {
        "straggler 2": "rank 2 works 2.5 times as long on a step as the others"
    }
    assert found(run, 40, straggler=3) == {}


def samples(**of_last: Any) -> list[Sample]:
    """Two minutes of a service that does well, but for its last 100 requests."""
    seconds = {"0.1": 90.0, "1.0": 99.0, "+Inf": 100.0}
    first = Sample(
        0.0, requests={"status": {"200": 0.0}}, seconds=dict.fromkeys(seconds, 0.0), waiting=0.0, up=1.0
    )
    usual: dict[str, Any] = {
        "requests": {"status": {"200": 99.0, "500": 1.0}},
        "seconds": seconds,
        "waiting": 1.0,
    }
    return [first, Sample(120.0, **(usual | {"up": 1.0} | of_last))]


SERVICE = {"error_rate": 0.05, "p99_seconds": 2.0, "queue": 4}


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (
            {"requests": {"status": {"200": 90.0, "503": 10.0}}},
            "error_rate",
            "10.0 % of 100 requests",
        ),
        ({"seconds": {"1.0": 98.0, "10.0": 100.0, "+Inf": 100.0}}, "p99", "took longer than 5.5 s (100 in"),
        ({"waiting": 9.0}, "queue", "4 requests waited"),
    ],
)
def test_a_service_that_does_badly(change: dict[str, Any], key: str, words: str) -> None:
    rules = ServiceRules(**(SERVICE | {"queue": 3}))
    assert judge_service(samples(), ServiceRules(**SERVICE)) == []
    (finding,) = [one for one in judge_service(samples(**change), rules) if one.key == key]
    assert words in finding.said
    assert judge_service(samples(**change), ServiceRules()) == []  # not asked for


def test_few_requests_are_no_rate() -> None:
    few = samples(
        requests={"status": {"200": 0.0, "500": 10.0}}, seconds={"1.0": 0.0, "10.0": 10.0, "+Inf": 10.0}
    )
    assert judge_service(few, ServiceRules(**SERVICE)) == []


def test_a_service_that_is_away() -> None:
    good = samples()
    away = [Sample(120.0 + n, problem="it cannot be reached") for n in (5, 20, 36)]
    assert judge_service([*good, *away[:2]], ServiceRules()) == []  # it may only be starting again
    (finding,) = judge_service([*good, *away], ServiceRules())
    assert (finding.key, finding.said) == ("down", "it cannot be reached")
    dead = [Sample(120.0 + n, up=0.0) for n in (5, 36)]
    assert "dead or wedged" in judge_service([*good, *dead], ServiceRules())[0].said
    assert judge_service([*away, good[0]], ServiceRules()) == []


def test_told_once_and_again_after_long_and_once_when_it_is_over(tmp_path: Path) -> None:
    file = tmp_path / "alerts.jsonl"
    book = Book("r", 600.0, file)
    bad, done = Finding("queue", "queue", "9 wait"), Finding("finished 5", "finished", "done", once=True)

    def states(findings: list[Finding], now: float, of: Book) -> list[tuple[str, str]]:
        return [(alert.key, alert.state) for alert in of.compare(findings, now)]

    assert states([bad], 0, book) == [("queue", "firing")]
    assert states([bad], 5, book) == []
    assert states([], 10, book) == []  # it may come back
    assert states([bad], 20, book) == []
    assert states([bad], 599, book) == [] and states([bad], 600, book) == [("queue", "still")]
    assert states([bad], 700, book) == []
    book = Book("r", 600.0, file)  # another process goes on with it
    assert states([bad, done], 710, book) == [("finished 5", "firing")]
    assert states([], 720, book) == []
    assert states([], 710 + SETTLE_SECONDS, book) == [("queue", "resolved")]
    assert states([], 9e9, book) == []
    book = Book("r", 600.0, file)
    assert states([done], 9e9, book) == [] and states([bad], 9e9, book) == [("queue", "firing")]
    with file.open("a") as torn:
        torn.write('{"subject": "r", "ke')
    assert states([bad], 9e9, Book("r", 600.0, file)) == []


def test_a_full_disk_keeps_no_alert_from_those_who_wait_for_it() -> None:
    book = Book("r", 600.0, Path("/dev/full"))
    (alert,) = book.compare([Finding("disk", "failed", "no space left")], 0.0)
    assert alert.line == "r: no space left"
    assert book.compare([Finding("disk", "failed", "no space left")], 5.0) == []


def test_a_torn_line_takes_no_other_alert_with_it(tmp_path: Path) -> None:
    file = tmp_path / "alerts.jsonl"
    first, second = Finding("a", "failed", "one\u2028line"), Finding("b", "failed", "it failed")
    Book("r", 600.0, file).compare([first], 0.0)
    with file.open("a") as torn:
        torn.write('{"subject": "r", "ke')
    (alert,) = Book("r", 600.0, file).compare([first, second], 1.0)
    assert alert.key == "b"
    assert Book("r", 600.0, file).compare([first, second], 2.0) == []


@pytest.mark.parametrize("part", ["mine/groups/0", "mine/trials/0"])
def test_a_part_of_a_run_is_named_after_it(tmp_path: Path, part: str) -> None:
    r = Recorder(tmp_path / part)
    r.started(0)
    r.at(1, "error", 0, step=0, type="ValueError", message="no")
    watched = WatchedRun(r.run, RunRules(), 600.0)
    (alert,) = watched.look(START + 2, last=True)
    watched.close()
    assert alert.line == "mine/0: the run failed: rank 0 failed at step 0: ValueError: no"


def test_who_watched_a_run_that_was_deleted_leaves_the_next_one_to_its_own_process(tmp_path: Path) -> None:
    def begun() -> Recorder:
        r = Recorder(tmp_path / "r")
        r.started(0)
        return r

    outside = WatchedRun(begun().run, RunRules(), 600.0)
    assert outside.look(START + 1, last=True) == []
    shutil.rmtree(tmp_path / "r")
    assert outside.look(START + 2, last=True) == []
    begun().at(3, "error", 0, step=0, type="ValueError", message="no")
    own = WatchedRun(tmp_path / "r", RunRules(), 600.0)
    assert [alert.key for alert in own.look(START + 4, last=True)] == ["failed"]
    assert outside.look(START + 5, last=True) == []
    own.close()
    assert outside.look(START + 6, last=True) == []  # it holds the file now, and knows what was told
    outside.close()
