"""Attention of few decoding sequences in one launch: q/k norm, rotation, K and V into the cache, attention, merge.

Nothing is planned: lengths and slots are read on the device, so one graph serves all lengths.  A sequence's positions
are split over `splits` programs for each KV head; the last of them to arrive merges what all have found.  Dao et al.
2023, "Flash-Decoding".  One H200, 32 layers of Llama-3.1-8B at 1,024 tokens: 0.22-0.27 ms at batch 1, 0.49 at batch 8
(FlashInfer, which leaves out rotation and writing: 0.32 and 0.59).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tl_cuda

from nbsgl.engine.kernels.aot import Card, ModelShape, Variant
from nbsgl.engine.model_config import ModelConfig

MAX_BATCH = 8
MAX_SPLITS = 16
GROUP = tl.constexpr(16)  # query heads of a KV head, padded to the least that tensor cores take
MAX_E4M3 = tl.constexpr(448.0)


def tile_of(batch: int) -> tuple[int, int, int]:
    """(splits, positions a tile, warps) for a batch."""
    if batch == 1:
        return MAX_SPLITS, 64, 4
    return (8, 64, 4) if batch <= 4 else (4, 64, 4)


class DecodeScratch:
    """What a sequence's programs leave for the one that merges.  Launches that share it share a stream.

    `outs` float32 `[MAX_BATCH, heads, MAX_SPLITS, head_dim]`, `lses` the same without `head_dim`, `arrived` int32
    `[MAX_BATCH, kv_heads]`, zero between launches.
    """

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        shape = (MAX_BATCH, config.num_heads, MAX_SPLITS)
        self.outs = torch.empty((*shape, config.head_dim), dtype=torch.float32, device=device)
        self.lses = torch.empty(shape, dtype=torch.float32, device=device)
        self.arrived = torch.zeros((MAX_BATCH, config.num_kv_heads), dtype=torch.int32, device=device)


@triton.jit
def _rotated(a, b, norm, cos, sin, eps, D: tl.constexpr, dtype: tl.constexpr):
    """Both halves of heads `[n, D / 2]` after the norm, if there is one, and the rotation, rounded to `dtype`."""
    if norm is not None:
        half = tl.arange(0, D // 2)[None, :]
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
        a = (a * scale * tl.load(norm + half).to(tl.float32)).to(dtype).to(tl.float32)
        b = (b * scale * tl.load(norm + D // 2 + half).to(tl.float32)).to(dtype).to(tl.float32)
    return (a * cos - b * sin).to(dtype), (b * cos + a * sin).to(dtype)


@triton.jit
def decode_attention_kernel(
    qkv,
    out,
    k_cache,
    v_cache,
    table,
    rows,
    kv_lens,
    cos,
    sin,
    q_norm,
    k_norm,
    outs,
    lses,
    arrived,
    scale,
    eps,
    table_stride,
    H: tl.constexpr,
    KVH: tl.constexpr,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    IS_E4M3: tl.constexpr,
    PDL: tl.constexpr,
):
    """One sequence, one KV head, one split of its positions.  `scale` is log2(e) / sqrt(D)."""
    GROUPS: tl.constexpr = H // KVH
    HALF: tl.constexpr = D // 2
    dtype: tl.constexpr = qkv.dtype.element_ty
    b, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num = tl.load(kv_lens + b)
    slots = table + tl.load(rows + b).to(tl.int64) * table_stride
    share = tl.cdiv(tl.cdiv(num, SPLITS), TILE) * TILE
    begin = split * share
    end = tl.minimum(num, begin + share)
    num_active = tl.cdiv(num, share)
    if begin >= num:
        if PDL:
            tl_cuda.gdc_launch_dependents()
            tl_cuda.gdc_wait()
        return
    in_tile = tl.arange(0, TILE)
    half, dim, group = tl.arange(0, HALF), tl.arange(0, D), tl.arange(0, GROUP)
    # the first tile of old K and V: written by earlier steps, so it need not wait for the launch before
    at = begin + in_tile
    old = at < tl.minimum(end, num - 1)
    slot = tl.load(slots + at, mask=at < end, other=0).to(tl.int64) * (KVH * D) + kv_head * D
    k1 = tl.load(k_cache + slot[:, None] + half[None, :], mask=old[:, None], other=0.0).to(dtype)
    k2 = tl.load(k_cache + slot[:, None] + HALF + half[None, :], mask=old[:, None], other=0.0).to(dtype)
    v = tl.load(v_cache + slot[:, None] + dim[None, :], mask=old[:, None], other=0.0).to(dtype)
    c = tl.load(cos + (num - 1) * D + half)[None, :]
    s = tl.load(sin + (num - 1) * D + HALF + half)[None, :]
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    heads = qkv + b.to(tl.int64) * (H + 2 * KVH) * D
    in_group = group[:, None] < GROUPS
    q_at = heads + (kv_head * GROUPS + group[:, None]) * D + half[None, :]
    qa = tl.load(q_at, mask=in_group, other=0.0).to(tl.float32)
    qb = tl.load(q_at + HALF, mask=in_group, other=0.0).to(tl.float32)
    q1, q2 = _rotated(qa, qb, q_norm, c, s, eps, D, dtype)
    k_at = heads + (H + kv_head) * D + half[None, :]
    ka, kb = tl.load(k_at).to(tl.float32), tl.load(k_at + HALF).to(tl.float32)
    n1, n2 = _rotated(ka, kb, k_norm, c, s, eps, D, dtype)
    vn = tl.load(heads + (H + KVH + kv_head) * D + dim[None, :])
    if IS_E4M3:
        n1 = tl.minimum(tl.maximum(n1.to(tl.float32), -MAX_E4M3), MAX_E4M3).to(k_cache.dtype.element_ty).to(dtype)
        n2 = tl.minimum(tl.maximum(n2.to(tl.float32), -MAX_E4M3), MAX_E4M3).to(k_cache.dtype.element_ty).to(dtype)
        vn = tl.minimum(tl.maximum(vn.to(tl.float32), -MAX_E4M3), MAX_E4M3).to(v_cache.dtype.element_ty).to(dtype)
    if end == num:  # the split that holds the new position
        new_slot = tl.load(slots + num - 1).to(tl.int64) * (KVH * D) + kv_head * D
        tl.store(k_cache + new_slot + half[None, :], n1.to(k_cache.dtype.element_ty))
        tl.store(k_cache + new_slot + HALF + half[None, :], n2.to(k_cache.dtype.element_ty))
        tl.store(v_cache + new_slot + dim[None, :], vn.to(v_cache.dtype.element_ty))
    most = tl.full([GROUP], -1e30, tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    mixed = tl.zeros([GROUP, D], tl.float32)
    for first in tl.range(begin, end, TILE):
        at = first + in_tile
        if first > begin:
            old = at < tl.minimum(end, num - 1)
            slot = tl.load(slots + at, mask=at < end, other=0).to(tl.int64) * (KVH * D) + kv_head * D
            k1 = tl.load(k_cache + slot[:, None] + half[None, :], mask=old[:, None], other=0.0).to(dtype)
            k2 = tl.load(k_cache + slot[:, None] + HALF + half[None, :], mask=old[:, None], other=0.0).to(dtype)
            v = tl.load(v_cache + slot[:, None] + dim[None, :], mask=old[:, None], other=0.0).to(dtype)
        is_new = (at == num - 1)[:, None]
        k1, k2, v = tl.where(is_new, n1, k1), tl.where(is_new, n2, k2), tl.where(is_new, vn, v)
        scores = (tl.dot(q1, tl.trans(k1)) + tl.dot(q2, tl.trans(k2))) * scale
        scores = tl.where((at < end)[None, :], scores, -1e30)
        larger = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(most - larger)
        total = total * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None] + tl.dot(weights.to(dtype), v)
        most = larger
    out_at = out + (b.to(tl.int64) * H + kv_head * GROUPS + group[:, None]) * D + dim[None, :]
    if num_active == 1:
        tl.store(out_at, (mixed / total[:, None]).to(out.dtype.element_ty), mask=in_group)
        return
    base = (b * H + kv_head * GROUPS + group) * MAX_SPLITS
    tl.store(outs + (base[:, None] + split) * D + dim[None, :], mixed / total[:, None], mask=in_group)
    tl.store(lses + base + split, most + tl.log2(total), mask=group < GROUPS)
    tl.debug_barrier()
    before = tl.atomic_add(arrived + b * KVH + kv_head, 1, sem="acq_rel", scope="gpu")
    if before == num_active - 1:
        tl.debug_barrier()
        most = tl.full([GROUP], -1e30, tl.float32)
        total = tl.zeros([GROUP], tl.float32)
        mixed = tl.zeros([GROUP, D], tl.float32)
        for i in range(num_active):
            lse = tl.load(lses + base + i, mask=group < GROUPS, other=0.0, cache_modifier=".cg")
            part_at = outs + (base[:, None] + i) * D + dim[None, :]
            part = tl.load(part_at, mask=in_group, other=0.0, cache_modifier=".cg")
            larger = tl.maximum(most, lse)
            shrink, weight = tl.exp2(most - larger), tl.exp2(lse - larger)
            mixed = mixed * shrink[:, None] + part * weight[:, None]
            total = total * shrink + weight
            most = larger
        tl.store(out_at, (mixed / total[:, None]).to(out.dtype.element_ty), mask=in_group)
        tl.store(arrived + b * KVH + kv_head, 0)


def decode_attention(
    qkv: Tensor,
    out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    rows: Tensor,
    kv_lens: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    scratch: DecodeScratch,
    pdl: bool,
) -> None:
    """out `[batch, heads * head_dim]` of `qkv` `[batch, (heads + 2 kv_heads) * head_dim]`, one token a sequence.

    Sequence b attends to `kv_lens[b]` positions of page-table row `rows[b]`, the last of them its own, whose K and V
    are written here.  No two sequences may share their last slot, but that of padding.  At most 16 query heads a KV
    head, at most MAX_BATCH sequences.  `cos`, `sin` float32 `[context, head_dim]` of `Rope`.
    """
    batch = qkv.shape[0]
    num_kv_heads, head_dim = k_cache.shape[1:]
    splits, tile, warps = tile_of(batch)
    extra = {"launch_pdl": True} if pdl else {}
    decode_attention_kernel[(batch, num_kv_heads, splits)](
        qkv,
        out,
        k_cache,
        v_cache,
        table,
        rows,
        kv_lens,
        cos,
        sin,
        q_norm,
        k_norm,
        scratch.outs,
        scratch.lses,
        scratch.arrived,
        1.4426950408889634 / head_dim**0.5,
        eps,
        table.stride(0),
        num_heads,
        num_kv_heads,
        head_dim,
        splits,
        MAX_SPLITS,
        tile,
        k_cache.dtype == torch.float8_e4m3fn,
        pdl,
        num_warps=warps,
        **extra,
    )


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    """What `decode_attention` launches for a model."""
    norm = shape.dtype if shape.qk_norm else None
    args = {
        **dict.fromkeys(("qkv", "out", "k_cache", "v_cache"), shape.dtype),
        **dict.fromkeys(("table", "rows", "kv_lens", "arrived"), torch.int32),
        **dict.fromkeys(("cos", "sin", "outs", "lses"), torch.float32),
        "q_norm": norm,
        "k_norm": norm,
        "scale": "fp32",
        "eps": "fp32",
        "table_stride": "i32",
        "H": shape.heads,
        "KVH": shape.kv_heads,
        "D": shape.head_dim,
        "MAX_SPLITS": MAX_SPLITS,
        "IS_E4M3": False,
        "PDL": card.pdl,
    }
    for batch in (1, 4, MAX_BATCH):
        splits, tile, warps = tile_of(batch)
        yield Variant(decode_attention_kernel, {**args, "SPLITS": splits, "TILE": tile}, num_warps=warps, pdl=card.pdl)
