"""log(sum(exp(logits))) of lines of any float type, in float32, without a float32 copy of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from nbsgl.engine.kernels.draw import BLOCK, INVARIANT_ROWS, LOWEST, NUM_WARPS, float_types, int_type, splits_of

if TYPE_CHECKING:
    from nbsgl.engine.kernels.aot import Card, ModelShape, Variant


def logsumexp(logits: Tensor) -> Tensor:
    """float32 `[n]` of logits `[n, vocab]` (unit stride along vocab); allocates that and up to 128 numbers a line.

    A line's result does not depend on the others, to the last bit.
    """
    num_rows, vocab = logits.shape
    splits, chunk = splits_of(INVARIANT_ROWS, vocab)
    parts = torch.empty((num_rows, splits), dtype=torch.float32, device=logits.device)
    _parts[(splits, num_rows)](logits, parts, logits.stride(0), vocab, chunk, BLOCK=BLOCK, num_warps=NUM_WARPS)
    return parts.logsumexp(-1)


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    from nbsgl.engine.kernels.aot import Variant

    vocab = int_type(shape.vocab)
    sizes = {"line_stride": vocab, "vocab": vocab, "chunk": "i32:16", "BLOCK": BLOCK}
    for dtype in float_types(shape.dtype):
        yield Variant(_parts, {"LOGITS": dtype, "PARTS": torch.float32, **sizes}, NUM_WARPS)


@triton.jit
def _parts(LOGITS, PARTS, line_stride, vocab, chunk, BLOCK: tl.constexpr):
    """Program (split, line): the part of `chunk` tokens."""
    split, line = tl.program_id(0), tl.program_id(1)
    top = tl.full([BLOCK], LOWEST, tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    for begin in tl.range(split * chunk, (split + 1) * chunk, BLOCK):
        ids = begin + tl.arange(0, BLOCK)
        pointers = LOGITS + line.to(tl.int64) * line_stride + ids
        x = tl.load(pointers, mask=ids < vocab, other=float("-inf")).to(tl.float32)
        shrink = tl.exp(-tl.abs(x - top))
        mass = tl.where(x > top, mass * shrink + 1.0, mass + shrink)
        top = tl.maximum(top, x)
    highest = tl.max(top, 0)
    total = tl.sum(mass * tl.exp(top - highest), 0)
    part = tl.where(total > 0, highest + tl.log(tl.where(total > 0, total, 1.0)), float("-inf"))
    tl.store(PARTS + line * tl.num_programs(0) + split, tl.where(total != total, total, part))
