"""Breaking a run on purpose: what, when and whose; with signals, and with a firewall in the kernel.

`trouble.Trouble` is the whole of it. It is not imported here: every worker that is started again imports
`worker`, and with it this, and what that takes would be taken for the time of recovery.
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
