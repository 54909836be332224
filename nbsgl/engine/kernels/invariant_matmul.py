"""A product whose rows do not depend on each other to the last bit: for deterministic mode.

A library chooses tiles, and whether to cut k into parts, by the number of rows; each choice adds up in another order.
Here there is one tile and one order along k for a matrix, however many rows there are.  He et al. 2025, "Defeating
Nondeterminism in LLM Inference".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from nbsgl.engine.kernels.aot import Card, ModelShape, Variant

ROWS = 64  # the least of a warp group's product: decoding a few rows wastes no more than it must
GROUP = 8  # so many tiles of rows read the same columns one after the other, while these are in the L2 cache
WARPS = 4


@triton.jit(do_not_specialize=["num_rows"])
def invariant_matmul_kernel(
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
    GROUP: tl.constexpr,
):
    """One program per tile of the result: out = x @ weight.T + bias, k in ascending order."""
    row_tiles, column_tiles = tl.cdiv(num_rows, ROWS), tl.cdiv(N, COLUMNS)
    first_tile = tl.program_id(0) // (GROUP * column_tiles) * GROUP
    group = tl.minimum(GROUP, row_tiles - first_tile)
    in_group = tl.program_id(0) % (GROUP * column_tiles)
    row = (first_tile + in_group % group) * ROWS + tl.arange(0, ROWS)
    column = in_group // group * COLUMNS + tl.arange(0, COLUMNS)
    # rows and columns beyond the last read the last again: loads stay without a mask, only the store has one
    x_row = x + tl.minimum(row, num_rows - 1).to(tl.int64)[:, None] * K
    weight_row = weight + tl.minimum(column, N - 1).to(tl.int64)[None, :] * K
    depth = tl.arange(0, DEPTH)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, K, DEPTH):
        k = begin + depth
        if K % DEPTH == 0:
            a = tl.load(x_row + k[None, :])
            b = tl.load(weight_row + k[:, None])
        else:
            a = tl.load(x_row + k[None, :], mask=k[None, :] < K, other=0.0)
            b = tl.load(weight_row + k[:, None], mask=k[:, None] < K, other=0.0)
        sums = tl.dot(a, b, sums, input_precision="ieee")
    if bias is not None:
        sums += tl.load(bias + tl.minimum(column, N - 1)).to(tl.float32)[None, :]
    at = out + row.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), mask=(row[:, None] < num_rows) & (column[None, :] < N))


def tile_of(n: int, itemsize: int) -> tuple[int, int, int]:
    """(columns, depth along k, stages) of a product with n columns: of the matrix alone, and for every card."""
    return 64 if n <= 8192 else 128, 128 // itemsize, 3


def invariant_matmul(x: Tensor, weight: Tensor, out: Tensor, *, bias: Tensor | None = None) -> None:
    """out = x @ weight.T + bias; x `[rows, k]`, weight `[n, k]`, out `[rows, n]`, bias `[n]`, all contiguous.

    Sums in float32.  A row of `out` is the same to the last bit whatever the other rows are and however many.
    """
    num_rows, k = x.shape
    n = weight.shape[0]
    columns, depth, stages = tile_of(n, x.element_size())
    invariant_matmul_kernel[(triton.cdiv(num_rows, ROWS) * triton.cdiv(n, columns),)](
        x,
        weight,
        out,
        bias,
        num_rows,
        n,
        k,
        ROWS,
        columns,
        depth,
        GROUP,
        num_warps=WARPS,
        num_stages=stages,
    )


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    """What `invariant_matmul` launches for a model: the five products of a step."""
    for n, k, has_bias in (
        (shape.qkv_size, shape.hidden, shape.qkv_bias),
        (shape.hidden, shape.q_size, shape.o_bias),
        (2 * shape.intermediate, shape.hidden, shape.mlp_bias),
        (shape.hidden, shape.intermediate, shape.mlp_bias),
        (shape.vocab, shape.hidden, False),
    ):
        columns, depth, stages = tile_of(n, shape.dtype.itemsize)
        args: dict[str, Any] = {
            **dict.fromkeys(("x", "weight", "out"), shape.dtype),
            "bias": shape.dtype if has_bias else None,
            "num_rows": "i32",
            "N": n,
            "K": k,
            "ROWS": ROWS,
            "COLUMNS": columns,
            "DEPTH": depth,
            "GROUP": GROUP,
        }
        yield Variant(invariant_matmul_kernel, args, num_warps=WARPS, num_stages=stages)
