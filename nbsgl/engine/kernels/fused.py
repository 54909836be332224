"""Elementwise kernels for any number of rows: embedding, residual add with RMSNorm, silu(gate) * up.

Limited by memory, and at few rows by the launch.  Measured, H200, bf16, hidden 4096, intermediate 14336, in us:
    rows         256   8192    torch.compile     eager
    add + norm   3.5     69     5.9    105     32   481
    silu * up    4.9    170    15.3    418     21   623
Offsets are 64-bit: 8192 rows of 2 * 14336 are within a factor of ten of 2^31.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tl_cuda

from nbsgl.engine.kernels.aot import Card, ModelShape, Variant

MANY_ROWS = 1024  # from here on the memory is busy whatever the launch: 8 warps; below, 4
EMBED_WARPS = 4


def norm_warps(num_rows: int) -> int:
    return 8 if num_rows >= MANY_ROWS else 4


def silu_tile(num_rows: int) -> tuple[int, int]:
    """(columns of a program, warps)."""
    return (2048, 8) if num_rows >= MANY_ROWS else (1024, 4)


@triton.jit
def embed_kernel(tokens, rows, last_tokens, table, out, H: tl.constexpr, HP: tl.constexpr, PDL: tl.constexpr):
    """One program per token."""
    t = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, HP)
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    token = tl.load(tokens + t)
    if token < 0:
        token = tl.load(last_tokens + tl.load(rows + t))
    value = tl.load(table + token.to(tl.int64) * H + col, mask=col < H)
    tl.store(out + t * H + col, value, mask=col < H)


@triton.jit
def norm_kernel(
    x,
    residual,
    index,
    weight,
    eps,
    out,
    H: tl.constexpr,
    HP: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per row of `out`.  Without `index` the sum is kept; with it, it is only normalised."""
    i = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, HP)
    inside = col < H
    g = tl.load(weight + col, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    row = i
    if index is not None:
        row = tl.load(index + i).to(tl.int64)
    at = row * H + col
    value = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if x is not None:
        # the stream is rounded before it is normalised, as where norm and sum are apart
        added = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        total = (value + added).to(residual.dtype.element_ty)
        if index is None:
            tl.store(residual + at, total, mask=inside)
        value = total.to(tl.float32)
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / H + eps) * g
    tl.store(out + i * H + col, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def silu_mul_kernel(x, out, I: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr):
    """One program per row and COLUMNS columns."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = col < I
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    gate = tl.load(x + row * 2 * I + col, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * I + I + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * I + col, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)


def embed(tokens: Tensor, rows: Tensor, last_tokens: Tensor, table_weight: Tensor, out: Tensor, *, pdl: bool) -> None:
    """out[t] = table_weight[token]; `out` `[num_tokens, hidden]`.

    `tokens` int32 `[num_tokens]`; -1 stands for `last_tokens[rows[t]]`, the token drawn last in that row (int32).
    """
    hidden = table_weight.shape[1]
    padded = triton.next_power_of_2(hidden)
    grid = (tokens.shape[0],)
    embed_kernel[grid](
        tokens, rows, last_tokens, table_weight, out, hidden, padded, pdl, num_warps=EMBED_WARPS, **_extra(pdl)
    )


def add_rmsnorm(
    x: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    *,
    pdl: bool,
    invariant: bool = False,
) -> None:
    """residual += x, in place (None: nothing to add); out = rmsnorm(residual) * weight; all `[num_rows, hidden]`.

    With `invariant` a row is the same to the last bit however many there are.
    """
    _norm(x, residual, None, weight, eps, out, pdl, invariant)


def rmsnorm_rows(
    x: Tensor | None,
    residual: Tensor,
    index: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    *,
    pdl: bool,
    invariant: bool = False,
) -> None:
    """out[i] = rmsnorm(residual[index[i]] + x[index[i]]) * weight; `index` int32 `[n]`; x, residual: only read.

    `invariant` as for `add_rmsnorm`.
    """
    _norm(x, residual, index, weight, eps, out, pdl, invariant)


def silu_mul(x: Tensor, out: Tensor, *, pdl: bool) -> None:
    """out = silu(gate) * up; x `[num_rows, 2 * intermediate]`: gate, then up; `out` `[num_rows, intermediate]`."""
    num_rows, intermediate = out.shape
    columns, warps = silu_tile(num_rows)
    grid = (num_rows, triton.cdiv(intermediate, columns))
    silu_mul_kernel[grid](x, out, intermediate, columns, pdl, num_warps=warps, **_extra(pdl))


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    """Few rows and many; the first layer's norm has nothing to add."""
    dtype, pdl = shape.dtype, card.pdl
    sizes = {"H": shape.hidden, "HP": triton.next_power_of_2(shape.hidden), "PDL": pdl}
    ids = dict.fromkeys(("tokens", "rows", "last_tokens"), torch.int32)
    yield Variant(embed_kernel, {**ids, "table": dtype, "out": dtype, **sizes}, num_warps=EMBED_WARPS, pdl=pdl)
    norm = {**dict.fromkeys(("residual", "weight", "out"), dtype), "eps": "fp32", **sizes}
    for num_rows in (1, MANY_ROWS):
        columns, warps = silu_tile(num_rows)
        args = {"x": dtype, "out": dtype, "I": shape.intermediate, "COLUMNS": columns, "PDL": pdl}
        yield Variant(silu_mul_kernel, args, num_warps=warps, pdl=pdl)
        for x, index in ((None, None), (dtype, None), (dtype, torch.int32)):
            args = {**norm, "x": x, "index": index}
            yield Variant(norm_kernel, args, num_warps=norm_warps(num_rows), pdl=pdl)


def _norm(
    x: Tensor | None,
    residual: Tensor,
    index: Tensor | None,
    weight: Tensor,
    eps: float,
    out: Tensor,
    pdl: bool,
    invariant: bool,
) -> None:
    num_rows, hidden = out.shape
    padded = triton.next_power_of_2(hidden)
    warps = norm_warps(1 if invariant else num_rows)  # the warps decide in which order a row is summed up
    norm_kernel[(num_rows,)](x, residual, index, weight, eps, out, hidden, padded, pdl, num_warps=warps, **_extra(pdl))


def _extra(pdl: bool) -> dict[str, bool]:
    return {"launch_pdl": True} if pdl else {}
