"""Attention over a shared prefix put together with attention over the rest, by their log-sum-exps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from nbsgl.engine.kernels.aot import Card, ModelShape, Variant

HEADS = 8  # heads per program
NUM_WARPS = 4


# the first three may be pieces of larger tensors, from any row on
@triton.jit(do_not_specialize=["num_heads"], do_not_specialize_on_alignment=["OUT", "LSE", "STARTS"])
def _merge_states(
    OUT, LSE, STARTS, PREFIX_OUT, PREFIX_LSE, num_heads,
    D: tl.constexpr, D_BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    if tl.load(STARTS + token) == 0:  # nothing was shared: its prefix part is not to be looked at
        return
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, D_BLOCK)
    is_head = head < num_heads
    lse = tl.load(LSE + token * num_heads + head, mask=is_head, other=0.0)
    prefix_lse = tl.load(PREFIX_LSE + token * num_heads + head, mask=is_head, other=0.0)
    prefix_share = 1.0 / (1.0 + tl.exp2(lse - prefix_lse))
    place = (token.to(tl.int64) * num_heads + head)[:, None] * D + column[None, :]
    mask = is_head[:, None] & (column < D)[None, :]
    own = tl.load(OUT + place, mask=mask, other=0.0).to(tl.float32)
    prefix = tl.load(PREFIX_OUT + place, mask=mask, other=0.0).to(tl.float32)
    merged = own + (prefix - own) * prefix_share[:, None]
    tl.store(OUT + place, merged.to(OUT.dtype.element_ty), mask=mask)


def merge_states(out: Tensor, lse: Tensor, starts: Tensor, prefix_out: Tensor, prefix_lse: Tensor) -> None:
    """Merge the prefix's part into `out`, for tokens with `starts` > 0; the others stay as they are.

    `out`, `prefix_out` `[n, heads, head_dim]` contiguous; `lse`, `prefix_lse` float32 `[n, heads]`, log-sum-exp in
    base 2 (FlashInfer's); `starts` int32 `[n]`.  Zheng et al. 2024, "FlashInfer", section 2.2.
    """
    num_tokens, num_heads, head_dim = out.shape
    _merge_states[(num_tokens, triton.cdiv(num_heads, HEADS))](
        out, lse, starts, prefix_out, prefix_lse, num_heads,
        D=head_dim, D_BLOCK=triton.next_power_of_2(head_dim), HEADS=HEADS, num_warps=NUM_WARPS,
    )  # fmt: skip


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    constants = {"D": shape.head_dim, "D_BLOCK": triton.next_power_of_2(shape.head_dim), "HEADS": HEADS}
    tensors = {"OUT": shape.dtype, "LSE": torch.float32, "STARTS": torch.int32}
    parts = {"PREFIX_OUT": shape.dtype, "PREFIX_LSE": torch.float32}
    yield Variant(_merge_states, {**tensors, **parts, "num_heads": "i32", **constants}, num_warps=NUM_WARPS)
