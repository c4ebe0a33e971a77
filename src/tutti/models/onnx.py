"""A model as an ONNX file: written, with weights of 8 bits if wanted, and computed by onnxruntime as a torch module.

`onnx`, `onnxscript` and `onnxruntime` come with the extra `compress`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tutti.core import ModelError
from tutti.models.quantized import Bits

#: What other programs of the last years read.
_OPSET = 18
#: With GELU as one operation, which onnxruntime computes in one go.
_GELU_OPSET = 20
#: With attention as one operation, too, and one for turned positions, which onnxruntime 1.31 refuses.
_ATTENTION_OPSET = 23
#: onnxruntime joins a sum and the normalization after it into one operation that takes longer than the two
#: (0.9 ms instead of 0.2 for 512 vectors of 384 numbers, onnxruntime 1.31).
_NOT_FASTER = ["SkipLayerNormFusion"]
#: Numbers of a vector that share a scale, of 4 bits.
_GROUP = 32


class OnnxModel(nn.Module):
    """What onnxruntime computes: called with tensors by name, as a Hugging Face model is, on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        runtime = onnx_runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=_NOT_FASTER
            )
        except Exception as error:  # onnxruntime raises its own kinds
            raise ModelError(f"{path} cannot be read: {error}", "make it again with compress") from error
        self._takes = [given.name for given in self._session.get_inputs()]
        self._gives = [given.name for given in self._session.get_outputs()]

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        """The model's outputs by name.

        Raises:
            ModelError: onnxruntime cannot compute it.
        """
        given = {name: inputs[name].numpy() for name in self._takes if name in inputs}
        try:
            found = self._session.run(None, given)
        except Exception as error:  # onnxruntime raises its own kinds
            raise ModelError(
                f"onnxruntime cannot compute it: {error}", "make it again with compress"
            ) from error
        return SimpleNamespace(
            **{name: torch.from_numpy(value) for name, value in zip(self._gives, found, strict=True)}
        )


def export_onnx(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    path: Path,
    *,
    int8: bool = False,
    tables: Bits = 8,
    opset: int = _OPSET,
) -> None:
    """Write `model` to `path`: rows and tokens [B, S] of any number.

    `inputs`: an example, by name. `int8`: matrices with weights of 8 bits, per channel, and inputs too, as they come;
    and tables of vectors with `tables` bits. `opset`: the version of ONNX's operations.

    Raises:
        ModelError: this architecture cannot be exported, or a library is missing.
    """
    onnx_runtime()
    names = list(inputs)
    shapes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in names}
    model.eval()
    config: Any = model.config
    attention, caches = config._attn_implementation, getattr(config, "use_cache", None)
    try:
        config.use_cache = False  # what it keeps of a text is no tensor
        model.set_attn_implementation("sdpa")  # type: ignore[operator]
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Outputs(model, names),
                args=tuple(inputs.values()),
                input_names=names,
                output_names=_Outputs.names(model, inputs),
                dynamic_shapes=(tuple(shapes.values()),),
                opset_version=opset,
                dynamo=True,
            )
        assert program is not None
        with tempfile.TemporaryDirectory() as folder:
            whole = path if not int8 else Path(folder) / "whole.onnx"
            program.save(str(whole))
            if int8:
                _quantize(whole, path, tables)
    except OSError:
        raise
    except Exception as error:  # each of the libraries has its own kinds
        raise ModelError(
            f"a {type(model).__name__} cannot be written as ONNX: {(str(error).splitlines() or [repr(error)])[0]}",
            "choose another format",
        ) from error
    finally:
        config.use_cache = caches
        model.set_attn_implementation(attention)  # type: ignore[operator]


def _quantize(whole: Path, path: Path, tables: Bits) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.quant_utils import QuantType
    from onnxruntime.quantization.quantize import quantize_dynamic

    graph = onnx.load(str(whole))
    # What the exporter knows of shapes contradicts the ones after quantizing.
    del graph.graph.value_info[:]
    onnx.save(graph, str(whole))
    with _quiet():
        quantize_dynamic(
            str(whole),
            str(path),
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm", *(["Gather"] if tables == 8 else [])],
        )
        if tables == 4:
            quantizer = MatMulNBitsQuantizer(
                str(path),
                bits=4,
                block_size=_GROUP,
                op_types_to_quantize=("Gather",),
                quant_axes=(("Gather", 1),),
            )
            quantizer.process()  # type: ignore[no-untyped-call]
            quantizer.model.save_model_to_file(str(path))  # type: ignore[no-untyped-call]


def export_fastest(model: nn.Module, inputs: Mapping[str, Tensor], path: Path, *, int8: bool = False) -> int:
    """As `export_onnx`, for a file that nobody else reads: with the operations that onnxruntime computes fastest, of
    those with which it computes `model` here. Returns the version of operations.

    Raises:
        ModelError: there are none, or a library is missing.
    """

    def tried(opset: int) -> int:
        export_onnx(model, inputs, path, int8=int8, opset=opset)
        OnnxModel(path, threads=1)(**inputs)
        return opset

    *fast, last = fastest_opsets(model)
    for opset in fast:
        with contextlib.suppress(ModelError):
            return tried(opset)
    return tried(last)


def fastest_opsets(model: nn.Module) -> tuple[int, ...]:
    """Versions of operations to try for `model`, the fastest first."""
    turned = any("Rotary" in type(module).__name__ for module in model.modules())
    every = (_ATTENTION_OPSET, _GELU_OPSET, _OPSET)
    return every[1:] if turned else every


class _Outputs(nn.Module):
    """A Hugging Face model with inputs in an order, and its outputs as a tuple."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self._names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self._names, inputs, strict=True)), return_dict=True)
        return tuple(value for value in found.values() if isinstance(value, Tensor))

    @staticmethod
    @torch.no_grad()
    def names(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[str]:
        """Of the outputs."""
        found = model(**inputs, return_dict=True)
        return [name for name, value in found.items() if isinstance(value, Tensor)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter narrates."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def onnx_runtime() -> Any:
    """The library.

    Raises:
        ModelError: it, or what torch writes ONNX with, is not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch.onnx writes with
    except ImportError as error:
        raise ModelError(
            f"ONNX needs the package {error.name}", "install it: pip install 'tutti[compress]'"
        ) from error
    return onnxruntime
