"""Raw text to batches: sources → cleaning → split → tokenizer → shards → samples → global order.

What gives batches needs torch, which takes seconds to import and much memory; it is looked up when first asked for, so
that the processes that prepare text need neither.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tutti.data.order import GlobalOrder
from tutti.data.prepare import prepare
from tutti.data.prepared import Prepared, open_prepared

if TYPE_CHECKING:
    from tutti.data.infill import InfillSource
    from tutti.data.masked import MaskedSource
    from tutti.data.recall import RecallSource
    from tutti.data.samples import TokenSource
    from tutti.data.tensors import TensorSource

__all__ = [
    "GlobalOrder",
    "InfillSource",
    "MaskedSource",
    "Prepared",
    "RecallSource",
    "TensorSource",
    "TokenSource",
    "open_prepared",
    "prepare",
]

_WITH_TORCH = {
    "InfillSource": "infill",
    "MaskedSource": "masked",
    "RecallSource": "recall",
    "TensorSource": "tensors",
    "TokenSource": "samples",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tutti.data.{_WITH_TORCH[name]}"), name)
