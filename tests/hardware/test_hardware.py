"""The probes: plausible figures of this machine, and made-up containers."""

from __future__ import annotations

import json
import mmap
import time
from pathlib import Path

import pytest
import torch

from tutti.hardware import fastest_precision, matmul, measure_matmul, probe, probe_cores, probe_memory
from tutti.hardware.cgroup import cpu_quota, memory_limit
from tutti.hardware.cores import Cores
from tutti.hardware.counters import memory_stall, processor_delay, read_counters
from tutti.hardware.disk import Disk, probe_disk
from tutti.hardware.doctor import find_missing
from tutti.hardware.matmul import choose_precision
from tutti.hardware.memory import Memory
from tutti.hardware.network import measure_loopback


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_matmul_gives_a_plausible_rate_and_restores_the_threads() -> None:
    before = torch.get_num_threads()
    rate = measure_matmul("fp32", threads=1, seconds=0.1, size=256)
    assert 1e8 < rate < 1e13
    assert torch.get_num_threads() == before


def test_matmul_of_a_pathologically_slow_format_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 GFLOP/s, as fp16 is on some CPUs: 1024³ would take 21 s a product."""
    sizes = []

    def slow(left: torch.Tensor, right: torch.Tensor, product: torch.Tensor, repeats: int) -> float:
        sizes.append(len(left))
        seconds = repeats * 2 * len(left) ** 3 / 1e8
        time.sleep(min(seconds, 1.0))
        return seconds

    monkeypatch.setattr(matmul, "_burst", slow)
    start = time.perf_counter()
    assert measure_matmul("fp16", seconds=0.3) == pytest.approx(1e8)
    assert time.perf_counter() - start < 1.5
    assert max(sizes) <= 256


def test_matmul_of_a_refused_format_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> float:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    monkeypatch.setattr(matmul, "_burst", refuse)
    assert measure_matmul(torch.float16) == 0.0


def test_fastest_precision_says_what_it_measured() -> None:
    name, reason = fastest_precision("cpu", threads=1, seconds=0.04)
    assert name in ("fp32", "bf16", "fp16")
    assert all(part in reason for part in ("fp32", "bf16", "fp16", "measured on this CPU"))


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({"fp32": 182e9, "bf16": 952e9, "fp16": 0.1e9}, "bf16"),
        ({"fp32": 100e9, "bf16": 120e9, "fp16": 0.1e9}, "fp32"),  # below the margin
        ({"fp32": 14e12, "bf16": 0.0, "fp16": 90e12}, "fp16"),  # a GPU before bf16
        ({"fp32": 60e12, "bf16": 700e12, "fp16": 720e12}, "bf16"),  # fp16 is only second choice
        ({"fp32": 0.0, "bf16": 0.0, "fp16": 0.0}, "fp32"),
    ],
)
def test_choice_of_precision(rates: dict[str, float], chosen: str) -> None:
    assert choose_precision(rates, "CPU")[0] == chosen


def test_the_tightest_quota_of_cgroup_v2_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/jobs/mine\n")
    write(tmp_path / "sys/fs/cgroup/jobs/mine/cpu.max", "max 100000\n")
    write(tmp_path / "sys/fs/cgroup/jobs/cpu.max", "150000 100000\n")
    write(tmp_path / "sys/fs/cgroup/jobs/mine/memory.max", "2000000000\n")
    write(tmp_path / "sys/fs/cgroup/jobs/mine/memory.current", "900000000\n")
    write(tmp_path / "sys/fs/cgroup/jobs/mine/memory.stat", "anon 5\ninactive_file 400000000\n")
    assert cpu_quota(tmp_path) == 1.5
    assert memory_limit(tmp_path) == (2_000_000_000, 500_000_000)
    assert probe_cores(tmp_path).usable == 1
    assert probe_memory(tmp_path).total_bytes == 2_000_000_000
    assert probe_memory(tmp_path).available_bytes <= 1_500_000_000


def test_cgroup_v1(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n")
    # The path is the host's; inside the container the limits stand at the top.
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert cpu_quota(tmp_path) == 0.5
    assert memory_limit(tmp_path) is None
    assert probe_cores(tmp_path).usable == 1


def test_no_cgroup_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert memory_limit(tmp_path) is None


def test_disk_is_measured_and_left_clean(tmp_path: Path) -> None:
    disk = probe_disk(tmp_path / "not/yet/there", limit_bytes=4_000_000)
    assert disk.path == str(tmp_path)
    assert disk.write_bytes_per_second is not None and disk.write_bytes_per_second > 1e5
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_says_why() -> None:
    disk = probe_disk(Path("/proc/self"))
    assert disk.write_bytes_per_second is None and disk.problem


def test_loopback() -> None:
    latency, rate = measure_loopback(0.05)
    assert 0 < latency < 0.1
    assert rate > 1e6


def test_what_is_missing_is_said_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = find_missing(
        Cores(1, 8, 8, 8, 1.5, "x"),
        Memory(8 * 10**9, 10**9, None, 64_000_000),
        Disk("/data", 10**12, 10**9, None, "Read-only file system"),
        (),
        {"fp32": 100e9, "bf16": 20e9, "fp16": 1e9},
    )
    text = "\n".join(f"{item.what} → {item.how}" for item in found)
    for part in (
        "Read-only",
        "1.0 GB free",
        "--shm-size",
        "apt install g++",
        "1.5 of 8",
        "bf16 brings",
    ):
        assert part in text
    assert all(item.how for item in found)


def test_the_whole_machine_is_plain_json(tmp_path: Path) -> None:
    machine = probe(tmp_path)
    plain = json.loads(json.dumps(machine.to_dict()))
    assert plain["cores"]["usable"] >= 1
    assert plain["matmul_flops"]["cpu"]["fp32"] > 0
    assert plain["versions"]["torch"] == torch.__version__
    assert machine.to_dict() == plain


def test_waiting_for_memory_and_for_a_processor_as_linux_tells(tmp_path: Path) -> None:
    assert memory_stall(tmp_path) is None and processor_delay(tmp_path) is None
    write(
        tmp_path / "proc/pressure/memory",
        "some avg10=0.87 avg60=0.21 avg300=0.04 total=170509\nfull avg10=0.12 avg60=0.02 avg300=0.00 total=23773\n",
    )
    write(tmp_path / "proc/self/schedstat", "939324 9113464 3\n")
    assert memory_stall(tmp_path) == pytest.approx(0.170509)
    assert processor_delay(tmp_path) == pytest.approx(0.009113464)


def test_counters_grow_with_what_a_process_does() -> None:
    before = read_counters()
    while read_counters().user_seconds + read_counters().system_seconds < (
        before.user_seconds + before.system_seconds + 0.05
    ):
        sum(range(10_000))
    with mmap.mmap(-1, 1 << 24) as fresh:  # pages that nobody has touched, which an allocator's may have been
        for page in range(0, len(fresh), mmap.PAGESIZE):
            fresh[page] = 1
        after = read_counters()
    assert after.minor_faults > before.minor_faults
    assert after.major_faults >= before.major_faults
