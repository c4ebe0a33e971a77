"""A cut group reaches nobody and nobody reaches it, but its own processes still reach each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tutti.core.errors import LaunchError
from tutti.disturb.firewall import Firewall

ECHO = """
import os, socket, sys, threading
if sys.argv[1]: open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
server = socket.create_server((sys.argv[2], 0), family=socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET)
print(server.getsockname()[1], flush=True)
def echo(connection):
    while data := connection.recv(1): connection.send(data)
def serve():
    while True: threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
threading.Thread(target=serve, daemon=True).start()
known = {}
for line in sys.stdin:  # fresh or known, host, port: is what is sent echoed?
    how, host, port = line.split()
    try:
        if how == "fresh": known[host, port] = socket.create_connection((host, int(port)), 0.5)
        link = known[host, port]; link.settimeout(0.5); link.send(b"x"); print(link.recv(1) == b"x", flush=True)
    except OSError: print(False, flush=True)
"""


def may_cut() -> bool:
    try:
        Firewall(1).close()
    except LaunchError:
        return False
    return True


needs_right = pytest.mark.skipif(not may_cut(), reason="cutting needs root, cgroup v2 and BPF")


class Echo:
    """A process in `group` that echoes what it is sent, and sends what it is told."""

    def __init__(self, group: Path | None, host: str) -> None:
        self.host = host
        self.process = subprocess.Popen(
            [sys.executable, "-c", ECHO, str(group or ""), host],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def reaches(self, other: Echo, how: str = "fresh") -> bool:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(how, other.host, other.port, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip() == "True"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@needs_right
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_cut_group_is_alone(host: str) -> None:
    firewall = Firewall(2)
    echoes = [Echo(group, host) for group in (firewall.group(0), firewall.group(0), firewall.group(1), None)]
    try:
        inside, sibling, other, launcher = echoes
        for outsider in (other, launcher):
            assert inside.reaches(outsider) and outsider.reaches(inside)
        assert inside.reaches(sibling)
        firewall.cut(0)
        assert inside.reaches(sibling) and inside.reaches(sibling, "known")
        for how in ("known", "fresh"):
            for outsider in (other, launcher):
                assert not inside.reaches(outsider, how) and not outsider.reaches(inside, how)
        assert other.reaches(launcher) and launcher.reaches(other)
        firewall.mend(0)
        for outsider in (other, launcher):
            assert inside.reaches(outsider) and outsider.reaches(inside)
    finally:
        for echo in echoes:
            echo.end()
        firewall.close()
    assert not firewall.group(0).parent.exists()


@needs_right
def test_nothing_of_a_killed_launcher_stays_in_the_kernel() -> None:
    """Its programs go with it; the empty groups go when the next one starts."""
    code = (
        "from tutti.disturb.firewall import Firewall; import sys\n"
        "f = Firewall(1); f.cut(0); print(f.group(0), flush=True); sys.stdin.read()"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    group = Path(launcher.stdout.readline().strip())
    echo = Echo(group, "127.0.0.1")
    try:
        address = ("127.0.0.1", echo.port)
        with pytest.raises(TimeoutError):
            socket.create_connection(address, 0.5)
        launcher.kill()
        launcher.wait()
        socket.create_connection(address, 5).close()
    finally:
        launcher.kill()
        launcher.wait()
        echo.end()
    assert group.is_dir()
    Firewall(1).close()
    assert not group.parent.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without the right")
def test_without_the_right_it_is_refused_in_words() -> None:
    code = (
        "import os; from tutti.disturb.firewall import Firewall; os.setuid(65534)\n"
        "try: Firewall(2)\nexcept Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert said.startswith("LaunchError") and "--cut needs" in said
