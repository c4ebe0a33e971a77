"""Whatever operations a model is written with for ourselves, it says what it says to torch, padding or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, Qwen3Config

from tutti.core import ModelError
from tutti.models import onnx
from tutti.models.onnx import OnnxModel, export_fastest, fastest_opsets

_SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_labels": 3,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("config", "opset"),
    [
        (BertConfig(**_SIZES), 23),
        (Qwen3Config(**_SIZES, num_key_value_heads=1, head_dim=16), 20),  # turned positions
    ],
    ids=["bert", "qwen3"],
)
def test_the_fastest_operations_say_the_same(config: Any, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    example = {"input_ids": torch.arange(8).view(2, 4), "attention_mask": torch.ones(2, 4).long()}
    assert export_fastest(model, example, tmp_path / "model.onnx") == opset == fastest_opsets(model)[0]

    mask = (torch.arange(11) < torch.tensor([[11], [6], [2]])).long()
    rows = {"input_ids": torch.randint(1, 100, (3, 11)) * mask, "attention_mask": mask}
    said = OnnxModel(tmp_path / "model.onnx", threads=1)(**rows).logits
    with torch.no_grad():
        torch.testing.assert_close(said, model(**rows).logits, rtol=1e-4, atol=1e-5)


def test_what_onnxruntime_refuses_is_written_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Qwen3Config(**_SIZES, num_key_value_heads=1, head_dim=16)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    rows = {"input_ids": torch.arange(8).view(2, 4), "attention_mask": torch.ones(2, 4).long()}
    monkeypatch.setattr(onnx, "fastest_opsets", lambda _: (23, 20))  # as if nobody knew of its positions
    assert export_fastest(model, rows, tmp_path / "model.onnx") == 20
    with torch.no_grad():
        said = OnnxModel(tmp_path / "model.onnx", threads=1)(**rows).logits
        torch.testing.assert_close(said, model(**rows).logits, rtol=1e-4, atol=1e-5)

    monkeypatch.setattr(onnx, "fastest_opsets", lambda _: (23,))
    with pytest.raises(ModelError):
        export_fastest(model, rows, tmp_path / "model.onnx")
