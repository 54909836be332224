"""Logits changed before the draw: penalties, bias, clamp, banned ids and grammar masks, for the lines that ask.

The lines are copied to float32 and changed on the way; the logits themselves stay as the model gave them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from nbsgl.engine.kernels.draw import BLOCK, NUM_WARPS, float_types, int_type, splits_of

if TYPE_CHECKING:
    from nbsgl.engine.kernels.aot import Card, ModelShape, Variant

SOME = 128  # entries a program of `_edit_some`
# what a line asks for: rows of an int32 `[NUM_COLUMNS, edited lines]`; the last three are float32 bits
NUM_COLUMNS = 7  # line, penalties' place or -1, mask or -1, whether to clamp, repetition, frequency, presence


def edit(
    logits: Tensor,
    asked: Tensor,
    entries: Tensor,
    counts: Tensor,
    seen: Tensor,
    masks: Tensor,
    out: Tensor,
    max_score: float,
) -> None:
    """out[e] (float32 `[n, vocab]`) = line asked[0, e] of the logits, as `Sampler._shape` would have changed it.

    `asked` int32 `[NUM_COLUMNS, n]`.  `counts` int32, `seen` uint8 `[places, vocab]` of `Penalties`.  `masks` int32
    `[masks, ceil(vocab / 32)]`: bit t of a line's little-endian words allows token t.  `entries` int32 `[3, m]`, no two
    alike: edited line, token, and float32 bits of its bias; a bias of -inf bans the token.
    """
    num, vocab = out.shape
    splits, chunk = splits_of(num, vocab)
    tables = (logits, asked, counts, seen, masks, out)
    sizes = (asked.shape[1], logits.stride(0), masks.shape[1], vocab, max_score)
    _edit[(splits, num)](*tables, *sizes, chunk, BLOCK=BLOCK, num_warps=NUM_WARPS)
    num_entries = entries.shape[1]
    if num_entries:
        _edit_some[(triton.cdiv(num_entries, SOME),)](*tables, *sizes, entries, num_entries, BLOCK=SOME, num_warps=4)


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    from nbsgl.engine.kernels.aot import Variant

    i32, vocab = torch.int32, int_type(shape.vocab)
    words = int_type(-(-shape.vocab // 32))
    for dtype in float_types(shape.dtype):
        args = {
            "LOGITS": dtype, "ASKED": i32, "COUNTS": i32, "SEEN": torch.uint8, "MASKS": i32, "OUT": torch.float32,
            "num_asked": "i32", "line_stride": vocab, "num_words": words, "vocab": vocab, "max_score": "fp32",
        }  # fmt: skip
        yield Variant(_edit, {**args, "chunk": "i32:16", "BLOCK": BLOCK}, NUM_WARPS)
        yield Variant(_edit_some, {**args, "ENTRIES": i32, "num_entries": "i32", "BLOCK": SOME}, 4)


@triton.jit
def _edited(
    x, e, tokens, bias, is_in, ASKED, COUNTS, SEEN, MASKS, num_asked, num_words, vocab, max_score
):  # fmt: skip
    """Scores x of some tokens of edited line e (e and bias: one for all tokens, or one each)."""
    place = tl.load(ASKED + num_asked + e, mask=e >= 0, other=-1)
    mask = tl.load(ASKED + 2 * num_asked + e, mask=e >= 0, other=-1)
    is_clamped = tl.load(ASKED + 3 * num_asked + e, mask=e >= 0, other=0) != 0
    repetition = tl.load(ASKED + 4 * num_asked + e, mask=e >= 0, other=0).to(tl.float32, bitcast=True)
    frequency = tl.load(ASKED + 5 * num_asked + e, mask=e >= 0, other=0).to(tl.float32, bitcast=True)
    presence = tl.load(ASKED + 6 * num_asked + e, mask=e >= 0, other=0).to(tl.float32, bitcast=True)
    at = place.to(tl.int64) * vocab + tokens
    is_penalised = is_in & (place >= 0)
    seen = tl.load(SEEN + at, mask=is_penalised, other=0)
    count = tl.load(COUNTS + at, mask=is_penalised, other=0)
    x = tl.where(seen != 0, tl.where(x > 0, tl.div_rn(x, repetition), x * repetition), x)
    x -= tl.where(is_penalised, frequency * count.to(tl.float32) + tl.where(count > 0, presence, 0.0), 0.0)
    x += tl.where(bias == float("-inf"), 0.0, bias)
    x = tl.where(is_clamped, tl.minimum(tl.maximum(x, -max_score), max_score), x)
    word = tl.load(MASKS + mask * num_words + tokens // 32, mask=is_in & (mask >= 0), other=-1)
    is_allowed = ((word >> (tokens % 32)) & 1) != 0
    return tl.where(is_allowed & (bias != float("-inf")), x, float("-inf"))


@triton.jit(do_not_specialize=["num_asked"], do_not_specialize_on_alignment=["ASKED"])
def _edit(
    LOGITS,
    ASKED,
    COUNTS,
    SEEN,
    MASKS,
    OUT,
    num_asked,
    line_stride,
    num_words,
    vocab,
    max_score,
    chunk,
    BLOCK: tl.constexpr,
):
    """Program (split, edited line): all tokens, without bias."""
    split, e = tl.program_id(0), tl.program_id(1)
    line = tl.load(ASKED + e).to(tl.int64)
    for begin in tl.range(split * chunk, (split + 1) * chunk, BLOCK):
        ids = begin + tl.arange(0, BLOCK)
        is_in = ids < vocab
        x = tl.load(LOGITS + line * line_stride + ids, mask=is_in, other=0.0).to(tl.float32)
        x = _edited(x, e, ids, 0.0, is_in, ASKED, COUNTS, SEEN, MASKS, num_asked, num_words, vocab, max_score)
        tl.store(OUT + e.to(tl.int64) * vocab + ids, x, mask=is_in)


@triton.jit(do_not_specialize=["num_asked", "num_entries"], do_not_specialize_on_alignment=["ASKED", "ENTRIES"])
def _edit_some(
    LOGITS,
    ASKED,
    COUNTS,
    SEEN,
    MASKS,
    OUT,
    num_asked,
    line_stride,
    num_words,
    vocab,
    max_score,
    ENTRIES,
    num_entries,
    BLOCK: tl.constexpr,
):
    """The biased and banned tokens over again, from the logits: the clamp comes after the bias."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_in = i < num_entries
    e = tl.load(ENTRIES + i, mask=is_in, other=0)
    tokens = tl.load(ENTRIES + num_entries + i, mask=is_in, other=0)
    bias = tl.load(ENTRIES + 2 * num_entries + i, mask=is_in, other=0).to(tl.float32, bitcast=True)
    line = tl.load(ASKED + e).to(tl.int64)
    x = tl.load(LOGITS + line * line_stride + tokens, mask=is_in, other=0.0).to(tl.float32)
    x = _edited(x, e, tokens, bias, is_in, ASKED, COUNTS, SEEN, MASKS, num_asked, num_words, vocab, max_score)
    tl.store(OUT + e.to(tl.int64) * vocab + tokens, x, mask=is_in)
