"""The draw with top-k, top-p and min-p, without sorting: draw first, then ask whether the token was a candidate.

Order a line's tokens by falling score, equal scores by id.  Candidates are a first part of that order, and the draw is
the argmax of score + noise over it.  So the argmax over *all* tokens is the answer if it is a candidate.  If it is not,
neither is any token after it, and the argmax over those before it is the next to ask about.  Whether a token is a
candidate takes the mass and the number of the tokens before it: one pass, which finds the next argmax as well.  It is
rejected about -ln(p) times, where p is the candidates' mass: 0.05 times at top-p 0.95.
(FlashInfer samples by the same idea; here the noise is keyed by token, so the answer is exactly that of the sort.)

Where candidates are few among many alike, that would be slow (20 of 128k: nine passes); so each pass also asks about
the value midway between the token's score and the best one, and goes on above it if all candidates lie there.

Launches: one that draws and sums, ROUNDS passes by `splits` programs a line, and one program a line for what is left.
Lines without a filter end in the first; those that have ended cost the others nothing but their programs' start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tlc

from nbsgl.engine.kernels.draw import (
    BLOCK,
    GREEDY_BELOW,
    LOWEST,
    MAX_SPLITS,
    NO_ID,
    NUM_WARPS,
    SMALL_ARGS,
    DrawScratch,
    best_of,
    float_types,
    give,
    int_type,
    is_last_program,
    log_exponentials,
)

if TYPE_CHECKING:
    from nbsgl.engine.kernels.aot import Card, ModelShape, Variant

ROUNDS = 2  # at top-p 0.95 one line in 800 needs more
REST_BLOCK, REST_WARPS = 4096, 16  # of the one program a line that does the rest
ENDED = tl.constexpr(-1)  # in `cut_ids`: the line's token is known
FILTER_ARGS = [*SMALL_ARGS, "TOP_K", "TOP_P", "MIN_P"]


def draw_filtered(
    logits: Tensor,
    temperatures: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    rows: Tensor,
    flags: Tensor,
    last_tokens: Tensor,
    out: Tensor,
    scratch: DrawScratch,
    *,
    pdl: bool,
) -> None:
    """As `draw`, among the tokens that top-k, top-p and min-p leave; all three are judged on the same distribution.

    `top_k` int32 `[n]`, below 1: all; `top_p` float32 `[n]`, 1: all; `min_p` float32 `[n]`, 0: all.
    A token is in if fewer than top_k precede it, if those have less than top_p of the mass, and if its probability is
    at least min_p times the best one's; the first is always in.
    """
    num_rows, vocab = logits.shape
    splits, chunk = scratch.splits_of(num_rows, vocab)
    s = scratch
    plane, line_stride = s.max_rows * MAX_SPLITS, logits.stride(0)
    state = (s.cut_ids, s.cut_xs, s.tops, s.totals)
    given = (rows, flags, last_tokens, out)
    asked = (logits, temperatures, top_k, top_p, min_p, keys)
    parts = (s.floats, s.ints, s.arrived)
    meta = {"BLOCK": BLOCK, "SPLITS": MAX_SPLITS, "PDL": pdl, "num_warps": NUM_WARPS, "launch_pdl": pdl}
    grid = (splits, num_rows)
    _first_pass[grid](*asked, *given, *state, *parts, line_stride, out.stride(0), plane, vocab, chunk, **meta)
    for _ in range(ROUNDS):
        _next_pass[grid](*asked, *given, *state, *parts, line_stride, plane, vocab, chunk, **meta)
    meta = {"BLOCK": REST_BLOCK, "PDL": pdl, "num_warps": REST_WARPS, "launch_pdl": pdl}
    _other_passes[(num_rows,)](*asked, *given, *state, line_stride, vocab, **meta)


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    from nbsgl.engine.kernels.aot import Variant

    vocab = int_type(shape.vocab)
    floats = ("TEMPERATURES", "TOP_P", "MIN_P", "CUT_XS", "TOPS", "TOTALS")
    ints = ("TOP_K", "KEYS", "ROWS", "FLAGS", "LAST", "OUT", "CUT_IDS")
    args: dict[str, Any] = dict.fromkeys(floats, torch.float32) | dict.fromkeys(ints, torch.int32)
    args |= {"line_stride": vocab, "vocab": vocab, "BLOCK": BLOCK, "PDL": card.pdl}
    split: dict[str, Any] = {"FLOATS": torch.float32, "INTS": torch.int32, "ARRIVED": torch.int32}
    split |= {"plane": "i32:16", "chunk": "i32:16", "SPLITS": MAX_SPLITS}
    for dtype in float_types(shape.dtype):
        args["LOGITS"] = dtype
        yield Variant(_first_pass, args | split | {"out_stride": "i32"}, NUM_WARPS, pdl=card.pdl)
        yield Variant(_next_pass, args | split, NUM_WARPS, pdl=card.pdl)
        yield Variant(_other_passes, args | {"BLOCK": REST_BLOCK}, REST_WARPS, pdl=card.pdl)


@triton.jit(do_not_specialize=["out_stride"], do_not_specialize_on_alignment=FILTER_ARGS)
def _first_pass(
    LOGITS,
    TEMPERATURES,
    TOP_K,
    TOP_P,
    MIN_P,
    KEYS,
    ROWS,
    FLAGS,
    LAST,
    OUT,
    CUT_IDS,
    CUT_XS,
    TOPS,
    TOTALS,
    FLOATS,
    INTS,
    ARRIVED,
    line_stride,
    out_stride,
    plane,
    vocab,
    chunk,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (split, line): the argmax over all tokens, the best score and the mass.

    FLOATS: best score with noise, highest logit, mass relative to it.  INTS: id of the best, not-finite numbers.
    """
    split, line = tl.program_id(0), tl.program_id(1)
    if PDL:
        tlc.gdc_launch_dependents()
        tlc.gdc_wait()
    temperature = tl.load(TEMPERATURES + line)
    is_greedy = temperature < GREEDY_BELOW
    factor = 1.0 / tl.where(is_greedy, 1.0, temperature)
    limit, p, floor = tl.load(TOP_K + line), tl.load(TOP_P + line), tl.load(MIN_P + line)
    is_filtered = (not is_greedy) & (((limit > 0) & (limit < vocab)) | (p < 1.0) | (floor > 0.0))
    key0 = tl.load(KEYS + 2 * line).to(tl.uint32, bitcast=True)
    key1 = tl.load(KEYS + 2 * line + 1).to(tl.uint32, bitcast=True)
    offsets = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_ids = tl.zeros([BLOCK], tl.int32)
    is_bad = tl.zeros([BLOCK], tl.int32)
    top = tl.full([BLOCK], LOWEST, tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    for begin in tl.range(split * chunk, (split + 1) * chunk, BLOCK):
        ids = begin + offsets
        is_in = ids < vocab
        x = tl.load(LOGITS + line.to(tl.int64) * line_stride + ids, mask=is_in, other=float("-inf")).to(tl.float32)
        is_bad |= (is_in & ((tl.abs(x) == float("inf")) | (x != x))).to(tl.int32)
        score = x * factor
        if not is_greedy:
            score -= log_exponentials(ids, key0, key1)
        is_better = score > best
        best = tl.where(is_better, score, best)
        best_ids = tl.where(is_better, ids, best_ids)
        if is_filtered:
            above = (x - top) * factor
            shrink = tl.exp(-tl.abs(above))
            mass = tl.where(above > 0, mass * shrink + 1.0, mass + shrink)
            top = tl.where(above > 0, x, top)
    score, token = best_of(best, best_ids)
    part = line * SPLITS + split
    tl.store(FLOATS + part, score)
    tl.store(INTS + part, token)
    tl.store(INTS + plane + part, tl.max(is_bad, 0))
    if is_filtered:
        highest = tl.max(top, 0)
        tl.store(FLOATS + plane + part, highest)
        tl.store(FLOATS + 2 * plane + part, tl.sum(mass * tl.exp((top - highest) * factor), 0))
    if is_last_program(ARRIVED, line):
        others = tl.arange(0, SPLITS)
        is_there = others < tl.num_programs(0)
        parts = line * SPLITS + others
        scores = tl.load(FLOATS + parts, mask=is_there, other=float("-inf"), cache_modifier=".cg")
        tokens = tl.load(INTS + parts, mask=is_there, other=NO_ID, cache_modifier=".cg")
        bad = tl.load(INTS + plane + parts, mask=is_there, other=0, cache_modifier=".cg")
        score, token = best_of(scores, tokens)
        tl.store(OUT + out_stride + line, 1 - tl.max(bad, 0))
        has_ended = not is_filtered
        if is_filtered:
            tops = tl.load(FLOATS + plane + parts, mask=is_there, other=LOWEST, cache_modifier=".cg")
            masses = tl.load(FLOATS + 2 * plane + parts, mask=is_there, other=0.0, cache_modifier=".cg")
            highest = tl.max(tops, 0)
            total = tl.sum(masses * tl.exp((tops - highest) * factor), 0)
            x = tl.load(LOGITS + line.to(tl.int64) * line_stride + token).to(tl.float32)
            tl.store(CUT_XS + line, x)
            tl.store(TOPS + line, highest)
            tl.store(TOTALS + line, total)
            # a NaN, an infinity, or nothing possible: no order to speak of, and the line is reported
            has_ended = not ((total < float("inf")) & (tl.abs(x) < float("inf")))
        tl.store(CUT_IDS + line, tl.where(has_ended, ENDED, token))
        if has_ended:
            give(token, line, ROWS, FLAGS, LAST, OUT)


# ---- passes --------------------------------------------------------------------------------------------------------


@triton.jit
def scan(X, begin, end, vocab, cut_x, cut_id, top, factor, floor, key0, key1, BLOCK: tl.constexpr):
    """Of the tokens [begin, end) before (cut_x, cut_id), and of those above the value midway to `top`, each:

    how many, their mass relative to top, and the best score with noise and its id among those that min-p leaves.
    """
    middle = 0.5 * cut_x + 0.5 * top
    offsets = tl.arange(0, BLOCK)
    num, num_above = 0, 0
    mass = tl.zeros([BLOCK], tl.float32)
    mass_above = tl.zeros([BLOCK], tl.float32)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_above = tl.full([BLOCK], float("-inf"), tl.float32)
    best_ids = tl.zeros([BLOCK], tl.int32)
    best_ids_above = tl.zeros([BLOCK], tl.int32)
    for first in tl.range(begin, end, BLOCK):
        ids = first + offsets
        x = tl.load(X + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
        is_before = (x > cut_x) | ((x == cut_x) & (ids < cut_id))
        found = tl.sum(is_before.to(tl.int32), 0)
        if found > 0:  # in a peaked distribution most blocks have none: no noise, no exponentials
            is_above = x > middle
            above = (x - top) * factor
            weight = tl.where(is_before, tl.exp(above), 0.0)
            num += found
            num_above += tl.sum(is_above.to(tl.int32), 0)
            mass += weight
            mass_above += tl.where(is_above, weight, 0.0)
            score = above - log_exponentials(ids, key0, key1)
            is_better = (weight >= floor) & is_before & (score > best)
            best = tl.where(is_better, score, best)
            best_ids = tl.where(is_better, ids, best_ids)
            is_better = (weight >= floor) & is_above & (score > best_above)
            best_above = tl.where(is_better, score, best_above)
            best_ids_above = tl.where(is_better, ids, best_ids_above)
    score, token = best_of(best, best_ids)
    score_above, token_above = best_of(best_above, best_ids_above)
    return num, num_above, tl.sum(mass, 0), tl.sum(mass_above, 0), score, score_above, token, token_above


@triton.jit
def is_over(num, mass, limit, p, total):
    """Whether a token that follows so many others, of such a mass, is no candidate."""
    return ((limit > 0) & (num >= limit)) | ((p < 1.0) & (mass >= p * total))


@triton.jit
def next_of(
    cut_id, cut_x, top, total, factor, limit, p, floor, num, num_above, mass, mass_above, score, token, token_above
):
    """(is the token at the cut the answer, else the one to ask about next)."""
    is_out = is_over(num, mass, limit, p, total) | (tl.exp((cut_x - top) * factor) < floor)
    is_answer = (not is_out) | (num == 0) | (score == float("-inf"))
    are_all_above = is_over(num_above, mass_above, limit, p, total)
    return is_answer, tl.where(is_answer, cut_id, tl.where(are_all_above, token_above, token))


@triton.jit(do_not_specialize_on_alignment=FILTER_ARGS)
def _next_pass(
    LOGITS,
    TEMPERATURES,
    TOP_K,
    TOP_P,
    MIN_P,
    KEYS,
    ROWS,
    FLAGS,
    LAST,
    OUT,
    CUT_IDS,
    CUT_XS,
    TOPS,
    TOTALS,
    FLOATS,
    INTS,
    ARRIVED,
    line_stride,
    plane,
    vocab,
    chunk,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (split, line): ask about the token at the cut.

    FLOATS: mass, mass above the middle, best score, best above; INTS: their numbers and ids in the same order.
    """
    split, line = tl.program_id(0), tl.program_id(1)
    if PDL:
        tlc.gdc_launch_dependents()
        tlc.gdc_wait()
    cut_id = tl.load(CUT_IDS + line)
    if cut_id != ENDED:
        X = LOGITS + line.to(tl.int64) * line_stride
        factor = 1.0 / tl.load(TEMPERATURES + line)
        floor = tl.load(MIN_P + line)
        cut_x, top = tl.load(CUT_XS + line), tl.load(TOPS + line)
        key0 = tl.load(KEYS + 2 * line).to(tl.uint32, bitcast=True)
        key1 = tl.load(KEYS + 2 * line + 1).to(tl.uint32, bitcast=True)
        num, num_above, mass, mass_above, score, score_above, token, token_above = scan(
            X, split * chunk, (split + 1) * chunk, vocab, cut_x, cut_id, top, factor, floor, key0, key1, BLOCK
        )
        part = line * SPLITS + split
        tl.store(FLOATS + part, mass)
        tl.store(FLOATS + plane + part, mass_above)
        tl.store(FLOATS + 2 * plane + part, score)
        tl.store(FLOATS + 3 * plane + part, score_above)
        tl.store(INTS + part, num)
        tl.store(INTS + plane + part, num_above)
        tl.store(INTS + 2 * plane + part, token)
        tl.store(INTS + 3 * plane + part, token_above)
        if is_last_program(ARRIVED, line):
            others = tl.arange(0, SPLITS)
            is_there = others < tl.num_programs(0)
            floats, ints = FLOATS + line * SPLITS + others, INTS + line * SPLITS + others
            mass = tl.sum(tl.load(floats, mask=is_there, other=0.0, cache_modifier=".cg"), 0)
            mass_above = tl.sum(tl.load(floats + plane, mask=is_there, other=0.0, cache_modifier=".cg"), 0)
            num = tl.sum(tl.load(ints, mask=is_there, other=0, cache_modifier=".cg"), 0)
            num_above = tl.sum(tl.load(ints + plane, mask=is_there, other=0, cache_modifier=".cg"), 0)
            score, token = best_of(
                tl.load(floats + 2 * plane, mask=is_there, other=float("-inf"), cache_modifier=".cg"),
                tl.load(ints + 2 * plane, mask=is_there, other=NO_ID, cache_modifier=".cg"),
            )
            score_above, token_above = best_of(
                tl.load(floats + 3 * plane, mask=is_there, other=float("-inf"), cache_modifier=".cg"),
                tl.load(ints + 3 * plane, mask=is_there, other=NO_ID, cache_modifier=".cg"),
            )
            total = tl.load(TOTALS + line)
            limit, p = tl.load(TOP_K + line), tl.load(TOP_P + line)
            is_answer, token = next_of(
                cut_id, cut_x, top, total, factor, limit, p, floor,
                num, num_above, mass, mass_above, score, token, token_above,
            )  # fmt: skip
            if is_answer:
                give(token, line, ROWS, FLAGS, LAST, OUT)
                tl.store(CUT_IDS + line, ENDED)
            else:
                tl.store(CUT_IDS + line, token)
                tl.store(CUT_XS + line, tl.load(X + token).to(tl.float32))


@triton.jit(do_not_specialize_on_alignment=FILTER_ARGS)
def _other_passes(
    LOGITS,
    TEMPERATURES,
    TOP_K,
    TOP_P,
    MIN_P,
    KEYS,
    ROWS,
    FLAGS,
    LAST,
    OUT,
    CUT_IDS,
    CUT_XS,
    TOPS,
    TOTALS,
    line_stride,
    vocab,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a line: ask until there is an answer.  Ends, as each token asked about stands before the last one."""
    line = tl.program_id(0)
    if PDL:
        tlc.gdc_launch_dependents()
        tlc.gdc_wait()
    cut_id = tl.load(CUT_IDS + line)
    if cut_id != ENDED:
        X = LOGITS + line.to(tl.int64) * line_stride
        factor = 1.0 / tl.load(TEMPERATURES + line)
        limit, p, floor = tl.load(TOP_K + line), tl.load(TOP_P + line), tl.load(MIN_P + line)
        cut_x, top, total = tl.load(CUT_XS + line), tl.load(TOPS + line), tl.load(TOTALS + line)
        key0 = tl.load(KEYS + 2 * line).to(tl.uint32, bitcast=True)
        key1 = tl.load(KEYS + 2 * line + 1).to(tl.uint32, bitcast=True)
        is_answer = False
        while not is_answer:
            num, num_above, mass, mass_above, score, score_above, token, token_above = scan(
                X, 0, vocab, vocab, cut_x, cut_id, top, factor, floor, key0, key1, BLOCK
            )
            is_answer, cut_id = next_of(
                cut_id, cut_x, top, total, factor, limit, p, floor,
                num, num_above, mass, mass_above, score, token, token_above,
            )  # fmt: skip
            cut_x = tl.load(X + cut_id).to(tl.float32)
        give(cut_id, line, ROWS, FLAGS, LAST, OUT)
