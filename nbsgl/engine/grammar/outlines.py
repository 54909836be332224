"""Grammars held by outlines-core: an optional engine, by name only (`engine="outlines"`, extra `outlines`).

It is given our tree printed as a regex.  Its index has faults of its own, which is why it is never chosen by itself:
measured with 0.2.14, ways out of places where a text may end are missing (`a|ab` does not take "ab"), and so are tokens
that end inside a character there.  So its masks are narrower than the language; what it writes is in the language.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar import masks, refuse_irregular, register_grammar
from nbsgl.engine.grammar.fsm_engine import unsatisfiable
from nbsgl.engine.grammar.masks import Words
from nbsgl.engine.grammar.optional import package, require
from nbsgl.engine.grammar.rust import NotPrintable, to_rust
from nbsgl.engine.grammar.syntax import NOTHING, NotRegular, Syntax
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.errors import BadGrammar
from nbsgl.protocol import GrammarSpec


class OutlinesEngine:
    """See `grammar.Engine`."""

    def __init__(self, vocab: TokenVocab) -> None:
        self.vocab = vocab

    @cached_property
    def vocabulary(self) -> Any:
        """Made at first need.  The library knows one EOS; all others are ours."""
        ids: dict[bytes, list[int]] = {}
        for token, data in enumerate(self.vocab.tokens):
            if data:
                ids.setdefault(data, []).append(token)
        return package("outlines").Vocabulary((self.vocab.eos_ids or (len(self.vocab),))[0], ids)

    @staticmethod
    def source_of(spec: GrammarSpec, tree: Syntax | NotRegular) -> str:
        require("outlines")
        found = refuse_irregular(spec, tree)
        if found == NOTHING:
            raise unsatisfiable(spec)
        try:
            return to_rust(found)
        except NotPrintable as error:
            raise BadGrammar(
                kind=spec.kind,
                path="the whole grammar",
                reason=f"engine='outlines' cannot hold it: {error}",
                hint="Leave engine out.",
            ) from None

    @staticmethod
    def probe(spec: GrammarSpec, source: str) -> None:
        """Nothing: all of its compile runs in a helper."""

    def compile(self, spec: GrammarSpec, source: str, notes: tuple[str, ...]) -> CompiledOutlines:
        return CompiledOutlines(spec, self.vocab, self.index(spec, source), notes)

    def pack(self, spec: GrammarSpec, source: str) -> bytes:
        _, (data,) = self.index(spec, source).__reduce__()
        return bytes(data)

    def unpack(self, spec: GrammarSpec, data: bytes | bytearray, notes: tuple[str, ...]) -> CompiledOutlines:
        return CompiledOutlines(spec, self.vocab, package("outlines").Index.from_binary(bytes(data)), notes)

    def index(self, spec: GrammarSpec, source: str) -> Any:
        """The library's automaton over tokens.  Its time has no bound: minutes for `\\w{1,500}`."""
        try:
            return package("outlines").Index(source, self.vocabulary)
        except ValueError as error:
            raise BadGrammar(kind=spec.kind, path="the grammar", reason=str(error)[:300]) from None


class CompiledOutlines:
    """One spec for one vocabulary; shared by all sequences that use it."""

    engine = "outlines"
    num_states = None
    table_bytes = 0

    def __init__(self, spec: GrammarSpec, vocab: TokenVocab, index: Any, loosened: tuple[str, ...] = ()) -> None:
        self.spec, self.vocab, self.index, self.loosened = spec, vocab, index, loosened
        self._words: dict[int, Words] = {}

    @cached_property
    def eos_words(self) -> Words:
        return masks.packed(len(self.vocab), self.vocab.eos_ids)

    def words(self, state: int) -> Words:
        """The mask of a state, made when it is first met; do not write to it."""
        if state not in self._words:
            bits = np.zeros((len(self.vocab) + 31) // 32 * 32, np.bool_)
            allowed = np.array(self.index.get_allowed_tokens(state), np.intp)
            bits[allowed[allowed < len(self.vocab)]] = True
            bits[list(self.vocab.eos_ids)] = self.index.is_final_state(state)
            self._words[state] = np.packbits(bits, bitorder="little").view(np.uint32)
        return self._words[state]

    def matcher(self) -> OutlinesMatcher:
        """A new sequence's place, at the start of the language."""
        return OutlinesMatcher(self, [self.index.get_initial_state()])


class OutlinesMatcher:
    """One sequence's place in a grammar: the states it went through.  None stands for an EOS."""

    def __init__(self, grammar: CompiledOutlines, states: list[int | None]) -> None:
        self.grammar, self._states = grammar, states

    def words(self) -> Words:
        state = self._states[-1]
        return self.grammar.eos_words if state is None else self.grammar.words(state)

    def fill_mask(self, row: NDArray[Any]) -> None:
        """Write the mask into a row of 32-bit words; words past the vocabulary become 0.

        `GrammarError` where nothing is allowed.
        """
        words = self.words()
        if not words.any() and not self.is_accepting():
            raise masks.dead_end(self.grammar.spec)
        masks.write(words, row, len(self.grammar.vocab))

    def advance(self, token: int) -> bool:
        """Take a token; False, and nothing changes, when it is not allowed."""
        state, vocab = self._states[-1], self.grammar.vocab
        if token in vocab.eos_ids:
            if self.is_accepting():
                self._states.append(None)
            return self._states[-1] is None
        if state is None or not 0 <= token < len(vocab) or not vocab.tokens[token]:
            return False
        behind = self.grammar.index.get_next_state(state, token)
        if behind is not None:
            self._states.append(behind)
        return behind is not None

    def is_accepting(self) -> bool:
        state = self._states[-1]
        return state is None or bool(self.grammar.index.is_final_state(state))

    def is_finished(self) -> bool:
        """The place accepts and nothing but EOS is allowed."""
        return self.is_accepting() and not (self.words() & ~self.grammar.eos_words).any()

    def forced_bytes(self) -> bytes:
        """Nothing: the library does not tell."""
        return b""

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens; more than were taken is a ValueError."""
        if not 0 <= num_tokens < len(self._states):
            raise ValueError(f"cannot take back {num_tokens} tokens of {len(self._states) - 1}")
        del self._states[len(self._states) - num_tokens :]

    def fork(self) -> OutlinesMatcher:
        """An independent copy of the place."""
        return OutlinesMatcher(self.grammar, self._states[:])


@register_grammar("outlines")
def _give() -> type[OutlinesEngine]:
    return OutlinesEngine
