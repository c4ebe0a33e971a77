"""Parts of a model that matter least, taken out: single weights, channels of feed-forward layers, heads, layers."""

from tutti.compress.prune.heads import drop_heads
from tutti.compress.prune.structured import drop_layers, narrow_feed_forward
from tutti.compress.prune.weights import Criterion, zero_smallest

__all__ = ["Criterion", "drop_heads", "drop_layers", "narrow_feed_forward", "zero_smallest"]
