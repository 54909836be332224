"""Rotation of queries and keys, with their norms where a model has them, and keys and values into the cache.

One program per token and group of heads.  The K and V of a token go to slot `table[row, position]`.
Su et al. 2021, "RoFormer"; query and key norms as in Qwen 3.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tl_cuda

from nbsgl.engine.kernels.aot import Card, ModelShape, Variant

HEADS = 8  # a program's heads: one token of an 8B takes 6 programs
MAX_E4M3 = tl.constexpr(448.0)


@triton.jit
def rope_kv_kernel(
    qkv,
    q_out,
    k_cache,
    v_cache,
    table,
    rows,
    positions,
    cos,
    sin,
    q_norm,
    k_norm,
    eps,
    table_stride,
    H: tl.constexpr,
    KVH: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    KEEPS_K: tl.constexpr,
    IS_E4M3: tl.constexpr,
    PDL: tl.constexpr,
):
    """q_out = rotated queries; rotated keys and values to the cache.  Heads: q, then k, then v."""
    HALF: tl.constexpr = D // 2
    t = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    half = tl.arange(0, HALF)[None, :]
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    row = tl.load(rows + t).to(tl.int64)
    position = tl.load(positions + t)
    slot = tl.load(table + row * table_stride + position).to(tl.int64)
    inside = head < H + 2 * KVH
    at = qkv + t * (H + 2 * KVH) * D + head * D + half
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    is_q, is_v = head < H, head >= H + KVH
    x, y = a, b
    if q_norm is not None:
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
        wq1, wq2 = tl.load(q_norm + half).to(tl.float32), tl.load(q_norm + HALF + half).to(tl.float32)
        wk1, wk2 = tl.load(k_norm + half).to(tl.float32), tl.load(k_norm + HALF + half).to(tl.float32)
        # rounded between norm and rotation, as two steps would
        x = (a * scale * tl.where(is_q, wq1, wk1)).to(qkv.dtype.element_ty).to(tl.float32)
        y = (b * scale * tl.where(is_q, wq2, wk2)).to(qkv.dtype.element_ty).to(tl.float32)
    c = tl.load(cos + position * D + half)
    s = tl.load(sin + position * D + HALF + half)
    first = tl.where(is_v, a, x * c - y * s)
    second = tl.where(is_v, b, y * c + x * s)
    q_at = q_out + t * H * D + head * D + half
    tl.store(q_at, first.to(q_out.dtype.element_ty), mask=is_q)
    tl.store(q_at + HALF, second.to(q_out.dtype.element_ty), mask=is_q)
    is_k = (head >= H) & (head < H + KVH)
    if KEEPS_K:
        tl.store(at, first.to(qkv.dtype.element_ty), mask=is_k)
        tl.store(at + HALF, second.to(qkv.dtype.element_ty), mask=is_k)
    if IS_E4M3:  # the conversion does not saturate everywhere
        first = tl.minimum(tl.maximum(first, -MAX_E4M3), MAX_E4M3)
        second = tl.minimum(tl.maximum(second, -MAX_E4M3), MAX_E4M3)
    k_at = k_cache + (slot * KVH + head - H) * D + half
    tl.store(k_at, first.to(k_cache.dtype.element_ty), mask=is_k)
    tl.store(k_at + HALF, second.to(k_cache.dtype.element_ty), mask=is_k)
    v_at = v_cache + (slot * KVH + head - H - KVH) * D + half
    tl.store(v_at, first.to(v_cache.dtype.element_ty), mask=is_v & inside)
    tl.store(v_at + HALF, second.to(v_cache.dtype.element_ty), mask=is_v & inside)


def rope_kv(
    qkv: Tensor,
    q_out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    rows: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    pdl: bool,
    keeps_k: bool = False,
) -> None:
    """Rotate `qkv` `[tokens, (heads + 2 kv_heads) * head_dim]`: queries to `q_out`, keys and values to the cache.

    `rows`, `positions` int32 `[tokens]`; `table` int32; `cos`, `sin` float32 `[context, head_dim]` of `Rope`; norms of
    `[head_dim]` for both or neither.  An e4m3 cache is written without a scale.  With `keeps_k` the
    rotated keys are written over those of `qkv` too.
    """
    num_kv_heads, head_dim = k_cache.shape[1:]
    extra = {"launch_pdl": True} if pdl else {}
    rope_kv_kernel[(qkv.shape[0], triton.cdiv(num_heads + 2 * num_kv_heads, HEADS))](
        qkv,
        q_out,
        k_cache,
        v_cache,
        table,
        rows,
        positions,
        cos,
        sin,
        q_norm,
        k_norm,
        eps,
        table.stride(0),
        num_heads,
        num_kv_heads,
        head_dim,
        HEADS,
        keeps_k,
        k_cache.dtype == torch.float8_e4m3fn,
        pdl,
        num_warps=2,
        **extra,
    )


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    """What `rope_kv` launches for a model."""
    norm = shape.dtype if shape.qk_norm else None
    args = {
        **dict.fromkeys(("qkv", "q_out", "k_cache", "v_cache"), shape.dtype),
        **dict.fromkeys(("table", "rows", "positions"), torch.int32),
        **dict.fromkeys(("cos", "sin"), torch.float32),
        "q_norm": norm,
        "k_norm": norm,
        "eps": "fp32",
        "table_stride": "i32",
        "H": shape.heads,
        "KVH": shape.kv_heads,
        "D": shape.head_dim,
        "HEADS": HEADS,
        "IS_E4M3": False,
        "PDL": card.pdl,
    }
    for keeps_k in (False, True):
        yield Variant(rope_kv_kernel, {**args, "KEEPS_K": keeps_k}, num_warps=2, pdl=card.pdl)
