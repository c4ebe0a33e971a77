"""What a rank writes down of its steps and meetings, and of its memory, as events of the run."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tutti.core.events import EventWriter
from tutti.parallel import World
from tutti.sync import Meeting, Policy
from tutti.train.feed import Portion
from tutti.train.step import Gradient


@dataclass(frozen=True)
class Notes:
    """Of one rank."""

    events: EventWriter
    world: World
    policy: Policy

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for the run."""
        return self.world.part == 0 and self.policy.leads

    def step(
        self,
        step: int,
        gradient: Gradient,
        portion: Portion,
        times: Mapping[str, float],
        learning_rate: float,
        cursor: Sequence[Sequence[int]],
        samples: int,
        *,
        profiled: bool,
    ) -> None:
        """A step was made. `times`: seconds, by what they went into; `cursor`: the samples of this rank as ranges;
        `samples`: of the whole step; `profiled`: every rank tells its times."""
        fields: dict[str, object] = {
            "step": step,
            "samples": portion.ids if self.world.speaks else [],
            "cursor": cursor,
            "bytes_sent": self.policy.sent_bytes(),
            "alone_seconds": times.get("wait_data_seconds", 0.0) + gradient.spent.alone,
        }
        if profiled:
            fields |= times
        nothing_yet = self.policy.late and not gradient.totals.targets
        if self.world.part == 0 and (self.policy.drifts or self.leads) and not nothing_yet:
            fields |= {
                "loss": gradient.loss,
                "targets": gradient.totals.targets,
                "tokens": gradient.totals.tokens,
                "learning_rate": learning_rate,
                "gradient_norm": gradient.norm,
                **times,
            } | self.policy.figures()
            if gradient.first is not None and gradient.totals.targets:
                fields |= {
                    "first_norm": gradient.first.norm,
                    "first_samples": samples * gradient.first.targets / gradient.totals.targets,
                    "batch_samples": samples,
                }
        if gradient.made is not None:
            fields["push"] = gradient.made.push
        self.events.write("step", **fields)

    def meeting(self, meeting: Meeting, round: int) -> None:
        """Replicas met, after their round number `round`."""
        if meeting.healed:
            self.events.write("healed", step=meeting.step)
        if self.world.part != 0:
            return
        self.events.write(
            "membership", step=meeting.step, replicas=meeting.members, divergence=meeting.divergence
        )
        for kind, ranges in (
            ("commit", meeting.committed),
            ("return", meeting.returned),
            ("lease", meeting.leased),
        ):
            for member, pieces in ranges.items():
                self.events.write(kind, step=meeting.step, round=round, member=member, ranges=pieces)

    def memory(self) -> None:
        """Peak resident memory of this process so far."""
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        self.events.write("memory", peak_memory_bytes=peak)
