"""Attention of single tokens over the paged cache, their positions split over programs where tokens are few.

K and V are in the cache already.  The launch depends on the number of tokens, never on lengths, which are read on the
device: one graph serves all.  The last program to arrive at a token's KV head merges what its splits have found.
Dao et al. 2023, "Flash-Decoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tl_cuda

from nbsgl.engine.kernels.aot import KIB, Card, ModelShape, Variant
from nbsgl.engine.kernels.merge_splits import merged_splits, splits_at_once

MAX_SPLITS = 64
NUM_WARPS, NUM_STAGES = 4, 3
FULL_PER_SM, SPLIT_PER_SM = 2, 4  # programs an SM: with that many nothing is split; aimed at with splits


@dataclass(frozen=True, slots=True)
class Splits:
    """Each token's positions over `num` programs a KV head, but at least `least` positions for each."""

    num: int
    least: int


def splits_of(num_tokens: int, num_kv_heads: int, num_sms: int) -> Splits:
    """By what is known when a graph is captured."""
    programs = num_tokens * num_kv_heads
    if programs >= FULL_PER_SM * num_sms:
        return Splits(1, 1)
    num = min(SPLIT_PER_SM * num_sms // programs, MAX_SPLITS)
    return Splits(num, 64 if 2 * programs <= num_sms else 256)


class SplitScratch:
    """What a token's programs leave for the one that merges.  Launches that share it share a stream.

    `outs` float32 `[parts, head_dim]`, `lses` `[parts]` of all tokens' heads' splits; `arrived` int32, one a token and
    KV head, zero between launches.  Never moves: there is room for all that `splits_of` splits (8 MB for an 8B).
    """

    def __init__(self, heads: int, kv_heads: int, head_dim: int, num_sms: int, device: torch.device) -> None:
        max_tokens = -(-FULL_PER_SM * num_sms // kv_heads)
        parts = max(num * heads * splits_of(num, kv_heads, num_sms).num for num in range(1, max_tokens + 1))
        self.outs = torch.empty((parts, head_dim), dtype=torch.float32, device=device)
        self.lses = torch.empty(parts, dtype=torch.float32, device=device)
        self.arrived = torch.zeros(max_tokens * kv_heads, dtype=torch.int32, device=device)


# rows and lengths are pieces of larger blocks, strides any number: one compiled form for all
@triton.jit(do_not_specialize=["table_stride", "least"], do_not_specialize_on_alignment=["rows", "kv_lens"])
def split_decode_kernel(
    q,
    out,
    k_cache,
    v_cache,
    table,
    rows,
    kv_lens,
    outs,
    lses,
    arrived,
    scale,
    table_stride,
    least,
    H: tl.constexpr,
    KVH: tl.constexpr,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    MERGED: tl.constexpr,
    TILE: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One KV head, one token, one split of its positions.  `scale` is log2(e) / sqrt(D)."""
    GROUPS: tl.constexpr = H // KVH
    dtype: tl.constexpr = q.dtype.element_ty
    kv_head, b, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num = tl.load(kv_lens + b)
    slots = table + tl.load(rows + b).to(tl.int64) * table_stride
    share = tl.maximum(tl.cdiv(tl.cdiv(num, tl.num_programs(2)), TILE) * TILE, least)
    begin = split * share
    end = tl.minimum(num, begin + share)
    num_active = tl.cdiv(num, share)
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    if begin >= num:
        return
    in_tile, dim, group = tl.arange(0, TILE), tl.arange(0, D), tl.arange(0, GROUP)
    in_group = group[:, None] < GROUPS
    head = b.to(tl.int64) * H + kv_head * GROUPS
    own = tl.load(q + (head + group[:, None]) * D + dim[None, :], mask=in_group, other=0.0)
    most = tl.full([GROUP], -1e30, tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    mixed = tl.zeros([GROUP, D], tl.float32)
    for first in tl.range(begin, end, TILE):
        at = first + in_tile
        slot = tl.load(slots + at, mask=at < end, other=0).to(tl.int64) * (KVH * D) + kv_head * D
        # masked: 0 * NaN of a slot that is not the token's would be NaN
        k = tl.load(k_cache + slot[:, None] + dim[None, :], mask=(at < end)[:, None], other=0.0).to(dtype)
        v = tl.load(v_cache + slot[:, None] + dim[None, :], mask=(at < end)[:, None], other=0.0).to(dtype)
        scores = tl.dot(own, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where((at < end)[None, :], scores, -1e30)
        larger = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(most - larger)
        total = total * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None] + tl.dot(weights.to(dtype), v, input_precision="ieee")
        most = larger
    if num_active == 1:
        out_at = out + (head + group[:, None]) * D + dim[None, :]
        tl.store(out_at, (mixed / total[:, None]).to(out.dtype.element_ty), mask=in_group)
        return
    base = (head + group).to(tl.int32) * tl.num_programs(2)
    tl.store(outs + (base[:, None] + split) * D + dim[None, :], mixed / total[:, None], mask=in_group)
    tl.store(lses + base + split, most + tl.log2(total), mask=group < GROUPS)
    tl.debug_barrier()
    before = tl.atomic_add(arrived + b * KVH + kv_head, 1, sem="acq_rel", scope="gpu")
    if before == num_active - 1:
        tl.debug_barrier()
        one = tl.arange(0, MERGED)
        begins = (head + one).to(tl.int32) * tl.num_programs(2)
        merged = merged_splits(outs, lses, begins, one < GROUPS, num_active, MAX_SPLITS, D, CHUNK)
        merged_at = out + (head + one[:, None]) * D + dim[None, :]
        tl.store(merged_at, merged.to(out.dtype.element_ty), mask=one[:, None] < GROUPS)
        tl.store(arrived + b * KVH + kv_head, 0)


def _constants(heads: int, kv_heads: int, head_dim: int, itemsize: int) -> dict[str, int]:
    merged = triton.next_power_of_2(heads // kv_heads)
    return {
        "H": heads,
        "KVH": kv_heads,
        "D": head_dim,
        "GROUP": max(16, merged),  # tensor cores take no fewer rows
        "MERGED": merged,
        "TILE": max(16, min(64, 16 * KIB // (head_dim * itemsize))),
        "MAX_SPLITS": MAX_SPLITS,
        "CHUNK": splits_at_once(merged, head_dim, MAX_SPLITS),
    }


def split_decode(
    q: Tensor,
    out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    rows: Tensor,
    kv_lens: Tensor,
    *,
    scratch: SplitScratch,
    splits: Splits,
    pdl: bool,
) -> None:
    """out = attention of `q`; both `[>= tokens, heads, head_dim]`, token b over `kv_lens[b]` positions of `rows[b]`.

    `rows`, `kv_lens` int32 `[tokens]`, `table` int32; `splits` that of `splits_of`.  The caches may be e4m3.
    """
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = k_cache.shape[1]
    extra = {"launch_pdl": True} if pdl else {}
    split_decode_kernel[(num_kv_heads, rows.shape[0], splits.num)](
        q,
        out,
        k_cache,
        v_cache,
        table,
        rows,
        kv_lens,
        scratch.outs,
        scratch.lses,
        scratch.arrived,
        1.4426950408889634 / head_dim**0.5,
        table.stride(0),
        splits.least,
        **_constants(num_heads, num_kv_heads, head_dim, q.dtype.itemsize),
        PDL=pdl,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
        **extra,
    )


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    """What `split_decode` launches for a model."""
    args = {
        **dict.fromkeys(("q", "out", "k_cache", "v_cache"), shape.dtype),
        **dict.fromkeys(("table", "rows", "kv_lens", "arrived"), torch.int32),
        **dict.fromkeys(("outs", "lses"), torch.float32),
        "scale": "fp32",
        "table_stride": "i32",
        "least": "i32",
        **_constants(shape.heads, shape.kv_heads, shape.head_dim, shape.dtype.itemsize),
        "PDL": card.pdl,
    }
    yield Variant(split_decode_kernel, args, num_warps=NUM_WARPS, num_stages=NUM_STAGES, pdl=card.pdl)
