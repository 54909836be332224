"""Compiled grammars of one vocabulary: in memory only, the least recently used go first, one compile per spec."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from threading import Lock

from nbsgl.engine.grammar.host import CompiledHostGrammar, HostTokenizer, compile_spec
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.protocol import GrammarSpec

MAX_GRAMMARS = 256


class GrammarCache:
    """Thread-safe; a compile holds the lock, so equal specs compile once."""

    def __init__(self, vocab: TokenVocab, capacity: int = MAX_GRAMMARS) -> None:
        self.vocab = vocab
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self._grammars: OrderedDict[GrammarSpec, CompiledHostGrammar] = OrderedDict()
        self._lock = Lock()

    @cached_property
    def tokenizer(self) -> HostTokenizer:
        return HostTokenizer(self.vocab)

    def __len__(self) -> int:
        return len(self._grammars)

    def get(self, spec: GrammarSpec) -> CompiledHostGrammar:
        """The compiled grammar of a spec; raises `GrammarError`'s children, which are not remembered."""
        with self._lock:
            if (known := self._grammars.get(spec)) is not None:
                self.hits += 1
                self._grammars.move_to_end(spec)
                return known
            self.misses += 1
            made = self._grammars[spec] = compile_spec(spec, self.tokenizer)
            while len(self._grammars) > self.capacity:
                self._grammars.popitem(last=False)
            return made
