"""One token per row: argmax of logit / temperature + Gumbel noise, in one launch, with its feedback to the next step.

With grammars in tables, tokens that the row's state does not allow have no score, and its state steps on.

The noise is that of `rng.exponentials`: the same integers bit for bit, and the same float32 uniform; the card's fast
logarithms differ from torch's by up to 1e-5 of noise, so a draw differs only where two tokens tie to within that.
A row is read by `splits` programs; the last of them to arrive merges what the others found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tlc
from triton.language.extra import libdevice

from nbsgl.engine.kernels.tables import TableLines, state_behind, state_of, words_at

if TYPE_CHECKING:
    from nbsgl.engine.kernels.aot import Card, ModelShape, Variant

BLOCK = 1024
NUM_WARPS = 4  # 8 scores a thread: one 16-byte load of bf16
MAX_SPLITS = 128
INVARIANT_ROWS = 64  # what is to be cut into the same parts for any number of rows is cut as for so many
PROGRAMS = 2048  # wanted in all: two waves of 4-warp programs on 132 SMs

SMALL_V = tl.constexpr(1.0 / 16)  # below it 1 - v has lost too many digits for log(1 - v)
GREEDY_BELOW = tl.constexpr(1e-6)  # SamplingParams.is_greedy
LOWEST = tl.constexpr(-1e30)  # below any score, and finite: nothing minus it is a NaN
NO_ID = tl.constexpr(0x7FFFFFFF)
IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # the interpreter has no libdevice


class DrawScratch:
    """What the programs of a row tell each other, for up to `max_rows` rows.  Launches that share it share a stream.

    `floats`, `ints` `[4, max_rows, MAX_SPLITS]`: one number of each program in each plane.
    `arrived` int32 `[max_rows]`: programs that have finished; zero between launches.
    `cut_ids`, `cut_xs`, `tops`, `totals` `[max_rows]`: a filtered row's state (`nucleus.py`).
    With `invariant` a row is cut into the same parts however many rows there are: their masses add up the same.
    """

    def __init__(self, max_rows: int, device: torch.device, *, invariant: bool = False) -> None:
        self.max_rows, self.invariant = max_rows, invariant
        self.floats = torch.zeros((4, max_rows, MAX_SPLITS), dtype=torch.float32, device=device)
        self.ints = torch.zeros((4, max_rows, MAX_SPLITS), dtype=torch.int32, device=device)
        self.arrived = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.cut_ids = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.cut_xs, self.tops, self.totals = torch.zeros((3, max_rows), dtype=torch.float32, device=device).unbind(0)

    def splits_of(self, num_rows: int, vocab: int) -> tuple[int, int]:
        return splits_of(INVARIANT_ROWS if self.invariant else num_rows, vocab)


def splits_of(num_rows: int, vocab: int) -> tuple[int, int]:
    """(programs a row, scores a program): the latter a multiple of BLOCK, no program without scores."""
    tiles = -(-vocab // BLOCK)
    wanted = max(1, min(PROGRAMS // num_rows, MAX_SPLITS, tiles))
    a_program = -(-tiles // wanted)
    return -(-tiles // a_program), a_program * BLOCK


def draw(
    logits: Tensor,
    temperatures: Tensor,
    keys: Tensor,
    rows: Tensor,
    flags: Tensor,
    last_tokens: Tensor,
    out: Tensor,
    scratch: DrawScratch,
    *,
    lines: TableLines | None = None,
    pdl: bool,
) -> None:
    """Draw a token for each line of logits `[n, vocab]` (any float type, unit stride along vocab), n <= max_rows.

    `temperatures` float32 `[n]`, below 1e-6 greedy (ties: the lowest id); `keys` int32 `[n, 2]` of `rng.draw_keys`.
    Writes out[0] = token, out[1] = 1 if the line has no NaN and no infinity (int32 `[2, n]`), and
    last_tokens[rows[i]] = token of line i where flags[i] != 0.  With `lines` it is drawn among the tokens that the
    line's grammar allows, and lines.states[rows[i]] = the state behind it under the same condition; of the lines of
    one row, if there are several, one is flagged, and no other reads its state from there.
    """
    num_rows, vocab = logits.shape
    splits, chunk = scratch.splits_of(num_rows, vocab)
    masks = (None,) * 4 if lines is None else (lines.grammars, lines.given, lines.states, lines.block)
    _draw[(splits, num_rows)](
        logits,
        temperatures,
        keys,
        rows,
        flags,
        last_tokens,
        out,
        scratch.floats,
        scratch.ints,
        scratch.arrived,
        *masks,
        logits.stride(0),
        out.stride(0),
        scratch.max_rows * MAX_SPLITS,
        vocab,
        chunk,
        BLOCK=BLOCK,
        SPLITS=MAX_SPLITS,
        PDL=pdl,
        num_warps=NUM_WARPS,
        launch_pdl=pdl,
    )


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    from nbsgl.engine.kernels.aot import Variant

    vocab = int_type(shape.vocab)
    sizes = {"line_stride": vocab, "out_stride": "i32", "plane": "i32:16", "vocab": vocab, "chunk": "i32:16"}
    meta = {"BLOCK": BLOCK, "SPLITS": MAX_SPLITS, "PDL": card.pdl}
    for dtype in float_types(shape.dtype):
        args: dict[str, Any] = {"LOGITS": dtype, "TEMPERATURES": torch.float32, "FLOATS": torch.float32}
        args |= dict.fromkeys(("KEYS", "ROWS", "FLAGS", "LAST", "OUT", "INTS", "ARRIVED"), torch.int32)
        for masks in (None, torch.int32):
            args |= dict.fromkeys(("GRAMMARS", "GIVEN", "STATES", "TABLES"), masks)
            yield Variant(_draw, args | sizes | meta, NUM_WARPS, pdl=card.pdl)


def float_types(dtype: torch.dtype) -> set[torch.dtype]:
    """Logits as the model gives them, and edited ones."""
    return {dtype, torch.float32}


def int_type(value: int) -> str:
    """As Triton's launcher types it."""
    return "i32" if value % 16 else "i32:16"


