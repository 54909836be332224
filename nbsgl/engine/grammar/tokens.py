"""A byte automaton over a vocabulary: the state behind each state and token, and the tokens allowed in each state.

Tokens that do the same in every state are one class.  Of a state's classes only those are kept between the first and
the last that it allows (its window): most states allow few.  States that allow the same tokens share one row of bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar.byte_functions import TooManyFunctions, token_functions
from nbsgl.engine.grammar.dfa import ByteDfa
from nbsgl.engine.grammar.mask_rows import expand
from nbsgl.engine.grammar.trie import Ints
from nbsgl.engine.grammar.vocab import TokenVocab

DEAD, DONE, START = 0, 1, 2
FAR = 0xFFFF  # of `dist`: so many tokens or more, and DEAD's
MAX_BYTES = 16 << 20
_FUNCTIONS = 4  # times the tables' limit: what the functions of all prefixes may take on the way, without windows
_HEADER = struct.Struct("<8s6I32x")  # magic; V, N, S, R, words of a row, B
_MAGIC, _ALIGNED = b"nbsgl.T2", 64


class Unsatisfiable(Exception):
    """No tokens of the vocabulary spell a text of the language."""


class TooLarge(Exception):
    """The tables would be larger than allowed; the message says which limit."""


@dataclass(frozen=True, eq=False)
class TokenTables:
    """A grammar over a vocabulary of V tokens; do not write to it.

    Token states: 0 DEAD, 1 DONE (EOS was taken), 2 START.  EOS leads to DONE from where the language may end, and from
    DONE itself.  Ids past the vocabulary are in no table: they are never allowed.

    Behind state s and class c is next[begin[s] + c - low[s]] if low[s] <= c < high[s], else DEAD.
    """

    class_of: NDArray[np.uint16]  # [V]; class 0: allowed nowhere; EOS has the last one to itself
    next: NDArray[np.uint16]  # [N], the states' windows one after the other
    begin: NDArray[np.uint32]  # [S], of the window in `next`
    low: NDArray[np.uint16]  # [S], the first class allowed
    high: NDArray[np.uint16]  # [S], the last one + 1; low where there is none
    row_of: NDArray[np.uint16]  # [S]
    rows: NDArray[np.uint32]  # [R, ceil(V / 32)], bit t % 32 of word t // 32 is token t
    dist: NDArray[np.uint16]  # [S], fewest tokens to where the language may end, EOS not counted
    accepting: NDArray[np.bool_]  # [S]
    byte_state: NDArray[np.int32]  # [S], the state of the byte automaton, of B states; -1 for DEAD and DONE
    forced_byte: NDArray[np.int16]  # [B], the only byte that leads on; -1 if there are more, or the text may end
    forced_next: NDArray[np.uint16]  # [B], the byte automaton's state behind it

    @property
    def num_states(self) -> int:
        return len(self.begin)

    @property
    def num_classes(self) -> int:
        """O(V)."""
        return int(self.class_of.max(initial=0)) + 1

    def behind(self, state: int, token: int) -> int:
        """The state behind a token of the vocabulary; DEAD if it is not allowed."""
        low, token_class = int(self.low[state]), int(self.class_of[token])
        if not low <= token_class < self.high[state]:
            return DEAD
        return int(self.next[int(self.begin[state]) + token_class - low])

    def next_of(self, state: int) -> NDArray[np.uint16]:
        """[C], the states behind all classes."""
        behind = np.zeros(self.num_classes, np.uint16)
        begin, low, high = int(self.begin[state]), int(self.low[state]), int(self.high[state])
        behind[low:high] = self.next[begin : begin + high - low]
        return behind

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays())

    def _arrays(self) -> list[NDArray[Any]]:
        return [getattr(self, field.name) for field in fields(self)]

    def to_bytes(self) -> bytearray:
        """One buffer with everything, for another process."""
        sizes = (len(self.class_of), len(self.next), self.num_states, *self.rows.shape, len(self.forced_byte))
        places, total = _layout(*sizes)
        buffer = bytearray(total)
        _HEADER.pack_into(buffer, 0, _MAGIC, *sizes)
        for array, (begin, dtype, shape) in zip(self._arrays(), places, strict=True):
            np.frombuffer(buffer, dtype, array.size, begin).reshape(shape)[...] = array
        return buffer

    @classmethod
    def from_bytes(cls, buffer: Any) -> TokenTables:
        """Views into a buffer that `to_bytes` made, and which must not change; `ValueError` for any other."""
        view = memoryview(buffer).cast("B").toreadonly()
        if len(view) < _HEADER.size or bytes(view[:8]) != _MAGIC:
            raise ValueError(f"{len(view):,} bytes that are no token tables")
        places, total = _layout(*_HEADER.unpack_from(view)[1:])
        if len(view) != total:
            raise ValueError(f"token tables of {len(view):,} bytes; their header says {total:,}")
        arrays = [
            np.frombuffer(view, dtype, int(np.prod(shape)), begin).reshape(shape) for begin, dtype, shape in places
        ]
        return cls(*arrays)


def _layout(
    vocab: int, nexts: int, states: int, rows: int, words: int, byte_states: int
) -> tuple[list[tuple[int, type[np.generic], tuple[int, ...]]], int]:
    """(begin, dtype, shape) of each array of a buffer, and the buffer's size."""
    arrays: list[tuple[type[np.generic], tuple[int, ...]]] = [
        *((np.uint16, (vocab,)), (np.uint16, (nexts,))),
        *((np.uint32, (states,)), (np.uint16, (states,)), (np.uint16, (states,))),
        *((np.uint16, (states,)), (np.uint32, (rows, words))),
        *((np.uint16, (states,)), (np.bool_, (states,)), (np.int32, (states,))),
        *((np.int16, (byte_states,)), (np.uint16, (byte_states,))),
    ]
    places, end = [], _HEADER.size
    for dtype, shape in arrays:
        begin = -(-end // _ALIGNED) * _ALIGNED
        places.append((begin, dtype, shape))
        end = begin + np.dtype(dtype).itemsize * int(np.prod(shape))
    return places, end


# ---- building --------------------------------------------------------------------------------------------------------


def build_tables(dfa: ByteDfa, vocab: TokenVocab, max_bytes: int = MAX_BYTES) -> TokenTables:
    """The tables of an automaton for a vocabulary; `Unsatisfiable`, or `TooLarge` if they take more than `max_bytes`.

    States from which no tokens lead to the end, and states no tokens lead to, are left out: whatever is allowed can be
    ended.  O(nodes of the vocabulary's tree + functions x states + states^2 bits + rows x V).
    """
    functions, function_of = _functions(dfa, vocab, max_bytes)
    dist = _distances(functions, dfa.accepting)
    if dist[1] > FAR:
        raise Unsatisfiable("no tokens of the vocabulary spell a text of the language")
    others = _reachable(functions, alive=dist <= FAR)
    others[:2] = False
    kept = np.concatenate([[1], np.flatnonzero(others)])  # START, then the rest
    accepting = np.concatenate([[False, True], dfa.accepting[kept]])
    columns, class_of_function = _columns(functions, kept)
    if vocab.eos_ids:
        columns = np.concatenate([columns, [accepting * np.uint16(DONE)]])
    masks, row_of = _distinct(np.packbits(columns != DEAD, axis=0).T)
    allowed = np.unpackbits(masks, axis=1, count=len(columns)).view(np.bool_)
    low, high = (ends[row_of] for ends in _windows(allowed))
    _check_size(int((high - low).sum()), allowed, len(vocab), (len(row_of), dfa.num_states), max_bytes)
    class_of = class_of_function.take(function_of).astype(np.uint16)
    class_of[list(vocab.eos_ids)] = len(columns) - 1
    forced_byte, forced_next = _forced(dfa)
    return TokenTables(
        class_of=class_of,
        next=_within(columns, low, high),
        begin=_begins(high - low).astype(np.uint32),
        low=low.astype(np.uint16),
        high=high.astype(np.uint16),
        row_of=row_of.astype(np.uint16),
        rows=expand(allowed, class_of),
        dist=np.concatenate([[FAR, 0], dist[kept]]).astype(np.uint16),
        accepting=accepting,
        byte_state=np.concatenate([[-1, -1], kept]).astype(np.int32),
        forced_byte=forced_byte,
        forced_next=forced_next,
    )


def _functions(dfa: ByteDfa, vocab: TokenVocab, max_bytes: int) -> tuple[NDArray[np.uint16], Ints]:
    if len(dfa.accepting) >= FAR:
        raise TooLarge(f"{len(dfa.accepting):,} states; the limit is {FAR:,}")
    try:
        return token_functions(dfa, vocab.trie, _FUNCTIONS * max_bytes)
    except TooManyFunctions as error:
        raise TooLarge(f"{error}, for tables of at most {max_bytes:,} bytes") from None


def _distances(functions: NDArray[np.uint16], accepting: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Fewest tokens to an accepting state, FAR + 1 where none leads there."""
    size = functions.shape[1]
    edges = _edges(functions)
    dist = np.full(size, FAR + 1, np.int32)
    frontier, steps = np.flatnonzero(accepting), 0
    while len(frontier):
        dist[frontier] = steps
        steps += 1
        before = np.unpackbits(np.bitwise_or.reduce(edges[frontier], axis=0), count=size, bitorder="little")
        frontier = np.flatnonzero(before.view(np.bool_) & (dist > FAR))
    return dist


def _edges(functions: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """[S, ceil(S / 8)]: at (to, from // 8) the bit from % 8, whether some token leads so; nothing leads to DEAD."""
    size = functions.shape[1]
    edges = np.zeros((size, -(-size // 8)), np.uint8)
    for bit in range(min(8, size)):  # states with this bit: the same byte twice is the same bit twice
        targets = np.ascontiguousarray(functions[:, bit::8])
        leading = np.flatnonzero(targets)
        place = targets.reshape(-1)[leading].astype(np.intp)
        place *= edges.shape[1]
        place += leading % targets.shape[1]
        edges.reshape(-1)[place] |= np.uint8(1 << bit)
    return edges


def _reachable(functions: NDArray[np.uint16], alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which states some tokens lead to from the start, through states alive; the start itself included."""
    reached = np.zeros(functions.shape[1], np.bool_)
    reached[1] = True
    frontier = np.array([1], np.intp)
    while len(frontier):
        behind = np.zeros_like(reached)
        behind[functions.take(frontier, axis=1)] = True
        frontier = np.flatnonzero(behind & alive & ~reached)
        reached[frontier] = True
    return reached


def _columns(functions: NDArray[np.uint16], kept: Ints) -> tuple[NDArray[np.uint16], Ints]:
    """[C, S]: the functions between DEAD, DONE and the states kept, numbered anew, without doubles, DEAD's first; and
    each function's own."""
    number = np.zeros(functions.shape[1], np.uint16)
    number[kept] = np.arange(START, START + len(kept))
    columns = number[functions[:, np.concatenate([[DEAD, DEAD], kept])]]  # no token leads on from DONE
    return _distinct(columns, first=np.zeros(columns.shape[1], np.uint16))


def _distinct(lines: NDArray[Any], first: NDArray[Any] | None = None) -> tuple[NDArray[Any], Ints]:
    """The distinct lines in order of appearance (`first` before all), and which one each line is."""
    numbers = {} if first is None else {first.tobytes(): 0}
    of_line = np.array([numbers.setdefault(line.tobytes(), len(numbers)) for line in lines], np.intp)
    data = np.frombuffer(b"".join(numbers), lines.dtype)
    return data.reshape(len(numbers), lines.shape[1]), of_line


def _windows(allowed: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Of each line the first place that is allowed and the last one + 1; 0 and 0 where there is none."""
    low = allowed.argmax(1)
    high = np.where(allowed.any(1), allowed.shape[1] - allowed[:, ::-1].argmax(1), 0)
    return low, high


def _within(columns: NDArray[np.uint16], low: Ints, high: Ints) -> NDArray[np.uint16]:
    """The entries [low, high) of each state, from the columns `[C, S]`."""
    width = high - low
    place = np.repeat(low - _begins(width), width)
    place += np.arange(len(place))  # the class
    place *= columns.shape[1]
    place += np.repeat(np.arange(len(width)), width)
    return columns.reshape(-1).take(place)


def _begins(width: Ints) -> Ints:
    return np.cumsum(width) - width


def _forced(dfa: ByteDfa) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Of each state the only byte that leads on, or -1, also where the text may end; and the state behind it."""
    of_class = np.full(dfa.next.shape[1], -1, np.int16)  # the only byte of each class, or -1
    byte, num = np.unique(dfa.byte_class, return_index=True, return_counts=True)[1:]
    of_class[dfa.byte_class[byte]] = np.where(num == 1, byte, -1)
    onward = dfa.next != 0
    only = np.where((onward.sum(1) == 1) & ~dfa.accepting, onward.argmax(1), -1)
    forced = np.where(only >= 0, of_class[only], -1).astype(np.int16)
    return forced, np.where(forced >= 0, dfa.next[np.arange(len(only)), only], 0).astype(np.uint16)


def _check_size(
    nexts: int, allowed: NDArray[np.bool_], vocab: int, num_states: tuple[int, int], max_bytes: int
) -> None:
    """`num_states`: of the tables, and of the byte automaton."""
    rows, classes = allowed.shape
    states, byte_states = num_states
    size = 2 * nexts + rows * -(-vocab // 32) * 4 + 2 * vocab + 17 * states + 4 * byte_states
    if size > max_bytes or classes > FAR:
        raise TooLarge(
            f"{size:,} bytes of tables ({states:,} states, {classes:,} classes of tokens, {rows:,} rows); "
            f"the limit is {max_bytes:,}"
        )
