"""Whether a version is worse than the one before it, by how their requests went."""

from __future__ import annotations

import numpy as np

from tutti.config.service import ReleaseConfig
from tutti.serve.gateway.tally import Tally

#: A smaller difference is not worth a roll-back, however large it is beside a quick answer.
_NOTICED_SECONDS = 0.02
#: Percentiles that are compared, and from how many requests on: with fewer they are the slowest one or two.
_LEAST = {95: 40, 99: 500}


def verdict(new: Tally, old: Tally | None, rules: ReleaseConfig) -> str | None:
    """Why `new` is to be rolled back; None: it is not, or it is too early to say. `old`: of the version before (None or
    with too few requests: it is taken to have answered everything)."""
    seen = new.compared
    if len(seen) < rules.least_requests:
        return None
    enough = old is not None and len(old.compared) >= rules.least_requests
    before = _failed(old) if old is not None and enough else 0.0
    failed = _failed(new)
    if failed > before + rules.error_margin:
        return (
            f"errors: {failed:.1%} of its last {len(seen)} requests failed, and {before:.1%} of those of the version "
            f"before; {rules.error_margin:.1%} more are borne"
        )
    if old is None or not enough:
        return None
    for share, least in _LEAST.items():
        if min(len(new.times), len(old.times)) < least:
            continue
        now, then = float(np.percentile(new.times, share)), float(np.percentile(old.times, share))
        if now > then * rules.latency_factor and now - then > _NOTICED_SECONDS:
            return (
                f"latency: of its last {len(new.times)} requests {share} % began to be answered within "
                f"{1000 * now:.0f} ms, and within {1000 * then:.0f} ms by the version before; "
                f"{rules.latency_factor:g} times as long is borne"
            )
    return None


def _failed(tally: Tally) -> float:
    seen = tally.compared
    return sum(went.failed for went in seen) / len(seen)
