"""What is learned: each task turns a model into an `Objective` (batch → sum of the loss, number of targets)."""

from tutti.config.task import RegulariseConfig, TaskConfig
from tutti.tasks.answer import Answer
from tutti.tasks.causal import CausalLanguageModelling
from tutti.tasks.chat import Chat
from tutti.tasks.chunked_loss import IGNORED, chunked_cross_entropy
from tutti.tasks.classify import Classify
from tutti.tasks.contrast import ByContrast
from tutti.tasks.embed import Embed
from tutti.tasks.function import FunctionObjective
from tutti.tasks.manner import Manner, find_manner
from tutti.tasks.recommend import Recommend
from tutti.tasks.relate import Relate
from tutti.tasks.rewrite import Summarise, Translate
from tutti.tasks.tag import Tag
from tutti.tasks.task import Answers, Example, Labels, Record, RowEncoder, Task, TextTask
from tutti.tasks.terms import Added, Addend, LossTerm
from tutti.tasks.writing import Writing

_ASKING: dict[str, type[Task]] = {
    task.kind: task for task in (Classify, Tag, Relate, Answer, Recommend, Embed)
}
_WRITING: dict[str, type[Writing]] = {task.kind: task for task in (Chat, Translate, Summarise)}


def make_task(config: TaskConfig, regularise: RegulariseConfig | None = None) -> Task:
    """The task that `config` names, whose model is asked."""
    return _ASKING[config.kind](config, regularise)


def make_text_task(config: TaskConfig) -> TextTask:
    """What makes rows of the examples of the task that `config` names."""
    return make_task(config) if config.asks else make_writing_task(config)


def make_writing_task(config: TaskConfig) -> Writing:
    """The task that `config` names, whose model writes."""
    return _WRITING[config.kind](config)


__all__ = [
    "IGNORED",
    "Added",
    "Addend",
    "Answers",
    "ByContrast",
    "CausalLanguageModelling",
    "Example",
    "FunctionObjective",
    "Labels",
    "LossTerm",
    "Manner",
    "Record",
    "RowEncoder",
    "Task",
    "TextTask",
    "Writing",
    "chunked_cross_entropy",
    "find_manner",
    "make_task",
    "make_text_task",
    "make_writing_task",
]
