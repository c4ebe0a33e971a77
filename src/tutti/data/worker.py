"""A process that encodes shards for another: `python -m tutti.data.worker`.

Takes pickled messages on its standard input, first a `Job`, then one `ShardTask` at a time, and answers each
with a pickled `Shard` or the exception. Ends when its input ends, so it outlives its master by one shard at
most. A plain process instead of `multiprocessing`: that would run the user's main module again, or fork
beside the threads of the tokenizer.
"""

from __future__ import annotations

import os
import pickle
import sys

from tutti.core.errors import TuttiError
from tutti.data.encode import Job, encode_shard
from tutti.data.encoder import TextEncoder


def main() -> None:
    """Work until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints must not get between the answers
    tasks = sys.stdin.buffer
    job: Job = pickle.load(tasks)
    encoder = TextEncoder(job.tokenizer)
    while True:
        try:
            task = pickle.load(tasks)
        except EOFError:
            return
        try:
            answer: object = encode_shard(job, task, encoder)
        except TuttiError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
