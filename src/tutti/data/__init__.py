"""Raw text to batches: sources → cleaning → split → tokenizer → shards → samples → global order."""

from tutti.data.order import GlobalOrder
from tutti.data.prepare import prepare
from tutti.data.prepared import Prepared, open_prepared
from tutti.data.samples import TokenSource
from tutti.data.tensors import TensorSource

__all__ = ["GlobalOrder", "Prepared", "TensorSource", "TokenSource", "open_prepared", "prepare"]
