"""What `sync: auto` goes by, measured by workers before the run: a few steps of the model, the links between replicas,
and the codecs. Every rank says what it found in an event `sync_measured`; the launcher chooses. Before a run that is
profiled the same is measured, for what else might be chosen.
"""

from __future__ import annotations

from dataclasses import asdict

from tutti.core import read_events
from tutti.core.rundir import RunDirectory
from tutti.parallel import leave_world
from tutti.sync.cost import CodecCost, Filled, Link, Measured
from tutti.sync.ladder import left_open, rungs
from tutti.sync.probe import measure_codecs, measure_links, measure_meeting, meet_all
from tutti.train.pace import Pacing
from tutti.train.rank import Assignment, Rank, be_a_rank
from tutti.train.replicas import make_transport, start_together
from tutti.train.trainee import build

#: How long all replicas are waited for: without one there is nothing to choose by.
_PATIENCE_SECONDS = 1800


def main(assignment: Assignment) -> None:
    """Measure as one rank of a run whose `sync` is undecided."""
    be_a_rank(assignment, _measure)


def _measure(rank: Rank) -> None:
    trainee, elastic = build(rank), rank.assignment.elastic
    world, settings, sync = trainee.world, trainee.settings, trainee.config.sync
    incarnation = rank.attempt + (elastic.incarnation if elastic is not None else 0)
    transport = make_transport(
        world, elastic, incarnation, lambda message: rank.events.write("warning", message=message)
    )
    pacing = Pacing(trainee.job, trainee.split, trainee.optimizers, settings, sync, transport)
    transport.announce()
    if elastic is not None:
        with rank.live.phase("waiting for the other replicas"):
            start_together(
                elastic,
                world,
                lambda missing, most: rank.events.write("waiting", missing=missing, seconds=most),
                patience=_PATIENCE_SECONDS,
            )
    meet_all(transport, world.replicas)
    rank.live.set(phase="rehearsal: steps")
    pace = pacing.measure()
    rank.live.set(phase="rehearsal: links")
    wanted = [sync] if rank.assignment.profiling is None else [sync, left_open(sync)]
    precision = rank.config.train.precision
    candidates = [rung.sync for one in wanted for rung in rungs(one, precision, settings.steps)]
    shapes = [shape for bucket in pace.buckets for shape in bucket.shapes]
    measured = Measured(
        replica=world.replica,
        members=transport.size,
        compute_seconds=pace.seconds,
        buckets=pace.buckets,
        links=measure_links(transport, candidates, world.device, shapes),
        meeting_seconds=measure_meeting(transport),
        codecs=measure_codecs(candidates, transport.size, shapes, world.device),
    )
    rank.events.write("sync_measured", **asdict(measured))
    transport.close()
    leave_world()


def read_measured(run: RunDirectory, since: float, ranks: int) -> list[Measured] | None:
    """What all `ranks` of the run said after Unix time `since`; None: not all of them did."""
    events = {e["rank"]: e for e in read_events(run.path, "sync_measured") if e["time"] >= since}
    if len(events) < ranks:
        return None
    return [
        Measured(
            replica=event["replica"],
            members=event["members"],
            compute_seconds=event["compute_seconds"],
            buckets=tuple(
                Filled(tuple(tuple(shape) for shape in bucket["shapes"]), bucket["lead_seconds"])
                for bucket in event["buckets"]
            ),
            links={kind: Link(**link) for kind, link in event["links"].items()},
            meeting_seconds=event["meeting_seconds"],
            codecs={name: CodecCost(**cost) for name, cost in event["codecs"].items()},
        )
        for event in events.values()
    ]
