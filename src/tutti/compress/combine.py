"""Several models of one task as one: the mean of their weights, beside the mean of what they say.

Models that began with the same weights and learned the same examples with other seeds or settings lie close enough to
each other for the mean of their weights to be a model, often a better one than each, at the price of one. The greedy
mean starts with the best and takes in one after the other as long as the validation metric does not fall (Wortsman et
al. 2022, arXiv 2203.05482). The mean of what all of them say is mostly better still, and costs as much as all of them;
what they know together one model can learn (`distil`).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tutti.compress.asked import AskedSubject
from tutti.core import Batch, LossSum, Objective, RunError, write_json_atomically
from tutti.models.quantized import save_quantized
from tutti.package import publish_package, refuse_to_replace, write_package
from tutti.tasks.scored import Scored
from tutti.trained import objective_with

Say = Callable[[str], None]
REPORT = "combination.json"


@dataclass(frozen=True)
class Combination:
    """A way to make one answer of `runs`: `alone`, `mean`, `greedy mean` or `together`; `quality`: its metrics.

    `model`: what computes it; None: all of theirs.
    """

    way: str
    runs: tuple[str, ...]
    quality: dict[str, float]
    model: PreTrainedModel | None

    def as_json(self) -> dict[str, Any]:
        """For the report; `models`: how many have to compute."""
        models = 1 if self.model is not None else len(self.runs)
        return {"way": self.way, "runs": list(self.runs), "models": models, "quality": self.quality}


class Together(Objective):
    """Objectives of the same task as one: the mean of their logits."""

    def __init__(self, objectives: Sequence[Scored]) -> None:
        super().__init__(objectives[0].model)
        self._all = nn.ModuleList(objectives)

    def forward(self, batch: Batch) -> LossSum:
        """Sum of the loss over the targets of `batch`, and their number."""
        objectives = [one for one in self._all if isinstance(one, Scored)]
        logits = torch.stack([one.logits(batch) for one in objectives]).mean(0)
        objectives[0].answers = self.answers
        objectives[0].answer_with(logits, batch)
        return objectives[0].loss(logits, batch)


def combine(runs: Sequence[Path], destination: Path, *, say: Say) -> dict[str, Any]:
    """Combine the models of `runs` in every way, and keep the best that is one model in `destination`.

    Returns what `combination.json` there holds: a line for each way, with metrics on the validation examples, which of
    them is kept, and its metrics on the final test, where there is one.

    Raises:
        TuttiError: there are fewer than two runs, they cannot be compared, or `destination` cannot be written.
    """
    refuse_to_replace(destination)
    subjects = _comparable(runs)
    judge, metric = subjects[0], subjects[0].metric.name
    lines = []
    for line in _ways(subjects, say):
        say(f"{line.way}, {', '.join(line.runs)}: {metric} {line.quality[metric]:.4f}")
        lines.append(line)
    # Of equals the first, which is one of them alone: nothing speaks for another.
    kept = max((line for line in lines if line.model is not None), key=lambda line: line.quality[metric])
    assert kept.model is not None
    tested = "test" in judge.job.prepared.parts
    report = {
        "metric": metric,
        "part": "validation",
        "lines": [line.as_json() for line in lines],
        "kept": kept.as_json(),
        "test": judge.quality(kept.model, "test") if tested else None,
        "directory": str(destination),
    }
    _keep(judge, kept, report, destination)
    return report


def mean_of(models: Sequence[PreTrainedModel]) -> PreTrainedModel:
    """A model whose weights are the means of those of `models`, all of one architecture."""
    mean = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    mean.load_state_dict({name: _mean([state[name] for state in states]) for name in states[0]})
    return mean


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)


def _comparable(runs: Sequence[Path]) -> list[AskedSubject]:
    """The models of `runs`.

    Raises:
        TuttiError: see `combine`.
    """
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        raise RunError(
            "there is nothing to combine: it takes two runs or more, each named once",
            "train with other seeds: name=b train.seed=1",
        )
    subjects = [AskedSubject.of(run) for run in runs]
    first = subjects[0]
    for other in subjects[1:]:
        if other.job.prepared.fingerprint != first.job.prepared.fingerprint:
            raise RunError(
                f"{other.run} learned from other examples, or read them by another tokenizer or data.sequence, than "
                f"{first.run}: nothing could judge both",
                "combine runs with the same data, task and tokenizer",
            )
    return subjects


def _ways(subjects: Sequence[AskedSubject], say: Say) -> Iterator[Combination]:
    """Each model alone, their means, and all together."""
    judge, metric = subjects[0], subjects[0].metric.name
    models = {str(subject.run): subject.model for subject in subjects}
    names = tuple(models)
    alone = []
    for name, model in models.items():
        alone.append(Combination("alone", (name,), judge.quality(model), model))
        yield alone[-1]
    if (unlike := _unlike(subjects)) is None:
        mean = mean_of(list(models.values()))
        yield Combination("mean", names, judge.quality(mean), mean)
        greedy = _greedy(judge, sorted(alone, key=lambda line: line.quality[metric], reverse=True))
        if 1 < len(greedy.runs) < len(names):  # else it stands there already
            yield greedy
    else:
        say(f"their weights have no mean: {unlike}")
    objectives = [objective_with(subject.job, subject.model).eval() for subject in subjects]
    if all(isinstance(one, Scored) for one in objectives):
        together = Together([one for one in objectives if isinstance(one, Scored)])
        yield Combination("together", names, judge.quality_of(together), None)


def _greedy(judge: AskedSubject, best_first: Sequence[Combination]) -> Combination:
    taken, best = [best_first[0]], best_first[0]
    for line in best_first[1:]:
        models = [one.model for one in (*taken, line) if one.model is not None]
        mean = mean_of(models)
        quality = judge.quality(mean)
        if quality[judge.metric.name] >= best.quality[judge.metric.name]:
            taken.append(line)
            runs = tuple(name for one in taken for name in one.runs)
            best = Combination("greedy mean", runs, quality, mean)
    return best


def _unlike(subjects: Sequence[AskedSubject]) -> str | None:
    """Why the weights of the models cannot be averaged; None: they can."""
    shapes = [{name: t.shape for name, t in subject.model.state_dict().items()} for subject in subjects]
    for subject, other in zip(subjects[1:], shapes[1:], strict=True):
        if other != shapes[0]:
            return f"{subject.run} has another architecture than {subjects[0].run}"
    bases = {str(subject.config.model.path) for subject in subjects}
    if len(bases) > 1 or subjects[0].config.model.path is None or subjects[0].config.model.from_scratch:
        return "they did not begin with the same weights"
    return None


def _keep(judge: AskedSubject, kept: Combination, report: dict[str, Any], destination: Path) -> None:
    model = kept.model
    assert model is not None
    made_from = {"runs": list(kept.runs), "data": judge.job.prepared.fingerprint}
    package = judge.package("torch", kept.way, made_from)
    with tempfile.TemporaryDirectory(prefix="tutti-combine-") as folder:
        made = write_package(
            Path(folder) / "made",
            package,
            model.config,
            judge.job.prepared.tokenizer_directory,
            lambda path: save_quantized(copy.deepcopy(model), path),
        )
        write_json_atomically(made / REPORT, report)
        publish_package(made, destination)
