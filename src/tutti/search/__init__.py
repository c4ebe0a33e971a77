"""The settings that train best, found by trials: each is an ordinary run, and Optuna says what to try next."""

from tutti.search.searching import tune

__all__ = ["tune"]
