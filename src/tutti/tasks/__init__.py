"""What is learned: each task turns a model into an `Objective` (batch → sum of the loss, number of targets)."""

from tutti.tasks.causal import CausalLanguageModelling
from tutti.tasks.chunked_loss import IGNORED, chunked_cross_entropy
from tutti.tasks.function import FunctionObjective
from tutti.tasks.manner import Manner, find_manner
from tutti.tasks.terms import Added, Addend, LossTerm

__all__ = [
    "IGNORED",
    "Added",
    "Addend",
    "CausalLanguageModelling",
    "FunctionObjective",
    "LossTerm",
    "Manner",
    "chunked_cross_entropy",
    "find_manner",
]
