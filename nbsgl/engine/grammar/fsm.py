"""Grammars in tables, walked on the CPU: a sequence's place is one number."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar.mask_rows import expand
from nbsgl.engine.grammar.tokens import DEAD, DONE, START, TokenTables
from nbsgl.protocol import GrammarSpec

Words = NDArray[np.uint32]


class CompiledFsm:
    """One spec for one vocabulary, shared by all sequences that use it."""

    engine = "fsm"

    def __init__(self, spec: GrammarSpec, tables: TokenTables, loosened: tuple[str, ...] = ()) -> None:
        """`loosened`: what of a schema the language does not hold to."""
        self.spec, self.loosened = spec, loosened
        self.tables = tables
        self.num_states = tables.num_states
        self.table_bytes = tables.nbytes
        # A matcher's few steps a token are look-ups by plain numbers: a memoryview gives one in 40 ns, numpy in 100.
        self.num_classes = tables.num_classes
        self.class_of = memoryview(tables.class_of)
        self.next = memoryview(tables.next)
        low = tables.low.tolist()
        shift = (tables.begin.astype(np.int64) - tables.low).tolist()  # where class 0 would be in `next`
        self.windows: list[tuple[int, int, int]] = list(zip(low, tables.high.tolist(), shift))
        self.accepting: list[bool] = tables.accepting.tolist()
        first = np.append(tables.next, np.uint16(DEAD))[tables.begin]  # behind the first class allowed; EOS is the last
        self.finished: list[bool] = (tables.accepting & ((first <= DONE) | (tables.low == tables.high))).tolist()
        self.dist: list[int] = tables.dist.tolist()
        rows = list(tables.rows)
        self.words: list[Words] = [rows[row] for row in tables.row_of.tolist()]
        self.forced_byte, self.forced_next = memoryview(tables.forced_byte), memoryview(tables.forced_next)
        self.farthest = int(tables.dist[DONE:].max())
        self._forced: dict[int, bytes] = {}  # by state, as asked for

    def matcher(self) -> FsmMatcher:
        """A new sequence's place, at the start of the language."""
        return FsmMatcher(self)

    def forced_bytes(self, state: int) -> bytes:
        """What the language leaves no choice about from a token state on; b"" where it may also end."""
        known = self._forced.get(state)
        if known is None:
            known = self._forced[state] = bytes(self._walk_forced(int(self.tables.byte_state[state])))
        return known

    def _walk_forced(self, place: int) -> Iterator[int]:
        while place > 0 and (byte := self.forced_byte[place]) >= 0:
            yield byte
            place = self.forced_next[place]

    def words_within(self, state: int, limit: int) -> Words:
        """Of the tokens allowed, those behind which at most `limit` - 1 more are needed; EOS if limit > 0."""
        tables = self.tables
        behind = tables.next_of(state)
        near = (behind != DEAD) & (tables.dist[behind] < limit)
        if np.count_nonzero(near) == np.count_nonzero(behind):
            return self.words[state]
        return expand(near[None], tables.class_of)[0]


class FsmMatcher:
    """One sequence's place in a grammar.  Two of them are independent."""

    __slots__ = ("_before", "grammar", "state")

    def __init__(self, grammar: CompiledFsm, state: int = START) -> None:
        self.grammar = grammar
        self.state = state  # of the tables; never DEAD
        self._before = array("H")  # the states before each token taken: 2 bytes a token

    @property
    def tables(self) -> TokenTables:
        return self.grammar.tables

    def words(self) -> Words:
        """The mask as packed bits over the vocabulary: a view of the tables, not to be written to."""
        return self.grammar.words[self.state]

    def fill_mask(self, row: NDArray[Any]) -> None:
        """Write the mask into a row of 32-bit words; words past the vocabulary become 0."""
        words = self.grammar.words[self.state]
        out = row if row.dtype == np.uint32 else row.view(np.uint32)
        size = len(words)
        if len(out) == size:
            out[:] = words
        else:
            out[:size] = words
            out[size:] = 0

    def advance(self, token: int) -> bool:
        """Take a token; False, and nothing changes, when it is not allowed."""
        grammar = self.grammar
        if not 0 <= token < len(grammar.class_of):
            return False
        token_class = grammar.class_of[token]
        low, high, shift = grammar.windows[self.state]
        if not low <= token_class < high:
            return False
        behind = grammar.next[shift + token_class]
        if behind == DEAD:
            return False
        self._before.append(self.state)
        self.state = behind
        return True

    def is_accepting(self) -> bool:
        return self.grammar.accepting[self.state]

    def is_finished(self) -> bool:
        """The place accepts and nothing but EOS is allowed."""
        return self.grammar.finished[self.state]

    def forced_bytes(self) -> bytes:
        """The bytes the language leaves no choice about, from here on; b"" where it may also end."""
        return self.grammar.forced_bytes(self.state)

    def distance(self) -> int:
        """Fewest tokens to where the language may end, EOS not counted; 65,535 stands for that many and more."""
        return self.grammar.dist[self.state]

    def allowed(self, limit: int) -> Words:
        """The mask where at most `limit` tokens are left to draw: only tokens that leave the end within reach.

        Not empty if `distance()` <= limit, and limit > 0 unless nothing but the end is left.  A view of the tables
        where everything is within reach, else made: about 200 us at 128k tokens.
        """
        if limit > self.grammar.farthest:
            return self.words()
        return self.grammar.words_within(self.state, limit)

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens; more than were taken is a ValueError."""
        if not 0 <= num_tokens <= len(self._before):
            raise ValueError(f"cannot take back {num_tokens} tokens of {len(self._before)}")
        if num_tokens:
            self.state = self._before[-num_tokens]
            del self._before[-num_tokens:]

    def states_before(self, num_tokens: int) -> Sequence[int]:
        """The states before each of the last tokens."""
        return self._before[len(self._before) - num_tokens :]

    def fork(self) -> FsmMatcher:
        """An independent copy of the place."""
        other = FsmMatcher(self.grammar, self.state)
        other._before = self._before[:]
        return other
