"""Models that are no causal language models: an architecture, and weights of a directory below a head that may be new.

Their head gives labels, places, or the words of an encoder-decoder.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from tutti.config.model import ModelConfig
from tutti.config.task import WRITING
from tutti.core import ModelError
from tutti.models.adapters import model_directory
from tutti.models.architecture import (
    CAUSAL,
    Purpose,
    config_from_directory,
    one_line,
    without_chatter,
)
from tutti.models.blueprint import TWIN_VOCABULARY, keep_one_layer_of_each_sort
from tutti.models.weights import load_weights, require_weights

_EXAMPLES = "bert, modernbert, roberta, deberta-v2, distilbert"


@dataclass(frozen=True)
class Head:
    """What a model ends in: how transformers makes such a model, and the architectures that can."""

    factory: Any
    purpose: Purpose


_CLASSIFIER = Head(
    AutoModelForSequenceClassification,
    Purpose("text classifier", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, _EXAMPLES),
)
_ENCODER_DECODER = Head(
    AutoModelForSeq2SeqLM,
    Purpose("encoder-decoder", MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "t5, bart, marian"),
)
_CONTINUER = Head(AutoModelForCausalLM, CAUSAL)
#: By kind of task; of those that write: where the model is an encoder-decoder.
HEADS = {
    **dict.fromkeys(WRITING, _ENCODER_DECODER),
    "classify": _CLASSIFIER,
    "relate": _CLASSIFIER,
    "embed": Head(AutoModel, Purpose("encoder", MODEL_MAPPING_NAMES, _EXAMPLES)),
    "recommend": _CONTINUER,
    "masked_language_model": Head(
        AutoModelForMaskedLM,
        Purpose("masked language model", MODEL_FOR_MASKED_LM_MAPPING_NAMES, _EXAMPLES),
    ),
    "tag": Head(
        AutoModelForTokenClassification,
        Purpose("token classifier", MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, _EXAMPLES),
    ),
    "answer": Head(
        AutoModelForQuestionAnswering,
        Purpose("question answerer", MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, _EXAMPLES),
    ),
}


@dataclass(frozen=True)
class HeadedBlueprint:
    """A model with a head before it costs memory. `choices`: what was chosen on the way, in sentences.

    `new_head`: neither the directory nor the adapters on it have one for this task and these labels; `other_head`: the
    directory has one for others, which may look as if it were this one's.
    """

    head: Head
    architecture: Any
    seed: int
    directory: Path | None = None
    choices: list[str] = field(default_factory=list)
    new_head: bool = False
    other_head: bool = False

    def lay_out(self) -> PreTrainedModel:
        """The model on the meta device: names and shapes, no memory.

        Raises:
            ModelError: it cannot be built.
        """
        return self._make("meta")

    def build(self) -> PreTrainedModel:
        """The whole model in fp32 on the CPU.

        Raises:
            ModelError: it cannot be built, or the weights do not fit.
        """
        if self.directory is None:
            return self._make("cpu")
        model = load_weights(self.directory, self.architecture, self.head.factory, self.seed)
        if not self.other_head:
            return model
        fresh = self._make("cpu")
        fresh.base_model.load_state_dict(model.base_model.state_dict())
        return fresh

    def twin(self) -> PreTrainedModel:
        """A small model of the same kind, in memory: see `Blueprint.twin`."""
        architecture = copy.deepcopy(self.architecture)
        text = architecture.get_text_config()
        keep_one_layer_of_each_sort(text)
        for part in {id(part): part for part in (architecture, text)}.values():
            part.vocab_size = min(TWIN_VOCABULARY, part.vocab_size)
            part.eos_token_id = part.bos_token_id = part.pad_token_id = 0
        return dataclasses.replace(self, architecture=architecture)._make("cpu")

    def _make(self, device: str) -> PreTrainedModel:
        return _build(self.head, self.architecture, device, self.seed)


def load_with_head(directory: Path, kind: str) -> PreTrainedModel:
    """The model for a task of `kind` in `directory`, its head as well, in fp32 on the CPU.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    head = HEADS[kind]
    require_weights(directory)
    seed = 0 if kind == "embed" else None  # means over tokens need no pooler, which may be missing
    return load_weights(directory, config_from_directory(directory, head.purpose), head.factory, seed)


def build_with_head(architecture: Any, kind: str, seed: int = 0) -> PreTrainedModel:
    """A model of `architecture` for a task of `kind`, in fp32 on the CPU, its weights drawn from `seed`.

    Raises:
        ModelError: it cannot be built.
    """
    return _build(HEADS[kind], architecture, "cpu", seed)


def build_writer(architecture: Any) -> PreTrainedModel:
    """A causal language model, or an encoder-decoder, of `architecture`, in fp32 on the CPU.

    Raises:
        ModelError: it cannot be built.
    """
    return _build(_ENCODER_DECODER if architecture.is_encoder_decoder else _CONTINUER, architecture, "cpu", 0)


def load_writer(directory: Path) -> PreTrainedModel:
    """The causal language model, or encoder-decoder, in `directory`, in fp32 on the CPU.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    require_weights(directory)
    head = _ENCODER_DECODER if is_encoder_decoder(ModelConfig(path=str(directory))) else _CONTINUER
    return load_weights(directory, config_from_directory(directory, head.purpose), head.factory)


def _build(head: Head, architecture: Any, device: str, seed: int) -> PreTrainedModel:
    try:
        with torch.random.fork_rng(devices=[]), without_chatter(), torch.device(device):
            torch.manual_seed(seed)
            model: PreTrainedModel = head.factory.from_config(
                architecture, dtype=torch.float32, trust_remote_code=False
            )
    except Exception as error:
        raise ModelError(
            f"the {architecture.model_type} model cannot be built: {one_line(error)}",
            "check that the numbers of its configuration fit together",
        ) from error
    return model


def is_encoder_decoder(config: ModelConfig) -> bool:
    """Whether `config` names an architecture that reads with one part and writes with another."""
    if config.path is not None:
        try:
            file = model_directory(Path(config.path).expanduser()) / "config.json"
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, ModelError):
            return False  # said by whoever opens it
        return isinstance(content, dict) and bool(content.get("is_encoder_decoder"))
    kind = (config.config or {}).get("model_type")
    return (
        isinstance(kind, str) and kind in CONFIG_MAPPING and bool(CONFIG_MAPPING[kind]().is_encoder_decoder)
    )
