"""Compiled grammars of one vocabulary: in memory only, the least recently used go first, one compile per language."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from nbsgl.engine.grammar import CompiledGrammar, Engine, engine_class
from nbsgl.engine.grammar.compiler import Compiler, Flight
from nbsgl.engine.grammar.plans import compile_here
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.errors import GrammarError
from nbsgl.protocol import GrammarSpec

MAX_GRAMMARS = 256
MAX_BYTES = 512 << 20


class Pending:
    """A grammar that was asked for: of one that is being compiled, all who ask get the same."""

    __slots__ = ("_flight", "cached")

    def __init__(self, flight: Flight, cached: bool) -> None:
        self._flight = flight
        self.cached = cached  # it was there already

    @property
    def compile_ms(self) -> float:
        """From the first request until it was there; 0.0 for one that was at hand."""
        return 0.0 if self.cached else self._flight.compile_ms

    def ready(self) -> CompiledGrammar | None:
        """The grammar, once it is there; raises what its compile raised."""
        return self._flight.result()

    def standin(self) -> CompiledGrammar | None:
        """A host's grammar of the same masks to begin with, once that is there; None for languages that get none."""
        return self._flight.standin

    def wait(self, timeout_s: float) -> CompiledGrammar:
        """For tests and measurements: hold this thread up until it is there; `TimeoutError`."""
        if not self._flight.done.wait(timeout_s):
            raise TimeoutError(f"the grammar was not there after {timeout_s:g} s")
        compiled = self._flight.result()
        assert compiled is not None
        return compiled


class GrammarCache:
    """Thread-safe.  `request` compiles in other threads and processes, `get` in the caller's.

    `notify` is called, on another thread, whenever a pending grammar has something new.  What helpers say goes to the
    file `log`.  What was refused is remembered as well; accidents of a helper are not.
    """

    def __init__(
        self,
        vocab: TokenVocab,
        *,
        max_grammars: int = MAX_GRAMMARS,
        max_bytes: int = MAX_BYTES,
        notify: Callable[[], None] = lambda: None,
        log: Path | None = None,
    ) -> None:
        self.vocab = vocab
        self.max_grammars, self.max_bytes = max_grammars, max_bytes
        self.hits = self.misses = 0
        self.num_bytes = 0
        self._notify, self._log = notify, log
        self._flights: OrderedDict[GrammarSpec, Flight] = OrderedDict()
        self._engines: dict[str, Engine] = {}
        self._compiler: Compiler | None = None
        self._lock, self._engines_lock = Lock(), Lock()

    def __len__(self) -> int:
        return len(self._flights)

    def engine(self, name: str) -> Engine:
        """The engine of that name for this vocabulary, made once."""
        with self._engines_lock:
            if name not in self._engines:
                self._engines[name] = engine_class(name)(self.vocab)
            return self._engines[name]

    @property
    def compiler(self) -> Compiler:
        """What compiles for `request`: made when first used."""
        with self._lock:
            if self._compiler is None:
                self._compiler = Compiler(self.vocab, self.engine, self._notify, self._log)
            return self._compiler

    def request(self, spec: GrammarSpec) -> Pending:
        """Find the grammar of a spec's language, or begin to compile it; returns at once and raises nothing."""
        key = spec.language
        compiler = self.compiler
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and not flight.is_accident:
                self.hits += 1
                self._flights.move_to_end(key)
                return Pending(flight, cached=flight.done.is_set())
            self.misses += 1
            if flight is not None:
                self.num_bytes -= flight.num_bytes
            flight = self._flights[key] = Flight(key, self._ended)
        compiler.begin(flight)
        return Pending(flight, cached=False)

    def get(self, spec: GrammarSpec) -> CompiledGrammar:
        """The grammar of a spec's language, compiled here and now if it is not there; raises `GrammarError`'s children.

        One that is being compiled elsewhere is not waited for.
        """
        key = spec.language
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and flight.done.is_set() and not flight.is_accident:
                self.hits += 1
                self._flights.move_to_end(key)
                compiled = flight.result()
                assert compiled is not None
                return compiled
            self.misses += 1
        flight = Flight(key, self._add)
        try:
            flight.finish(compile_here(key, self.vocab, self.engine))
        except GrammarError as error:
            flight.fail(error)
        compiled = flight.result()
        assert compiled is not None
        return compiled

    def _add(self, flight: Flight) -> None:
        """Keep what was compiled here in the place of what there is."""
        with self._lock:
            if (known := self._flights.pop(flight.spec, None)) is not None:
                self.num_bytes -= known.num_bytes
            self._flights[flight.spec] = flight
        self._ended(flight)

    def _ended(self, flight: Flight) -> None:
        """Count the bytes of a flight that has ended, and let the least recently used go until the rest fits."""
        with self._lock:
            if self._flights.get(flight.spec) is flight:
                self.num_bytes += flight.num_bytes
            ended = [key for key, other in self._flights.items() if other.done.is_set() and other is not flight]
            for key in ended:
                if len(self._flights) <= self.max_grammars and self.num_bytes <= self.max_bytes:
                    break
                self.num_bytes -= self._flights.pop(key).num_bytes
        self._notify()

    def warm_up(self) -> None:
        """Make what the first grammar would wait for: the helpers in the background, the rest (up to a second) here."""
        self.compiler.warm_up()
        self.get(GrammarSpec(kind="choices", text='["a"]', engine="llguidance"))

    def close(self) -> None:
        """End the helpers; what is pending fails."""
        with self._lock:
            compiler, self._compiler = self._compiler, None
        if compiler is not None:
            compiler.close()
