"""Which model a task gets: what the `model` section names, with the labels, the words of the tokenizer, and a head."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, ModernBertConfig

from tutti.config.model import ModelConfig
from tutti.config.task import WRITING
from tutti.models.adapters import adapters_in, model_directory, peft_task
from tutti.models.architecture import config_from_directory, config_from_mapping, set_dropout
from tutti.models.flops import count_parameters
from tutti.models.heads import HEADS, Head, HeadedBlueprint
from tutti.models.presets import choose_preset, readable
from tutti.models.weights import check_vocabulary, require_weights

#: Architectures that count places from behind their padding token's number.
_FROM_PAD = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "longformer", "data2vec-text",
     "xmod", "esm"}
)  # fmt: skip


@dataclass(frozen=True)
class Body:
    """The architecture that `model` names, before labels and vocabulary are known.

    `length`: tokens that it sees at once; None: any number. `types`: whether it tells two texts apart.
    """

    architecture: Any
    length: int | None
    types: bool


def find_body(config: ModelConfig, kind: str) -> Body:
    """The architecture for a task of `kind`.

    Raises:
        ModelError: there is none, or it has no head for the task; says what to do.
    """
    purpose = HEADS[kind].purpose
    if config.path is not None:
        directory = model_directory(Path(config.path).expanduser())
        architecture = config_from_directory(directory, purpose)
        if not config.from_scratch:
            require_weights(directory)
    elif config.config is not None:
        architecture = config_from_mapping(config.config, purpose)
    else:
        architecture = ModernBertConfig()
    text = architecture.get_text_config()
    length = getattr(text, "max_position_embeddings", None) if config.path is not None else None
    if length is not None and text.model_type in _FROM_PAD:
        length -= (text.pad_token_id or 0) + 1
    return Body(architecture, length, getattr(text, "type_vocab_size", 0) > 1)


def draw_headed_blueprint(
    config: ModelConfig,
    kind: str,
    *,
    vocabulary: int,
    labels: tuple[str, ...],
    length: int,
    seed: int,
    pad: int,
    end: int,
) -> HeadedBlueprint:
    """The model for a task of `kind`.

    Args:
        config: the `model` section.
        kind: of the task, as in `HEADS`.
        vocabulary: entries of the tokenizer.
        labels: names of the labels, in the order of their numbers.
        length: tokens of a row, at most.
        seed: decides first weights, unless `config` has a seed of its own.
        pad: the token that stands for nothing.
        end: the token that ends a text.

    Raises:
        ModelError: there is no such model; says what to do.
    """
    seed = seed if config.seed is None else config.seed
    body = find_body(config, kind)
    labels = () if kind == "recommend" else labels  # they are its words
    architecture, directory, new_head, other_head = body.architecture, None, True, False
    choices: list[str] = []
    if config.path is not None and not config.from_scratch:
        directory = model_directory(Path(config.path).expanduser())
        check_vocabulary(directory, architecture.get_text_config().vocab_size, vocabulary)
        keeps_head = _has_head(architecture, HEADS[kind])
        keeps_head = keeps_head and (not labels or _label_names(architecture) == labels)
        new_head = not keeps_head
        other_head = new_head and any(
            # What a masked language model transforms before it guesses is a good beginning for other heads.
            _has_head(architecture, head)
            for kind, head in HEADS.items()
            if kind not in ("embed", "masked_language_model")
        )
        text = architecture.get_text_config()
        if kind in ("classify", "relate") and getattr(text, "pad_token_id", None) is None:
            text.pad_token_id = pad  # by which a decoder knows where a text ends
    else:
        if config.size is not None:
            architecture = _of_size(config.size, kind, vocabulary, length)
        text = architecture.get_text_config()
        text.vocab_size, text.pad_token_id = vocabulary, pad
        rows = length + (pad + 1 if text.model_type in _FROM_PAD else 0)
        if getattr(text, "max_position_embeddings", rows) < rows:
            text.max_position_embeddings = rows
        if architecture.is_encoder_decoder:
            architecture.eos_token_id, architecture.decoder_start_token_id = end, pad
    if kind == "recommend":
        # What fills up is also what begins, and has to learn: transformers would keep its embedding zero.
        architecture.bos_token_id, architecture.eos_token_id, architecture.pad_token_id = end, end, None
    if labels:
        architecture.num_labels = len(labels)
        architecture.id2label = dict(enumerate(labels))
        architecture.label2id = {name: number for number, name in enumerate(labels)}
    said = set_dropout(architecture, config.dropout) if config.dropout is not None else ""
    blueprint = HeadedBlueprint(HEADS[kind], architecture, seed, directory, choices, new_head, other_head)
    if directory is not None:
        brought = new_head and _adapters_bring_head(config, kind, blueprint)
        blueprint = dataclasses.replace(blueprint, new_head=new_head and not brought)
        head = "the head of its adapters" if brought else "a new head" if new_head else "its head"
        with_head = f", with {head}" if kind not in (*WRITING, "embed") else ""
        choices.append(
            f"model: weights of {directory}{with_head}" + (f" for {len(labels)} labels" if labels else "")
        )
    elif config.size is not None:
        choices.append(_sentence(config.size, blueprint.lay_out()))
    choices += filter(None, [said])
    return blueprint


def _adapters_bring_head(config: ModelConfig, kind: str, blueprint: HeadedBlueprint) -> bool:
    """Whether `config` names adapters that were learned together with a head for as many labels."""
    assert config.path is not None, "nothing else holds adapters"
    adapters = adapters_in(Path(config.path).expanduser())
    task = peft_task(kind, blueprint.architecture)
    return adapters is not None and adapters.bring_head(blueprint.lay_out(), task)


def _of_size(size: str, kind: str, vocabulary: int, length: int) -> Any:
    """An architecture of about so many parameters."""
    preset = choose_preset(size, vocabulary)
    if kind == "recommend":
        return LlamaConfig(**preset.settings(length))
    return ModernBertConfig(
        hidden_size=preset.width,
        intermediate_size=preset.feed_forward,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        max_position_embeddings=length,
        bos_token_id=None, eos_token_id=None, cls_token_id=None, sep_token_id=None,
        classifier_pooling="mean",  # no token stands for the whole text: the first one is just its first word
    )  # fmt: skip


def _sentence(size: str, model: Any) -> str:
    """What was made of the dial `size`."""
    count, made = count_parameters(model).total, model.config
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = head is not None and head.weight is table
    words = table.numel() + (0 if head is None or tied else head.weight.numel())
    kind = "Llama" if made.model_type == "llama" else "ModernBERT"
    shared = getattr(made, "num_key_value_heads", made.num_attention_heads)
    share = 100 * words / count
    return (
        f"model.size = {size}: a {kind} of {readable(count)} parameters: {made.num_hidden_layers} layers, width "
        f"{made.hidden_size}, {made.num_attention_heads} heads"
        + (f" ({shared} for keys)" if shared != made.num_attention_heads else "")
        + f", feed-forward {made.intermediate_size}; the vocabulary of {table.shape[0]} takes {share:.0f} %"
        + ("" if head is None else " (head tied to the embedding)" if tied else " (head of its own)")
    )


def _has_head(architecture: Any, head: Head) -> bool:
    """Whether the weights of `architecture` were saved with such a head."""
    return head.purpose.known.get(architecture.model_type) in (architecture.architectures or ())


def _label_names(architecture: Any) -> tuple[str, ...]:
    """Those that its head is for, in order."""
    names = {int(number): str(name) for number, name in (architecture.id2label or {}).items()}
    return tuple(names.get(number, "") for number in range(len(names)))
