"""Breaking a run on purpose: what, when and whose; with signals, and with a firewall in the kernel.

`trouble.Trouble` is the whole of it. It is not imported here: a worker that may be cut off imports `worker`, and with
it this, whenever it is started again, and what that takes would be taken for the time of its recovery.
"""

from tutti.disturb.schedule import KINDS, Disturbance, Line, draw, load_schedule, read_line, read_schedule

__all__ = [
    "KINDS",
    "Disturbance",
    "Line",
    "draw",
    "load_schedule",
    "read_line",
    "read_schedule",
]
