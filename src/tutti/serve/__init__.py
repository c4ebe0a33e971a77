"""A trained model as a service: engines that compute, and the protocol that people and programs ask in."""

from tutti.serve.load import Weights
from tutti.serve.make import EngineChoice, Settings
from tutti.serve.run import serve
from tutti.web.door import Door

__all__ = ["Door", "EngineChoice", "Settings", "Weights", "serve"]
