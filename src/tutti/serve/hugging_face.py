"""A Hugging Face directory whose model answers by a head of its own, or gives vectors: which task it is for, and how it
is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from tutti.config.task import TaskConfig
from tutti.core.errors import ModelError
from tutti.data.labelled import Reader, encoder_in
from tutti.models import find_blocks, load_with_head
from tutti.package import Asker
from tutti.tasks import Labels, make_task
from tutti.tasks.dense import install
from tutti.tasks.packing import ATTENTION

#: By how the name of an architecture ends.
_TASKS = {
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tag",
    "ForQuestionAnswering": "answer",
    "ForCausalLM": "language_model",
    "LMHeadModel": "language_model",
    "ForConditionalGeneration": "translate",
    "Model": "embed",
}
#: Where a model says nothing else.
_LENGTH = 512


def task_in(directory: Path) -> TaskConfig:
    """What the model in `directory` is for, as its architecture says.

    Raises:
        ModelError: it does not say, or it is for something else.
    """
    try:
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{directory}/config.json cannot be read: {(str(error).splitlines() or [repr(error)])[0]}",
            "give a directory with config.json, model.safetensors and a tokenizer",
        ) from error
    names = config.architectures or []
    for name in names:
        for ending, kind in _TASKS.items():
            if name.endswith(ending):
                multiple = getattr(config, "problem_type", None) == "multi_label_classification"
                return TaskConfig.model_validate({"kind": kind, "multiple": multiple and kind == "classify"})
    raise ModelError(
        f"{directory} holds a {' or '.join(names) or config.model_type}, which is not known to answer anything here",
        "a config.json names its architecture, such as BertForSequenceClassification",
    )


def open_hugging_face(directory: Path, task_config: TaskConfig) -> Asker:
    """The model in `directory`, to be asked.

    Raises:
        ModelError: it is damaged, or makes vectors of texts in another way than by their mean.
    """
    if task_config.kind == "embed":
        _require_mean(directory)
    model = load_with_head(directory, task_config.kind)
    model.eval()  # type: ignore[no-untyped-call]
    blocks = find_blocks(model)
    if blocks:
        install(model, blocks, ATTENTION)
    config: Any = model.config.get_text_config()
    task = make_task(task_config)
    reader = Reader(_length(directory, config), getattr(config, "type_vocab_size", 0) > 1)
    try:
        encoder = encoder_in(directory, task, reader)
    except Exception as error:  # tokenizers raises its own kind
        raise ModelError(
            f"the tokenizer in {directory} cannot be read: {error}", "it takes a tokenizer.json"
        ) from error
    names = () if task_config.kind in ("embed", "answer") else _labels(directory, config, task_config.kind)
    labels = Labels(names, (0,) * len(names))
    objective = task.objective(model, labels)
    objective.eval()
    return Asker(task, labels, encoder, objective)


def _labels(directory: Path, config: Any, kind: str) -> tuple[str, ...]:
    names = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    strange = [name for name in names if name != "O" and name[:2] not in ("B-", "I-")]
    if kind == "tag" and strange:
        raise ModelError(
            f"the tags in {directory} are not BIO: {strange[0]!r}",
            "entities are read from O, B-KIND and I-KIND",
        )
    return names


def _length(directory: Path, config: Any) -> int:
    """Tokens of a row."""
    known: list[Any] = [getattr(config, "max_position_embeddings", None)]
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        known.append(_read(directory / name).get(key))
    if known[0] and getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        known[0] -= 2  # the first positions are none of tokens'
    return min([int(length) for length in known if length is not None and length > 0], default=_LENGTH)


def _require_mean(directory: Path) -> None:
    """Raise ModelError where sentence-transformers is told to do something else than take the mean."""
    modules = directory / "modules.json"
    if not modules.is_file():
        return
    try:
        listed = json.loads(modules.read_text(encoding="utf-8"))
        kinds = [module["type"].rpartition(".")[2] for module in listed]
        pooling = next((m["path"] for m in listed if m["type"].endswith("Pooling")), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{modules} cannot be read: {error}", "fetch it again") from error
    settings = {} if pooling is None else _read(directory / pooling / "config.json")
    mean = settings.get("pooling_mode_mean_tokens", True) and not any(
        value
        for name, value in settings.items()
        if name.startswith("pooling_mode_") and name != "pooling_mode_mean_tokens"
    )
    if kinds not in (["Transformer", "Pooling", "Normalize"], ["Transformer", "Pooling"]) or not mean:
        raise ModelError(
            f"{directory} makes vectors of texts by {', '.join(kinds)}"
            + ("" if mean else ", and not by the mean over tokens"),
            "served are those that take the mean over tokens",
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content
