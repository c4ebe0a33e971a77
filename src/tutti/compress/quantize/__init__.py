"""Weights in whole numbers: rounded as they are nearest, or so that what a layer gives changes least."""

from tutti.compress.quantize.apply import Scheme, quantize

__all__ = ["Scheme", "quantize"]
