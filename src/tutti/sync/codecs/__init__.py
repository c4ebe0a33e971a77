"""What a tensor looks like on its way between replicas."""

from tutti.config.agreement import SyncConfig
from tutti.sync.codecs.blocks import Blocks
from tutti.sync.codecs.codec import Codec, NotFinite, require_finite
from tutti.sync.codecs.feedback import Debts, ErrorFeedback
from tutti.sync.codecs.floats import Floats
from tutti.sync.codecs.packet import HEADER_BYTES, Corrupt, Sealer, unseal
from tutti.sync.codecs.powersgd import PowerSGD, Shaped
from tutti.sync.codecs.topk import TopK


def make_codec(sync: SyncConfig) -> Codec | PowerSGD:
    """The codec that `sync` asks for."""
    if sync.codec == "topk":
        return TopK(sync.density, sync.value_bits)
    if sync.codec == "powersgd":
        return PowerSGD(sync.matrix_rank)
    return Blocks(int(sync.codec[3:])) if sync.codec in ("int8", "int4") else Floats(sync.codec)


__all__ = [
    "HEADER_BYTES",
    "Blocks",
    "Codec",
    "Corrupt",
    "Debts",
    "ErrorFeedback",
    "Floats",
    "NotFinite",
    "PowerSGD",
    "Sealer",
    "Shaped",
    "TopK",
    "make_codec",
    "require_finite",
    "unseal",
]
