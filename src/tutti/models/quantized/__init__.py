"""Models whose weights are whole numbers of 8 or 4 bits: the codes, the modules that compute with them, their file."""

from tutti.models.quantized.aware import GROUP, train_quantized, without_rounding
from tutti.models.quantized.choose import layers_of, straighten, tables_of
from tutti.models.quantized.codes import Bits, Codes, encode, grid, round_to_nearest
from tutti.models.quantized.modules import Arithmetic, QuantizedEmbedding, QuantizedLinear, product_of
from tutti.models.quantized.store import load_quantized, save_quantized

__all__ = [
    "GROUP",
    "Arithmetic",
    "Bits",
    "Codes",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "encode",
    "grid",
    "layers_of",
    "load_quantized",
    "product_of",
    "round_to_nearest",
    "save_quantized",
    "straighten",
    "tables_of",
    "train_quantized",
    "without_rounding",
]
