"""A rank's part in the cooperation of groups: between steps it hears what others say, and says what they may learn.

    before a step    take in what the postbox has collected, forget what is too old
    in the step      the exchange is a term of the loss (`tasks.terms`)
    after the step   hand the postbox what is to be told

Groups begin together, if they get ready within `_MEET_SECONDS` of each other; after that nothing here waits for
another group. A message that is late or missing means that there is nothing to learn from that
group for a while; how often that happens stands in the events.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial

from tutti.config.schema import Config
from tutti.core import Objective
from tutti.core.events import EventWriter
from tutti.data.rotation import Rotation
from tutti.parallel import World
from tutti.sync.board import Message
from tutti.sync.postbox import Postbox
from tutti.tasks import CausalLanguageModelling
from tutti.train.cooperate.exchange import Exchange
from tutti.train.cooperate.predictions import PredictionsOfOthers
from tutti.train.cooperate.weights import WeightsOfOthers
from tutti.train.precision import compute_context

_READY = "ready"
_MEET_SECONDS = 120.0


@dataclass(frozen=True)
class Neighbours:
    """Where a worker finds the other groups: this is group `group` of `groups`, and the board is on this machine."""

    group: int
    groups: int
    port: int
    secret: bytes = field(repr=False)


def rotation_of(config: Config, neighbours: Neighbours | None) -> Rotation | None:
    """The order in which this group takes samples; None: the global one."""
    if neighbours is None or config.cooperate.exchange != "predictions":
        return None
    return Rotation(neighbours.group, neighbours.groups, int(config.train.batch) * config.cooperate.every)


class Cooperation:
    """Of one rank."""

    def __init__(
        self, exchange: Exchange, postbox: Postbox, objective: CausalLanguageModelling, events: EventWriter
    ) -> None:
        self._exchange = exchange
        self._postbox = postbox
        self._objective = objective
        self._events = events
        self._early: list[Message] = []
        objective.term = exchange

    def meet(self, groups: int) -> None:
        """Wait until the other groups are ready as well; go on without those that do not get ready."""
        self._postbox.post(_READY, 0, 1, lambda: b"")
        deadline = time.monotonic() + _MEET_SECONDS
        ready: set[int] = set()
        while len(ready) < groups - 1 and time.monotonic() < deadline:
            time.sleep(0.02)
            self._early += self._postbox.collect()
            ready = {message.group for message in self._early}

    def before_step(self, step: int) -> None:
        """Take in what the others have said."""
        self._exchange.step = step
        for message in [*self._early, *self._postbox.collect()]:
            if message.kind != _READY:
                self._exchange.hear(message)
        self._early.clear()
        self._exchange.forget()

    def after_step(self, step: int, *, leads: bool) -> None:
        """Tell the others. `leads`: this rank's replica speaks for the group; its ranks call this together."""
        self._exchange.say(self._objective, leads=leads)
        if step % self._exchange.settings.every == 0:
            self._note(step)

    def close(self, step: int) -> None:
        """Deliver what is still to be told, and leave."""
        self._postbox.close()
        self._note(step)

    def _note(self, step: int) -> None:
        self._events.write(
            "cooperation",
            step=step,
            **self._exchange.collect(),
            sent_bytes=self._postbox.sent_bytes,
            received_bytes=self._postbox.received_bytes,
            lost=self._postbox.lost,
        )


def start_cooperation(
    config: Config,
    neighbours: Neighbours | None,
    objective: Objective,
    world: World,
    events: EventWriter,
) -> Cooperation | None:
    """Join the other groups, if there are any, with `objective` as it was laid out."""
    if neighbours is None:
        return None
    assert isinstance(objective, CausalLanguageModelling), "group_configs refuses everything else"
    settings, device = config.cooperate, world.device
    postbox = Postbox(neighbours.port, neighbours.secret, neighbours.group, world.rank)
    architecture = objective.model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    exchange: Exchange
    if settings.exchange == "weights":
        exchange = WeightsOfOthers(
            settings,
            postbox,
            device,
            vocabulary=architecture.vocab_size,
            context=partial(compute_context, config.train.precision, device, sharded=False),
            speaks=world.part == 0,
        )
    else:
        exchange = PredictionsOfOthers(
            settings,
            postbox,
            device,
            groups=neighbours.groups,
            vocabulary=architecture.vocab_size,
            speaks=world.speaks,
        )
    return Cooperation(exchange, postbox, objective, events)
