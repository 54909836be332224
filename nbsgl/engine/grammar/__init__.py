"""Which texts a sampled run may become: a spec and a vocabulary in, token masks out."""

from __future__ import annotations

from typing import Any, Protocol

from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.protocol import GrammarSpec

__all__ = ["CompiledGrammar", "GrammarSpec", "Matcher", "TokenVocab", "check", "compile"]


class Matcher(Protocol):
    """One sequence's place in a grammar."""

    def fill_mask(self, row: Any) -> None:
        """Write the tokens allowed next as packed 32-bit words (numpy; bit t is token t); EOS iff the place accepts."""

    def advance(self, token: int) -> bool:
        """Take a token; False, and nothing changes, when it is not allowed."""

    def is_accepting(self) -> bool:
        """What was taken so far is in the language."""

    def is_finished(self) -> bool:
        """The place accepts and nothing but EOS is allowed."""

    def forced_bytes(self) -> bytes:
        """The bytes the language leaves no choice about, from here on."""

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens."""

    def fork(self) -> Matcher:
        """An independent copy."""


class CompiledGrammar(Protocol):
    """One spec for one vocabulary, shared by all sequences that use it."""

    @property
    def spec(self) -> GrammarSpec: ...
    @property
    def engine(self) -> str: ...
    @property
    def num_states(self) -> int | None: ...
    @property
    def table_bytes(self) -> int: ...

    def matcher(self) -> Matcher:
        """A new sequence's place, at the start of the language."""


def compile(spec: GrammarSpec, vocab: TokenVocab) -> CompiledGrammar:
    """Compile a spec for a vocabulary, or find it among the vocabulary's last 256.

    `BadGrammar` (`BadRegex` for a pattern) names the place and the reason, also where no output could satisfy the
    spec; `GrammarTooExpensive` names the limit.
    """
    return vocab.grammars.get(spec)


def check(spec: GrammarSpec) -> None:
    """Raise what `compile` would, as far as it needs no vocabulary.  Milliseconds: for the door."""
    from nbsgl.engine.grammar import host

    host.check(spec)
