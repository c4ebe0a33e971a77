"""What disturbances cost, on runs whose clocks were chosen so that every figure can be worked out by hand."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import Recorder

from tutti.core.errors import RunError
from tutti.core.ranges import merge
from tutti.observe.resilience import resilience_figures, write_resilience_report
from tutti.observe.resilience.report import percentiles
from tutti.observe.resilience.spans import minus, repeated

TOKENS = 10  # of a sample
SHARE = 3  # samples of a replica in a step

Span = tuple[int, int]


def disturb(r: Recorder, number: int, what: str, replica: int, began: float, seconds: float = 0.0) -> None:
    fields = {"number": number, "what": what, "of_replica": replica, "seconds": seconds, "speed": 1.0}
    r.at(began, "disturbance", -1, state="began", **fields)
    if what != "kill":
        r.at(began + seconds, "disturbance", -1, state="ended", **fields)


def together(
    r: Recorder, step: int, time: float, ranks: Sequence[int] = (0, 1, 2), seconds: float = 1.0
) -> None:
    """One step of `allreduce` over three replicas of one rank each; rank 0 speaks for all."""
    for rank in ranks:
        first = 3 * SHARE * (step - 1) + SHARE * rank
        leader = {"loss": 1.0, "tokens": 3 * SHARE * TOKENS, "seconds": seconds} if rank == 0 else {}
        r.at(time, "step", rank, step=step, cursor=[[first, first + SHARE]], bytes_sent=0, **leader)


def approx(value: float) -> Any:
    return pytest.approx(value, abs=1e-3)


def test_allreduce_restarted_from_a_checkpoint(tmp_path: Path) -> None:
    """A step a second. Step 8 is saved; replica 1 dies at 10.5 s, after step 10; step 9 is done again at 15 s."""
    r = Recorder(tmp_path / "run")
    r.at(0, "launched", -1, resume=False)
    r.started(0, policy="allreduce", replicas=3, world_size=3)
    for step in range(1, 11):
        # The victim's last words on a step that counts may be missing: rank 0 has counted its samples.
        together(r, step, step, ranks=(0, 2) if step == 8 else (0, 1, 2))
    disturb(r, 0, "kill", 1, 10.5)
    r.at(10.7, "restart", -1, attempt=1, reason="worker 1 was killed by SIGKILL", of_replica=None)
    r.started(13, policy="allreduce", replicas=3, world_size=3, attempt=1, resumed_from=8)
    for step in range(9, 21):
        together(r, step, step + 6)
    r.at(26, "finished", step=20, state="finished")
    found = write_resilience_report(tmp_path / "run")
    assert (found["samples_committed"], found["samples_lost"], found["samples_trained_twice"]) == (180, 0, 0)
    assert found["samples_computed_again"] == 18
    assert found["seconds"] == approx(26) and found["goodput_tokens_per_second"] == approx(1800 / 26)
    (hit,) = found["disturbances"]
    # From the end of step 8 to the end of the second step 9 are 7 s, one of which is a step.
    assert hit["stall_seconds"] == {"0": approx(6), "2": approx(6)}
    assert hit["recovery_seconds"] == approx(4.5)
    assert found["stall_seconds"]["kill"]["count"] == 2 and found["not_recovered"] == 0
    page = (tmp_path / "run" / "chaos.md").read_text()
    assert "| 10.5 s | kill | 1 | – | 4.5 s | 0: 6.0 s, 2: 6.0 s |" in page


def test_the_same_death_unplanned(tmp_path: Path) -> None:
    """Without `tutti chaos` the restart is what is known: of whom, its reason says."""
    r = Recorder(tmp_path / "run")
    r.started(0, policy="allreduce", replicas=3, world_size=3)
    for step in range(1, 11):
        together(r, step, step)
    r.at(10.7, "restart", -1, attempt=1, reason="worker 1 was killed by SIGKILL", of_replica=None)
    for step in range(9, 21):
        together(r, step, step + 6)
    r.at(26, "finished", step=20, state="finished")
    (hit,) = resilience_figures(tmp_path / "run")["disturbances"]
    assert (hit["what"], hit["replica"], hit["planned"]) == ("death", 1, False)
    assert hit["recovery_seconds"] == approx(4.3) and hit["stall_seconds"]["0"] == approx(6)


def test_stop_slow_and_cut_under_allreduce(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "run")
    r.started(0, policy="allreduce", replicas=3, world_size=3)
    for step in range(1, 11):
        together(r, step, step)
    disturb(r, 0, "stop", 1, 10.3, 3.0)
    together(r, 11, 14.0)
    for step in range(12, 18):
        together(r, step, step + 3)
    disturb(r, 1, "slow", 2, 20.0, 10.0)  # from step 17 on, five steps take 2 s each
    for step in range(18, 23):
        together(r, step, 20 + 2 * (step - 17))
    together(r, 23, 31)
    r.at(31.4, "validation", step=23, loss=1.0, bits_per_byte=1.0, targets=9, seconds=4.0)
    disturb(r, 2, "cut", 0, 35.2, 2.0)
    together(r, 24, 40.0)  # a validation of 4 s, a cut of 2 s that TCP noticed 2 s later
    for step in range(25, 29):
        together(r, step, step + 16)
    r.at(44, "finished", step=28, state="finished")
    stop, slow, cut = resilience_figures(tmp_path / "run")["disturbances"]
    assert stop["stall_seconds"] == {"0": approx(3), "2": approx(3)} and stop["recovery_seconds"] == approx(
        3.7
    )
    assert slow["stall_seconds"] == {"0": approx(5), "1": approx(5)} and slow["recovery_seconds"] == approx(2)
    assert cut["stall_seconds"] == {"1": approx(4), "2": approx(4)} and cut["recovery_seconds"] == approx(4.8)


def test_elastic_allreduce_whose_survivors_go_on(tmp_path: Path) -> None:
    """Replica 1 dies in step 11; the others share out its samples and go on 0.4 s later; it is back for step 20."""
    r = Recorder(tmp_path / "run")
    r.started(0, policy="allreduce", replicas=3, world_size=3, transport="elastic")
    for step in range(1, 11):
        together(r, step, step)
    disturb(r, 0, "kill", 1, 10.5)
    r.at(10.6, "restart", -1, attempt=1, reason="replica 1: worker 0 was killed by SIGKILL", of_replica=1)
    for step in range(11, 20):
        first = 9 * (step - 1)
        leader = {"loss": 1.0, "tokens": 90, "seconds": 1.0}
        r.at(step + 0.4 + (step > 11) * 0.2, "step", 0, step=step, cursor=[[first, first + 5]], **leader)
        r.at(step + 0.4 + (step > 11) * 0.2, "step", 2, step=step, cursor=[[first + 5, first + 9]])
    for step in range(20, 25):
        together(r, step, step + 0.6)
    r.at(24.6, "finished", step=24, state="finished")
    found = resilience_figures(tmp_path / "run")
    (hit,) = found["disturbances"]
    # 1.4 s for step 11 is within half a step of a normal one.
    assert hit["stall_seconds"] == {"0": 0.0, "2": 0.0}
    assert hit["recovery_seconds"] == approx(20.6 - 10.5)
    assert (found["samples_committed"], found["samples_lost"], found["samples_computed_again"]) == (216, 0, 0)


def test_more_samples_are_no_standstill(tmp_path: Path) -> None:
    """Replica 1 of three dies in step 11 and stays away. Step 11 takes 4 s. Then replica 0 makes 5 samples a step
    instead of 3, in 2 s: 1.67 times as many, and 1.2 times as long as they take. Replica 2 waits for it with its 4,
    which is 1.5 times what these take, and no more."""
    r = Recorder(tmp_path / "run")
    r.started(0, policy="allreduce", replicas=3, world_size=3, transport="elastic")
    for step in range(1, 11):
        together(r, step, step)
    disturb(r, 0, "kill", 1, 10.5)
    r.at(10.6, "restart", -1, attempt=1, reason="replica 1: worker 0 was killed by SIGKILL", of_replica=1)
    for step in range(11, 20):
        first, now = 9 * (step - 1), 14 + 2 * (step - 11)
        r.at(now, "step", 0, step=step, cursor=[[first, first + 5]], loss=1.0, tokens=90, seconds=2.0)
        r.at(now, "step", 2, step=step, cursor=[[first + 5, first + 9]])
    r.at(30, "finished", step=19, state="finished")
    (hit,) = resilience_figures(tmp_path / "run")["disturbances"]
    assert hit["stall_seconds"] == {"0": approx(4 - 5 / 3), "2": approx(4 - 4 / 3)}


# Rounds ------------------------------------------------------------------------------------------------------

Ranges = Mapping[str, Span]


def meeting(
    r: Recorder,
    number: int,
    time: float,
    witnesses: Sequence[int],
    *,
    committed: Ranges | None = None,
    returned: Ranges | None = None,
    leased: Ranges | None = None,
) -> None:
    for delay, rank in enumerate(witnesses):
        now = time + 0.001 * delay
        r.at(now, "membership", rank, step=0, replicas=list(witnesses), divergence=0.0)
        for kind, entries in (("commit", committed), ("return", returned), ("lease", leased)):
            for member, span in (entries or {}).items():
                r.at(now, kind, rank, step=0, round=number, member=f"replica-{member}", ranges=[list(span)])


def local_steps(r: Recorder, rank: int, first: int, lease: Span, times: Sequence[float]) -> None:
    for index, time in enumerate(times):
        start = lease[0] + SHARE * index
        fields = {"loss": 1.0, "tokens": SHARE * TOKENS, "seconds": 1.0, "bytes_sent": 0}
        r.at(time, "step", rank, step=first + index, cursor=[[start, start + SHARE]], **fields)


def leases(first: int) -> dict[str, Span]:
    return {f"{n}.0": (first + 12 * n, first + 12 * (n + 1)) for n in range(3)}


def quiet_rounds(r: Recorder, rounds: int) -> float:
    """Four steps a round: three of 1 s, and a meeting of 1.2 s. Ends with the next leases."""
    r.started(0, policy="diloco", replicas=3, world_size=3, transport="elastic")
    meeting(r, 1, 0.0, (0, 1, 2), leased=leases(0))
    for number in range(rounds):
        begin, first = 4.2 * number, 36 * number
        for rank in range(3):
            times = [begin + 1, begin + 2, begin + 3, begin + 4.2]
            local_steps(r, rank, 4 * number + 1, leases(first)[f"{rank}.0"], times)
        meeting(r, number + 2, begin + 4.2, (0, 1, 2), committed=leases(first), leased=leases(first + 36))
    return 4.2 * rounds


def test_a_round_without_the_dead_and_one_with_the_healed(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "run")
    assert quiet_rounds(r, 4) == approx(16.8)
    # Round 5: leases (144, 156), (156, 168), (168, 180). Replica 1 makes two steps and dies.
    for rank, lease in ((0, (144, 156)), (2, (168, 180))):
        local_steps(
            r, rank, 17, lease, [17.8, 18.8, 19.8, 23.0]
        )  # the meeting takes 2 s longer than it should
    local_steps(r, 1, 17, (156, 168), [17.8, 18.8])
    disturb(r, 0, "kill", 1, 19.0)
    r.at(19.1, "restart", -1, attempt=1, reason="replica 1: worker 0 was killed by SIGKILL", of_replica=1)
    meeting(
        *(r, 6, 23.0, (0, 2)),
        committed={"0.0": (144, 156), "2.0": (168, 180)},
        returned={"1.0": (156, 168)},
        leased={"0.0": (156, 168), "2.0": (180, 192)},
    )
    for rank, lease in ((0, (156, 168)), (2, (180, 192))):
        local_steps(r, rank, 21, lease, [24.0, 25.0, 26.0, 27.2])
    r.at(27.2, "healed", 1, step=24)
    last: Ranges = {"0.0": (192, 204), "1.1": (204, 216), "2.0": (216, 228)}
    meeting(r, 7, 27.2, (0, 1, 2), committed={"0.0": (156, 168), "2.0": (180, 192)}, leased=last)
    for rank, lease in enumerate(last.values()):
        local_steps(r, rank, 25, lease, [28.2, 29.2, 30.2, 31.4])
    meeting(r, 8, 31.4, (0, 1, 2), committed=last)
    r.at(31.4, "finished", step=28, state="finished")
    found = resilience_figures(tmp_path / "run")
    (hit,) = found["disturbances"]
    assert hit["stall_seconds"] == {"0": approx(2), "2": approx(2)}
    assert hit["recovery_seconds"] == approx(28.2 - 19.0)
    assert (found["samples_committed"], found["samples_lost"], found["samples_trained_twice"]) == (228, 0, 0)
    assert found["samples_computed_again"] == 6 and found["samples_waiting"] == 0
    assert found["goodput_tokens_per_second"] == approx(2280 / 31.4)


def test_a_cut_replica_whose_round_did_not_count(tmp_path: Path) -> None:
    """It went on alone; what it did came back to the others. Its first step that counts is after the healing."""
    r = Recorder(tmp_path / "run")
    quiet_rounds(r, 4)
    disturb(r, 0, "cut", 1, 18.0, 5.0)
    for rank, lease in ((0, (144, 156)), (1, (156, 168)), (2, (168, 180))):
        local_steps(r, rank, 17, lease, [17.8, 18.8, 19.8] + [21.0] * (rank != 1))
    meeting(
        *(r, 6, 21.0, (0, 2)),
        committed={"0.0": (144, 156), "2.0": (168, 180)},
        returned={"1.0": (156, 168)},
        leased={"0.0": (156, 168), "2.0": (180, 192)},
    )
    for rank, lease in ((0, (156, 168)), (2, (180, 192))):
        local_steps(r, rank, 21, lease, [22.0, 23.0, 24.0, 25.2])
    local_steps(r, 1, 20, (165, 168), [25.2])  # its fourth step ends in the meeting that heals it
    last: Ranges = {"0.0": (192, 204), "1.0": (204, 216), "2.0": (216, 228)}
    meeting(r, 7, 25.2, (0, 1, 2), committed={"0.0": (156, 168), "2.0": (180, 192)}, leased=last)
    for rank, lease in enumerate(last.values()):
        local_steps(r, rank, 25, lease, [26.2, 27.2, 28.2, 29.4])
    meeting(r, 8, 29.4, (0, 1, 2), committed=last)
    r.at(29.4, "finished", step=28, state="finished")
    found = resilience_figures(tmp_path / "run")
    (hit,) = found["disturbances"]
    assert hit["recovery_seconds"] == approx(26.2 - 18.0)
    assert hit["stall_seconds"] == {"0": 0.0, "2": 0.0}
    assert (found["samples_lost"], found["samples_trained_twice"], found["samples_computed_again"]) == (
        0,
        0,
        12,
    )


def test_all_went_back_to_a_checkpoint(tmp_path: Path) -> None:
    """Rounds after the checkpoint of round 3 are written again: the first entries are void, so nothing counts twice."""
    r = Recorder(tmp_path / "run")
    quiet_rounds(r, 4)  # up to meeting 5, at 16.8 s
    for replica in range(3):
        reason = f"replica {replica}: worker 0 was killed by SIGKILL"
        r.at(17.0, "restart", -1, attempt=1, reason=reason, of_replica=replica)
    again = {f"{n}.1": span for n, span in enumerate(leases(72).values())}
    meeting(r, 4, 20.0, (0, 1, 2), returned=leases(72), leased=again)
    for rank in range(3):
        local_steps(r, rank, 9, again[f"{rank}.1"], [21.0, 22.0, 23.0, 24.2])
    meeting(r, 5, 24.2, (0, 1, 2), committed=again)
    r.at(24.2, "finished", step=12, state="finished")
    found = resilience_figures(tmp_path / "run")
    assert (found["samples_committed"], found["samples_lost"], found["samples_trained_twice"]) == (108, 0, 0)
    assert found["samples_computed_again"] == 36


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "run")
    quiet_rounds(r, 1)
    # (48, 60) is committed by two, and (60, 72) by nobody.
    meeting(r, 3, 8.4, (0, 1, 2), committed={"0.0": (36, 48), "1.0": (48, 60), "2.0": (48, 60)})
    found = resilience_figures(tmp_path / "run")
    assert (found["samples_trained_twice"], found["samples_lost"]) == (12, 12)


def test_what_was_lent_when_it_stopped_is_waiting_and_not_lost(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "run")
    quiet_rounds(r, 2)
    found = resilience_figures(tmp_path / "run")
    assert (found["samples_committed"], found["samples_waiting"], found["samples_lost"]) == (72, 36, 0)


def test_a_victim_that_never_came_back(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "run")
    r.started(0, policy="allreduce", replicas=3, world_size=3)
    for step in range(1, 11):
        together(r, step, step)
    disturb(r, 0, "stop", 1, 10.5, 30.0)
    r.at(50, "error", 0, step=10, type="LaunchError", message="x", hint="")
    found = write_resilience_report(tmp_path / "run")
    (hit,) = found["disturbances"]
    assert hit["recovery_seconds"] is None and found["not_recovered"] == 1
    assert hit["stall_seconds"] == {"0": approx(39), "2": approx(39)}
    assert "not until the end" in (tmp_path / "run" / "chaos.md").read_text()


def test_compared_with_a_quiet_run(tmp_path: Path) -> None:
    for name, seconds in (("run", 2.0), ("quiet", 1.0)):
        r = Recorder(tmp_path / name)
        r.started(0, policy="allreduce", replicas=3, world_size=3)
        for step in range(1, 11):
            together(r, step, seconds * step, seconds=seconds)
        r.at(seconds * 10, "validation", step=10, loss=seconds, bits_per_byte=1.0, targets=9, seconds=0.0)
    pair = resilience_figures(tmp_path / "run", tmp_path / "quiet")["undisturbed"]
    assert pair["goodput_ratio"] == approx(0.5) and pair["validation_loss_difference"] == approx(1.0)


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        resilience_figures(tmp_path / "nothing")


def test_percentiles_are_numpys() -> None:
    dice = random.Random(0)
    for count in (1, 2, 7, 100):
        values = [dice.random() for _ in range(count)]
        found = percentiles(values)
        expected = np.percentile(values, [50, 95, 99, 100])
        assert [found[name] for name in ("p50", "p95", "p99", "max")] == pytest.approx(expected)
    assert percentiles([]) == {"count": 0, "p50": None, "p95": None, "p99": None, "max": None}


def test_spans_are_sets() -> None:
    dice = random.Random(0)

    def some() -> list[Span]:
        starts = [dice.randrange(60) for _ in range(dice.randrange(6))]
        return [(start, start + dice.randrange(12)) for start in starts]

    for _ in range(500):
        a, b = some(), some()
        in_a = [n for span in a for n in range(*span)]
        in_b = {n for span in b for n in range(*span)}
        assert sorted(n for span in merge(a) for n in range(*span)) == sorted(set(in_a))
        assert [n for span in minus(a, b) for n in range(*span)] == sorted(set(in_a) - in_b)
        assert repeated(a) == len(in_a) - len(set(in_a))
