"""Causal attention of runs of tokens over the paged cache, which holds their own K and V already: prefill, extend.

All runs of a step go in one launch.  A program takes some consecutive tokens of a run with all query heads of one KV
head, so that a gathered K and V serves them all.  A token's result depends on its own positions alone, in one order:
not on how runs are cut or put together.  Dao 2023, "FlashAttention-2".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tl_cuda

from nbsgl.engine.attention.paged import ExtendSpan
from nbsgl.engine.kernels.aot import KIB, Card, ModelShape, Variant

TILE_NUMBERS = tl.constexpr(4)


@dataclass(frozen=True, slots=True)
class ExtendTile:
    """A program's size: `queries` (tokens times heads), keys a turn, warps, and turns of keys in shared memory."""

    queries: int
    keys: int
    warps: int
    stages: int

    def tokens(self, groups: int) -> int:
        """Tokens a program takes where `groups` query heads share a KV head."""
        return self.queries // groups


def tile_of(head_dim: int, groups: int, itemsize: int, card: Card) -> ExtendTile:
    """By the shared memory of the card, of which 128 queries of a row over 256 bytes take up to 131 KiB."""
    row = head_dim * itemsize
    queries = 128 if row <= 256 or card.shared_bytes >= 160 * KIB else 64
    queries = max(queries, triton.next_power_of_2(groups))
    # three stages are two turns in memory: slots are loaded a turn before the keys that they point to
    return ExtendTile(queries, 64 if row <= 256 else 32, queries // 16, 3)


def extend_tiles(extends: Sequence[ExtendSpan], begin: int, tokens: int) -> np.ndarray:
    """The programs' work, int32 `[tiles, 4]`: page-table row, first token in the step, its position, tokens.

    The extends' tokens lie one after the other from `begin` on; a tile has at most `tokens` of one of them.  Those that
    attend to the most positions come first, so that no long one is left alone at the end.
    """
    spans = np.array([(extend.row, extend.num_tokens, extend.kv_len) for extend in extends], np.int32).reshape(-1, 3)
    rows, nums, kv_lens = spans.T
    counts = -(-nums // tokens)
    of = np.repeat(np.arange(len(spans)), counts)
    offset = (np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)) * tokens
    first = begin + np.cumsum(nums) - nums
    tiles = np.stack(
        (rows[of], first[of] + offset, (kv_lens - nums)[of] + offset, np.minimum(nums[of] - offset, tokens))
    )
    return np.ascontiguousarray(tiles.T[np.argsort(-tiles[2], kind="stable")], np.int32)


@triton.jit
def _turn(
    first, end, position, own, most, total, mixed, slots, k_head, v_head, scale,
    STRIDE: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Take in the keys from `first` on; with IS_MASKED those before `end` that a query may see, else all KEYS."""
    dtype: tl.constexpr = own.dtype
    at = first + tl.arange(0, KEYS)
    dim = tl.arange(0, D)[None, :]
    if IS_MASKED:
        slot = tl.load(slots + at, mask=at < end, other=0).to(tl.int64)[:, None] * STRIDE
        k = tl.load(k_head + slot + dim, mask=(at < end)[:, None], other=0.0).to(dtype)
        v = tl.load(v_head + slot + dim, mask=(at < end)[:, None], other=0.0).to(dtype)
    else:
        slot = tl.load(slots + at).to(tl.int64)[:, None] * STRIDE
        k = tl.load(k_head + slot + dim).to(dtype)
        v = tl.load(v_head + slot + dim).to(dtype)
    scores = tl.dot(own, tl.trans(k), input_precision="ieee")
    if IS_MASKED:
        scores = tl.where((at[None, :] <= position[:, None]) & (at < end)[None, :], scores, -1e30)
    larger = tl.maximum(most, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - larger[:, None])
    shrink = tl.exp2(most - larger)
    total = total * shrink + tl.sum(weights, 1)
    mixed = tl.dot(weights.to(dtype), v, mixed * shrink[:, None], input_precision="ieee")
    return larger, total, mixed


# the tiles' block begins anywhere, strides are any number: one compiled form for all
@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["tiles"])
def extend_attention_kernel(
    q,
    out,
    k_cache,
    v_cache,
    table,
    tiles,
    scale,
    table_stride,
    H: tl.constexpr,
    KVH: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One KV head's queries of one tile.  `scale` is log2(e) / sqrt(D)."""
    GROUPS: tl.constexpr = H // KVH
    kv_head = tl.program_id(0)
    tile = tiles + tl.program_id(1) * TILE_NUMBERS
    slots = table + tl.load(tile).to(tl.int64) * table_stride
    begin, start, num = tl.load(tile + 1).to(tl.int64), tl.load(tile + 2), tl.load(tile + 3)
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    query = tl.arange(0, QUERIES)
    token = query // GROUPS
    dim = tl.arange(0, D)[None, :]
    position = start + token
    place = (((begin + token) * H + kv_head * GROUPS + query % GROUPS) * D)[:, None] + dim
    is_there = (token < num)[:, None]
    own = tl.load(q + place, mask=is_there, other=0.0)
    most = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, D], tl.float32)
    k_head, v_head = k_cache + kv_head * D, v_cache + kv_head * D
    end = start + num
    seen_by_all = (start + 1) // KEYS * KEYS
    for first in tl.range(0, seen_by_all, KEYS):
        most, total, mixed = _turn(
            first, end, position, own, most, total, mixed, slots, k_head, v_head, scale, KVH * D, D, KEYS, False
        )
    for first in tl.range(seen_by_all, end, KEYS):
        most, total, mixed = _turn(
            first, end, position, own, most, total, mixed, slots, k_head, v_head, scale, KVH * D, D, KEYS, True
        )
    tl.store(out + place, (mixed / total[:, None]).to(out.dtype.element_ty), mask=is_there)


def extend_attention(
    q: Tensor,
    out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    tiles: Tensor,
    *,
    tile: ExtendTile,
    pdl: bool,
) -> None:
    """out = attention of the tiles' tokens of `q`; both `[tokens, heads, head_dim]`, other tokens are left alone.

    `tiles` int32 `[n, 4]` of `extend_tiles`, for `tile.tokens`; `table` int32.  The caches may be e4m3.
    """
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = k_cache.shape[1]
    extra = {"launch_pdl": True} if pdl else {}
    extend_attention_kernel[(num_kv_heads, tiles.shape[0])](
        q,
        out,
        k_cache,
        v_cache,
        table,
        tiles,
        1.4426950408889634 / head_dim**0.5,
        table.stride(0),
        num_heads,
        num_kv_heads,
        head_dim,
        tile.queries,
        tile.keys,
        pdl,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **extra,
    )


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    """What `extend_attention` launches for a model."""
    tile = tile_of(shape.head_dim, shape.heads // shape.kv_heads, shape.dtype.itemsize, card)
    args = {
        **dict.fromkeys(("q", "out", "k_cache", "v_cache"), shape.dtype),
        **dict.fromkeys(("table", "tiles"), torch.int32),
        "scale": "fp32",
        "table_stride": "i32",
        "H": shape.heads,
        "KVH": shape.kv_heads,
        "D": shape.head_dim,
        "QUERIES": tile.queries,
        "KEYS": tile.keys,
        "PDL": card.pdl,
    }
    yield Variant(extend_attention_kernel, args, num_warps=tile.warps, num_stages=tile.stages, pdl=card.pdl)
