"""`tutti tune` from the outside: a new search, or one that goes on."""

from __future__ import annotations

from typing import Any

from tutti.config import Config, search_space
from tutti.core.hold import held
from tutti.core.say import Say
from tutti.search.begin import agreed, begin, check
from tutti.search.directory import SearchDirectory
from tutti.search.outcome import Outcome
from tutti.search.session import Session
from tutti.search.study import Study

TRIALS = 20


def tune(
    config: Config, *, trials: int | None = None, parallel: int = 1, resume: bool = False, say: Say
) -> dict[str, Any]:
    """Search for the settings of `config` that train best; returns the content of `search.json`.

    `trials`: of all commands together; None: as many as the search had, or 20. `parallel`: at the same time. `resume`:
    go on with the search that is there.

    Raises:
        TuttiError: what is searched cannot be, no trial came to its end, or the directory cannot be used.
    """
    check(config, parallel, trials)
    place = SearchDirectory.of(config)
    if resume:
        place.require()
    else:
        place.refuse_existing()
        beginning = begin(config, parallel, say)
        place.create(lambda fresh: beginning.store(fresh, trials or TRIALS))
    with held(place.path, "searching there"):
        if resume:
            config = agreed(config, place)
            study = Study.load(place.study, search_space(config), config.train.seed)
            beginning = begin(config, parallel, say, study)
        study = Study.load(place.study, beginning.space, config.train.seed)
        planned = max(trials or int(study.notes["trials"]), len(study.records()))
        study.note(trials=planned)
        outcome = Outcome(place, beginning.config, beginning.goal, beginning.space, beginning.reasons)
        return Session(beginning.base, study, outcome, planned, parallel, beginning.first, say).execute()
