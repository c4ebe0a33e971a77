"""Models with a head over ranks: loss and every gradient are those of unmodified transformers in one process."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from layouts import whole_gradients
from torch import Tensor
from transformers import BertConfig, DistilBertConfig, LlamaConfig, ModernBertConfig, RobertaConfig

from ranks import run_ranks
from tutti.config import LayoutConfig
from tutti.core import Batch, ConfigError, LossSum, Objective
from tutti.models import add_rows_only, find_blocks
from tutti.models.heads import HEADS, HeadedBlueprint
from tutti.parallel import Arithmetic, apply_layout, arrange, check_layout, limits_with_head
from tutti.sync import AllReduce, Ledger, Place, StaticTransport
from tutti.tasks.dense import install, packed
from tutti.tasks.masked import MaskedLanguageModelling
from tutti.tasks.packing import ATTENTION
from tutti.train.precision import LossScale
from tutti.train.step import Accumulator

SHAPE = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 40, "pad_token_id": 0}  # fmt: skip
ENDS = {"bos_token_id": 2, "eos_token_id": 3}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ARCHITECTURES: dict[str, Any] = {
    "bert": BertConfig(**SHAPE, **STILL),
    "roberta": RobertaConfig(**SHAPE, **STILL),
    "modernbert": ModernBertConfig(**SHAPE, **ENDS, cls_token_id=2, sep_token_id=3, local_attention=8),
    "odd": BertConfig(**SHAPE | {"vocab_size": 51}, **STILL),  # its words cannot be shared out
    "distilbert": DistilBertConfig(
        vocab_size=50, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=40, dropout=0.0,
        attention_dropout=0.0, seq_classif_dropout=0.0,
    ),
    "llama": LlamaConfig(**SHAPE | {"pad_token_id": None}, tie_word_embeddings=True),
}  # fmt: skip
BATCH, LENGTH = 8, 11


@dataclass(frozen=True)
class Case:
    """A model in a layout; `replicas` of them."""

    family: str
    kind: str
    layout: dict[str, int]

    def blueprint(self) -> HeadedBlueprint:
        architecture = type(ARCHITECTURES[self.family])(**ARCHITECTURES[self.family].to_dict())
        architecture.num_labels = 3 if self.kind != "answer" else 2
        return HeadedBlueprint(HEADS[self.kind], architecture, seed=1)

    @property
    def masked(self) -> bool:
        return self.kind == "masked_language_model"

    def __str__(self) -> str:
        return f"{self.family}-{self.kind}-{self.layout}"


TWO = [
    Case("bert", "classify", {"tensor": 2}),
    Case("bert", "embed", {"tensor": 2}),
    Case("roberta", "answer", {"tensor": 2}),
    Case("modernbert", "tag", {"tensor": 2}),
    Case("odd", "tag", {"tensor": 2}),
    Case("distilbert", "classify", {"tensor": 2}),
    Case("llama", "recommend", {"tensor": 2}),
    Case("bert", "masked_language_model", {"tensor": 2}),
    Case("modernbert", "masked_language_model", {"shard": 2}),
]
FOUR = [
    Case("bert", "tag", {"tensor": 4}),
    Case("bert", "classify", {"tensor": 2, "shard": 2}),
    Case("modernbert", "classify", {"tensor": 2}),  # two replicas
    Case("roberta", "masked_language_model", {"tensor": 2, "shard": 2}),
]


class Weighed(Objective):
    """Σ of squares of the first output at the tokens, each times a number of its own."""

    def forward(self, batch: Batch) -> LossSum:
        """The sum, and the number of rows that have a token to learn from."""
        names = ("input_ids", "attention_mask")
        with packed(batch["attention_mask"]):
            output = self.model(**{name: batch[name] for name in names})[0]
        return LossSum(weighed(output, batch), batch["there"].sum())

    def count_targets(self, batch: Batch) -> int:
        return int(batch["there"].sum())


def weighed(output: Tensor, batch: Batch) -> Tensor:
    """Whatever the head says: [B, any], or [B, S, any] of which only tokens count."""
    keep = batch["there"].view(-1, *[1] * (output.ndim - 1))
    if output.ndim > 1 and output.shape[1] == batch["attention_mask"].shape[1]:
        keep = keep * batch["attention_mask"].view(*output.shape[:2], *[1] * (output.ndim - 2))
    numbers = torch.arange(1, output.shape[-1] + 1) / output.shape[-1]
    return (output.square() * numbers * keep).sum()


def batch_of(rows: Tensor, *, masked: bool = False) -> dict[str, Tensor]:
    """Rows of unlike length; or such in which tokens are to be guessed."""
    dice = torch.Generator().manual_seed(5)
    ids = torch.randint(4, 50, (BATCH, LENGTH), generator=dice)
    mask = (torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (BATCH, 1), generator=dice)).long()
    mask[0] = 1
    batch = {"input_ids": ids * mask, "attention_mask": mask, "there": torch.ones(BATCH, dtype=torch.int64)}
    if masked:  # whole rows
        labels = torch.where(torch.rand(BATCH, LENGTH, generator=dice) < 0.3, ids, -100)
        batch = {"input_ids": ids, "labels": labels}
    return {name: tensor[rows] for name, tensor in batch.items()}


def computed(rank: int, cases: list[Case]) -> list[tuple[float, float, dict[str, Tensor]]]:
    """Loss, norm and gradients of a step of each case."""
    found = []
    for case in cases:
        layout = LayoutConfig(**case.layout)
        size = dist.get_world_size()
        world = arrange(layout, torch.device("cpu"), rank // layout.ranks, size // layout.ranks)
        plan = case.blueprint()
        model = plan.build()
        if not case.masked:
            assert install(model, find_blocks(model), ATTENTION) or case.family == "distilbert"
            add_rows_only(model)
        objective = MaskedLanguageModelling(model) if case.masked else Weighed(model)
        split = apply_layout(objective, world, Arithmetic(), plan.twin)
        policy = AllReduce(
            StaticTransport(world.peers), Place(world.replica, world.replicas, world.part, world.parts), Ledger(),
            BATCH, bucket_bytes=10_000, everyone=world.everyone,
        )  # fmt: skip
        targets = objective.count_targets(batch_of(torch.arange(BATCH), masked=case.masked))
        accumulator = Accumulator(
            split, policy, nominal_targets=targets, clip=None, context=nullcontext(), loss_scale=LossScale("fp32"),
            seed=0,
        )  # fmt: skip
        shares = world.replicas * layout.shard
        rows = torch.arange(BATCH).chunk(shares)[world.replica * layout.shard + world.at("shard")]
        result = accumulator.run(
            [batch_of(some, masked=case.masked) for some in rows.chunk(2)], tokens=0, key=0, stop=False
        )
        found.append((result.loss, result.norm, whole_gradients(split)))
    return found


_RESULTS: dict[int, Any] = {}


@pytest.mark.parametrize(
    ("ranks", "case"), [(2, case) for case in TWO] + [(4, case) for case in FOUR], ids=str
)
def test_loss_and_every_gradient_are_those_of_plain_transformers(ranks: int, case: Case) -> None:
    cases = TWO if ranks == 2 else FOUR
    if ranks not in _RESULTS:
        _RESULTS[ranks] = run_ranks(ranks, computed, cases)
    model: Any = case.blueprint().build()
    batch = batch_of(torch.arange(BATCH), masked=case.masked)
    if case.masked:
        total = model(**batch).loss
    else:
        names = ("input_ids", "attention_mask")
        total = weighed(model(**{name: batch[name] for name in names})[0], batch) / BATCH
    total.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = float(torch.stack([gradient.norm() for gradient in expected.values()]).norm())
    for rank in _RESULTS[ranks]:
        loss, found_norm, gradients = rank[cases.index(case)]
        assert loss == pytest.approx(float(total), rel=1e-5)
        assert found_norm == pytest.approx(norm, rel=1e-4)
        for name, gradient in expected.items():
            scale = max(float(gradient.norm()), 1e-3 * norm)
            assert float((gradients[name] - gradient).norm()) <= 2e-5 * scale, name


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ({"tensor": 3}, "tensor = 3 does not divide the 4 attention heads of bert"),
        ({"pipeline": 2}, "from stage to stage activations have one size"),
        ({"context": 2}, "rows of unlike length"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(layout: dict[str, int], reason: str) -> None:
    model = Case("bert", "classify", {}).blueprint().lay_out()
    with pytest.raises(ConfigError, match="is impossible") as refused:
        check_layout(LayoutConfig(**layout), limits_with_head(model, 8))
    assert reason in str(refused.value) and "{shard: " in str(refused.value)
