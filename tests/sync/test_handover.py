"""What a newcomer fetches is what the giver had when it offered, whatever happens to it meanwhile."""

from __future__ import annotations

import pytest
import torch

from slow_link import SlowLink
from tutti.sync import handover
from tutti.sync.channel import new_secret
from tutti.sync.handover import Giver, Lost, fetch


def state() -> dict[str, object]:
    torch.manual_seed(0)
    return {
        "weights": {"a": torch.randn(7, 5), "b": torch.randn(300, 40).bfloat16().t()},
        "counts": [torch.tensor(3), torch.empty(0), torch.arange(4)],
        "step": 12,
        "name": None,
    }


def test_the_state_arrives_as_it_was_offered() -> None:
    secret, given = new_secret(), state()
    giver = Giver(secret, "localhost")
    giver.offer("round-3", given)
    given["weights"]["a"].zero_()  # type: ignore[index]
    got, expected = fetch(secret, giver.address, "round-3").result(20), state()
    assert got["step"] == 12 and got["name"] is None
    for mine, theirs in (
        (got["weights"]["a"], expected["weights"]["a"]),  # type: ignore[index]
        (got["weights"]["b"], expected["weights"]["b"]),  # type: ignore[index]
        *zip(got["counts"], expected["counts"], strict=True),  # type: ignore[call-overload]
    ):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        assert torch.equal(mine, theirs)
    giver.close()


def test_a_tensor_may_take_longer_than_a_giver_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_SILENCE_MS", 1000)
    secret, given = new_secret(), torch.arange(500_000)
    giver = Giver(secret, "localhost")
    giver.offer("round-3", given)
    link = SlowLink(giver.address, rate=1.5e6)
    assert torch.equal(fetch(secret, link.own, "round-3").result(60), given)  # 4 MB: 2.7 s
    link.close()
    giver.close()


def test_what_is_not_offered_any_more_cannot_be_fetched() -> None:
    secret = new_secret()
    giver = Giver(secret, "localhost")
    giver.offer("round-3", state())
    giver.offer("round-4", state())
    with pytest.raises(Lost, match="round-3"):
        fetch(secret, giver.address, "round-3").result(20)
    giver.withdraw()
    with pytest.raises(Lost, match="round-4"):
        fetch(secret, giver.address, "round-4").result(20)
    giver.close()
