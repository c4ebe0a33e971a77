"""Models whose weights are whole numbers of 8 or 4 bits: the codes, the modules that compute with them, their file."""

from tutti.models.quantized.codes import Bits, Codes, encode, grid, round_to_nearest
from tutti.models.quantized.modules import Arithmetic, QuantizedEmbedding, QuantizedLinear, kernel_in_use
from tutti.models.quantized.store import load_quantized, save_quantized, weight_bytes

__all__ = [
    "Arithmetic",
    "Bits",
    "Codes",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "encode",
    "grid",
    "kernel_in_use",
    "load_quantized",
    "round_to_nearest",
    "save_quantized",
    "weight_bytes",
]
