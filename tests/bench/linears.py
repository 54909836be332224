"""Time of a model's linears: the library's product, ours of one row, and the one of deterministic mode.

python -m tests.bench.linears [--models 8B 0.6B] [--rows 8] [--json linears.jsonl]

Each figure is one CUDA graph over all layers of one linear, with weights of their own, so that the L2 cache does not
help; the least of three times ten replays, in ms.  The floor is the weights at 4277 GB/s (an H200's copy rate).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbsgl.engine.kernels.aot import Card
from nbsgl.engine.kernels.gemv import gemv
from nbsgl.engine.kernels.invariant_matmul import invariant_matmul

COPY_GB_S = 4277
ROWS = (1, 8, 64, 256)


@dataclass(frozen=True, slots=True)
class Linear:
    """One kind of linear in all layers."""

    name: str
    n: int
    k: int
    num_layers: int

    @property
    def floor_ms(self) -> float:
        return self.num_layers * self.n * self.k * 2 / COPY_GB_S / 1e6


MODELS = {
    "8B": (
        Linear("qkv", 6144, 4096, 32),
        Linear("o", 4096, 4096, 32),
        Linear("gate_up", 28672, 4096, 32),
        Linear("down", 4096, 14336, 32),
    ),
    "0.6B": (
        Linear("qkv", 4096, 1024, 28),
        Linear("o", 1024, 2048, 28),
        Linear("gate_up", 6144, 1024, 28),
        Linear("down", 1024, 3072, 28),
    ),
}


def timed(step: Callable[[], None]) -> float:
    """ms of one replay of `step`."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    best = float("inf")
    for _ in range(3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        graph.replay()
        begin.record()
        for _ in range(10):
            graph.replay()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 10)
    return best


def measured(linear: Linear, weights: list[Tensor], num_rows: int, pdl: bool) -> dict[str, Any]:
    x = torch.randn(num_rows, linear.k, device="cuda", dtype=torch.bfloat16)
    out = x.new_empty(num_rows, linear.n)
    row = {"linear": linear.name, "rows": num_rows, "floor": linear.floor_ms}
    row["library"] = timed(lambda: [torch.mm(x, weight.t(), out=out) for weight in weights] and None)
    if num_rows == 1:
        row["gemv"] = timed(lambda: [gemv(weight, x[0], out[0], pdl=pdl) for weight in weights] and None)
    row["invariant"] = timed(lambda: [invariant_matmul(x, weight, out) for weight in weights] and None)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    major, minor = torch.cuda.get_device_capability()
    pdl = Card(10 * major + minor).pdl
    lines = []
    for model, linear in [(name, linear) for name in args.models for linear in MODELS[name]]:
        weights = [
            torch.randn(linear.n, linear.k, device="cuda", dtype=torch.bfloat16) / linear.k**0.5
            for _ in range(linear.num_layers)
        ]
        for num_rows in args.rows:
            row = measured(linear, weights, num_rows, pdl)
            lines.append({"model": model, **row})
            print(model, *(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        del weights
    if args.json:
        args.json.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
