"""The accounts of the parameter server under any course of events: nobody is too far ahead, nobody waits for nothing,
and every sample is counted exactly once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tutti.sync import Range, merge
from tutti.sync.server import Register

BATCH, STEPS, REPLICAS = 7, 6, 3


class Course:
    """A register, what its replicas are doing, and what it noted."""

    def __init__(self, staleness: int | None) -> None:
        self.staleness = staleness
        self.noted: dict[str, list[Range]] = {"lease": [], "commit": [], "return": []}
        self.register = Register(
            batch=BATCH,
            steps=STEPS,
            replicas=REPLICAS,
            staleness=staleness,
            min_replicas=1,
            note=lambda kind, member, lease, ranges: self.noted[kind].extend(ranges),
        )
        self.working: dict[str, int] = {}
        self.ended: set[str] = set()
        self.born = 0
        for replica in range(REPLICAS):
            self.register.join(replica, 0)
        self.give_leave()

    def give_leave(self) -> None:
        for leave in self.register.leaves():
            if not leave.ranges:
                self.ended.add(leave.name)
                continue
            self.working[leave.name] = leave.lease
            members = self.register.members
            slowest = min(member.clock for member in members.values())
            if self.staleness:
                assert members[leave.name].clock - slowest <= self.staleness

    def push(self, name: str) -> None:
        self.register.take_in(name, self.working.pop(name))
        if self.register.is_due():
            self.register.commit(1.0)
        self.give_leave()

    def die(self, name: str, *, comes_back: bool) -> None:
        replica = self.register.members[name].replica
        self.working.pop(name, None)
        self.register.lose(name)
        if comes_back:
            self.born += 1
            self.register.join(replica, self.born)
        self.give_leave()


def size(ranges: list[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


@pytest.mark.parametrize("staleness", [0, 1, 3, None])
@given(data=some.data())
@settings(max_examples=60, deadline=None)
def test_any_course_ends_with_every_sample_counted_once(staleness: int | None, data: some.DataObject) -> None:
    course = Course(staleness)
    register = course.register
    for _ in range(400):
        if register.over:
            break
        assert course.working, "somebody can always go on"
        name = data.draw(some.sampled_from(sorted(course.working)))
        if len(register.members) > 1 and data.draw(some.integers(0, 9)) == 0:
            victim = data.draw(some.sampled_from(sorted(register.members)))
            course.die(victim, comes_back=data.draw(some.booleans()))
        else:
            course.push(name)
    assert register.over and register.step == STEPS
    assert course.ended == set(register.members), "everybody is told that it is over"
    everything = [(0, BATCH * STEPS)]
    assert merge(course.noted["commit"]) == everything and size(course.noted["commit"]) == BATCH * STEPS
    leased, returned = size(course.noted["lease"]), size(course.noted["return"])
    assert leased - returned == BATCH * STEPS
    assert register.ledger.state() == {"cursor": BATCH * STEPS, "returned": [], "loans": {}}


def test_a_fast_replica_waits_for_the_slowest_live_one() -> None:
    course = Course(staleness=2)
    fast = "replica-0.0"
    for _ in range(3):
        course.push(fast)
    assert fast not in course.working, "three pushes ahead of two others"
    course.push("replica-1.0")
    assert fast not in course.working, "replica 2 has not pushed yet"
    course.die("replica-2.0", comes_back=False)
    assert fast in course.working, "who is dead is not waited for"


def test_unbounded_never_waits() -> None:
    course = Course(staleness=None)
    pushes = 0
    while "replica-0.0" in course.working:
        course.push("replica-0.0")
        pushes += 1
    others = sum(loan.samples for loan in course.register.loans.values())
    assert size(course.noted["commit"]) + others == BATCH * STEPS, "until there was nothing left to lend"
    assert pushes > STEPS


def test_a_synchronous_step_has_the_whole_batch_whoever_dies() -> None:
    course = Course(staleness=0)
    course.push("replica-0.0")
    course.push("replica-1.0")
    assert course.register.step == 0 and not course.noted["commit"]
    course.die("replica-2.0", comes_back=False)
    assert sorted(course.working) == ["replica-0.0", "replica-1.0"], "they share what the dead one left"
    course.push("replica-0.0")
    course.push("replica-1.0")
    assert course.register.step == 1 and merge(course.noted["commit"]) == [(0, BATCH)]


def test_a_stop_lets_everybody_finish_what_they_have() -> None:
    course = Course(staleness=1)
    course.register.stopping = True
    for name in list(course.working):
        assert not course.ended
        course.push(name)
    assert len(course.ended) == REPLICAS and not course.register.ledger.loans


def register_of(**changes: int) -> Register:
    usual = {"batch": 4, "steps": 10, "replicas": 1, "staleness": 2, "min_replicas": 1}
    return Register(**usual | changes, note=lambda *_: None)


def test_a_checkpoint_of_a_server_is_gone_on_from_to_the_sample() -> None:
    """Step 5 and three samples more, of which one was on loan."""
    register = register_of()
    register.begin_at(5, {"cursor": 24, "returned": [(20, 21)], "loans": {"7": [(21, 22)]}})
    assert (register.step, register.counted) == (5, 22)
    register.join(0, 0)
    leave = register.leaves()[0]
    assert leave.ranges == [(20, 22), (24, 26)], "what was not done comes first"


def test_the_steps_of_another_policy_hold_where_its_samples_do_not_fit() -> None:
    register = register_of()
    register.begin_at(5, {"cursor": 12, "returned": [], "loans": {}})
    assert (register.step, register.counted) == (5, 20)


def test_too_few_replicas_are_lent_nothing_and_can_be_stopped() -> None:
    register = register_of(replicas=2, min_replicas=2)
    register.join(0, 0)
    register.join(1, 0)
    assert len(register.leaves()) == 2
    register.lose("replica-1.0")
    register.take_in("replica-0.0", 1)
    register.commit(1.0)
    assert not register.leaves()
    register.stopping = True
    assert [leave.ranges for leave in register.leaves()] == [[]]
