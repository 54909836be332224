"""One row times a weight matrix, with norm, bias, activation and residual folded in: the linears of one sequence.

Limited by reading the weights.  Each program loads its first two tiles before it waits for the kernel before: weights
never change, so with programmatic dependent launch they stream while that one drains.  The norm costs one factor at the
end: rmsnorm(x, g) = x * g / rms(x), and rms(x) is known only when all of x has been seen.

Measured, H200, bf16, all layers in a CUDA graph with PDL, in ms (cuBLAS, which folds in nothing):
    Llama-3.1-8B  qkv 0.431 (0.487)  o 0.285 (0.426)  gate_up 1.683 (1.757)  down 0.866 (1.000)  head 0.231 (0.237)
    Qwen3-0.6B    qkv 0.085 (0.147)  o 0.060 (0.342)  gate_up 0.108 (0.170)  down 0.086 (0.208)  head 0.072 (0.075)
From two rows on cuBLAS is faster (a form for two rows lost by 9-34 %).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tl_cuda

from nbsgl.engine.kernels.aot import Card, ModelShape, Variant

# (rows of the result, size of x, silu): (rows, columns of a tile, warps); the best of a search on an H200
MEASURED = {
    (6144, 4096, False): (4, 2048, 8),  # 8B qkv
    (4096, 4096, False): (16, 512, 8),  # o
    (14336, 4096, True): (1, 2048, 4),  # gate_up
    (4096, 14336, False): (2, 2048, 4),  # down
    (128256, 4096, False): (4, 2048, 8),  # head
    (4096, 1024, False): (8, 512, 4),  # 0.6B qkv
    (1024, 2048, False): (4, 1024, 4),  # o
    (3072, 1024, True): (8, 512, 4),  # gate_up
    (1024, 3072, False): (2, 1024, 4),  # down
    (151936, 1024, False): (16, 512, 8),  # head
}
MAX_COLUMNS = 2048
TILE_ELEMENTS = 4096  # of 4 warps: the two early tiles are then 64 elements a thread, as in most of the measured best
MIN_PROGRAMS = 256  # about two on each multiprocessor of a large card
MANY_ROWS = 32_768  # from here on twice the rows on twice the warps


def tile_of(n: int, k: int, silu: bool) -> tuple[int, int, int]:
    """(rows, columns of a tile, warps) for a result of n rows and x of size k: as measured, else by rule."""
    if (n, k, silu) in MEASURED:
        return MEASURED[n, k, silu]
    # two tiles are loaded early, so at most half of k; the fewest columns beyond k, then the widest
    widths = [width for width in (2048, 1024, 512, 256, 128) if 2 * width <= max(k, 256)]
    columns = min(widths, key=lambda width: (triton.cdiv(k, width) * width, -width))
    rows = max(TILE_ELEMENTS // columns // (2 if silu else 1), 1)
    if n >= MANY_ROWS:
        return 2 * rows, columns, 8
    while rows > 1 and n < rows * MIN_PROGRAMS:
        rows //= 2
    return rows, columns, 4


@triton.jit
def gemv_kernel(
    weight,
    x,
    out,
    residual,
    norm_weight,
    bias,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SILU: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per ROWS rows of the result; with SILU it also reads the rows of `up`, N further down."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLUMNS)
    # rows beyond the last read the last again: loads stay without a mask, only the store has one
    tile = weight + tl.minimum(row, N - 1)[:, None].to(tl.int64) * K + col[None, :]
    up_tile = tile + N * K
    full: tl.constexpr = K % COLUMNS == 0
    first = col < K
    second = COLUMNS + col < K
    if full:
        w0 = tl.load(tile)
        w1 = tl.load(tile + COLUMNS)
    else:
        w0 = tl.load(tile, mask=first[None, :], other=0.0)
        w1 = tl.load(tile + COLUMNS, mask=second[None, :], other=0.0)
    if SILU:
        if full:
            u0 = tl.load(up_tile)
            u1 = tl.load(up_tile + COLUMNS)
        else:
            u0 = tl.load(up_tile, mask=first[None, :], other=0.0)
            u1 = tl.load(up_tile + COLUMNS, mask=second[None, :], other=0.0)
    if norm_weight is not None:
        g0 = tl.load(norm_weight + col, mask=first, other=0.0).to(tl.float32)
        g1 = tl.load(norm_weight + COLUMNS + col, mask=second, other=0.0).to(tl.float32)
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    x0 = tl.load(x + col, mask=first, other=0.0).to(tl.float32)
    x1 = tl.load(x + COLUMNS + col, mask=second, other=0.0).to(tl.float32)
    if residual is not None:
        old = tl.load(residual + row, mask=row < N, other=0.0).to(tl.float32)
    if norm_weight is not None:
        squares = x0 * x0 + x1 * x1
        x0 *= g0
        x1 *= g1
    sums = w0.to(tl.float32) * x0[None, :] + w1.to(tl.float32) * x1[None, :]
    if SILU:
        up_sums = u0.to(tl.float32) * x0[None, :] + u1.to(tl.float32) * x1[None, :]
    for k in tl.range(2 * COLUMNS, K, COLUMNS, loop_unroll_factor=4):
        inside = k + col < K
        if full:
            w = tl.load(tile + k)
        else:
            w = tl.load(tile + k, mask=inside[None, :], other=0.0)
        if SILU:
            if full:
                u = tl.load(up_tile + k)
            else:
                u = tl.load(up_tile + k, mask=inside[None, :], other=0.0)
        xk = tl.load(x + k + col, mask=inside, other=0.0).to(tl.float32)
        if norm_weight is not None:
            squares += xk * xk
            xk *= tl.load(norm_weight + k + col, mask=inside, other=0.0).to(tl.float32)
        sums += w.to(tl.float32) * xk[None, :]
        if SILU:
            up_sums += u.to(tl.float32) * xk[None, :]
    y = tl.sum(sums, 1)
    if SILU:
        up = tl.sum(up_sums, 1)
    if norm_weight is not None:
        scale = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        y *= scale
        if SILU:
            up *= scale
    if bias is not None:
        y += tl.load(bias + row, mask=row < N, other=0.0).to(tl.float32)
        if SILU:
            up += tl.load(bias + N + row, mask=row < N, other=0.0).to(tl.float32)
    if SILU:
        y = y / (1.0 + tl.exp(-y)) * up
    if residual is not None:
        y += old
    tl.store(out + row, y.to(out.dtype.element_ty), mask=row < N)


@cache
def _launch(n: int, k: int, silu: bool, pdl: bool) -> tuple[tuple[int], int, dict[str, Any]]:
    """Grid, warps and constants."""
    rows, columns, warps = tile_of(n, k, silu)
    constants = {"N": n, "K": k, "ROWS": rows, "COLUMNS": columns, "SILU": silu, "PDL": pdl}
    return (triton.cdiv(n, rows),), warps, constants


def gemv(
    weight: Tensor,
    x: Tensor,
    out: Tensor,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    silu: bool = False,
    pdl: bool,
) -> None:
    """out = weight @ norm(x) + bias + residual, for one row; sums in float32, rounded once.

    `weight` `[n, k]`, contiguous; `x` `[k]`; `out`, `residual` `[n]` (may be the same, but neither may be x); `bias`
    `[n]`.  With `norm_weight` `[k]` x is RMS-normalised.  With `silu` the weight is `[2n, k]`, gate above up, the bias
    `[2n]`, and their result silu(gate) * up.
    """
    k = weight.shape[1]
    n = weight.shape[0] // 2 if silu else weight.shape[0]
    assert x.shape[0] == k
    assert out.shape[0] == n
    grid, warps, constants = _launch(n, k, silu, pdl)
    extra = {"launch_pdl": True} if pdl else {}
    gemv_kernel[grid](weight, x, out, residual, norm_weight, bias, eps, **constants, num_warps=warps, **extra)


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    """qkv, o, gate_up, down and head of one row."""
    h, i = shape.hidden, shape.intermediate
    # n, k, silu, norm, residual, bias
    linears = (
        (shape.qkv_size, h, False, True, False, shape.qkv_bias),
        (h, shape.q_size, False, False, True, shape.o_bias),
        (i, h, True, True, False, shape.mlp_bias),
        (h, i, False, False, True, shape.mlp_bias),
        (shape.vocab, h, False, True, False, False),
    )
    for n, k, silu, has_norm, has_residual, has_bias in linears:
        _, warps, constants = _launch(n, k, silu, card.pdl)
        tensors = {
            **dict.fromkeys(("weight", "x", "out"), shape.dtype),
            "residual": shape.dtype if has_residual else None,
            "norm_weight": shape.dtype if has_norm else None,
            "bias": shape.dtype if has_bias else None,
        }
        yield Variant(gemv_kernel, {**tensors, "eps": "fp32", **constants}, num_warps=warps, pdl=card.pdl)
