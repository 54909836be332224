"""Grammars for the oracle, by the spec's text.

"12": at most 12 tokens out of the first eight; every third place accepts.  "ca?bb": these letters, where ? is any of
the first eight; all but ? is forced.  "bad" does not compile.

Tests lean on the EOS rule (allowed where a place accepts), on the end (`is_finished`), on text that is forced, and on
tables being another road to the same language: the device of the oracle steps through them by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

EOS = 19
FIRST = 2  # the state of place 0; as in real tables, 0 is dead and 1 is behind EOS


class ToyEncoder:
    """The longest token first, from left to right.  Tests lean on that it never looks back."""

    def __init__(self, vocab: Sequence[bytes | None]) -> None:
        self._pieces = sorted(((p.decode("latin-1"), i) for i, p in enumerate(vocab) if p), key=lambda p: -len(p[0]))

    def __call__(self, text: str) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            known = ((piece, i) for piece, i in self._pieces if text.startswith(piece, at))
            piece, token = next(known, (text[at], EOS))
            ids.append(token)
            at += len(piece)
        return ids

    def sure_len(self, text: str) -> int:
        """All but what may begin a longer token."""
        longer = (n for n in (2, 1) if any(p.startswith(text[-n:]) and len(p) > n for p, _ in self._pieces))
        return len(text) - next(longer, 0)


class ToyTables:
    """The language by states: place + FIRST."""

    def __init__(self, text: str, vocab: Sequence[bytes | None]) -> None:
        self.text, self.vocab = text, vocab
        self.size = int(text) if text.isdigit() else len(text)

    def allowed(self, state: int) -> set[int]:
        """Token ids; EOS where the place accepts."""
        found = {token for token in range(EOS) if self.after(state, token)} if state >= FIRST else set()
        return found | {EOS} if self.is_accepting(state) else found

    def after(self, state: int, token: int) -> int:
        """0 if the token is not allowed."""
        place = state - FIRST
        if token == EOS:
            return 1 if self.is_accepting(state) else 0
        if self.text.isdigit():
            return state + 1 if token < 8 and place < self.size else 0
        piece = (self.vocab[token] or b"").decode("latin-1")
        wanted = self.text[place : place + len(piece)]
        fits = len(wanted) == len(piece) > 0 and all(w in ("?", c) and c <= "h" for w, c in zip(wanted, piece))
        return state + len(piece) if fits else 0

    def is_accepting(self, state: int) -> bool:
        place = state - FIRST
        return state == 1 or place >= self.size or (self.text.isdigit() and place % 3 == 0)


class ToyMatcher:
    def __init__(self, grammar: ToyGrammar, states: list[int]) -> None:
        self.grammar, self._states = grammar, states

    @property
    def state(self) -> int:
        return self._states[-1]

    def allowed(self) -> set[int]:
        return self.grammar.language.allowed(self.state)

    def fill_mask(self, row: Any) -> None:
        row[:] = 0
        for token in self.allowed():
            row[token // 32] |= np.uint32(1 << token % 32)

    def advance(self, token: int) -> bool:
        state = 0 if token == EOS else self.grammar.language.after(self.state, token)
        if state:
            self._states.append(state)
        return bool(state)

    def is_accepting(self) -> bool:
        return self.grammar.language.is_accepting(self.state)

    def is_finished(self) -> bool:
        return self.state - FIRST >= self.grammar.language.size

    def distance(self) -> int:
        language, states, steps = self.grammar.language, {self.state}, 0
        while states and not any(map(language.is_accepting, states)):
            states, steps = {language.after(one, token) for one in states for token in language.allowed(one)}, steps + 1
        return steps if states else 65_535

    def forced_bytes(self) -> bytes:
        return self.grammar.forced_bytes(self.state)

    def states_before(self, num_tokens: int) -> list[int]:
        return self._states[len(self._states) - 1 - num_tokens : -1]

    def rollback(self, num_tokens: int) -> None:
        if num_tokens:
            del self._states[-num_tokens:]

    def fork(self) -> ToyMatcher:
        return ToyMatcher(self.grammar, list(self._states))


class ToyGrammar:
    """Compiled from a spec's text, with tables or without."""

    engine, num_states, table_bytes = "toy", None, 0

    def __init__(self, text: str, vocab: Sequence[bytes | None], *, has_tables: bool = False) -> None:
        if text == "bad":
            raise ValueError("it does not compile")
        self.spec_text, self.language = text, ToyTables(text, vocab)
        self.tables = self.language if has_tables else None

    def matcher(self) -> ToyMatcher:
        return ToyMatcher(self, [FIRST])

    def forced_bytes(self, state: int) -> bytes:
        text = self.spec_text
        return b"" if text.isdigit() else text[state - FIRST :].split("?")[0].encode()


class ToyPending:
    """A compile that takes `delay` looks; with `stands_in` a matcher without tables serves until then."""

    def __init__(
        self, text: str, vocab: Sequence[bytes | None], delay: int, *, stands_in: bool, has_tables: bool
    ) -> None:
        self.text, self.vocab, self.delay = text, vocab, delay
        self.stands_in, self.has_tables = stands_in, has_tables

    def ready(self) -> ToyGrammar | None:
        self.delay -= 1
        return None if self.delay >= 0 else ToyGrammar(self.text, self.vocab, has_tables=self.has_tables)

    def standin(self) -> ToyGrammar | None:
        return ToyGrammar(self.text, self.vocab) if self.stands_in and self.text != "bad" else None
