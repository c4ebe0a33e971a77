"""Classification from few examples: texts with the same label become alike, then a head is fitted on what they became.

Two steps, as SetFit takes them (Tunstall et al. 2022, arXiv 2209.11055). First the encoder learns by contrast over
groups of G texts in which labels repeat (SupCon: Khosla et al. 2020, arXiv 2004.11362):

    L = Σᵢ −1/|P(i)| Σ_{p∈P(i)} log ( exp(zᵢ·z_p / τ) / Σ_{a≠i} exp(zᵢ·z_a / τ) )        τ = 0.1

P(i): the other texts of i's group with its label. A text without any is no target, but others are told apart from it.
z is what the last layer of the model's head reads, with length 1. As a group is a sample, the loss is the same on any
number of workers.

Then that last layer becomes a logistic regression (scikit-learn's) on the vectors of the training texts. So the model
is an ordinary classifier: what reads it need not know how it learned.

Shapes: n groups, G texts a group, D numbers that the last layer reads, L labels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutti.config.task import RegulariseConfig, TaskConfig
from tutti.core import Batch, LossSum, ModelError, Objective
from tutti.tasks.chunked_loss import IGNORED
from tutti.tasks.classify import Classify
from tutti.tasks.task import Labels, Rows, run_encoder

_TEMPERATURE = 0.1
#: Texts of a group, where nothing is said.
_TOGETHER = 64
#: How far the regression may trust vectors, whose mean square distance from their mean is made 1: scikit-learn's C.
_TRUST = 100.0
#: Stands for −∞ where a text has nothing to be compared with: numbers, where that gives none.
_NEVER = -1e9


class ByContrast(Classify):
    """The first step: rows in groups, an objective whose answers are vectors [G · D]. `rows`: to learn from."""

    def __init__(self, config: TaskConfig, rows: int, regularise: RegulariseConfig | None = None) -> None:
        super().__init__(config, regularise)
        self.group = min(config.together or _TOGETHER, rows)

    def objective(self, model: nn.Module, labels: Labels) -> Objective:
        return SupervisedContrast(model, self.group)

    def order(self, rows: Rows, dice: np.random.Generator) -> NDArray[np.int64]:
        """Two of a label (of an odd number, three) stand side by side, and such pairs anywhere."""
        mixed = dice.permutation(len(rows))
        label = labels_of(rows)[mixed]
        pairs: list[NDArray[np.int64]] = []
        for number in np.unique(label):
            own = mixed[label == number]
            pairs += np.split(own, range(2, len(own) - 1, 2))
        return np.concatenate([pairs[at] for at in dice.permutation(len(pairs))])


class SupervisedContrast(Objective):
    """L; batches: `inputs_of` n · G texts, `labels` [n · G] (−100: not there). Answers: vectors [n, G · D]."""

    def __init__(self, model: nn.Module, group: int) -> None:
        super().__init__(model)
        self._group = group
        # Nothing that it says is learned from.
        last_layer(model).requires_grad_(False)

    def forward(self, batch: Batch) -> LossSum:
        """Sum of L over the texts that have others of their label beside them, and their number."""
        vectors = read_by_head(self.model, batch)
        self.answer(vectors.view(-1, self._group * vectors.shape[1]))
        z = nn.functional.normalize(vectors, dim=1).view(-1, self._group, vectors.shape[1])
        alike, others = self._compared(batch)
        with torch.autocast(z.device.type, enabled=False):  # little work, and τ makes much of rounding
            near = z @ z.transpose(1, 2) / _TEMPERATURE
        said = near.masked_fill(~others, _NEVER).log_softmax(2)
        count = alike.sum(2)
        each = (said * alike).sum(2) / count.clamp_min(1)
        return LossSum(-each.sum(), (count > 0).sum())

    def count_targets(self, batch: Batch) -> int:
        """Texts that have others of their label beside them."""
        return int(self._compared(batch)[0].any(2).sum())

    def _compared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[n, G, G] each: the other texts with the same label, and all other texts that are there."""
        labels = batch["labels"].view(-1, self._group)
        itself = torch.eye(self._group, dtype=torch.bool, device=labels.device)
        others = (labels != IGNORED)[:, None, :] & ~itself
        return (labels[:, :, None] == labels[:, None, :]) & others, others


def labels_of(rows: Rows) -> NDArray[np.int64]:
    """The label of each of `rows`."""
    return np.array([rows[number]["labels"][0] for number in range(len(rows))], dtype=np.int64)


def last_layer(model: nn.Module) -> nn.Linear:
    """What makes logits of vectors in a Hugging Face classifier.

    Raises:
        ModelError: it has none that a logistic regression could become.
    """
    whole: Any = model
    wide = int(whole.config.num_labels)
    inside = set(whole.base_model.modules())
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module not in inside and module.out_features == wide
    ]
    if not found or found[-1].bias is None:
        raise ModelError(
            f"task.contrast needs a head that ends in a linear layer with a bias; {whole.config.model_type} has none",
            "take an encoder such as bert, modernbert, roberta or distilbert, or leave out task.contrast",
        )
    return found[-1]


def say_head(model: nn.Module) -> str:
    """What texts are compared by, in a sentence.

    Raises:
        ModelError: as `last_layer`.
    """
    layer, whole = last_layer(model), model
    name = next(name for name, module in whole.named_modules() if module is layer)
    return (
        f"task.contrast: texts are compared by the {layer.in_features} numbers that the model's last layer, {name}, "
        "reads; a logistic regression on them becomes that layer"
    )


def read_by_head(model: nn.Module, batch: Batch) -> Tensor:
    """What the last layer of `model` reads of `batch`, fp32 [rows, D]."""
    seen: list[Tensor] = []
    handle = last_layer(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        run_encoder(model, batch)
    finally:
        handle.remove()
    return seen[0].float()


class Head(NamedTuple):
    """A logistic regression as a linear layer: `weight` [L, D], `bias` [L]."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def logits(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, L] of `vectors` [n, D]; their softmax is the regression's chances."""
        logits: NDArray[np.float64] = vectors @ self.weight.T + self.bias
        return logits


def fit_head(vectors: NDArray[np.float64], labels: NDArray[np.int64], *, balance: bool = False) -> Head:
    """The logistic regression of `labels` [n] (all of 0 … L − 1) on `vectors` [n, D].

    `balance`: rare labels weigh more, as `task.balance` says.
    """
    from sklearn.linear_model import LogisticRegression

    apart = float(np.sqrt(((vectors - vectors.mean(0)) ** 2).sum(1).mean())) or 1.0
    regression: Any = LogisticRegression
    # To the optimum: vectors that contrast drew together make it flat around, and a solver that stops early ends at a
    # head that the last digit of a vector decides - another on each machine, and another when it is fitted again.
    fitted = regression(
        C=_TRUST, solver="newton-cg", tol=1e-8, max_iter=1000, class_weight="balanced" if balance else None
    )
    fitted.fit(vectors / apart, labels)
    weight, bias = fitted.coef_ / apart, fitted.intercept_
    if len(weight) == 1:  # of two labels the second's
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Head(weight, bias)
