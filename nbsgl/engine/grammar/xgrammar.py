"""Grammars held by xgrammar: an optional engine, by name only (`engine="xgrammar"`, `pip install "nbsgl[xgrammar]"`).

It is given our tree, or our rules of an EBNF, printed in its own EBNF; never a JSON schema or a pattern, which it would
read in its own way.  Whatever has neither, or an intersection or complement in its tree, it is not given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar import ebnf, masks, register_grammar
from nbsgl.engine.grammar.charset import CharSet
from nbsgl.engine.grammar.deep_stack import with_stack
from nbsgl.engine.grammar.fsm_engine import unsatisfiable
from nbsgl.engine.grammar.masks import Words
from nbsgl.engine.grammar.optional import package, require
from nbsgl.engine.grammar.rust import times
from nbsgl.engine.grammar.syntax import (
    NOTHING,
    Both,
    Chars,
    Concat,
    Either,
    Not,
    NotRegular,
    Repeat,
    Syntax,
    children,
    post_order,
)
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.errors import BadGrammar, GrammarTooExpensive
from nbsgl.protocol import GrammarSpec

MAX_PRINTED = 4 << 20
_SURROGATES = (0xD800, 0xDFFF)


class XgrammarEngine:
    """See `grammar.Engine`."""

    def __init__(self, vocab: TokenVocab) -> None:
        self.vocab = vocab

    @cached_property
    def compiler(self) -> Any:
        """Made at first need.  Tokens without text are special to the library: never in a mask."""
        library, vocab = package("xgrammar"), self.vocab
        hidden_eos = [] if vocab.eos_ids else [len(vocab)]  # the library wants one
        tokens = [data or b"" for data in vocab.tokens] + [b""] * len(hidden_eos)
        info = library.TokenizerInfo(
            tokens,
            library.VocabType.RAW,
            vocab_size=len(tokens),
            stop_token_ids=[*vocab.eos_ids] or hidden_eos,
        )
        return library.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    @staticmethod
    def source_of(spec: GrammarSpec, tree: Syntax | NotRegular) -> str:
        require("xgrammar")
        if tree == NOTHING:
            raise unsatisfiable(spec)
        if not isinstance(tree, NotRegular):
            return f"root ::= {_printed(tree, spec)}"
        if spec.kind == "ebnf" and not spec.prefix and not spec.after:
            return _printed_rules(ebnf.parse(spec.text))
        raise _not_held(spec, tree.reason)

    @staticmethod
    def probe(spec: GrammarSpec, source: str) -> None:
        """Nothing: the package brings torch along, for which a helper has no room."""

    def compile(self, spec: GrammarSpec, source: str, notes: tuple[str, ...]) -> CompiledXgrammar:
        compiler = self.compiler
        try:
            compiled = with_stack(lambda: compiler.compile_grammar(source))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise BadGrammar(kind=spec.kind, path="the grammar", reason=reason[:300]) from None
        return CompiledXgrammar(spec, self.vocab, compiled, int(compiled.memory_size_bytes), loosened=notes)


@dataclass(frozen=True, eq=False)
class CompiledXgrammar:
    """One spec for one vocabulary; shared by all sequences that use it."""

    spec: GrammarSpec
    vocab: TokenVocab
    compiled: Any
    table_bytes: int
    engine: str = "xgrammar"
    num_states: int | None = None  # made as they are met
    loosened: tuple[str, ...] = ()

    @cached_property
    def eos_words(self) -> Words:
        return masks.packed(len(self.vocab) + (not self.vocab.eos_ids), self.vocab.eos_ids)

    def matcher(self) -> XgrammarMatcher:
        """A new sequence's place, at the start of the language."""
        return XgrammarMatcher(self, package("xgrammar").GrammarMatcher(self.compiled))


