"""The server that workers are forked from. It has imported everything already, so that a restart costs no imports.

Nothing here imports torch: whoever knows early that there will be workers starts the server first, and both
spend their seconds of imports side by side.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing import forkserver, resource_tracker

from tutti.core.surroundings import settle_torch

START_METHOD = "forkserver"
#: What a worker imports.
_IMPORTS = ["tutti.train.worker", "transformers.models.llama.modeling_llama", "torchft"]


def start_server() -> None:
    """Start the server unless it runs; returns at once, while the server imports.

    It is started without Ctrl-C: it would die of it in mid-import, with a traceback on the terminal.
    """
    os.environ.setdefault("RUST_LOG", "error")  # torchft's servers narrate every heartbeat that they miss
    settle_torch()
    multiprocessing.set_forkserver_preload(_IMPORTS)
    resource_tracker.ensure_running()  # starting it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
