"""A process that works for another: `python -m tutti.data.worker` (see `processes`).

Takes pickled messages on its standard input, first a `Job`, then one task at a time, and answers each with a pickled
answer or the exception. Ends when its input ends, so it outlives its master by one task at most.
"""

from __future__ import annotations

import os
import pickle
import sys

from tutti.core.errors import TuttiError
from tutti.data.processes import Job


def main() -> None:
    """Work until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints must not get between the answers
    tasks = sys.stdin.buffer
    job: Job = pickle.load(tasks)
    perform = job.start()
    while True:
        try:
            task = pickle.load(tasks)
        except EOFError:
            return
        try:
            answer: object = perform(task)
        except TuttiError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