class XgrammarMatcher:
    """One sequence's place in a grammar."""

    def __init__(self, grammar: CompiledXgrammar, place: Any, num_eos: int = 0) -> None:
        self.grammar = grammar
        self._place = place
        self._num_eos = num_eos  # EOS tokens taken: they end the run, and the library's matcher does not see them

    def words(self) -> Words:
        eos = self.grammar.eos_words
        if self._num_eos:
            return eos
        words = np.zeros((1, len(eos)), np.int32)
        self._place.fill_next_token_bitmask(words, 0)
        found = words[0].view(np.uint32)
        found[-1] &= np.uint32((1 << (1 + (len(self.grammar.vocab) - 1) % 32)) - 1)
        return found

    def fill_mask(self, row: NDArray[Any]) -> None:
        """Write the mask into a row of 32-bit words; words past the vocabulary become 0.

        `GrammarError` if nothing is allowed here: the vocabulary lacks a byte that the language needs.
        """
        words, num_tokens = self.words(), len(self.grammar.vocab)
        if not words[: (num_tokens + 31) // 32].any() and not self.is_accepting():
            raise masks.dead_end(self.grammar.spec)
        masks.write(words, row, num_tokens)

    def advance(self, token: int) -> bool:
        """Take a token; False, and nothing changes, when it is not allowed."""
        if token in self.grammar.vocab.eos_ids:
            self._num_eos += self.is_accepting()
            return bool(self._num_eos)
        if self._num_eos or not 0 <= token < len(self.grammar.vocab) or not self.grammar.vocab.tokens[token]:
            return False
        return bool(self._place.accept_token(token))

    def is_accepting(self) -> bool:
        return bool(self._num_eos) or bool(self._place.is_completed())

    def is_finished(self) -> bool:
        """The place accepts and nothing but EOS is allowed."""
        return self.is_accepting() and not (self.words() & ~self.grammar.eos_words).any()

    def forced_bytes(self) -> bytes:
        """The characters the language leaves no choice about, from here on; b"" where it may also end."""
        return b"" if self.is_accepting() else self._place.find_jump_forward_string().encode()

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens."""
        after_eos = min(num_tokens, self._num_eos)
        self._num_eos -= after_eos
        if num_tokens > after_eos:
            self._place.rollback(num_tokens - after_eos)

    def fork(self) -> XgrammarMatcher:
        """An independent copy of the place."""
        return XgrammarMatcher(self.grammar, self._place.fork(), self._num_eos)


@register_grammar("xgrammar")
def _give() -> type[XgrammarEngine]:
    return XgrammarEngine


# ---- printing ------------------------------------------------------------------------------------------------------


def _not_held(spec: GrammarSpec, reason: str) -> BadGrammar:
    return BadGrammar(
        kind=spec.kind,
        path="the whole grammar",
        reason=f"engine='xgrammar' is not given it ({reason})",
        hint="Leave engine out.",
    )


def _printed(root: Syntax, spec: GrammarSpec) -> str:
    """A tree as the body of a rule; children before parents, without recursion."""
    texts: dict[int, str] = {}
    for node in post_order(root):
        inner = [texts[id(child)] for child in children(node)]
        match node:
            case Chars(chars):
                text = _print_class(chars)
            case Concat():
                text = f"({' '.join(inner)})" if inner else '""'
            case Either():
                text = f"({' | '.join(inner)})"
            case Repeat(_, low, high):
                text = f"({inner[0]}){times(low, high)}"
            case Both() | Not():
                raise _not_held(spec, "an intersection or a complement is in it")
        texts[id(node)] = text
        if len(text) > MAX_PRINTED:
            raise GrammarTooExpensive(kind=spec.kind, path="the whole grammar", limit="4 MiB of EBNF")
    return texts[id(root)]


def _printed_rules(rules: dict[str, ebnf.Part]) -> str:
    names = {name: f"r{place}" for place, name in enumerate(rules)}
    lines = [f"root ::= {names['root']}"]
    return "\n".join([*lines, *(f"{names[name]} ::= {_part(body, names)}" for name, body in rules.items())])


def _part(part: ebnf.Part, names: dict[str, str]) -> str:
    match part:
        case ebnf.Rule(name):
            return names[name]
        case ebnf.Row(parts):
            return f"({' '.join(_part(one, names) for one in parts)})" if parts else '""'
        case ebnf.Options(options):
            return f"({' | '.join(_part(one, names) for one in options)})"
        case ebnf.Times(inner, low, high):
            return f"({_part(inner, names)}){times(low, high)}"
        case Chars(chars):
            return _print_class(chars)


@lru_cache(maxsize=256)
def _print_class(chars: CharSet) -> str:
    ranges = [(low, high) for low, high in _without_surrogates(chars) if low <= high]
    return f"[{''.join(f'{_code(low)}-{_code(high)}' for low, high in ranges)}]"


def _without_surrogates(chars: CharSet) -> list[tuple[int, int]]:
    first, last = _SURROGATES
    found: list[tuple[int, int]] = []
    for low, high in chars:
        found += [(low, min(high, first - 1)), (max(low, last + 1), high)] if low <= last else [(low, high)]
    return found


def _code(code: int) -> str:
    return f"\\U{code:08X}"
