"""Time of a model's linears at few rows: the library's product, the product of one row, and ours of few rows.

python -m tests.bench.linears [--models 8B 0.6B] [--rows 8] [--sweep 8] [--json linears.jsonl]

Each figure is one CUDA graph over all layers of one linear, with weights of their own, so that the L2 cache does not
help; the least of three times ten replays, in ms.  The floor is the weights at 4277 GB/s (an H200's copy rate).  With
`--sweep` the tiles of the product of few rows are searched at these rows (about 300 forms, some minutes).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from nbsgl.engine.kernels import skinny as few
from nbsgl.engine.kernels.aot import Card
from nbsgl.engine.kernels.gemv import gemv
from nbsgl.engine.kernels.skinny import MAX_ROWS, parts_of, skinny

COPY_GB_S = 4277
ROWS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Linear:
    """One kind of linear in all layers.  `is_summed`: its result goes into the norm, which can add up parts."""

    name: str
    n: int
    k: int
    num_layers: int
    is_summed: bool = False

    @property
    def floor_ms(self) -> float:
        return self.num_layers * self.n * self.k * 2 / COPY_GB_S / 1e6


MODELS = {
    "8B": (
        Linear("qkv", 6144, 4096, 32),
        Linear("o", 4096, 4096, 32, is_summed=True),
        Linear("gate_up", 28672, 4096, 32),
        Linear("down", 4096, 14336, 32, is_summed=True),
    ),
    "0.6B": (
        Linear("qkv", 4096, 1024, 28),
        Linear("o", 1024, 2048, 28, is_summed=True),
        Linear("gate_up", 6144, 1024, 28),
        Linear("down", 1024, 3072, 28, is_summed=True),
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


def ours(linear: Linear, weights: list[Tensor], x: Tensor, parts: int, pdl: bool) -> float:
    shape = (x.shape[0], linear.n)
    out = torch.empty((parts, *shape), device="cuda") if parts > 1 else x.new_empty(shape)
    return timed(lambda: [skinny(x, weight, out, pdl=pdl) for weight in weights] and None)


def measured(linear: Linear, weights: list[Tensor], num_rows: int, pdl: bool) -> dict[str, Any]:
    x = torch.randn(num_rows, linear.k, device="cuda", dtype=torch.bfloat16)
    out = x.new_empty(num_rows, linear.n)
    row = {"linear": linear.name, "rows": num_rows, "floor": linear.floor_ms}
    row["library"] = timed(lambda: [torch.mm(x, weight.t(), out=out) for weight in weights] and None)
    if num_rows == 1:
        row["gemv"] = timed(lambda: [gemv(weight, x[0], out[0], pdl=pdl) for weight in weights] and None)
    if num_rows <= MAX_ROWS:
        row["parts"] = parts = parts_of(linear.n, linear.k) if linear.is_summed else 1
        row["skinny"] = ours(linear, weights, x, parts, pdl)
        row["skinny, no PDL"] = ours(linear, weights, x, parts, False)
    return row


def tiles(linear: Linear) -> Iterator[tuple[int, int, int, int, int]]:
    """(columns, depth, warps, most stages, parts) worth a try: at least one program for every second multiprocessor."""
    part_counts = (1, 2, 4, 8) if linear.is_summed else (1,)
    for columns, depth, stages, parts in itertools.product((16, 32, 64), (64, 128, 256), (3, 6), part_counts):
        programs = triton.cdiv(linear.n, columns) * parts
        if 64 <= programs <= 1024 and linear.k // parts >= 2 * depth:
            yield columns, depth, min(columns // 8, 4), stages, parts


def sweep(linear: Linear, weights: list[Tensor], num_rows: int, pdl: bool) -> list[tuple[float, tuple[int, ...]]]:
    """The three best tiles, with their times.  Tiles that do not fit are left out."""
    x = torch.randn(num_rows, linear.k, device="cuda", dtype=torch.bfloat16)
    tile_of, stages_of, found = few.tile_of, few.stages_of, []
    try:
        for columns, depth, warps, stages, parts in tiles(linear):
            fits = few.SHARED_BYTES // (2 * (max(num_rows, 16) + columns) * depth)
            if fits < 2:
                continue
            few._launch.cache_clear()
            few.tile_of = lambda n, k, tile=(columns, depth, warps): tile
            few.stages_of = lambda *_, most=min(stages, fits): most
            found.append((ours(linear, weights[:16], x, parts, pdl), (columns, depth, warps, min(stages, fits), parts)))
    finally:
        few.tile_of, few.stages_of = tile_of, stages_of
        few._launch.cache_clear()
    scale = linear.num_layers / len(weights[:16])
    return [(round(ms * scale, 4), tile) for ms, tile in sorted(found)[:3]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--sweep", nargs="*", type=int, default=[], metavar="ROWS")
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
        for num_rows in args.sweep:
            best = sweep(linear, weights, num_rows, pdl)
            lines.append({"model": model, "linear": linear.name, "rows": num_rows, "best": best})
            print(
                f"{model} {linear.name} rows {num_rows} best (columns, depth, warps, stages, parts): {best}", flush=True
            )
        del weights
    if args.json:
        args.json.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
