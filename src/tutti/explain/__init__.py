"""Why a model said what it said: how much each word of a text had to do with it."""

from tutti.explain.explain import Explanation, Method, explain
from tutti.explain.page import write_explanations
from tutti.explain.words import Reading, readings_of

__all__ = ["Explanation", "Method", "Reading", "explain", "readings_of", "write_explanations"]
