"""Which texts a sampled run may become: a spec and a vocabulary in, token masks out.

The register of the engines that hold grammars.  They never differ in language, only in cost: whatever has a syntax
tree reaches each of them as that tree.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.errors import BadGrammar, ParameterError
from nbsgl.protocol import GrammarSpec

if TYPE_CHECKING:
    from nbsgl.engine.grammar.syntax import NotRegular, Syntax

__all__ = [
    "CompiledGrammar",
    "Engine",
    "GrammarSpec",
    "HandOver",
    "Matcher",
    "PackingEngine",
    "TokenVocab",
    "check",
    "compile",
    "engine_class",
    "register_grammar",
]


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


class HandOver(Exception):
    """An engine cannot hold this grammar though it is one; the message is the limit that was met."""


class Engine(Protocol):
    """One way to hold grammars, for one vocabulary."""

    def __init__(self, vocab: TokenVocab) -> None: ...

    @staticmethod
    def source_of(spec: GrammarSpec, tree: Syntax | NotRegular) -> str:
        """The spec in this engine's words; raises what it refuses, `Unsupported` if a package is missing."""

    @staticmethod
    def probe(spec: GrammarSpec, source: str) -> None:
        """Do what may take too long, or end the process, in a compile: called in a helper, before `compile`."""

    def compile(self, spec: GrammarSpec, source: str, notes: tuple[str, ...]) -> CompiledGrammar:
        """Raises `BadGrammar`, `GrammarTooExpensive`, or `HandOver`.  `notes` are the grammar's `loosened`."""


@runtime_checkable
class PackingEngine(Engine, Protocol):
    """An engine whose grammars are bytes: they are compiled in a helper and sent over.  `compile` does both."""

    def pack(self, spec: GrammarSpec, source: str) -> bytes | bytearray:
        """Compile; raises what `compile` does."""

    def unpack(self, spec: GrammarSpec, data: bytes | bytearray, notes: tuple[str, ...]) -> CompiledGrammar:
        """The grammar from its bytes, soon; it may keep them."""


MODULES = {"fsm": "fsm_engine", "llguidance": "host", "xgrammar": "xgrammar", "outlines": "outlines"}
_engines: dict[str, Callable[[], type[Engine]]] = {}


def register_grammar(name: str) -> Callable[[Callable[[], type[Engine]]], Callable[[], type[Engine]]]:
    """Decorator of a function that gives the engine's class, importing what it needs."""

    def add(give: Callable[[], type[Engine]]) -> Callable[[], type[Engine]]:
        _engines[name] = give
        return give

    return add


def engine_class(name: str) -> type[Engine]:
    """The engine of that name; `ParameterError` naming those there are."""
    if name not in _engines and name in MODULES:
        importlib.import_module(f"{__name__}.{MODULES[name]}")
    if name not in _engines:
        known = " | ".join(["'auto'", *(repr(one) for one in sorted(MODULES.keys() | _engines.keys()))])
        raise ParameterError(name="engine", value=name, allowed=known)
    return _engines[name]()


def refuse_irregular(spec: GrammarSpec, tree: Syntax | NotRegular) -> Syntax:
    """The tree; `BadGrammar` if there is none, for engines that hold nothing else."""
    from nbsgl.engine.grammar.syntax import NotRegular

    if isinstance(tree, NotRegular):
        raise BadGrammar(
            kind=spec.kind,
            path="the whole grammar",
            reason=f"engine={spec.engine!r} holds regular languages only, and this is none ({tree.reason})",
            hint="Leave engine out.",
        )
    return tree


def compile(spec: GrammarSpec, vocab: TokenVocab) -> CompiledGrammar:
    """Compile a spec for a vocabulary in this thread, or find it among the vocabulary's last 256.

    `BadGrammar` (`BadRegex` for a pattern) names the place and the reason, also where no output could satisfy the
    spec; `GrammarTooExpensive` names the limit.
    """
    return vocab.grammars.get(spec)


def check(spec: GrammarSpec) -> None:
    """Raise what `compile` would, as far as it is seen in milliseconds and without a vocabulary: for the door.

    Of JSON schemas, of tags and of what is long, only size and form are checked: all else is refused when they are
    compiled, under a helper's clock.
    """
    from nbsgl.engine.grammar.plans import check_at_door

    check_at_door(spec)