# ---- parts ---------------------------------------------------------------------------------------------------------


@triton.jit
def mix(h, a: tl.constexpr, x: tl.constexpr, b: tl.constexpr, y: tl.constexpr):
    h = (h ^ (h >> a)) * x
    return (h ^ (h >> b)) * y


@triton.jit
def fast_log(x):
    """Relative error 2^-22, near 1 absolute (PTX ISA, lg2.approx); a seventh of the exact one's instructions."""
    if IS_INTERPRETED:
        return tl.log(x)
    else:
        return libdevice.fast_logf(x)


@triton.jit
def log_exponentials(ids, key0, key1):
    """log(rng.exponentials) of int32 ids and two uint32 keys, float32."""
    h = mix(ids.to(tl.uint32) * 0x9E3779B1 + key0, 16, 0x85EBCA6B, 13, 0xC2B2AE35)
    h = mix(h ^ key1, 16, 0x7FEB352D, 15, 0x846CA68B)
    h = h ^ (h >> 16) ^ 0x80000000
    # v = float32((h + 0.5) / 2^32): both halves are exact, so their sum is rounded once, as from a double
    low = (h & 0xFFFF).to(tl.float32) + 0.5
    v = tl.minimum(((h >> 16).to(tl.float32) * 65536.0 + low) * (2.0**-32), 1.0 - 2.0**-24)
    # -log1p(-v): four more terms of the series leave 2e-7 at v = 1/16
    series = v + v * v * (0.5 + v * (1.0 / 3 + v * (0.25 + v * 0.2)))
    return fast_log(tl.where(v < SMALL_V, series, -fast_log(1.0 - v)))


@triton.jit
def best_of(scores, ids):
    """(highest score, lowest id that has it) of a block."""
    best = tl.max(scores, 0)
    return best, tl.min(tl.where(scores == best, ids, NO_ID), 0)


@triton.jit
def give(token, line, ROWS, FLAGS, LAST, OUT):
    """A line's token is known: to the host, and to the step that computes it next."""
    tl.store(OUT + line, token)
    if tl.load(FLAGS + line) != 0:
        tl.store(LAST + tl.load(ROWS + line), token.to(LAST.dtype.element_ty))


