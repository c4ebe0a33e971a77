"""How fast this device multiplies matrices, per number format: the peak that MFU is measured against.

Data sheets lie by turbo, thread count and instruction set; the same CPU may do 950 GFLOP/s in bf16 and 0.1 in
fp16. So the rate is measured, and the measurement begins small, lest the slow formats take minutes.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator

import torch

#: Formats by the names that the configuration uses.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: A smaller format must be this much faster than fp32 to be worth its rounding.
WORTHWHILE = 1.3

_SMALLEST = 64
_BURST_SECONDS = 0.01


def measure_matmul(
    dtype: torch.dtype | str,
    *,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    seconds: float = 0.3,
    size: int | None = None,
) -> float:
    """FLOP/s of square matrix products in `dtype`: the median of bursts over about `seconds`.

    `size` is the largest matrix tried (default 1024 on a CPU, 8192 elsewhere); a format so slow that it would
    not fit into `seconds` is measured on a smaller one. `threads` (CPU only) is restored afterwards.
    Returns 0.0 when the device refuses the format.
    """
    dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
    device = torch.device(device)
    size = size or (1024 if device.type == "cpu" else 8192)
    with torch.inference_mode(), _threads(threads):
        try:
            return _measure(dtype, device, seconds, size)
        except (RuntimeError, NotImplementedError, TypeError):  # "addmm_impl" not implemented for 'Half'
            return 0.0


def _measure(dtype: torch.dtype, device: torch.device, seconds: float, largest: int) -> float:
    size = min(_SMALLEST, largest)
    while True:
        left = torch.rand(size, size, device=device).to(dtype)
        right = torch.rand(size, size, device=device).to(dtype)
        product = torch.empty(size, size, device=device, dtype=dtype)
        _burst(left, right, product, 1)  # kernels are chosen and built here
        once = min(_burst(left, right, product, 1) for _ in range(3))  # one alone may meet a busy moment
        # A matrix twice as wide takes eight times as long; it must leave time for a few bursts.
        if size * 2 > largest or 8 * once > seconds / 4:
            break
        size *= 2
    repeats = max(1, int(_BURST_SECONDS / max(once, 1e-7)))
    bursts: list[float] = []
    start = time.perf_counter()
    while len(bursts) < 3 or time.perf_counter() - start < seconds:
        bursts.append(_burst(left, right, product, repeats) / repeats)
        if time.perf_counter() - start > 2 * seconds:
            break
    return 2.0 * size**3 / statistics.median(bursts)


def _burst(left: torch.Tensor, right: torch.Tensor, product: torch.Tensor, repeats: int) -> float:
    _wait(left.device)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right, out=product)
    _wait(left.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def fastest_precision(
    device: torch.device | str = "cpu", *, threads: int | None = None, seconds: float = 0.1
) -> tuple[str, str]:
    """(`fp32`, `bf16` or `fp16`; the reason with the measured figures) for training on `device`.

    bf16 when it is clearly faster than fp32; fp16, whose narrow range needs a loss scaler, only where bf16
    brings nothing and fp16 does.
    """
    device = torch.device(device)
    rates = dict.fromkeys(DTYPES, 0.0)
    for _ in range(2):  # interleaved, the better of two: a busy moment must not decide
        for name in rates:
            rates[name] = max(
                rates[name], measure_matmul(name, device=device, threads=threads, seconds=seconds / 2)
            )
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        rates["bf16"] = 0.0
    return choose_precision(rates, "CPU" if device.type == "cpu" else device.type)


def choose_precision(rates: dict[str, float], where: str) -> tuple[str, str]:
    """The decision of `fastest_precision` for given FLOP/s (0: not there)."""
    figures = ", ".join(f"{name} {_rate(rate)}" for name, rate in rates.items())
    measured = f"matrix products measured on this {where}: {figures}"
    floor = WORTHWHILE * rates["fp32"]
    if rates["bf16"] >= floor and rates["bf16"] > 0:
        return "bf16", f"{rates['bf16'] / max(rates['fp32'], 1.0):.1f}× as fast as fp32 ({measured})"
    if rates["fp16"] >= floor and rates["fp16"] > 0:
        return "fp16", f"bf16 brings nothing here and fp16 does ({measured})"
    return "fp32", f"nothing smaller is at least {WORTHWHILE}× as fast ({measured})"


def _rate(flops: float) -> str:
    if flops == 0:
        return "not supported"
    return f"{flops / 1e12:.1f} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.3g} GFLOP/s"
