"""Few rows times a weight matrix, on tensor cores and within a chain of dependent launches.

A library's product takes no part in programmatic dependent launch, and at small sizes it is bound by its start.  Here
each program asks for its weights before it waits for the kernel before: they never change, so they are in the L2 cache
by the time the rows are.  A short matrix is cut along k into parts that the reader adds up (`fused.add_rmsnorm` does),
so that all multiprocessors take part.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tl_cuda

from nbsgl.engine.kernels.aot import Card, ModelShape, Variant

MAX_ROWS = 64
LINE = tl.constexpr(64)  # elements of a line of 128 bytes, at two bytes each
MIN_PROGRAMS = 128  # about one on each multiprocessor of a large card
MAX_PARTS = 8
MAX_STAGES = 5
SHARED_BYTES = 96 * 1024


def parts_of(n: int, k: int) -> int:
    """Into how many parts to cut a product of n columns, so that there are programs enough."""
    columns, depth, _ = tile_of(n, k)
    parts = 1
    while parts < MAX_PARTS and triton.cdiv(n, columns) * parts < MIN_PROGRAMS and k >= 4 * parts * depth:
        parts *= 2
    return parts


def tile_of(n: int, k: int) -> tuple[int, int, int]:
    """(columns of the result, depth along k of a tile, warps)."""
    return 32 if n <= 8192 else 64, 128 if k % 128 == 0 else 64, 4


def stages_of(rows: int, columns: int, depth: int) -> int:
    """How many tiles are in flight: as many as fit the shared memory of every card."""
    return min(MAX_STAGES, SHARED_BYTES // (2 * (rows + columns) * depth))


@triton.jit
def _fetch(address):
    """Ask for a line of memory to be brought into the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=["num_rows"])
def skinny_kernel(
    x,
    weight,
    out,
    bias,
    num_rows,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    STEP: tl.constexpr,
    LINES: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per COLUMNS columns of the result and part: k in [part * STEP, (part + 1) * STEP)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.program_id(1)
    # columns beyond the last read the last again: loads stay without a mask, only the store has one
    weight_row = weight + tl.minimum(column, N - 1).to(tl.int64)[:, None] * K
    begin = part * STEP
    if PDL:
        tl_cuda.gdc_launch_dependents()
        line = tl.minimum(begin + tl.arange(0, LINES) * LINE, K - 1)
        _fetch((weight_row + line[None, :]).to(tl.int64))
        tl_cuda.gdc_wait()
    row = tl.arange(0, ROWS)
    inside_rows = row[:, None] < num_rows
    x_row = x + row[:, None] * K
    depth = tl.arange(0, DEPTH)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in tl.range(begin, tl.minimum(begin + STEP, K), DEPTH):
        at = k + depth
        if K % DEPTH == 0:
            a = tl.load(x_row + at[None, :], mask=inside_rows, other=0.0)
            b = tl.load(weight_row + at[None, :])
        else:
            a = tl.load(x_row + at[None, :], mask=inside_rows & (at < K)[None, :], other=0.0)
            b = tl.load(weight_row + at[None, :], mask=(at < K)[None, :], other=0.0)
        sums = tl.dot(a, tl.trans(b), sums)
    if bias is not None:
        sums += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    place = (part * num_rows + row[:, None]) * N + column[None, :]
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=inside_rows & (column < N)[None, :])


@cache
def _launch(n: int, k: int, parts: int, num_rows: int, pdl: bool) -> tuple[tuple[int, int], dict[str, Any], int, int]:
    """Grid, constants, warps, stages."""
    columns, depth, warps = tile_of(n, k)
    rows = max(triton.next_power_of_2(num_rows), 16)
    step = triton.cdiv(triton.cdiv(k, parts), depth) * depth
    constants = {
        "N": n,
        "K": k,
        "ROWS": rows,
        "COLUMNS": columns,
        "DEPTH": depth,
        "STEP": step,
        "LINES": triton.next_power_of_2(triton.cdiv(step, LINE.value)),
        "PDL": pdl,
    }
    return (triton.cdiv(n, columns), parts), constants, warps, stages_of(rows, columns, depth)


def skinny(x: Tensor, weight: Tensor, out: Tensor, *, bias: Tensor | None = None, pdl: bool) -> None:
    """out = x @ weight.T + bias, for up to MAX_ROWS rows; sums in float32, rounded once.

    `x` `[num_rows, k]`, `weight` `[n, k]`, `bias` `[n]`, all of 16 bits and contiguous.  `out` `[num_rows, n]`; or
    float32 `[num_parts, num_rows, n]`, whose sum over the parts is the result (no bias then).
    """
    num_rows, k = x.shape
    n = weight.shape[0]
    parts = out.shape[0] if out.dim() == 3 else 1
    assert num_rows <= MAX_ROWS
    assert parts == 1 or bias is None
    grid, constants, warps, stages = _launch(n, k, parts, num_rows, pdl)
    extra = {"launch_pdl": True} if pdl else {}
    skinny_kernel[grid](x, weight, out, bias, num_rows, **constants, num_warps=warps, num_stages=stages, **extra)


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    """The linears of a layer at 16, 32 and 64 rows; o and down in parts."""
    h, i, dtype = shape.hidden, shape.intermediate, shape.dtype
    linears = (
        (shape.qkv_size, h, 1, shape.qkv_bias),
        (2 * i, h, 1, shape.mlp_bias),
        (h, shape.q_size, parts_of(h, shape.q_size), False),
        (h, i, parts_of(h, i), False),
    )
    for num_rows in (16, 32, 64):
        for n, k, parts, has_bias in linears:
            _, constants, warps, stages = _launch(n, k, parts, num_rows, card.pdl)
            args = {
                "x": dtype,
                "weight": dtype,
                "out": dtype if parts == 1 else torch.float32,
                "bias": dtype if has_bias else None,
                "num_rows": "i32",
                **constants,
            }
            yield Variant(skinny_kernel, args, num_warps=warps, num_stages=stages, pdl=card.pdl)
