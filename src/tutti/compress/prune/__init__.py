"""Parts of a model that matter least, taken out: single weights, channels of feed-forward layers, heads, layers."""

from tutti.compress.prune.heads import drop_heads, fewer_heads
from tutti.compress.prune.structured import drop_layers, fewer_channels, narrow_feed_forward, require_layers
from tutti.compress.prune.weights import Criterion, layers_in_blocks, zero_smallest

__all__ = [
    "Criterion",
    "drop_heads",
    "drop_layers",
    "fewer_channels",
    "fewer_heads",
    "layers_in_blocks",
    "narrow_feed_forward",
    "require_layers",
    "zero_smallest",
]
