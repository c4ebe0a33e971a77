"""Engines: what turns requests into text, and rows into answers."""

from tutti.serve.engine.backend import AskerBackend
from tutti.serve.engine.encoder import Backend, EncoderEngine
from tutti.serve.engine.grammar import Grammar, Grammars, NoGrammar
from tutti.serve.engine.job import Job, RowAnswer
from tutti.serve.engine.native import Engine
from tutti.serve.engine.request import End, Piece, Request, Sampling
from tutti.serve.engine.slots import SlotModel, Unsupported
from tutti.serve.engine.thread import Full, Stopped

__all__ = [
    "AskerBackend",
    "Backend",
    "EncoderEngine",
    "End",
    "Engine",
    "Full",
    "Grammar",
    "Grammars",
    "Job",
    "NoGrammar",
    "Piece",
    "Request",
    "RowAnswer",
    "Sampling",
    "SlotModel",
    "Stopped",
    "Unsupported",
]
