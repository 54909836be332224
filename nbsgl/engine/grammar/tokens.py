"""A byte automaton over a vocabulary: `state = next[state, class_of[token]]`, and the tokens allowed in each state.

Tokens that do the same in every state are one class; states that allow the same tokens share one row of bits.
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
_FUNCTIONS = 2  # times the tables' limit: what the functions of all prefixes may take on the way
_HEADER = struct.Struct("<8s7I28x")  # magic; V, S, C, R, words of a row, and the byte automaton's S, K
_MAGIC, _ALIGNED = b"nbsgl.T1", 64


class Unsatisfiable(Exception):
    """No tokens of the vocabulary spell a text of the language."""


class TooLarge(Exception):
    """The tables would be larger than allowed; the message says which limit."""


@dataclass(frozen=True, eq=False)
class TokenTables:
    """A grammar over a vocabulary of V tokens; do not write to it.

    Token states: 0 DEAD, 1 DONE (EOS was taken), 2 START.  EOS leads to DONE from where the language may end, and from
    DONE itself.  Ids past the vocabulary are in no table: they are never allowed.
    """

    class_of: NDArray[np.uint16]  # [V]; class 0: allowed nowhere
    next: NDArray[np.uint16]  # [S, C]
    row_of: NDArray[np.uint16]  # [S]
    rows: NDArray[np.uint32]  # [R, ceil(V / 32)], bit t % 32 of word t // 32 is token t
    dist: NDArray[np.uint16]  # [S], fewest tokens to where the language may end, EOS not counted
    accepting: NDArray[np.bool_]  # [S]
    byte_state: NDArray[np.int32]  # [S], the state of `dfa`; -1 for DEAD and DONE
    dfa: ByteDfa

    @property
    def nbytes(self) -> int:
        """Of the tables, without the byte automaton."""
        return sum(array.nbytes for array in self._arrays()[: len(fields(self)) - 1])

    def _arrays(self) -> list[NDArray[Any]]:
        own = [getattr(self, field.name) for field in fields(self) if field.name != "dfa"]
        return [*own, self.dfa.next, self.dfa.byte_class, self.dfa.accepting]

    def to_bytes(self) -> bytearray:
        """One buffer with everything, for another process."""
        sizes = (*self.class_of.shape, *self.next.shape, *self.rows.shape, *self.dfa.next.shape)
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
        return cls(*arrays[:-3], dfa=ByteDfa(*arrays[-3:]))


def _layout(
    vocab: int, states: int, classes: int, rows: int, words: int, byte_states: int, byte_classes: int
) -> tuple[list[tuple[int, type[np.generic], tuple[int, ...]]], int]:
    """(begin, dtype, shape) of each array of a buffer, and the buffer's size."""
    arrays: list[tuple[type[np.generic], tuple[int, ...]]] = [
        *((np.uint16, (vocab,)), (np.uint16, (states, classes)), (np.uint16, (states,)), (np.uint32, (rows, words))),
        *((np.uint16, (states,)), (np.bool_, (states,)), (np.int32, (states,))),
        *((np.int32, (byte_states, byte_classes)), (np.uint8, (256,)), (np.bool_, (byte_states,))),
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
    ended.  O(nodes of the vocabulary's tree + functions x states + states^2 bytes + rows x V).
    """
    functions, function_of = _functions(dfa, vocab, max_bytes)
    dist = _distances(functions, dfa.accepting)
    if dist[1] > FAR:
        raise Unsatisfiable("no tokens of the vocabulary spell a text of the language")
    others = _reachable(functions, alive=dist <= FAR)
    others[:2] = False
    kept = np.concatenate([[1], np.flatnonzero(others)])  # START, then the rest
    columns, class_of_function = _columns(functions, kept)
    accepting = np.concatenate([[False, True], dfa.accepting[kept]])
    nexts = _with_eos(columns, accepting, bool(vocab.eos_ids))
    masks, row_of = _distinct(np.packbits(nexts != DEAD, axis=1))
    _check_size(nexts, len(masks), len(vocab), max_bytes)
    class_of = class_of_function.take(function_of).astype(np.uint16)
    class_of[list(vocab.eos_ids)] = nexts.shape[1] - 1
    return TokenTables(
        class_of=class_of,
        next=nexts,
        row_of=row_of.astype(np.uint16),
        rows=expand(np.unpackbits(masks, axis=1, count=nexts.shape[1]).view(np.bool_), class_of),
        dist=np.concatenate([[FAR, 0], dist[kept]]).astype(np.uint16),
        accepting=accepting,
        byte_state=np.concatenate([[-1, -1], kept]).astype(np.int32),
        dfa=dfa,
    )


def _functions(dfa: ByteDfa, vocab: TokenVocab, max_bytes: int) -> tuple[NDArray[np.uint16], Ints]:
    if len(dfa.accepting) >= FAR:
        raise TooLarge(f"{len(dfa.accepting):,} states; the limit is {FAR:,}")
    try:
        return token_functions(dfa, vocab.trie, _FUNCTIONS * max_bytes)
    except TooManyFunctions as error:
        raise TooLarge(f"{error}, for tables of at most {max_bytes:,} bytes") from None


def _distances(functions: NDArray[np.uint16], accepting: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Fewest tokens to an accepting state, FAR + 1 where none leads there.  O(S^2) bytes."""
    size = functions.shape[1]
    flat = functions.reshape(-1)
    leading = np.flatnonzero(flat)
    edges = np.zeros((size, size), np.bool_)  # at (to, from): whether some token leads so; nothing leads to DEAD
    edges[flat[leading], leading % size] = True
    dist = np.full(size, FAR + 1, np.int32)
    frontier, steps = np.flatnonzero(accepting), 0
    while len(frontier):
        dist[frontier] = steps
        steps += 1
        frontier = np.flatnonzero(edges[frontier].any(0) & (dist > FAR))
    return dist


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
    """The functions between the states kept, numbered anew, without doubles, DEAD's first; and each function's own."""
    number = np.zeros(functions.shape[1], np.uint16)
    number[kept] = np.arange(START, START + len(kept))
    return _distinct(number[functions[:, kept]], first=np.zeros(len(kept), np.uint16))


def _distinct(lines: NDArray[Any], first: NDArray[Any] | None = None) -> tuple[NDArray[Any], Ints]:
    """The distinct lines in order of appearance (`first` before all), and which one each line is."""
    numbers = {} if first is None else {first.tobytes(): 0}
    of_line = np.array([numbers.setdefault(line.tobytes(), len(numbers)) for line in lines], np.intp)
    data = np.frombuffer(b"".join(numbers), lines.dtype)
    return data.reshape(len(numbers), lines.shape[1]), of_line


def _with_eos(columns: NDArray[np.uint16], accepting: NDArray[np.bool_], has_eos: bool) -> NDArray[np.uint16]:
    """`next` from its columns by class: lines for DEAD and DONE, and EOS as the last class if there is one."""
    nexts = np.zeros((len(accepting), len(columns) + has_eos), np.uint16)
    nexts[START:, : len(columns)] = columns.T
    if has_eos:
        nexts[:, -1] = accepting * DONE
    return nexts


def _check_size(nexts: NDArray[np.uint16], rows: int, vocab: int, max_bytes: int) -> None:
    states, classes = nexts.shape
    size = nexts.nbytes + rows * -(-vocab // 32) * 4 + 2 * vocab + 9 * states
    if size > max_bytes or classes > FAR:
        raise TooLarge(
            f"{size:,} bytes of tables ({states:,} states, {classes:,} classes of tokens, {rows:,} rows); "
            f"the limit is {max_bytes:,}"
        )
