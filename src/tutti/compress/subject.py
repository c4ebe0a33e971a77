"""The trained model that is to be made smaller, as far as all kinds of models are alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from tutti.compress.drills import Drill
from tutti.compress.parts import check_parts
from tutti.compress.recipes import Recipe
from tutti.compress.table import Metric, Words
from tutti.config import Config
from tutti.package import Engine, Package


@dataclass
class Subject(ABC):
    """`model`: fp32, whole, without adapters, of `step` of `run`."""

    run: Path
    config: Config
    step: int
    model: PreTrainedModel

    #: What its times are called.
    words: ClassVar[Words]
    #: What is tried where the user names nothing: first these, which need no training.
    usual: ClassVar[tuple[str, ...]]
    #: What speed-ups are also compared with.
    reference: ClassVar[Recipe | None]

    @property
    @abstractmethod
    def metric(self) -> Metric:
        """By which it is judged."""

    @property
    @abstractmethod
    def judged(self) -> tuple[int, str]:
        """On how many examples, and what they are, in words."""

    @property
    @abstractmethod
    def tokenizer_directory(self) -> Path:
        """Where its tokenizer is."""

    def check(self, recipe: Recipe) -> None:
        """Refuse `recipe` where it can be known before anything is computed that it does not go with this model.

        Raises:
            TuttiError: it does not.
        """
        check_parts(self.model, recipe)

    @abstractmethod
    def ladder(self, layers: int, done: Sequence[str]) -> list[str]:
        """What is tried one after the other for a model of `layers` where nothing usual meets the target.

        `done`: recipes that could be carried out.
        """

    @abstractmethod
    def quality(self, model: nn.Module) -> dict[str, float]:
        """Metrics of `model` on what was kept aside, computed in fp32 (or as its modules do)."""

    @abstractmethod
    def running(self, model: nn.Module) -> Iterator[object]:
        """Have `model` compute some training examples, batch by batch."""

    @abstractmethod
    def drill(self) -> Drill:
        """How it is timed."""

    @abstractmethod
    def open(self, directory: Path) -> nn.Module:
        """The model in a package that was made from this one."""

    @abstractmethod
    def package(self, engine: Engine, recipe: str, made_from: dict[str, Any]) -> Package:
        """What stands beside a model that was made from this one by `recipe`."""

    @abstractmethod
    def made_from(self) -> dict[str, Any]:
        """Where a smaller model comes from."""
