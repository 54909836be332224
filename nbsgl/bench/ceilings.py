"""Measure a device's bandwidth and matmul rate; prints one JSON line.

python -m nbsgl.bench.ceilings DEVICE DTYPE
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

from nbsgl.engine.device import choose_device

COPY_BYTES = {"cuda": 2 << 30, "cpu": 128 << 20}
SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matmul
SUSTAINED_S = {"cuda": 2.3, "cpu": 0.3}  # after about a second of matmul the power cap has set the clock


def copy_rate(device: torch.device) -> float:
    """Bytes read and written per second by a copy: the best of ten."""
    size = COPY_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(_timed(lambda: target.copy_(source), device) for _ in range(10))


def matmul_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP per second of a square matmul: (mean of the second half of SUSTAINED_S, best call); a CPU's best twice."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    seconds: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < SUSTAINED_S[device.type]:
        seconds.append(_timed(lambda: torch.mm(a, b, out=out), device))
    flop = 2 * side**3
    if device.type == "cpu":  # no power cap in this time, but neighbours: what it can do is its best
        return flop / min(seconds), flop / min(seconds)
    late = seconds[len(seconds) // 2 :]
    return flop * len(late) / sum(late), flop / min(seconds)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    work()
    events[1].record()
    events[1].synchronize()
    return events[0].elapsed_time(events[1]) / 1e3


def main(device_name: str, dtype_name: str) -> None:
    device = choose_device(device_name).device
    flop_s, burst = matmul_rates(device, getattr(torch, dtype_name))
    found = {"device": str(device), "bytes_s": copy_rate(device), "flop_s": flop_s, "burst_flop_s": burst}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
