"""Predicted step times against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tutti.config.agreement import SyncConfig
from tutti.sync.cost import CodecCost, Filled, Link, Measured, compute_seconds, step_seconds

LINK = Link(0.01, 10e6)
NOTHING = CodecCost(0.0, 0.0)


def measured(*buckets: tuple[tuple[tuple[int, ...], ...], float], **changes: Any) -> Measured:
    """Two members whose link takes 10 MB a second; computing takes one."""
    facts: dict[str, Any] = {
        "replica": 0,
        "members": 2,
        "compute_seconds": 1.0,
        "buckets": tuple(Filled(shapes, lead) for shapes, lead in buckets),
        "links": {"fp32": LINK, "bf16": LINK, "packets": LINK},
        "meeting_seconds": 0.05,
        "codecs": dict.fromkeys(("fp32", "bf16", "int8", "topk", "powersgd"), NOTHING)
        | {"int4": CodecCost(0.01, 1e-7)},
    }
    return Measured(**facts | changes)


def step(rank: Measured, **sync: Any) -> float:
    return step_seconds(SyncConfig(**sync), [rank])


WHOLE = (((1000, 1000),), 0.2)


def test_all_reduce_hides_in_backward_as_far_as_it_goes() -> None:
    # 2 (n - 1)/n × 4 MB = 4 MB: 0.01 + 0.4 s, of which 0.2 s are hidden; then the totals, 0.01 s
    assert step(measured(WHOLE)) == pytest.approx(1 + 0.41 - 0.2 + 0.01)
    assert step(measured(WHOLE), codec="bf16") == pytest.approx(1 + 0.21 - 0.2 + 0.01)
    assert step(measured((((1000, 1000),), 0.9))) == pytest.approx(1 + 0.01)


def test_buckets_wait_for_each_other() -> None:
    # 2 MB each, 0.21 s: the first from -0.3 to -0.09; the second, full at -0.1, from then to 0.12
    rank = measured((((500, 1000),), 0.3), (((500_000,),), 0.1))
    assert step(rank) == pytest.approx(1 + 0.12 + 0.01)
    # full at -0.01, the second has the link to itself: until 0.2
    rank = measured((((500, 1000),), 0.3), (((500_000,),), 0.01))
    assert step(rank) == pytest.approx(1 + 0.20 + 0.01)


def test_what_a_codec_computes_is_never_hidden() -> None:
    # Pieces of 503,808 and 496,192 numbers in blocks of 64 numbers and 34 bytes, with 16 bytes each of header: 531,282
    # bytes in two calls; coding takes 0.01 + 0.1 s, and all that ends 0.017 s before backward does.
    assert step(measured(WHOLE), codec="int4") == pytest.approx(1 + 0.11 + 0.01)
    late = measured((((1000, 1000),), 0.0))
    assert step(late, codec="int4") == pytest.approx(1 + 0.11 + 0.02 + 0.0531282 + 0.01)


def test_thin_matrices_and_the_largest_few() -> None:
    late = measured((((1000, 1000), (7,)), 0.0))
    # two all-reduces: 4 × 1000 numbers; 4 × 1000 and the vector
    assert step(late, codec="powersgd") == pytest.approx(1 + 0.02 + 4 * (4000 + 4007) / 10e6 + 0.01)
    # 245 chunks of 4096 numbers, 64 of each with 2 + 1.5 bytes, and a header: to one other member
    assert step(late, codec="topk") == pytest.approx(1 + 0.01 + (245 * 64 * 3.5 + 16) / 10e6 + 0.01)


def test_rounds_pay_for_an_exchange_of_everything_now_and_then() -> None:
    rank = measured((((500, 1000),), 0.3), (((500_000,),), 0.1))
    assert step(rank, policy="diloco", every=10, codec="bf16") == pytest.approx(1 + (0.05 + 0.21) / 10)
    assert step(rank, policy="local_sgd", every=100) == pytest.approx(1 + (0.05 + 0.41) / 100)


def test_replicas_of_different_speed() -> None:
    ranks = [measured(WHOLE), measured(WHOLE, replica=1, compute_seconds=3.0)]
    even = SyncConfig(membership="elastic", shares="even")
    assert compute_seconds(even, ranks) == 3.0
    assert compute_seconds(SyncConfig(membership="fixed"), ranks) == 3.0
    assert compute_seconds(SyncConfig(policy="diloco", membership="elastic"), ranks) == 3.0
    # In 1.5 s the one does 3/2 of an even share and the other 1/2
    assert compute_seconds(SyncConfig(membership="elastic"), ranks) == pytest.approx(1.5)
    # Two ranks of one replica: the slower one is the replica's speed
    ranks = [measured(WHOLE), measured(WHOLE, compute_seconds=3.0)]
    assert compute_seconds(SyncConfig(membership="elastic"), ranks) == 3.0
