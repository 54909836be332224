"""Grammars that live on the CPU: llguidance's matcher behind our nouns."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeVar

import llguidance
import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar import lark, masks, register_grammar
from nbsgl.engine.grammar.deep_stack import with_stack
from nbsgl.engine.grammar.fsm_engine import unsatisfiable
from nbsgl.engine.grammar.masks import Words
from nbsgl.engine.grammar.rust import UNBOUNDED
from nbsgl.engine.grammar.syntax import NOTHING, NotRegular, Syntax
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.errors import BadGrammar, BadRegex, GrammarError, GrammarTooExpensive
from nbsgl.protocol import GrammarSpec

Made = TypeVar("Made")

# 2 kB a state: at most 100 MB a grammar.  Fuel: 50,000 a millisecond while compiling, 14,000 while masking.
_LIMITS = {"initial_lexer_fuel": 5_000_000, "max_lexer_states": 50_000, "verbose_errors": False}
DEEP_SOURCE = 16 << 10
_DEAD_END = ("NoExtension", "NoExtensionBias")
_TOO_MUCH = re.compile(r"too (many (?!digits)|complex|large|big)|fuel|limit|exceed", re.IGNORECASE)


class HostTokenizer:
    """llguidance's picture of a vocabulary, made from the bytes table alone; dear to make, so one per vocabulary."""

    def __init__(self, vocab: TokenVocab) -> None:
        self.vocab = vocab
        # One id more than the vocabulary has, if nothing ends a text: the library wants an EOS.
        hidden_eos = [] if vocab.eos_ids else [len(vocab)]
        # 0xFF never begins a character: the library's mark for tokens that are no text.
        self.tokens = [b"\xff<[%d]>" % i if data is None else data for i, data in enumerate(vocab.tokens)]
        self.tokens += [b"\xff<[%d]>" % i for i in hidden_eos]
        self.eos_token_id = (vocab.eos_ids or hidden_eos)[0]
        self.bos_token_id = None
        self.special_token_ids = [i for i, data in enumerate(self.tokens) if data.startswith(b"\xff<[")]
        self.handle = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(self), eos_token=list(vocab.eos_ids) or hidden_eos
        )
        self.eos_words = masks.packed(len(self.tokens), vocab.eos_ids or hidden_eos)

    def __call__(self, text: str | bytes) -> list[int]:
        """Spell bytes one by one: the library asks only for forced text, which is never narrowed here."""
        data = text.encode() if isinstance(text, str) else text
        return [self.vocab.byte_ids[byte] for byte in data if byte in self.vocab.byte_ids]


class LlguidanceEngine:
    """See `grammar.Engine`: everything, by llguidance."""

    def __init__(self, vocab: TokenVocab) -> None:
        self.vocab = vocab

    @cached_property
    def tokenizer(self) -> HostTokenizer:
        """Made at first need, which holds Python up for some tenths of a second at 128k tokens."""
        return HostTokenizer(self.vocab)

    @staticmethod
    def source_of(spec: GrammarSpec, tree: Syntax | NotRegular) -> str:
        if tree == NOTHING:
            raise unsatisfiable(spec)
        return lark.source_of(spec, tree)

    @staticmethod
    def validate(spec: GrammarSpec, source: str) -> None:
        """Raise what is wrong with the source, of which nothing is built."""
        message = _call(source, lambda: llguidance.LLMatcher.validate_grammar(source, limits=_limits()))
        if message and not message.startswith("WARNING"):
            raise _complaint(spec, message)

    @staticmethod
    def probe(spec: GrammarSpec, source: str) -> None:
        """Build what nothing bounds, over single bytes; the rest has its fuel, but may be too deep for its reader."""
        if not LlguidanceEngine.is_bounded(source):
            _start(spec, source, _byte_tokenizer())
        elif len(source) >= DEEP_SOURCE or spec.kind in ("lark", "tags"):  # in a user's own words, or may hold such
            LlguidanceEngine.validate(spec, source)

    @staticmethod
    def is_bounded(source: str) -> bool:
        """Whether a compile ends soon, by its fuel: not so where it decides if an intersection is empty."""
        return UNBOUNDED not in source

    def compile(self, spec: GrammarSpec, source: str, notes: tuple[str, ...]) -> CompiledHostGrammar:
        """Compile, and make sure that there is at least one output."""
        compiled = CompiledHostGrammar(spec, self.tokenizer, _start(spec, source, self.tokenizer), loosened=notes)
        if not compiled.matcher().words().any():
            raise unsatisfiable(spec)
        return compiled


@cache
def _byte_tokenizer() -> HostTokenizer:
    return HostTokenizer(TokenVocab([bytes([byte]) for byte in range(256)], ()))


def _start(spec: GrammarSpec, source: str, tokenizer: HostTokenizer) -> llguidance.LLMatcher:
    start = _call(source, lambda: llguidance.LLMatcher(tokenizer.handle, source, log_level=0, limits=_limits()))
    if start.is_error():
        raise _complaint(spec, start.get_error())
    return start


def _call(source: str, call: Callable[[], Made]) -> Made:
    """Compile on a large stack where the source is long enough to need one."""
    return with_stack(call) if len(source) >= DEEP_SOURCE else call()


def _limits() -> llguidance.LLParserLimits:
    return llguidance.LLParserLimits(**_LIMITS)


