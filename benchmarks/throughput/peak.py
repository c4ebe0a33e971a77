"""The yardstick as a peer: how fast each core multiplies matrices, one process for each, each time its turn comes."""

from __future__ import annotations

import sys

import torch

from benchmarks.throughput.windows import read_task
from benchmarks.turns import Turns
from tutti.hardware import measure_matmul


def main() -> None:
    task = read_task(sys.argv[1])
    torch.set_num_threads(1)
    turns = Turns.of_environment(0)
    rate = None
    while True:
        turns.before_step(rate)  # the record's `loss` carries FLOP/s here
        rate = measure_matmul(task["precision"], threads=1, seconds=1.0)


if __name__ == "__main__":
    main()
