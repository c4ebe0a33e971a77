"""What may be wrong with a run, judged by its history alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tutti.observe import words
from tutti.observe.alerts.findings import Finding
from tutti.observe.errors import find_cause, is_echo
from tutti.observe.figures import finite, given_up, run_state
from tutti.observe.happened import sentence
from tutti.observe.history import History, Step
from tutti.observe.skew import ranks_of
from tutti.observe.tail import when

#: Steps whose mean is taken; of fewer than three times as many nothing is said that compares.
_WINDOW = 20
#: So many times what lies between two saves by plan is late, however long that is.
_LATE = 1.5
#: Seconds in which the launcher answers a death with a restart, or gives the run up.
_HEALING_SECONDS = 30.0


@dataclass(frozen=True)
class RunRules:
    """Which rules hold; the section `alerts` of a configuration says what each means. None: it is not asked for."""

    bad_numbers: bool = True
    explosion: float | None = 0.5
    ended: bool = True
    stalled: bool = True
    checkpoint_minutes: float | None = 120
    finished: bool = False
    plateau_steps: int | None = None
    slower_than: float | None = None
    straggler: float | None = None

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> RunRules:
        """Those of a configuration's section."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in section.items() if key in known})


def judge_run(
    run: Path,
    history: History,
    rules: RunRules,
    now: float,
    *,
    last: bool = False,
    gave_up: str | None = None,
) -> list[Finding]:
    """What is so `now`, in Unix seconds. `last`: nobody will look again. `gave_up`: why the launcher has just given the
    run up."""
    state, reason = run_state(run, history, now), gave_up or given_up(history)
    died = max((when(e) for e in history.of("error")), default=0.0)
    if gave_up is not None and state != "finished":
        state = "failed"
    elif state == "failed" and reason is None and not last and now - died < _HEALING_SECONDS:
        state = "running"  # the launcher may yet answer it
    found = [*_ends(history, state, rules, reason), *_numbers(history, rules)]
    if state == "running":
        found += [*_delays(history, rules, now), *_paces(history, rules)]
    return found


def _ends(history: History, state: str, rules: RunRules, reason: str | None) -> Iterator[Finding]:
    begun = history.begun
    launched = max((when(e) for e in history.of("launched")), default=begun)
    if state == "failed" and rules.ended:
        cause = find_cause([e for e in history.of("error") if when(e) >= launched])
        # Who was killed wrote nothing, and those that lost him do not know why.
        said = sentence(cause) if cause is not None and not (reason and is_echo(cause)) else reason
        yield Finding("failed", "ended", f"the run failed: {said}" if said else "the run failed")
    said_so = any(when(e) >= begun for e in (*history.of("interrupted"), *history.of("finished")))
    if state == "interrupted" and rules.ended and history.first_time and not said_so:
        step = history.steps[-1].step if history.steps else 0
        yield Finding("gone", "ended", f"the run has stopped without a word after step {step:,}")
    if state == "finished" and rules.finished:
        last = history.validations[-1] if history.validations else {}
        loss = finite(last.get("loss"))
        said = f", validation loss {words.figure(loss)}" if loss is not None else ""
        step = history.steps[-1].step if history.steps else 0
        yield Finding(
            f"finished {step}", "finished", f"the run has finished at step {step:,}{said}", once=True
        )


def _numbers(history: History, rules: RunRules) -> Iterator[Finding]:
    if rules.bad_numbers:
        errors = [
            e for e in history.of("error") if e.get("type") == "TrainingError" and when(e) >= history.begun
        ]
        forgives = (
            history.start.get("precision") == "fp16"
        )  # gradients that overflow: such steps are left out
        bad = [step for step in history.steps[-_WINDOW:] if not _is_finite(step, forgives=forgives)]
        if errors:
            yield Finding("numbers", "bad_numbers", str(sentence(errors[0])))
        elif bad:
            what = "loss" if not math.isfinite(bad[-1].loss) else "gradient"
            yield Finding("numbers", "bad_numbers", f"step {bad[-1].step:,}: the {what} is not finite")
    if rules.explosion is not None:
        losses = [step.loss for step in history.steps if math.isfinite(step.loss)]
        if (risen := _risen(losses)) is not None and risen >= rules.explosion:
            last = statistics.fmean(losses[-_WINDOW:])
            said = f"the loss has risen to {last:.3f}, by {words.percent(risen)} of what it had fallen"
            yield Finding("explosion", "explosion", said)


