"""A grammar behind a mark that must come in time: at the limit the mark is written, whatever the model would say.

Without a limit "any text, the mark, the grammar" is one language (`tags.tree_after`), and tables hold it.  With one, a
matcher on the host counts: it walks that language, and when the limit is there and the mark is not, its mask leaves
only the tokens that spell the mark on.  The outputs are those of the language in which the mark comes in time.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar import CompiledGrammar, Matcher
from nbsgl.engine.grammar.vocab import TokenVocab

Place = tuple[int, int, int]
"""Bytes of the prefix that are still to come, bytes of the mark that end the text, bytes missing of a character."""


def limited(compiled: CompiledGrammar, vocab: TokenVocab) -> CompiledGrammar:
    """The same with the limit of its spec, if that has one and it is not there yet."""
    if compiled.spec.max_think_tokens is None or isinstance(compiled, Limited):
        return compiled
    return Limited(compiled, vocab)


class Limited:
    """A compiled grammar behind a mark, with the limit of its spec.  Shared by all sequences that use it."""

    tables = None

    def __init__(self, inner: CompiledGrammar, vocab: TokenVocab) -> None:
        """`inner` is the language without the limit that its spec has."""
        spec = inner.spec
        assert spec.max_think_tokens is not None
        self.inner, self.spec, self.vocab = inner, spec, vocab
        self.engine, self.num_states, self.table_bytes = inner.engine, inner.num_states, inner.table_bytes
        self.num_classes = getattr(inner, "num_classes", 0)
        self.loosened = getattr(inner, "loosened", ())
        self.limit = spec.max_think_tokens
        self.mark = spec.after.encode()
        self.prefix_len = len(spec.prefix.encode())
        self.back = _borders(self.mark)
        self._spelling: dict[int, NDArray[np.uint32]] = {}  # by how much of the mark is there

    def matcher(self) -> LimitedMatcher:
        """A new sequence's place, at the start of the language."""
        return LimitedMatcher(self, self.inner.matcher())

    def follow(self, place: Place, data: bytes) -> Place:
        """The place behind some bytes; those behind the mark do not count."""
        prefix, known, missing = place
        for byte in data:
            if known == len(self.mark):
                break
            if prefix:
                prefix -= 1
                continue
            while known and byte != self.mark[known]:
                known = self.back[known]
            known += byte == self.mark[known]
            missing = missing - 1 if missing else _following(byte)
        return prefix, known, missing

    def spelling(self, known: int) -> NDArray[np.uint32]:
        """The tokens that go on with the mark and no further, as packed bits."""
        if known not in self._spelling:
            rest = self.mark[known:]
            ends = [rest[:length] for length in range(1, len(rest) + 1)]
            self._spelling[known] = _packed([self._pieces.get(end, ()) for end in ends], len(self.vocab))
        return self._spelling[known]

    @cached_property
    def tails(self) -> NDArray[np.uint32]:
        """The tokens of nothing but bytes that go on with a character."""
        tokens = enumerate(self.vocab.tokens)
        found = [i for i, data in tokens if data and len(data) <= 3 and all(0x80 <= byte < 0xC0 for byte in data)]
        return _packed([found], len(self.vocab))

    @cached_property
    def _pieces(self) -> dict[bytes, list[int]]:
        """The tokens that are part of the mark, by their bytes."""
        found: dict[bytes, list[int]] = {}
        for token, data in enumerate(self.vocab.tokens):
            if data and data in self.mark:
                found.setdefault(data, []).append(token)
        return found


class LimitedMatcher:
    """One sequence's place: that in the whole language, and how far the mark is."""

    def __init__(self, grammar: Limited, inner: Matcher) -> None:
        self.grammar, self.inner = grammar, inner
        self.place: Place = (grammar.prefix_len, 0, 0)
        self._before: list[Place] = []  # before each token, as long as the mark was not there
        self._num_behind = 0  # tokens behind the one that completed the mark

    @property
    def has_mark(self) -> bool:
        return self.place[1] == len(self.grammar.mark)

    @property
    def is_forced(self) -> bool:
        """The limit is there and the mark is not; text that was to be healed comes first."""
        prefix, known, _ = self.place
        return known < len(self.grammar.mark) and not prefix and len(self._before) >= self.grammar.limit

    @property
    def _may_spell(self) -> bool:
        """The text stands between characters, or in one of the mark's own."""
        _, known, missing = self.place
        return known > 0 or not missing

    def fill_mask(self, row: NDArray[Any]) -> None:
        """Write the tokens allowed next as packed 32-bit words; words past the vocabulary become 0."""
        self.inner.fill_mask(row)
        if not self.is_forced:
            return
        words = row.view(np.uint32)
        known = self.place[1]
        only = self.grammar.spelling(known) if self._may_spell else self.grammar.tails
        left = words[: len(only)] & only
        if left.any():  # else the vocabulary cannot end the character by itself: it ends as it can
            words[: len(only)] = left
            words[len(only) :] = 0

    def advance(self, token: int) -> bool:
        """Take a token; False, and nothing changes, when it is not allowed."""
        if self.is_forced and not self._is_allowed(token):
            return False
        if not self.inner.advance(token):
            return False
        if self.has_mark:
            self._num_behind += 1
            return True
        self._before.append(self.place)
        self.place = self.grammar.follow(self.place, self.grammar.vocab.tokens[token] or b"")
        return True

    def _is_allowed(self, token: int) -> bool:
        row = np.zeros((len(self.grammar.vocab) + 31) // 32, np.uint32)
        self.fill_mask(row)
        return 0 <= token < len(self.grammar.vocab) and bool(row[token // 32] >> np.uint32(token % 32) & 1)

    def is_accepting(self) -> bool:
        return self.inner.is_accepting()

    def is_finished(self) -> bool:
        """The place accepts and nothing but EOS is allowed."""
        return self.inner.is_finished()

    def forced_bytes(self) -> bytes:
        """The bytes the language leaves no choice about, from here on."""
        if self.is_forced and self._may_spell:
            return self.grammar.mark[self.place[1] :]
        return self.inner.forced_bytes()

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens; more than were taken is a ValueError."""
        self.inner.rollback(num_tokens)
        behind = min(num_tokens, self._num_behind)
        self._num_behind -= behind
        if num_tokens > behind:
            self.place = self._before[behind - num_tokens]
            del self._before[behind - num_tokens :]

    def fork(self) -> LimitedMatcher:
        """An independent copy of the place."""
        other = LimitedMatcher(self.grammar, self.inner.fork())
        other.place, other._before, other._num_behind = self.place, self._before[:], self._num_behind
        return other


def _borders(mark: bytes) -> list[int]:
    """Of each beginning of the mark, its longest end that begins the mark too (Knuth, Morris and Pratt 1977)."""
    found = [0, 0]
    for end in range(1, len(mark)):
        known = found[end]
        while known and mark[end] != mark[known]:
            known = found[known]
        found.append(known + (mark[end] == mark[known]))
    return found


def _following(byte: int) -> int:
    """How many bytes of its character follow this first one."""
    return 0 if byte < 0xC0 else 1 if byte < 0xE0 else 2 if byte < 0xF0 else 3


def _packed(groups: list[Any], size: int) -> NDArray[np.uint32]:
    words = np.zeros((size + 31) // 32, np.uint32)
    for group in groups:
        for token in group:
            words[token // 32] |= np.uint32(1 << token % 32)
    return words
