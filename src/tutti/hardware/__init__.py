"""What this machine has and how fast it really is: measured, never looked up."""

from tutti.hardware.cores import Cores, probe_cores, usable_cores
from tutti.hardware.devices import Device, probe_devices
from tutti.hardware.disk import Disk, probe_disk
from tutti.hardware.doctor import Machine, Missing, probe
from tutti.hardware.matmul import fastest_precision, measure_matmul
from tutti.hardware.memory import Memory, probe_memory
from tutti.hardware.network import Network, probe_network

__all__ = [
    "Cores",
    "Device",
    "Disk",
    "Machine",
    "Memory",
    "Missing",
    "Network",
    "fastest_precision",
    "measure_matmul",
    "probe",
    "probe_cores",
    "probe_devices",
    "probe_disk",
    "probe_memory",
    "probe_network",
    "usable_cores",
]
