"""One packed batch over ranks and micro-batches against unmodified transformers in a process of its own.

The reference knows no packing, no chunked loss, no buckets: it runs every document by itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from ranks import run_ranks
from tutti.config import DataConfig, LayoutConfig, ModelConfig
from tutti.data import TokenSource, prepare
from tutti.models import build_model, export_model
from tutti.parallel import Arithmetic, apply_layout, arrange
from tutti.sync import AllReduce, Ledger, Place, StaticTransport, share
from tutti.tasks import CausalLanguageModelling
from tutti.train.feed import Feed
from tutti.train.precision import LossScale
from tutti.train.step import Accumulator

SEQUENCE, BATCH, SEED = 48, 10, 4

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}  # fmt: skip


def write_text(directory: Path) -> DataConfig:
    """Forty short documents of different lengths, so that every sample holds several."""
    texts = directory / "texts"
    texts.mkdir()
    for number in range(40):
        words = " ".join(f"word{(number * 7 + k) % 23} of" for k in range(3 + number % 9))
        (texts / f"{number:02}.txt").write_text(f"Document {number}: {words}.\n")
    return DataConfig(
        source=str(texts),
        tokenizer="characters",
        validation=0.0,
        sequence=SEQUENCE,
        cache=str(directory / "cache"),
    )


def build(data: DataConfig, model: str) -> tuple[Any, Any]:
    prepared = prepare(data)
    built, _ = build_model(
        ModelConfig(config=MODELS[model]),
        vocabulary=prepared.vocabulary,
        sequence=SEQUENCE,
        seed=0,
        end_token=prepared.end_token,
    )
    return prepared, built


def gradients_on(
    rank: int, ranks: int, micro_batch: int, shard: int, data: DataConfig, model: str
) -> dict[str, Tensor]:
    prepared, built = build(data, model)
    source = TokenSource(prepared, "train", SEQUENCE, SEED, shift=True)
    objective = CausalLanguageModelling(built)
    group = dist.group.WORLD if ranks > 1 else None
    world = arrange(LayoutConfig(shard=shard), torch.device("cpu"), rank // shard, ranks // shard)
    split = apply_layout(objective, world, Arithmetic())
    policy = AllReduce(
        StaticTransport(world.peers), Place(rank // shard, ranks // shard, rank % shard, shard), Ledger(), BATCH,
        bucket_bytes=10_000, everyone=group,
    )  # fmt: skip
    accumulator = Accumulator(
        split, policy, nominal_targets=BATCH * SEQUENCE, clip=None, context=nullcontext(),
        loss_scale=LossScale("fp32"), seed=0,
    )  # fmt: skip
    feed = Feed(source, SEED, torch.device("cpu"))
    ranges = policy.samples(1)
    slots = max(feed.count(share(ranges, part, shard), micro_batch) for part in range(shard))
    portion = feed.load(share(ranges, rank % shard, shard), micro_batch, slots)
    result = accumulator.run(portion.micro_batches, tokens=0, key=0, stop=False)
    gradients = {"loss": torch.tensor([result.loss], dtype=torch.float32)}
    for name, parameter in objective.model.named_parameters():
        gradient: Any = parameter.grad
        gradients[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()
    return gradients


def documents_of_first_batch(data: DataConfig, prepared: Any) -> list[list[int]]:
    """The token runs of the batch, cut where a document ends, with the target that follows each input."""
    source = TokenSource(prepared, "train", SEQUENCE, SEED, shift=True)
    portion = Feed(source, SEED, torch.device("cpu")).load([(0, BATCH)], BATCH, 1)
    documents: list[list[int]] = []
    for inputs, labels in zip(
        portion.micro_batches[0]["input_ids"].tolist(),
        portion.micro_batches[0]["labels"].tolist(),
        strict=True,
    ):
        current: list[int] = []
        for token, label in zip(inputs, labels, strict=True):
            current.append(token)
            if label == -100:
                documents.append(current)
                current = []
        if current:
            documents.append([*current, labels[-1]])
    return [document for document in documents if len(document) > 1]


@pytest.fixture(scope="module", params=list(MODELS))
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("reference")
    data = write_text(directory)
    prepared, model = build(data, request.param)
    export_model(model, prepared.tokenizer_directory, directory / "model")
    documents = documents_of_first_batch(data, prepared)
    assert len(documents) > 1.3 * BATCH, "the samples are packed"
    (directory / "documents.json").write_text(json.dumps(documents))
    command = [sys.executable, str(Path(__file__).with_name("plain_gradients.py"))]
    command += [str(directory / name) for name in ("model", "documents.json", "gradients.safetensors")]
    subprocess.run(command, check=True, capture_output=True)
    return data, request.param, load_file(directory / "gradients.safetensors")


@pytest.mark.parametrize(
    ("ranks", "micro_batch", "shard"),
    [(1, 10, 1), (1, 5, 1), (1, 3, 1), (1, 2, 1), (2, 2, 1), (3, 4, 1), (2, 3, 2), (4, 2, 2)],
)
def test_the_gradient_is_that_of_transformers(
    reference: Any, ranks: int, micro_batch: int, shard: int
) -> None:
    data, model, expected = reference
    arguments = (ranks, micro_batch, shard, data, model)
    results = run_ranks(ranks, gradients_on, *arguments) if ranks > 1 else [gradients_on(0, *arguments)]
    for gradients in results:
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(
                gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
            )
