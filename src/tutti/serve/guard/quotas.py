"""How much each key has asked for in this minute and on this day, counted in this process by `limits`.

A window begins with its first request. Requests are counted when they come, tokens before the last of the answer
leaves, so requests that are let in side by side can go beyond a quota of tokens, by what they take and no more.
"""

from __future__ import annotations

import math
import time
from typing import Literal

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from tutti.serve.guard.keyring import Key
from tutti.serve.refusal import Refusal

_What = Literal["requests", "tokens"]


class Quotas:
    """Of all keys."""

    def __init__(self) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def admit(self, key: Key) -> dict[str, str]:
        """Count one request of `key`; returns the headers that say what is left.

        Raises:
            Refusal: nothing is (429).
        """
        told: dict[str, str] = {}
        for what in ("requests", "tokens"):
            windows = _windows(key, what)
            used_up = [one for one in windows if not self._limiter.test(one, what, key.name)]
            told |= self._told(key, what, windows)
            if used_up:
                wait = max(self._reset_seconds(key, what, one) for one in used_up)
                raise Refusal(
                    429,
                    f"this key may have {used_up[0].amount} {what} in a {used_up[0].GRANULARITY.name}; come again in "
                    f"{wait} s",
                    code="rate_limit_exceeded",
                    retry_seconds=wait,
                    headers=told,
                )
        for window in _windows(key, "requests"):
            self._limiter.hit(window, "requests", key.name)
        return told | self._told(key, "requests", _windows(key, "requests"))

    def charge(self, key: Key, tokens: int) -> None:
        """`key` has had so many tokens."""
        for window in _windows(key, "tokens") if tokens else ():
            self._limiter.hit(window, "tokens", key.name, cost=tokens)

    def _told(self, key: Key, what: _What, windows: list[RateLimitItem]) -> dict[str, str]:
        """The headers about the window that has least left, as OpenAI calls them."""
        if not windows:
            return {}
        stats = {one: self._limiter.get_window_stats(one, what, key.name) for one in windows}
        least = min(windows, key=lambda one: stats[one].remaining)
        return {
            f"x-ratelimit-limit-{what}": str(least.amount),
            f"x-ratelimit-remaining-{what}": str(stats[least].remaining),
            f"x-ratelimit-reset-{what}": f"{self._reset_seconds(key, what, least)}s",
        }

    def _reset_seconds(self, key: Key, what: _What, window: RateLimitItem) -> int:
        ends = self._limiter.get_window_stats(window, what, key.name).reset_time
        return max(1, math.ceil(ends - time.time()))


def _windows(key: Key, what: _What) -> list[RateLimitItem]:
    quota = key.quota
    minute = quota.requests_per_minute if what == "requests" else quota.tokens_per_minute
    day = quota.requests_per_day if what == "requests" else quota.tokens_per_day
    found: list[RateLimitItem] = []
    if minute is not None:
        found.append(RateLimitItemPerMinute(minute))
    if day is not None:
        found.append(RateLimitItemPerDay(day))
    return found
