"""What a step waits for on its own machine: samples, memory, the disk; and validations."""

from __future__ import annotations

import math

from tutti.observe import words
from tutti.observe.profile.cause import Cause, spent
from tutti.observe.profile.figures import Figures

#: Of the memory that there is: below this, more may be kept of what is computed twice.
_ROOMY = 0.5


def data(figures: Figures) -> Cause | None:
    """Loading samples."""
    seconds = figures.parts.get("data", 0.0)
    if seconds <= 0:
        return None
    planned, read = figures.planned, figures.used("read_bytes")
    samples = sum(rank.samples / max(1, len(rank.steps)) for rank in figures.ranks)
    evidence = [
        f"loading samples takes {spent(seconds)} of a step of {spent(figures.seconds)}",
        f"so loaded, there are {words.rate(samples / seconds)} samples/s; computing would take "
        f"{words.rate(samples / max(figures.computing, 1e-9))}",
    ]
    if read:
        evidence.append(f"{words.size(read)} a step were read from a disk, {words.size(read / seconds)}/s")
    from_disk = bool(read) or (figures.used("major_faults") or 0.0) >= 1
    if planned.get("kind_of_job") == "function":
        change = "hand over tensors, or a data set whose items are made beforehand: now each is made when it is needed"
    elif from_disk:
        change = f"data.cache=DIRECTORY on a faster disk (it is {planned.get('cache')})"
    else:
        change = "find what else works on this machine's processor: the samples come from memory"
    return Cause(
        "data",
        seconds,
        seconds / figures.seconds,
        tuple(evidence),
        change,
        figures.seconds - seconds,
        "the rest of a step, with samples there when it begins",
    )


def memory(figures: Figures) -> Cause | None:
    """Standing still until there is memory."""
    stalled = figures.stalled
    faults, swapped = figures.used("major_faults") or 0.0, figures.used("swapped_bytes") or 0.0
    moves = (faults >= 1 or swapped > 0) and stalled != 0  # None: the system does not count it
    moving = (figures.used("system_seconds") or 0.0) / len(figures.ranks) if moves else 0.0
    seconds = min((stalled or 0.0) + moving, figures.seconds)
    if seconds <= 0:
        return None
    planned, there = figures.planned, figures.memory_bytes
    micro, offload = int(planned.get("micro_batch") or 1), str(planned.get("offload"))
    evidence = [
        f"of a step of {spent(figures.seconds)} processes stood still for want of memory in {spent(stalled or 0.0)}, "
        f"and the system moved pages in {spent(moving)}"
    ]
    if faults >= 1:
        read, written = (figures.used(key) or 0.0 for key in ("read_bytes", "written_bytes"))
        evidence.append(
            f"{words.rate(faults)} times a step a page had to be read first; {words.size(read)} came from a disk, "
            f"{words.size(written)} went to it"
        )
    if swapped:
        evidence.append(f"{words.size(swapped)} a step went to swap or came from it")
    if there:
        evidence.append(
            f"the workers' largest memory is {words.size(figures.peak_bytes)}, and there are {words.size(there)}"
        )
    if offload in ("optimizer", "all"):
        change = "more memory, or a smaller model: what memory.offload keeps in files has to be in memory once a step"
        why = "a step without that"
    elif micro > 1:
        change, why = (
            f"train.micro_batch={micro // 2}",
            "half of the activations; a step without standing still",
        )
    elif planned.get("recompute") == "none" and planned.get("kind_of_job") != "function":
        change, why = "memory.recompute=full", "a step without standing still, with another forward pass"
    else:
        change = "more memory for the workers, fewer of them on this machine, or a smaller model"
        why = "a step without standing still"
    again = figures.parts.get("forward", 0.0) if change == "memory.recompute=full" else 0.0
    return Cause(
        "memory",
        seconds,
        seconds / figures.seconds,
        tuple(evidence),
        change,
        min(figures.seconds, figures.seconds - seconds + again),
        why,
    )


def recomputing(figures: Figures) -> Cause | None:
    """Computing forward a second time to save memory, where there is plenty."""
    forward, there = figures.parts.get("forward"), figures.memory_bytes
    device = {rank.said.get("tracing", {}).get("device", "cpu") for rank in figures.ranks}
    roomy = device == {"cpu"} and there is not None and figures.peak_bytes < _ROOMY * there
    if figures.planned.get("recompute") != "full" or not forward or not roomy:
        return None
    return Cause(
        "memory",
        forward,
        forward / figures.seconds,
        (
            f"memory.recompute is full: backward computes forward again, {spent(forward)} of a step of "
            f"{spent(figures.seconds)}",
            f"the workers' largest memory is {words.size(figures.peak_bytes)}, and there are {words.size(there)}",
        ),
        "memory.recompute=none",
        figures.seconds - forward,
        "a step with one forward pass",
    )


def checkpoint(figures: Figures) -> Cause | None:
    """Saves, while which training waits."""
    return _due(figures, "checkpoint", "saving", "checkpoint.every", "checkpoint_every")


def validation(figures: Figures) -> Cause | None:
    """Validations."""
    return _due(figures, "validation", "validating", "evaluate.every", "validate_every")


def _due(figures: Figures, kind: str, doing: str, setting: str, planned: str) -> Cause | None:
    seconds, every = figures.parts.get(kind, 0.0), figures.planned.get(planned)
    if seconds <= 0 or not isinstance(every, int):
        return None
    times = max(2, math.ceil(10 * seconds / figures.seconds))
    return Cause(
        kind,
        seconds,
        seconds / figures.seconds,
        (
            f"training waits {spent(seconds * every)} for {doing}, every {words.plural(every, 'step')}: "
            f"{spent(seconds)} of a step of {spent(figures.seconds)}",
        ),
        f"{setting}={times * every}",
        figures.seconds - seconds * (1 - 1 / times),
        f"as long each time, and {times} times more seldom",
    )
