"""Engines: what turns requests into text."""

from tutti.serve.engine.native import Engine, Full
from tutti.serve.engine.request import End, Piece, Request, Sampling
from tutti.serve.engine.slots import SlotModel, Unsupported

__all__ = ["End", "Engine", "Full", "Piece", "Request", "Sampling", "SlotModel", "Unsupported"]
