"""A replica's network is cut: what its processes send or are sent is dropped, but for what stays among themselves.

The workers of each replica live in a control group (cgroup v2) of their own, which they enter before they open a
socket. Two small BPF programs are attached to it for as long as the cut lasts, one for each direction. A packet passes
only if the socket at its other end is in the same group:

    other = socket that the addresses and ports of the packet lead to      (bpf_sk_lookup_tcp)
    pass if other's group == this group, else drop                         (bpf_sk_cgroup_id)

A firewall rule on ports would have to run after each new connection; a group knows its sockets from the first packet.
And an attachment is a file descriptor of this process (a BPF link): when the process ends, however it ends, the kernel
detaches the programs. All that a crash can leave behind is an empty group, which the next start removes.

Needs Linux 5.8, root (CAP_BPF, CAP_NET_ADMIN) and a cgroup2 mount. BPF: kernel.org, Documentation/bpf.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tutti.core.errors import LaunchError

_BPF_CALL = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _LINK_CREATE = 5, 28
_CGROUP_SKB = 8
_INGRESS, _EGRESS = 0, 1
_PREFIX = "tutti-chaos-"


class Firewall:
    """Groups for the replicas of this process's run, whose network can be cut. To be closed at the end."""

    def __init__(self, replicas: int) -> None:
        """Raises LaunchError without the right or the means to cut anything; nothing is left behind then."""
        self._top = _own_group() / f"{_PREFIX}{os.getpid()}"
        self._links: dict[int, list[int]] = {}
        try:
            _remove_stale(self._top.parent)
            self._groups = [self._top / f"replica-{replica}" for replica in range(replicas)]
            for group in self._groups:
                group.mkdir(parents=True, exist_ok=True)
            self.cut(0)  # nobody is in it yet: this only shows that it can be done
            self.mend(0)
        except OSError as error:
            self.close()
            raise _cannot(f"{error.strerror or error}") from error

    def group(self, replica: int) -> Path:
        """Where the workers of `replica` belong."""
        return self._groups[replica]

    def cut(self, replica: int) -> None:
        """From now on nothing gets through between `replica` and anybody else."""
        descriptor = os.open(self._groups[replica], os.O_RDONLY | os.O_DIRECTORY)
        links = self._links.setdefault(replica, [])
        try:
            group_id = os.fstat(descriptor).st_ino
            for direction in (_INGRESS, _EGRESS):
                links.append(_attach(_program(group_id, direction), descriptor, direction))
        finally:
            os.close(descriptor)

    def mend(self, replica: int) -> None:
        """The end of a cut."""
        for link in self._links.pop(replica, []):
            os.close(link)

    def close(self) -> None:
        """Mend everything, and remove the groups once their processes are gone."""
        for replica in list(self._links):
            self.mend(replica)
        deadline = time.monotonic() + 10
        while not _remove(self._top) and time.monotonic() < deadline:
            time.sleep(0.05)


def enter(group: Path) -> None:
    """This process and the sockets that it will open belong to `group` from now on."""
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _cannot(reason: str) -> LaunchError:
    return LaunchError(
        f"the network of a replica cannot be cut here: {reason}",
        "--cut needs Linux 5.8 or later, root and cgroup v2; the other disturbances need none of them",
    )


# Groups ------------------------------------------------------------------------------------------------------


def _own_group() -> Path:
    """This process's control group, below which others are made."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError as error:
        raise _cannot("there are no control groups") from error
    mount = next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)
    own = next((line.removeprefix("0::") for line in groups if line.startswith("0::")), None)
    if mount is None or own is None:
        raise _cannot("no cgroup2 is mounted")
    return mount / own.lstrip("/")


def _remove_stale(parent: Path) -> None:
    """Groups of runs whose process is gone."""
    for group in parent.glob(f"{_PREFIX}*"):
        number = group.name.removeprefix(_PREFIX)
        if number.isdigit() and not psutil.pid_exists(int(number)):
            _remove(group)


def _remove(top: Path) -> bool:
    """Remove `top` and what is below it; False while a process lives there."""
    try:
        for group in [*top.glob("*/"), top]:
            group.rmdir()
    except OSError:
        return not top.exists()
    return True


# BPF ---------------------------------------------------------------------------------------------------------


def _call(command: int, attributes: bytes) -> int:
    """bpf(2); returns a file descriptor."""
    number = _BPF_CALL.get(platform.machine())
    if number is None or platform.system() != "Linux":
        raise OSError(f"no BPF on {platform.system()} {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    descriptor = libc.syscall(number, command, buffer, len(attributes))
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf: {os.strerror(code)}")
    return int(descriptor)


def _attach(code: bytes, group: int, direction: int) -> int:
    """Load the program `code` and attach it to the group that is open as `group`; returns the link's descriptor."""
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    program = _call(
        _PROG_LOAD,
        struct.pack(
            "<IIQQIIQII16sII",  # union bpf_attr of BPF_PROG_LOAD
            *(_CGROUP_SKB, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence)),
            *(0, 0, 0, 0, 0, b"tutti_cut", 0, direction),
        ),
    )
    try:
        return _call(_LINK_CREATE, struct.pack("<IIII", program, group, direction, 0))
    finally:
        os.close(program)  # the link holds it


