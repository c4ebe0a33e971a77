"""From what the user wrote to a Hugging Face configuration, refusing what transformers would swallow.

transformers takes unknown keys silently, so `hiden_size: 512` would train a model of another size. Here every
key has to be one that the architecture has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tutti.core import ModelError

# Keys that every configuration file carries and no class declares.
_BOOKKEEPING = {
    "model_type",
    "architectures",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "_name_or_path",
    "auto_map",
}
_DROPOUTS = (
    "attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "dropout", "activation_dropout", "resid_dropout", "embed_dropout",
    "embedding_dropout", "attention_dropout_prob", "residual_dropout", "dropout_rate", "mlp_dropout",
    "classifier_dropout", "pooler_dropout", "seq_classif_dropout", "qa_dropout",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Purpose:
    """What a model is for: in words, the architectures of transformers that are, and some that a user may take."""

    words: str
    known: Mapping[str, Any]
    examples: str


CAUSAL = Purpose(
    "causal language model", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "llama, qwen3, gpt2, mistral, gemma"
)


def config_from_mapping(given: dict[str, Any], purpose: Purpose = CAUSAL) -> Any:
    """The Hugging Face configuration that `model.config` describes.

    Raises:
        ModelError: unknown architecture or key (with what was probably meant), or a value that cannot be.
    """
    if "model_type" not in given:
        raise ModelError("model.config has no model_type", "add one, e.g. `model_type: llama`")
    kind = given["model_type"]
    if kind not in purpose.known or kind not in CONFIG_MAPPING:
        raise ModelError(
            f"model.config.model_type {kind!r} is no {purpose.words} that transformers knows",
            _meant(str(kind), purpose.known) or f"e.g. {purpose.examples}",
        )
    kinds: Any = CONFIG_MAPPING[kind]
    settings = {key: value for key, value in given.items() if key != "model_type"}
    unknown = sorted(set(settings) - _known_keys(kinds))
    if unknown:
        hints = [f"{key}: {_meant(key, _own_keys(kinds)) or 'remove it'}" for key in unknown]
        raise ModelError(
            f"model.config has keys that {kind} does not: {', '.join(unknown)}", "; ".join(hints)
        )
    try:
        with without_chatter():
            return kinds(**settings)
    except Exception as error:
        raise ModelError(
            f"model.config is no {kind} configuration: {one_line(error)}", "mend the value named"
        ) from error


def config_from_directory(directory: Path, purpose: Purpose = CAUSAL) -> Any:
    """The configuration in `directory`.

    Raises:
        ModelError: there is none, it is broken, or it needs code from elsewhere.
    """
    file = directory / "config.json"
    if not directory.is_dir():
        raise ModelError(
            f"model.path {directory} is no directory",
            "download the model first (`hf download NAME --local-dir DIR`) and give that directory",
        )
    if not file.is_file():
        inside = ", ".join(sorted(path.name for path in directory.iterdir())[:5]) or "nothing"
        raise ModelError(
            f"{directory} has no config.json (it holds {inside})", "give a Hugging Face model directory"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{file} is no JSON: {error}", "fetch the file again") from error
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in purpose.known:
        meant = _meant(str(kind), purpose.known) if kind else ""
        raise ModelError(
            f"{file} describes no {purpose.words} that transformers knows (model_type {kind!r})",
            meant
            or "models that bring their own code are not run; choose an architecture of transformers itself",
        )
    try:
        with without_chatter():
            return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"{file} cannot be used: {one_line(error)}", "mend the value named, or fetch the file again"
        ) from error


def config_from_json(text: str) -> Any:
    """The configuration that `to_json_string` of another one wrote.

    Raises:
        ModelError: it describes no causal language model that transformers knows.
    """
    try:
        content = json.loads(text)
        kind: Any = CONFIG_MAPPING[content["model_type"]]
        with without_chatter():
            return kind.from_dict(content)
    except Exception as error:
        raise ModelError(f"this is no configuration of a model: {one_line(error)}") from error


def set_dropout(config: Any, dropout: float, written: Iterable[str] = ()) -> str:
    """Set every dropout of `config` but those `written` by the user; returns a sentence, or "" if nothing changed."""
    # Of an encoder-decoder transformers gives a copy, which nobody reads.
    text = config if config.is_encoder_decoder else config.get_text_config(decoder=True)
    names = [
        name
        for name in _DROPOUTS
        if isinstance(getattr(text, name, None), int | float) and name not in set(written)
    ]
    changed = [name for name in names if getattr(text, name) != dropout]
    for name in names:
        setattr(text, name, dropout)
    if dropout > 0 and not names:
        return f"model.dropout = {dropout:g} has no effect: {config.model_type} has no dropout"
    if dropout > 0 or changed:
        return f"model.dropout = {dropout:g}: {', '.join(names)} of {config.model_type}"
    return ""


def has_dropout(config: Any) -> bool:
    """Whether a model of `config` leaves anything out while it learns."""
    text = config if config.is_encoder_decoder else config.get_text_config(decoder=True)
    return any((getattr(text, name, None) or 0) > 0 for name in _DROPOUTS)


def _own_keys(kind: type[PretrainedConfig]) -> set[str]:
    """What the architecture itself has: its fields and their other names."""
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    arguments = {
        name
        for ancestor in kind.__mro__
        if ancestor is not object
        for name, parameter in inspect.signature(
            vars(ancestor).get("__init__", object.__init__)
        ).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    return (fields | arguments | set(kind.attribute_map)) - {"self"}


def _known_keys(kind: type[PretrainedConfig]) -> set[str]:
    # Older files spell rotary settings out; transformers still understands them.
    return _own_keys(kind) | _BOOKKEEPING | {"rope_theta", "rope_scaling", "partial_rotary_factor"}


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else ""


def one_line(error: BaseException) -> str:
    """The gist of somebody else's exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """transformers' logging off: what matters is raised or put into the choices."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