def _is_finite(step: Step, *, forgives: bool) -> bool:
    return math.isfinite(step.loss) and (forgives or math.isfinite(step.gradient_norm or 0.0))


def _risen(losses: Sequence[float]) -> float | None:
    """How much of what the loss had fallen it has risen again, in means of some steps, noise set aside."""
    if len(losses) < 3 * _WINDOW:
        return None
    means = [statistics.fmean(losses[i : i + _WINDOW]) for i in range(0, len(losses) - _WINDOW, _WINDOW)]
    last = losses[-_WINDOW:]
    first, lowest, now = means[0], min(means), statistics.fmean(last)
    noise = 4 * statistics.stdev(last) / math.sqrt(_WINDOW)
    fallen, risen = first - lowest, now - lowest - noise
    # The lowest of many means lies below all others by chance alone; a fall that is no more than that is none.
    return risen / fallen if fallen > 2 * noise and risen > 0 else None


def _delays(history: History, rules: RunRules, now: float) -> Iterator[Finding]:
    begun, saves = history.begun, history.of("checkpoint")
    if rules.checkpoint_minutes is not None and history.first_time:
        saved = max([begun, *(when(e) for e in saves)])
        if now - saved > max(rules.checkpoint_minutes * 60, _LATE * _seconds_between_saves(history)):
            since = "the last checkpoint" if saves and when(saves[-1]) >= begun else "it began"
            yield Finding(
                "checkpoint",
                "checkpoint_minutes",
                f"nothing was saved for {words.seconds(now - saved)}, since {since}",
            )
    if rules.stalled:
        answers = [*history.of("recovered"), *history.of("restart"), *history.starts]
        for event in history.of("stalled"):
            rank = event.get("of_rank", event.get("rank"))
            over = any(when(a) >= when(event) and a.get("of_rank", rank) == rank for a in answers)
            if not over:
                yield Finding(f"stalled {rank}", "stalled", str(sentence(event)))


def _seconds_between_saves(history: History) -> float:
    """As the run was told to save, at the pace of its last steps; 0: not known."""
    every, last = history.start.get("checkpoint_every"), history.steps[-_WINDOW:]
    return int(every) * statistics.fmean(step.seconds for step in last) if every and last else 0.0


def _paces(history: History, rules: RunRules) -> Iterator[Finding]:
    if rules.plateau_steps is not None and history.validations and history.steps:
        measured = [
            (loss, int(e.get("step") or 0))
            for e in history.validations
            if (loss := finite(e.get("loss"))) is not None
        ]
        best, step = min(measured, default=(math.nan, 0))
        since = history.steps[-1].step - step
        if measured and since >= rules.plateau_steps:
            said = (
                f"the validation loss has been no better than {best:.4f} (step {step:,}) for {since:,} steps"
            )
            yield Finding("plateau", "plateau_steps", said)
    if rules.slower_than is not None and len(history.steps) >= 3 * _WINDOW:
        speeds = [step.tokens / step.seconds for step in history.steps if step.seconds > 0]
        usual = statistics.median(speeds)
        last = history.steps[-_WINDOW:]
        now = sum(step.tokens for step in last) / sum(step.seconds for step in last)
        if now < rules.slower_than * usual:
            said = f"{words.rate(now)} tokens/s over the last {_WINDOW} steps, {words.rate(usual)} is usual"
            yield Finding("speed", "slower_than", said)
    if rules.straggler is not None:
        for rank in ranks_of(history, {}, last=_WINDOW):
            ratio = rank["of_others"]
            if ratio is not None and ratio > rules.straggler:
                said = f"rank {rank['rank']} works {ratio:.1f} times as long on a step as the others"
                yield Finding(f"straggler {rank['rank']}", "straggler", said)
