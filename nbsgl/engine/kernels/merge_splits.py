"""The last step of attention whose positions were split over programs: their parts put together.  A device function."""

from __future__ import annotations

import triton
import triton.language as tl

AT_ONCE = 8_192  # numbers of parts that a program of 4 warps holds at a time: 64 registers


def splits_at_once(num_heads: int, head_dim: int, max_splits: int) -> int:
    """How many splits' parts `merged_splits` may read in one go, for a power of two of heads."""
    return max(1, min(max_splits, AT_ONCE // (num_heads * head_dim)))


@triton.jit
def merged_splits(
    outs, lses, base, is_head, num, MAX_SPLITS: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """`[heads, D]` float32 from the first `num` splits' outputs and base-2 log-sum-exps.

    `base` `[heads]`: where a head's splits begin in `lses`, and times D in `outs`.  Read around the L1 cache: other
    programs have written them.
    """
    heads: tl.constexpr = base.shape[0]
    dim = tl.arange(0, D)[None, None, :]
    every = tl.arange(0, MAX_SPLITS)[None, :]
    every_lse = tl.load(
        lses + base[:, None] + every, mask=is_head[:, None] & (every < num), other=-1e30, cache_modifier=".cg"
    )
    most = tl.max(every_lse, 1)
    total = tl.sum(tl.exp2(every_lse - most[:, None]), 1)
    mixed = tl.zeros([heads, D], tl.float32)
    for first in range(0, num, CHUNK):
        split = first + tl.arange(0, CHUNK)[None, :]
        is_there = is_head[:, None] & (split < num)
        at = base[:, None] + split
        lse = tl.load(lses + at, mask=is_there, other=-1e30, cache_modifier=".cg")
        part = tl.load(outs + at[:, :, None] * D + dim, mask=is_there[:, :, None], other=0.0, cache_modifier=".cg")
        mixed += tl.sum(part * tl.exp2(lse - most[:, None])[:, :, None], 1)
    return mixed / total[:, None]
