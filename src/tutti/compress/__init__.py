"""Smaller, faster models from a trained one: pruned, quantized, exported; and what that costs and gains."""

from tutti.compress.session import compress

__all__ = ["compress"]
