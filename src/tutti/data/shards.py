"""All shards of a preparation, written by this process or by several at once.

Shards that an earlier, interrupted attempt finished are taken as they are, once their hashes agree.
"""

from __future__ import annotations

from collections.abc import Callable

from tutti.data.encode import Job, ShardTask, find_finished
from tutti.data.listing import SourceFile, reachable
from tutti.data.manifest import Shard
from tutti.data.processes import share_out
from tutti.data.segments import PlanOfPart
from tutti.data.settings import BYTES_WORTH_PROCESSES


def write_shards(
    job: Job,
    plan: dict[str, PlanOfPart],
    files: list[SourceFile],
    *,
    workers: int,
    say: Callable[[str], None],
) -> dict[str, list[Shard]]:
    """Write what is not there yet; all shards of every part, in order.

    Raises:
        DataError, RunError: as `encode_shard`; also a worker process that died.
    """
    done: dict[str, Shard] = {}
    pending: list[tuple[PlanOfPart, int]] = []
    names = {
        part.name: [f"{part.name}-{shard:05d}" for shard in range(part.shards)] for part in plan.values()
    }
    for part in plan.values():
        for number, name in enumerate(names[part.name]):
            finished = find_finished(job, name, part.digest(number))
            if finished:
                done[name] = finished
            else:
                pending.append((part, number))
    total = len(done) + len(pending)
    if done:
        say(f"{len(done)} of {total} shards were finished before")
    tasks = (ShardTask.of(part, number, files) for part, number in pending)
    left = sum(int(part.segments["bytes"][part.bounds[n] : part.bounds[n + 1]].sum()) for part, n in pending)
    processes = min(workers, len(pending)) if left >= BYTES_WORTH_PROCESSES and reachable(files) else 1
    for task, shard in share_out(job, tasks, processes):
        name = task.name
        done[name] = shard
        megabytes = shard.bytes / 1e6
        say(f"wrote {name}: {shard.tokens:,} tokens from {megabytes:.1f} MB ({len(done)} of {total} shards)")
    return {part: [done[name] for name in of_part] for part, of_part in names.items()}