#: Helpers of the kernel (include/uapi/linux/bpf.h).
_LOAD_BYTES, _SK_LOOKUP_TCP, _SK_RELEASE, _SK_CGROUP_ID = 26, 84, 86, 128
_DROP, _PASS = 0, 1
_TCP = 6

#: An instruction, a label, or a jump: (operation, register, value or register compared with, label).
_Item = bytes | str | tuple[int, int, int, str]
_JUMP, _IF_EQUAL, _IF_NOT_EQUAL, _IF_NOT_EQUAL_REGISTER = 0x05, 0x15, 0x55, 0x5D


def _program(group_id: int, direction: int) -> bytes:
    """Pass a TCP packet whose other end is a socket of the group, drop every other packet.

    Registers: r6 the packet, r7 and r8 scratch. `bpf_sk_lookup_tcp` finds the socket that a packet with the given
    tuple would reach: outgoing packets are looked up as they are, incoming ones with both ends exchanged.
    """
    items: list[_Item] = [
        *(
            _copy(6, 1),
            *_load(0, -8, 1),
            _byte(7, -8),
            _op(0x77, 7, value=4),
        ),  # IP version: upper half of byte 0
        *((_IF_EQUAL, 7, 6, "version 6"), (_IF_NOT_EQUAL, 7, 4, "drop")),
        *_tuple(header=20, protocol=9, source=12, size=4, direction=direction),
        *("version 6", *_tuple(header=40, protocol=6, source=8, size=16, direction=direction)),
        *("look up", _set(4, -1), _set(5, 0), _helper(_SK_LOOKUP_TCP), (_IF_EQUAL, 0, 0, "drop")),
        *(_copy(7, 0), _copy(1, 7), _helper(_SK_CGROUP_ID), _copy(8, 0)),
        *(_copy(1, 7), _helper(_SK_RELEASE), _set_64(1, group_id), (_IF_NOT_EQUAL_REGISTER, 8, 1, "drop")),
        *(_set(0, _PASS), _op(0x95)),
        *("drop", _set(0, _DROP), _op(0x95)),
    ]
    return _assemble(items)


def _tuple(*, header: int, protocol: int, source: int, size: int, direction: int) -> list[_Item]:
    """Addresses of `size` bytes and ports of a packet into the arguments of the look-up; no IP options expected."""
    destination = source + size
    here, there = (source, destination), (header, header + 2)
    if direction == _INGRESS:
        here, there = here[::-1], there[::-1]
    base, length = -48, 2 * size + 4
    return [
        *(*_load(protocol, -8, 1), _byte(7, -8), (_IF_NOT_EQUAL, 7, _TCP, "drop")),
        *(*_load(here[0], base, size), *_load(here[1], base + size, size)),
        *(*_load(there[0], base + 2 * size, 2), *_load(there[1], base + 2 * size + 2, 2)),
        *(_copy(1, 6), _copy(2, 10), _op(0x07, 2, value=base), _set(3, length), (_JUMP, 0, 0, "look up")),
    ]


def _load(offset: int, to: int, size: int) -> list[_Item]:
    """`size` bytes of the packet at `offset` onto the stack at `to`; a shorter packet is dropped."""
    return [
        *(_copy(1, 6), _set(2, offset), _copy(3, 10), _op(0x07, 3, value=to), _set(4, size)),
        *(_helper(_LOAD_BYTES), (_IF_NOT_EQUAL, 0, 0, "drop")),
    ]


def _op(code: int, to: int = 0, by: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, by << 4 | to, offset, value)


def _copy(to: int, by: int) -> bytes:
    return _op(0xBF, to, by)


def _set(to: int, value: int) -> bytes:
    return _op(0xB7, to, value=value)


def _set_64(to: int, value: int) -> bytes:
    low, high = struct.unpack("<ii", struct.pack("<Q", value))
    return _op(0x18, to, value=low) + _op(0, value=high)


def _byte(to: int, offset: int) -> bytes:
    """One byte of the stack."""
    return _op(0x71, to, 10, offset)


def _helper(number: int) -> bytes:
    return _op(0x85, value=number)


def _assemble(items: Sequence[_Item]) -> bytes:
    """Labels become distances: a jump counts instructions from the one after it."""
    places: dict[str, int] = {}
    count = 0
    for item in items:
        if isinstance(item, str):
            places[item] = count
        else:
            count += len(item) // 8 if isinstance(item, bytes) else 1
    code = b""
    for item in items:
        if isinstance(item, bytes):
            code += item
        elif isinstance(item, tuple):
            operation, register, operand, label = item
            distance = places[label] - len(code) // 8 - 1
            by_register = operation == _IF_NOT_EQUAL_REGISTER
            code += _op(
                operation, register, operand if by_register else 0, distance, 0 if by_register else operand
            )
    return code
