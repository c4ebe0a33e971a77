"""Breaking a run on purpose: what, when and whose; with signals, and with a firewall in the kernel."""

from tutti.disturb.schedule import KINDS, Disturbance, Line, draw, load_schedule, read_line, read_schedule
from tutti.disturb.trouble import Trouble

__all__ = [
    "KINDS",
    "Disturbance",
    "Line",
    "Trouble",
    "draw",
    "load_schedule",
    "read_line",
    "read_schedule",
]
