"""The file: numbers of the architecture, the tokenizer, and the weights, by the names that llama.cpp has for them.

Matrices are written as `weights` says; vectors are always fp32. A tied head is not written: llama.cpp takes the table.
`gguf`, llama.cpp's own library, comes with the extra `compress`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from tutti.core import ModelError
from tutti.core.files import fsync_directory
from tutti.core.rundir import unwritable
from tutti.models.gguf.architectures import Architecture, architecture_of
from tutti.models.gguf.stretched import FREQUENCIES, frequency_factors
from tutti.models.gguf.vocabulary import write_vocabulary

#: 32 and 16 bits; 8 and 4 bits in blocks of 32 that share a scale.
Weights = Literal["f32", "f16", "q8_0", "q4_0"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)


def write_gguf(
    model: PreTrainedModel, tokenizer_directory: Path, path: Path, name: str, weights: Weights = "f16"
) -> None:
    """Write `model`, fp32 and whole, with its tokenizer to `path`; what is there already is replaced.

    Raises:
        ModelError: llama.cpp has no such architecture or tokenizer here, or `gguf` is missing.
        RunError: `path` cannot be written.
    """
    gguf, config = gguf_library(), model.config
    architecture = architecture_of(config)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    kind = getattr(gguf.MODEL_ARCH, architecture.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(beside, gguf.MODEL_ARCH_NAMES[kind])
        try:
            writer.add_name(name)
            writer.add_file_type(_file_type(gguf, weights))
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            _say_shape(writer, architecture, config)
            write_vocabulary(writer, tokenizer_directory, config.vocab_size)
            _add_tensors(writer, model, architecture, kind, weights)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


def gguf_library() -> Any:
    """The library.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            f"GGUF needs the package {error.name}", "install it: pip install 'tutti[compress]'"
        ) from error
    return gguf


def _say_shape(writer: Any, architecture: Architecture, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    architecture.says(writer, config)


def _add_tensors(
    writer: Any, model: PreTrainedModel, architecture: Architecture, kind: Any, weights: Weights
) -> None:
    gguf = gguf_library()
    known = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    # Parameters that are tied come once, under the name of the table.
    for name, parameter in model.named_parameters():
        theirs = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise ModelError(
                f"GGUF has no name for {name} of a {model.config.model_type}",
                "use the Hugging Face export of the run instead",
            )
        tensor = architecture.tensor(name, parameter.detach().float(), model.config)
        _add(writer, theirs, tensor, "f32" if tensor.dim() < 2 or "position" in theirs else weights)
    if (factors := frequency_factors(model.config)) is not None:
        _add(writer, FREQUENCIES, factors, "f32")


def _add(writer: Any, name: str, tensor: Tensor, weights: Weights) -> None:
    gguf = gguf_library()
    array = np.ascontiguousarray(tensor.cpu().numpy())
    if weights in ("f32", "f16"):
        writer.add_tensor(name, array if weights == "f32" else array.astype(np.float16))
        return
    quantized = getattr(gguf.GGMLQuantizationType, weights.upper())
    if array.shape[1] % 32:  # of a block
        writer.add_tensor(name, array.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(array, quantized), raw_dtype=quantized)


def _file_type(gguf: Any, weights: Weights) -> Any:
    return getattr(gguf.LlamaFileType, "ALL_F32" if weights == "f32" else f"MOSTLY_{weights.upper()}")
