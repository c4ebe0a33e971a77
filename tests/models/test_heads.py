"""Which head a model starts with: that of its directory, or a new one."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from encoders import write_encoder
from tutti.config.model import ModelConfig
from tutti.core import ModelError
from tutti.models import count_parameters, draw_headed_blueprint
from tutti.models.architecture import set_dropout
from tutti.models.headed import find_body
from tutti.models.presets import readable
from tutti.models.weights import check_vocabulary, load_weights, require_weights

LABELS = ("bad", "good", "so-so")


def saved(place: Path, factory: Any, labels: tuple[str, ...]) -> Path:
    """A model with a head for `labels`, trained as it were."""
    encoder = write_encoder(place / "encoder")
    names = dict(enumerate(labels))
    model = factory.from_pretrained(encoder, id2label=names, label2id={v: k for k, v in names.items()})
    torch.nn.init.constant_(model.classifier.bias, 7.0)
    model.save_pretrained(place / "model")
    return place / "model"


@pytest.mark.parametrize(
    ("factory", "labels", "kept"),
    [
        (AutoModelForSequenceClassification, LABELS, True),
        (AutoModelForSequenceClassification, ("good", "bad", "so-so"), False),
        (AutoModelForSequenceClassification, ("bad", "good"), False),
        (AutoModelForTokenClassification, LABELS, False),
    ],
    ids=["the same", "other names", "other number", "other task"],
)
def test_a_head_is_kept_for_the_same_task_and_labels_alone(
    tmp_path: Path, factory: Any, labels: tuple[str, ...], kept: bool
) -> None:
    directory = saved(tmp_path, factory, labels)
    vocabulary = AutoModelForTokenClassification.from_pretrained(directory).config.vocab_size
    blueprint = draw_headed_blueprint(
        ModelConfig(path=str(directory)),
        "classify",
        vocabulary=vocabulary,
        labels=LABELS,
        length=32,
        seed=3,
        pad=0,
        end=3,
    )
    model = blueprint.build()
    assert bool((model.classifier.bias == 7.0).all()) is kept
    assert ("with its head" if kept else "with a new head") in blueprint.choices[0]
    body = AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder").base_model.state_dict()
    for name, tensor in model.base_model.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(tensor, body[name]), name
    again = blueprint.build()
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_a_decoder_that_knows_no_padding_classifies_rows_of_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    GPT2LMHeadModel(GPT2Config(vocab_size=50, eos_token_id=3, bos_token_id=3, **shape)).save_pretrained(
        tmp_path
    )
    blueprint = draw_headed_blueprint(
        ModelConfig(path=str(tmp_path)),
        "classify",
        vocabulary=50,
        labels=LABELS,
        length=32,
        seed=3,
        pad=3,
        end=3,
    )
    model: Any = blueprint.build().eval()
    rows = torch.tensor([[5, 6, 7, 8], [9, 10, 3, 3]])
    together = model(input_ids=rows, attention_mask=(rows != 3).long()).logits
    alone = model(input_ids=rows[1:, :2]).logits
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit_are_refused_whatever_the_model_calls_its_body(tmp_path: Path) -> None:
    """Models without a head, and T5, whose parameters stand under no common name."""
    encoder = write_encoder(tmp_path / "encoder")
    config = AutoModel.from_pretrained(encoder).config
    config.num_hidden_layers += 1
    with pytest.raises(ModelError, match=r"do not fit its config\.json"):
        load_weights(encoder, config, AutoModel, seed=1)
    small = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "vocab_size": 50}
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(num_layers=1, **small)).save_pretrained(tmp_path / "t5")
    assert load_weights(tmp_path / "t5", T5Config(num_layers=1, **small), T5ForConditionalGeneration, seed=1)
    with pytest.raises(ModelError, match=r"do not fit its config\.json"):
        load_weights(tmp_path / "t5", T5Config(num_layers=2, **small), T5ForConditionalGeneration, seed=1)


def test_weights_that_are_codes_are_refused(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    require_weights(encoder)
    config = AutoModel.from_pretrained(encoder).config.to_dict() | {
        "quantization_config": {"quant_method": "fp8"}
    }
    (encoder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"are codes \(fp8\), which cannot learn"):
        require_weights(encoder)


def test_dropout_reaches_what_t5_calls_it() -> None:
    config = T5Config()
    assert set_dropout(config, 0.3) == "model.dropout = 0.3: dropout_rate, classifier_dropout of t5"
    assert config.dropout_rate == 0.3


def test_places_of_roberta_begin_behind_its_padding(tmp_path: Path) -> None:
    """From scratch with a tokenizer whose padding is its last token, as Tutti's are; and from a directory."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    blueprint = draw_headed_blueprint(
        ModelConfig(config={"model_type": "roberta", "max_position_embeddings": 20, **shape}),
        "masked_language_model",
        vocabulary=60, labels=(), length=24, seed=3, pad=59, end=3,
    )  # fmt: skip
    model: Any = blueprint.build().eval()
    assert model(input_ids=torch.full((1, 24), 5)).logits.shape == (1, 24, 60)
    small = RobertaConfig(vocab_size=60, max_position_embeddings=20, pad_token_id=1, **shape)
    RobertaForMaskedLM(small).save_pretrained(tmp_path)
    found = find_body(ModelConfig(path=str(tmp_path)), "masked_language_model")
    assert found.length == 18  # numbers 0 and 1 are of no place
    RobertaForMaskedLM(small)(input_ids=torch.full((1, 18), 5))
    with pytest.raises((IndexError, RuntimeError)):
        RobertaForMaskedLM(small)(input_ids=torch.full((1, 19), 5))


@pytest.mark.parametrize("special", [True, False])
def test_a_mark_of_other_inputs_needs_no_row(special: bool, tmp_path: Path) -> None:
    """As Gemma 3's for images, which is in its tokenizer and not in its table."""
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}))
    tokenizer.add_tokens([AddedToken("<image>", special=special)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with nullcontext() if special else pytest.raises(ModelError, match="trained with another tokenizer"):
        check_vocabulary(tmp_path, 2, 3)


@pytest.mark.parametrize(
    ("size", "kind", "said"),
    [
        ("5M", "masked_language_model", "(head tied to the embedding)"),
        ("100M", "classify", "%"),
        ("1.5B", "embed", "%"),
        ("5M", "recommend", "a Llama of"),
    ],
)
def test_a_dial_says_what_it_made(size: str, kind: str, said: str) -> None:
    made = draw_headed_blueprint(
        ModelConfig(size=size), kind, vocabulary=5000, labels=LABELS if kind == "classify" else (),
        length=64, seed=0, pad=0, end=1,
    )  # fmt: skip
    (sentence,) = made.choices
    assert f" of {readable(count_parameters(made.lay_out()).total)} parameters" in sentence
    assert said in sentence and "for keys" not in sentence
    assert ("head" in sentence.partition("heads")[2]) == (kind in ("masked_language_model", "recommend"))
