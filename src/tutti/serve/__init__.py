"""A trained model as a service: engines that compute, and the protocol that people and programs ask in."""

from tutti.serve.run import serve
from tutti.serve.settings import EngineChoice, Settings, Weights
from tutti.web.door import Door

__all__ = ["Door", "EngineChoice", "Settings", "Weights", "serve"]
