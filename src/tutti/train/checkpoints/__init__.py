"""Checkpoints: written in the background, never torn, verified to the last byte, loadable into any layout.

save.py       Checkpointer: asynchronous saves, their order on the disk, the best
image.py      the staging buffer, laid out as the finished file
writer.py     the image as a checkpoint of torch.distributed.checkpoint
manifest.py   what makes a directory a checkpoint: sizes, hashes, pointers
retention.py  the directory: names, sweeping, what is kept
load.py       the newest whole one; loading and resharding
state.py      model and optimizers as one dict with layout-free names
"""

import warnings

from tutti.train.checkpoints.load import AVERAGE, best_valid, load, load_weights, newest_valid
from tutti.train.checkpoints.manifest import Damaged, Manifest, read_manifest, verify
from tutti.train.checkpoints.save import Checkpointer, Saved
from tutti.train.checkpoints.state import apply_state, bare_model, gather_state, initialise

# A single process saves and loads without collectives on purpose; DCP would remark on it every time. Set
# once, here: a filter around each call would not be thread-safe.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

__all__ = [
    "AVERAGE",
    "Checkpointer",
    "Damaged",
    "Manifest",
    "Saved",
    "apply_state",
    "bare_model",
    "best_valid",
    "gather_state",
    "initialise",
    "load",
    "load_weights",
    "newest_valid",
    "read_manifest",
    "verify",
]
