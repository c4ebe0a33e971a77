"""A directory with adapters alone, as peft writes them: which model they are for, and what they add to it.

    adapter_config.json          the method, its numbers, and where the model is (`base_model_name_or_path`)
    adapter_model.safetensors    what was learned
    base.json                    written by Tutti: the SHA-256 of each file of weights of that model

A `model.path` that is such a directory stands for its model with the adapters on it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tutti.core import ModelError
from tutti.models.architecture import one_line
from tutti.models.head_parts import head_parameters

_SETTINGS, _WEIGHTS, _BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
#: By peft's name: what `tune.method` calls it.
_METHODS = {"lora": "lora", "adalora": "adalora", "ia3": "ia3", "prompt_tuning": "prompt"}
#: Parts of the names of what peft adds; what else it saves is the head.
_ADAPTERS = (".lora_", ".ia3_", "prompt_embeddings")
#: By kind of task, as peft calls them; those that write go by their architecture.
_KINDS = {
    "classify": "SEQ_CLS", "relate": "SEQ_CLS", "tag": "TOKEN_CLS", "answer": "QUESTION_ANS",
    "recommend": "CAUSAL_LM", "embed": "FEATURE_EXTRACTION", "masked_language_model": "FEATURE_EXTRACTION",
}  # fmt: skip


@dataclass(frozen=True)
class Adapters:
    """Those in `directory`, for the model in `base`. `method`: what `tune.method` calls theirs."""

    directory: Path
    base: Path
    method: str

    def settings(self) -> Any:
        """peft's, to go on learning with."""
        from peft import PeftConfig

        try:
            settings = PeftConfig.from_pretrained(str(self.directory))
        except Exception as error:
            raise ModelError(
                f"{self.directory / _SETTINGS} cannot be used: {one_line(error)}", "fetch the file again"
            ) from error
        settings.inference_mode = False
        return settings

    def weights(self) -> dict[str, Tensor]:
        """What was learned, by peft's names."""
        with self._opened() as file:
            return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118

    def bring_head(self, model: nn.Module, task: str) -> bool:
        """Whether they have a head that fits `model`, which is for `task` (peft's word) and has no adapters yet."""
        if self.settings().task_type not in (None, task):
            return False
        # peft puts what learns by low rank or factors into a model of its own.
        prefix = "base_model." if self.method == "prompt" else "base_model.model."
        of_head = {id(parameter) for parameter in head_parameters(model)}
        own = {f"{prefix}{name}": p.shape for name, p in model.named_parameters() if id(p) in of_head}
        with self._opened() as file:
            brought = own.keys() & set(file.keys())
            fit = all(own[name] == torch.Size(file.get_slice(name).get_shape()) for name in brought)
        return bool(brought) and fit

    def put_on(self, model: nn.Module, task: str) -> tuple[Any, bool]:
        """peft's wrapping of `model`, which is for `task` (peft's word) and gets these adapters in place; and whether
        it has their head, where they have one: that may be for another task, or for other labels.

        Raises:
            ModelError: they are for a model of other shapes.
        """
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

        given, settings = self.weights(), self.settings()
        same_task, settings.task_type = settings.task_type in (None, task), task
        try:
            wrapped = get_peft_model(model, settings)
        except ValueError as error:
            raise self._misfit(one_line(error)) from error
        on_meta = next(model.parameters()).is_meta
        if on_meta and self.method == "prompt":
            return wrapped, True  # peft looks up what its vectors are
        if on_meta and getattr(settings, "rank_pattern", None):
            settings.rank_pattern = None  # there is nothing to choose ranks of
        own = get_peft_model_state_dict(wrapped)
        heads = {name for name in own if not any(part in name for part in _ADAPTERS)}
        of_other_heads = {name for name in given if not any(part in name for part in _ADAPTERS)}
        odd = sorted((own.keys() ^ given.keys()) - heads - of_other_heads)
        both = (own.keys() & given.keys()) - heads
        odd += sorted(name for name in both if not _alike(name, own[name], given[name], on_meta))
        if odd:
            raise self._misfit(f"{len(odd)} of their matrices are missing or of another shape, e.g. {odd[0]}")
        fitting = {
            n: w for n, w in given.items() if n not in heads or (same_task and own[n].shape == w.shape)
        }
        if not on_meta:
            set_peft_model_state_dict(wrapped, own | fitting)
        return wrapped, heads <= fitting.keys()

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The file of what was learned."""
        try:
            with safe_open(self.directory / _WEIGHTS, "pt") as opened:
                yield opened
        except SafetensorError as error:
            raise ModelError(
                f"{self.directory / _WEIGHTS} is damaged: {error}", "fetch the file again"
            ) from error

    def _misfit(self, why: str) -> ModelError:
        return ModelError(
            f"the adapters in {self.directory} do not fit the model in {self.base}: {why}",
            f"put the place of the model that they were made for into {_SETTINGS} (base_model_name_or_path)",
        )


def _alike(name: str, own: Tensor, given: Tensor, whatever_rank: bool) -> bool:
    """Whether the shapes are the same; of low-rank matrices perhaps but for the rank."""
    if own.ndim != 2 or not whatever_rank or ".lora_" not in name:
        return own.shape == given.shape
    dimension = 0 if ".lora_B" in name else 1
    return given.ndim == 2 and own.shape[dimension] == given.shape[dimension]


def adapters_in(directory: Path) -> Adapters | None:
    """The adapters in `directory`; None: it holds none, or a model of its own.

    Raises:
        ModelError: their model is not there or is another one, or they are only there as pickle.
    """
    file = directory / _SETTINGS
    if not file.is_file() or (directory / "config.json").is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        named, method = content["base_model_name_or_path"], str(content["peft_type"]).lower()
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is no configuration of adapters: {error!r}", "fetch it again") from error
    if method not in _METHODS or content.get("megatron_config"):
        raise ModelError(
            f"the adapters in {directory} are of a kind that is not known here: {method}",
            "merge them into their model with peft (merge_and_unload), and give that directory",
        )
    if not (directory / _WEIGHTS).is_file():
        pickled = (directory / "adapter_model.bin").is_file()
        raise ModelError(
            f"{directory} has its adapters only as pickle (adapter_model.bin), which can run code when it is opened"
            if pickled
            else f"{directory} has no {_WEIGHTS}",
            "save them again with a present peft, which writes safetensors" if pickled else "fetch it",
        )
    places = [Path(str(named)).expanduser(), directory / str(named)] if named else []
    base = next((place for place in places if (place / "config.json").is_file()), None)
    if base is None:
        raise ModelError(
            f"the adapters in {directory} are for the model {named!r}, which is no model directory here",
            f"download it, and put its place into {_SETTINGS} (base_model_name_or_path)",
        )
    _check_base(directory, base)
    return Adapters(directory, base, _METHODS[method])


def peft_task(kind: str, architecture: Any) -> str:
    """What peft calls the task `kind` of a model of `architecture`."""
    return _KINDS.get(kind, "SEQ_2_SEQ_LM" if architecture.is_encoder_decoder else "CAUSAL_LM")


def model_directory(directory: Path) -> Path:
    """Where the model itself is: `directory`, or of adapters that of their model."""
    adapters = adapters_in(directory)
    return directory if adapters is None else adapters.base


def note_base(directory: Path, base: Path) -> None:
    """Write into `directory`, which has adapters, which weights they were learned on: those in `base`."""
    (directory / _BASE).write_text(json.dumps(_hashes(base), indent=1) + "\n", encoding="utf-8")


def _check_base(directory: Path, base: Path) -> None:
    file = directory / _BASE
    if not file.is_file():
        return
    try:
        wanted = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is damaged: {error}", "fetch it again, or take it away") from error
    if wanted != _hashes(base):
        raise ModelError(
            f"the adapters in {directory} were learned on other weights than those in {base}: their SHA-256 differ",
            f"put the place of the right model into {_SETTINGS} (base_model_name_or_path)",
        )


def _hashes(base: Path) -> dict[str, str]:
    return {
        file.name: _hash(file, file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(base.glob("*.safetensors"))
    }


@functools.lru_cache(maxsize=256)
def _hash(file: Path, size: int, changed: int) -> str:
    """`size` and `changed`: a file that is another now is read again."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
