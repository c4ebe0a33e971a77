"""Smaller, faster, better models from trained ones: pruned, quantized, exported, combined; and what that costs and
gains."""

from tutti.compress.combine import combine
from tutti.compress.session import compress

__all__ = ["combine", "compress"]
