"""Groups that teach each other: co-distillation, as a term of the loss and an exchange that nobody waits for."""

from tutti.train.cooperate.cooperation import Cooperation, Neighbours, rotation_of, start_cooperation

__all__ = ["Cooperation", "Neighbours", "rotation_of", "start_cooperation"]