@register_grammar("llguidance")
def _give() -> type[LlguidanceEngine]:
    return LlguidanceEngine


@dataclass(frozen=True, eq=False)
class CompiledHostGrammar:
    """One spec for one vocabulary; shared by all sequences that use it."""

    spec: GrammarSpec
    tokenizer: HostTokenizer
    start: llguidance.LLMatcher
    engine: str = "llguidance"
    num_states: int | None = None  # made as they are met
    table_bytes: int = 0
    loosened: tuple[str, ...] = ()  # what of a schema the language does not hold to

    def matcher(self) -> HostMatcher:
        """A new sequence's place, at the start of the language."""
        return HostMatcher(self, self.start.deep_copy())


class HostMatcher:
    """One sequence's place in a grammar.  Not thread-safe; two of them are independent."""

    def __init__(self, grammar: CompiledHostGrammar, place: llguidance.LLMatcher, num_eos: int = 0) -> None:
        self.grammar = grammar
        self._place = place
        self._num_eos = num_eos  # EOS tokens taken: they end the run and are unknown to the library's matcher
        self._words: Words | None = None  # the mask of this place, once somebody asked

    def words(self) -> Words:
        """The mask as packed bits (bit t of word t // 32), over the vocabulary; do not write to it.

        Bits of EOS are set iff the place accepts.  `GrammarTooExpensive` if the automaton grew past its limits.
        """
        if self._words is None:
            self._words = self._compute()
        return self._words

    def _compute(self) -> Words:
        eos = self.grammar.tokenizer.eos_words
        if self._num_eos:
            return eos
        words = np.zeros(len(eos), np.uint32)
        try:
            self._place.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        except ValueError as error:
            raise self._failure(str(error)) from None
        if self._place.is_error():
            if _first_line(self._place.get_error()) in _DEAD_END:
                return np.zeros(len(eos), np.uint32)
            raise self._failure(self._place.get_error())
        words &= ~eos
        if self._place.is_accepting():
            words |= eos
        return words

    def fill_mask(self, row: NDArray[Any]) -> None:
        """Write the mask into a row of 32-bit words; words past the vocabulary become 0.

        `GrammarError` if nothing is allowed here: the vocabulary lacks a byte that the language needs.
        """
        words = self.words()
        if not words.any():
            raise masks.dead_end(self.grammar.spec)
        masks.write(words, row, len(self.grammar.tokenizer.vocab))

    def advance(self, token: int) -> bool:
        """Take a token; False, and nothing changes, when it is not allowed."""
        if token in self.grammar.tokenizer.vocab.eos_ids:
            if not self.is_accepting():
                return False
            self._num_eos += 1
        elif self._num_eos or not 0 <= token < len(self.grammar.tokenizer.vocab):
            return False
        elif not self._place.try_consume_tokens([token]):
            if self._place.is_error():
                raise self._failure(self._place.get_error())
            return False
        self._words = None
        return True

    def is_accepting(self) -> bool:
        return bool(self._num_eos) or (not self._place.is_error() and self._place.is_accepting())

    def is_finished(self) -> bool:
        """The place accepts and nothing but EOS is allowed."""
        if self._num_eos:
            return True
        return self.is_accepting() and not (self.words() & ~self.grammar.tokenizer.eos_words).any()

    def forced_bytes(self) -> bytes:
        """The bytes the language leaves no choice about, from here on; b"" where it may also end."""
        return b"" if self.is_accepting() else bytes(self._place.compute_ff_bytes())

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens; more than were taken is a ValueError."""
        after_eos = min(num_tokens, self._num_eos)
        self._num_eos -= after_eos
        self._words = None
        if num_tokens > after_eos and not self._place.rollback(num_tokens - after_eos):
            raise ValueError(f"cannot take back {num_tokens} tokens: {self._place.get_error()}")

    def fork(self) -> HostMatcher:
        """An independent copy of the place."""
        return HostMatcher(self.grammar, self._place.deep_copy(), self._num_eos)

    def _failure(self, message: str) -> GrammarError:
        spec = self.grammar.spec
        if _TOO_MUCH.search(message):
            return GrammarTooExpensive(kind=spec.kind, path="during the run", limit=_first_line(message))
        return GrammarError(kind=spec.kind, path="this point of the output", reason=_first_line(message))


def _complaint(spec: GrammarSpec, message: str) -> GrammarError:
    """The library's message as ours: what is too much, what no output satisfies."""
    reason = _first_line(message)
    if "nsatisfiable" in reason:
        return unsatisfiable(spec, reason)
    if _TOO_MUCH.search(reason) or reason == "lexer error":
        return GrammarTooExpensive(
            kind=spec.kind, path="the whole grammar", limit=reason, hint="Simplify its largest part."
        )
    if spec.kind == "regex":
        return BadRegex(kind="regex", path="the pattern", reason=reason, pattern_text=spec.text)
    return BadGrammar(kind=spec.kind, path="the grammar", reason=reason)


def _first_line(message: str) -> str:
    """What the library says, without the place in a text that the user never saw."""
    line = message.strip().splitlines()[0] if message.strip() else "refused without a reason"
    line = re.sub(r"^(at )?\d+\(\d+\): ", "", line)
    return line.rstrip(".")[:300]