@triton.jit
def is_last_program(ARRIVED, line):
    """Whether all other programs of this line have stored their part; then counts from zero again."""
    tl.debug_barrier()
    is_last = tl.atomic_add(ARRIVED + line, 1) == tl.num_programs(0) - 1
    if is_last:
        tl.store(ARRIVED + line, 0)
    return is_last


# what lies in a larger block is read one number at a time, so its alignment must not make another variant
SMALL_ARGS = ["TEMPERATURES", "KEYS", "ROWS", "FLAGS", "LAST", "OUT"]


@triton.jit(do_not_specialize=["out_stride"], do_not_specialize_on_alignment=[*SMALL_ARGS, "GRAMMARS", "GIVEN"])
def _draw(
    LOGITS,
    TEMPERATURES,
    KEYS,
    ROWS,
    FLAGS,
    LAST,
    OUT,
    FLOATS,
    INTS,
    ARRIVED,
    GRAMMARS,
    GIVEN,
    STATES,
    TABLES,
    line_stride,
    out_stride,
    plane,
    vocab,
    chunk,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (split, line).  FLOATS[0]: best score; INTS[0]: its id, INTS[1]: numbers that are not finite."""
    split, line = tl.program_id(0), tl.program_id(1)
    if PDL:
        tlc.gdc_launch_dependents()
        tlc.gdc_wait()
    temperature = tl.load(TEMPERATURES + line)
    is_greedy = temperature < GREEDY_BELOW
    factor = 1.0 / tl.where(is_greedy, 1.0, temperature)
    key0 = tl.load(KEYS + 2 * line).to(tl.uint32, bitcast=True)
    key1 = tl.load(KEYS + 2 * line + 1).to(tl.uint32, bitcast=True)
    offsets = tl.arange(0, BLOCK)
    if TABLES is not None:
        grammar, row = tl.load(GRAMMARS + line), tl.load(ROWS + line)
        is_masked = grammar >= 0
        state = state_of(GIVEN, STATES, line, row, is_masked)
        MASK = TABLES + words_at(TABLES, grammar, state, is_masked)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_ids = tl.zeros([BLOCK], tl.int32)
    is_bad = tl.zeros([BLOCK], tl.int32)
    for begin in tl.range(split * chunk, (split + 1) * chunk, BLOCK):
        ids = begin + offsets
        is_in = ids < vocab
        x = tl.load(LOGITS + line.to(tl.int64) * line_stride + ids, mask=is_in, other=float("-inf")).to(tl.float32)
        is_bad |= (is_in & ((tl.abs(x) == float("inf")) | (x != x))).to(tl.int32)
        score = x * factor
        if not is_greedy:
            score -= log_exponentials(ids, key0, key1)
        if TABLES is not None:
            words = tl.load(MASK + ids // 32, mask=is_in & is_masked, other=-1)
            score = tl.where(((words >> (ids % 32)) & 1) != 0, score, float("-inf"))
        is_better = score > best
        best = tl.where(is_better, score, best)
        best_ids = tl.where(is_better, ids, best_ids)
    score, token = best_of(best, best_ids)
    part = line * SPLITS + split
    tl.store(FLOATS + part, score)
    tl.store(INTS + part, token)
    tl.store(INTS + plane + part, tl.max(is_bad, 0))
    if is_last_program(ARRIVED, line):
        others = tl.arange(0, SPLITS)
        is_there = others < tl.num_programs(0)
        parts = line * SPLITS + others
        scores = tl.load(FLOATS + parts, mask=is_there, other=float("-inf"), cache_modifier=".cg")
        tokens = tl.load(INTS + parts, mask=is_there, other=NO_ID, cache_modifier=".cg")
        bad = tl.load(INTS + plane + parts, mask=is_there, other=0, cache_modifier=".cg")
        score, token = best_of(scores, tokens)
        give(token, line, ROWS, FLAGS, LAST, OUT)
        if TABLES is not None:
            behind = state_behind(TABLES, grammar, state, token, is_masked)
            tl.store(STATES + row, behind, mask=is_masked & (tl.load(FLAGS + line) != 0))
        tl.store(OUT + out_stride + line, 1 - tl.max(bad, 0))
