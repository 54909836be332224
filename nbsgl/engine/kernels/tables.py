"""Grammars in tables on the device (`grammar.arena`): what a state allows, the state behind a token.

The plain draw reads masks and steps states itself.  For all other draws masks are gathered for `edit`, and a launch
behind the draw steps the states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from nbsgl.engine.grammar import arena

if TYPE_CHECKING:
    from nbsgl.engine.kernels.aot import Card, ModelShape, Variant

HEADER, STATE = tl.constexpr(arena.HEADER), tl.constexpr(arena.STATE)
WORDS = 1024  # of a mask at once: 32k tokens
LINES = 128  # stepped by one program


@dataclass(frozen=True, slots=True)
class TableLines:
    """Where lines stand in their grammars.  All int32 on the device.

    `grammars` `[n]`: where the line's grammar begins in `block`, the arena's; -1 for none.  `given` `[n]`: its state,
    or -1 for that of its page-table row in `states`, which each draw brings forward.
    """

    grammars: Tensor
    given: Tensor
    states: Tensor
    block: Tensor


def gather_masks(lines: TableLines, rows: Tensor, chosen: Tensor, begins: Tensor, bans: Tensor, out: Tensor) -> None:
    """out[k] (int32 `[m, ceil(vocab / 32)]`) = the mask of line chosen[k], less its bans if they leave any token.

    `rows` int32 `[n]`: the lines' page-table rows; `chosen` int32 `[m]`, lines with a grammar; `bans` int32: token ids,
    those of the k-th at [begins[k], begins[k + 1]).
    """
    num, num_words = out.shape
    given = (lines.grammars, lines.given, lines.states, lines.block, rows, chosen, begins, bans, out)
    _gather_masks[(num,)](*given, num_words, BLOCK=WORDS, num_warps=4)


def step_states(lines: TableLines, rows: Tensor, tokens: Tensor) -> None:
    """states[rows[i]] = the state behind tokens[i] (int32 `[n]`), for the lines with a grammar; one line a row."""
    num = tokens.shape[0]
    given = (lines.grammars, lines.given, lines.states, lines.block, rows, tokens)
    _step_states[(triton.cdiv(num, LINES),)](*given, num, BLOCK=LINES, num_warps=4)


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    from nbsgl.engine.kernels.aot import Variant

    i32, words = torch.int32, -(-shape.vocab // 32)
    lines = dict.fromkeys(("GRAMMARS", "GIVEN", "STATES", "TABLES", "ROWS"), i32)
    masks = dict.fromkeys(("CHOSEN", "BEGINS", "BANS", "OUT"), i32)
    num_words = "i32" if words % 16 else "i32:16"
    yield Variant(_gather_masks, {**lines, **masks, "num_words": num_words, "BLOCK": WORDS}, 4)
    yield Variant(_step_states, {**lines, "TOKENS": i32, "num": "i32", "BLOCK": LINES}, 4)


# ---- parts ---------------------------------------------------------------------------------------------------------


@triton.jit
def half_at(TABLES, at, is_there):
    """The uint16 at a place that is counted in halves."""
    return (tl.load(TABLES + at // 2, mask=is_there, other=0) >> (at % 2 * 16)) & 0xFFFF


@triton.jit
def state_of(GIVEN, STATES, line, row, is_there):
    """The line's state: as given, or what the last draw of its page-table row has left."""
    given = tl.load(GIVEN + line, mask=is_there, other=0)
    return tl.where(given < 0, tl.load(STATES + row, mask=is_there & (given < 0), other=0), given)


@triton.jit
def words_at(TABLES, grammar, state, is_there):
    """Where in TABLES the mask of a state begins."""
    return grammar + tl.load(TABLES + grammar + HEADER + STATE * state, mask=is_there, other=0)


@triton.jit
def state_behind(TABLES, grammar, state, token, is_there):
    """DEAD behind a token that is not allowed."""
    class_of = tl.load(TABLES + grammar, mask=is_there, other=0)
    place = TABLES + grammar + HEADER + STATE * state
    begin = tl.load(place + 1, mask=is_there, other=0)
    ends = tl.load(place + 2, mask=is_there, other=0)
    token_class = half_at(TABLES, 2 * grammar + class_of + token, is_there)
    is_in = is_there & (token_class >= (ends & 0xFFFF)) & (token_class < ((ends >> 16) & 0xFFFF))
    return half_at(TABLES, 2 * grammar + begin + token_class, is_in)


# ---- kernels -------------------------------------------------------------------------------------------------------

# columns of larger blocks
LINE_ARGS = ["GRAMMARS", "GIVEN", "ROWS", "CHOSEN", "BEGINS", "BANS"]


@triton.jit
def _without_bans(words, at, BANS, begin, end):
    for i in tl.range(begin, end):
        token = tl.load(BANS + i)
        words = tl.where(at == token // 32, words & ~(1 << (token % 32)), words)
    return words


@triton.jit(do_not_specialize_on_alignment=[*LINE_ARGS, "OUT"])
def _gather_masks(
    GRAMMARS, GIVEN, STATES, TABLES, ROWS, CHOSEN, BEGINS, BANS, OUT, num_words, BLOCK: tl.constexpr
):  # fmt: skip
    """One program a mask: whether anything is left without the bans, then the mask."""
    k = tl.program_id(0)
    line = tl.load(CHOSEN + k)
    grammar = tl.load(GRAMMARS + line)
    state = state_of(GIVEN, STATES, line, tl.load(ROWS + line), True)
    words_begin = words_at(TABLES, grammar, state, True)
    first, end = tl.load(BEGINS + k), tl.load(BEGINS + k + 1)
    left = tl.zeros([BLOCK], tl.int32)
    for begin in tl.range(0, num_words, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        words = tl.load(TABLES + words_begin + at, mask=at < num_words, other=0)
        left |= _without_bans(words, at, BANS, first, end)
    end = tl.where(tl.max((left != 0).to(tl.int32), 0) != 0, end, first)
    for begin in tl.range(0, num_words, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        words = tl.load(TABLES + words_begin + at, mask=at < num_words, other=0)
        tl.store(OUT + k * num_words + at, _without_bans(words, at, BANS, first, end), mask=at < num_words)


@triton.jit(do_not_specialize=["num"], do_not_specialize_on_alignment=[*LINE_ARGS, "TOKENS"])
def _step_states(GRAMMARS, GIVEN, STATES, TABLES, ROWS, TOKENS, num, BLOCK: tl.constexpr):
    """One program for BLOCK lines."""
    line = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    grammar = tl.load(GRAMMARS + line, mask=line < num, other=-1)
    is_there = grammar >= 0
    row = tl.load(ROWS + line, mask=is_there, other=0)
    token = tl.load(TOKENS + line, mask=is_there, other=0)
    state = state_of(GIVEN, STATES, line, row, is_there)
    tl.store(STATES + row, state_behind(TABLES, grammar, state, token, is_there), mask=is_there)
