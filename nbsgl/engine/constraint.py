"""A sampled run's place in its grammar: what stands in for tables, how the limit is met, what it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar import CompiledGrammar, Matcher
from nbsgl.engine.jump_forward import JumpForward, Known
from nbsgl.errors import GrammarError, ParameterError, Unsupported
from nbsgl.protocol import GrammarSpec, GrammarUse

FAR = 65_535  # of a distance in tables: so many, or more


def ready_or_standin(asked: Any, spec: GrammarSpec) -> tuple[CompiledGrammar | None, Any]:
    """What a run can begin with, if there is anything yet, and the better thing to come, if there is one.

    `asked` is a compiled grammar or a pending one; raises what its compile raises.
    """
    if hasattr(asked, "matcher"):
        return asked, None
    if (compiled := asked.ready()) is not None:
        return compiled, None
    if spec.on_limit == "fit":  # a host's matcher knows no distances
        return None, asked
    return asked.standin(), asked


class Constraint:
    """Implements `grammar.Matcher` for one run; `matcher` is the place in the grammar itself.

    `tokens` is the sequence's list, `limit` the run's most tokens.
    """

    def __init__(self, compiled: Any, asked: Any, spec: GrammarSpec, tokens: Sequence[int], limit: int) -> None:
        """`asked` is what the run asked for, `spec` how it goes.  Errors for `on_limit="fit"` where it cannot be."""
        self.compiled, self.asked, self.spec, self.tokens, self.limit = compiled, asked, spec, tokens, limit
        self.pending: Any = None  # what takes over from a stand-in
        self.failure: GrammarError | None = None
        self.matcher: Any = compiled.matcher()
        self.tables: Any = getattr(compiled, "tables", None)
        self.jump: JumpForward | None = None
        self.known = Known()
        self._rest: Sequence[int] = ()  # of the proposal that the masks narrow to
        self.num_taken = 0
        self.proposed = self.accepted = self.steps_saved = self.stood_in = 0
        self.fits = spec.on_limit == "fit"
        if self.fits:
            self._check_fit()

    def _check_fit(self) -> None:
        if self.tables is None:
            raise Unsupported(
                f"on_limit='fit' needs a grammar in tables; this one is served by {self.compiled.engine!r}.",
                name="on_limit",
                value="fit",
                hint="Leave on_limit out, or make the grammar regular and smaller: no recursion, bounded lengths.",
            )
        least = self.matcher.distance()
        if least > self.limit:
            raise ParameterError(
                name="max_tokens", value=self.limit, allowed=f"at least {least}, the shortest output (on_limit='fit')"
            )

    # ---- the matcher

    def fill_mask(self, row: NDArray[Any]) -> None:
        """The mask; where the grammar fails, everything is allowed, and `failure` is for whoever takes the draw.

        Masks are filled in the middle of a step of many sequences, of which this is one.
        """
        try:
            self._fill(row)
        except GrammarError as error:
            self.failure = error
            row.view(np.uint32)[:] = 0xFFFFFFFF

    def _fill(self, row: NDArray[Any]) -> None:
        if self.is_canonical and (ids := self.proposal()):
            words = row.view(np.uint32)
            words[:] = 0
            words[ids[0] // 32] = np.uint32(1 << ids[0] % 32)
        elif self.is_near_limit(0):
            words, allowed = row.view(np.uint32), self.matcher.allowed(self.limit - self.num_taken)
            words[: len(allowed)] = allowed
            words[len(allowed) :] = 0
        else:
            self.matcher.fill_mask(row)

    def advance(self, token: int) -> bool:
        if not self.matcher.advance(token):
            return False
        if self._rest:
            self._rest = self._rest[1:] if self._rest[0] == token else ()
        self.num_taken += 1
        self.stood_in += self.pending is not None
        return True

    def is_accepting(self) -> bool:
        return bool(self.matcher.is_accepting())

    def is_finished(self) -> bool:
        return bool(self.matcher.is_finished())

    def forced_bytes(self) -> bytes:
        return bytes(self.matcher.forced_bytes())

    def rollback(self, num_tokens: int) -> None:
        self.matcher.rollback(num_tokens)
        self.num_taken -= num_tokens
        self.stood_in -= num_tokens if self.pending is not None else 0

    def distance(self) -> int | None:
        """Fewest tokens to where the language may end; None where that is not known."""
        if self.tables is None:
            return None
        least = int(self.matcher.distance())
        return least if least < FAR else None

    def fork(self) -> Matcher:
        """A copy of the place alone."""
        return self.matcher.fork()

    # ---- how the run goes

    @property
    def is_canonical(self) -> bool:
        return self.spec.jump == "canonical"

    def proposal(self) -> Sequence[int]:
        """The canonical tokens of what is forced here; of a proposal that was begun, its rest."""
        if not self._rest and self.jump is not None and (edge := self.jump.edge(self)) is not None:
            self._rest = edge.ids
        return self._rest

    def habit(self, most: int) -> tuple[list[int], list[int]]:
        """Tokens that the model is used to write from here on where text is forced, and the states behind them."""
        if self.tables is None or not self.tokens or self.is_near_limit(0):
            return [], []
        return self.known.habits.chain(self.matcher.state, self.tokens[-1], most)

    def learn(self, begin: int, num_tokens: int) -> None:
        """Remember how forced text was spelt: by `tokens[begin:]`, of which it has just taken so many."""
        if self.tables is None or self.jump is None or not begin:
            return
        states = [*self.matcher.states_before(num_tokens), self.matcher.state]
        for i in range(num_tokens):
            if self.compiled.forced_bytes(states[i]):
                before, token = self.tokens[begin + i - 1 : begin + i + 1]
                self.known.habits.saw(states[i], before, token, states[i + 1])

    def is_near_limit(self, num_pending: int) -> bool:
        """Whether the mask depends on how many tokens are left, with so many drawn that the host has not seen."""
        return self.fits and self.limit - self.num_taken - num_pending <= self.compiled.farthest

    def can_run_ahead(self) -> bool:
        """Whether a device with the tables can mask the token behind one that the host has not seen."""
        return self.tables is not None and not self.is_canonical and not self.is_near_limit(1)

    def needs_host(self, num_pending: int) -> bool:
        """Whether the mask here is another than tables' on a device."""
        return self.tables is None or self.is_near_limit(num_pending) or (self.is_canonical and bool(self.proposal()))

    def take_over(self, begin: int) -> None:
        """Let the tables go on from the stand-in, if they are there: `tokens[begin:]` are taken again.

        The masks are equal, so this changes no output.  A compile that failed leaves the stand-in.
        """
        try:
            compiled = self.pending.ready()
        except Exception:
            self.pending = None
            return
        if compiled is None:
            return
        matcher = compiled.matcher()
        is_same = all(matcher.advance(token) for token in self.tokens[begin:])
        assert is_same, "a stand-in's language is the tables'"
        self.compiled, self.matcher, self.pending = compiled, matcher, None
        self.tables = getattr(compiled, "tables", None)
        if self.jump is not None:
            self.known = self.jump.known_of(compiled)

    def use(self) -> GrammarUse:
        """What it did."""
        tables = self.tables
        return GrammarUse(
            engine=self.compiled.engine,
            states=self.compiled.num_states or 0,
            classes=getattr(self.compiled, "num_classes", 0),
            rows=len(getattr(tables, "rows", ())),
            table_bytes=self.compiled.table_bytes,
            compile_ms=getattr(self.asked, "compile_ms", 0.0),
            cached=getattr(self.asked, "cached", False),
            proposed=self.proposed,
            accepted=self.accepted,
            steps_saved=self.steps_saved,
            stood_in=self.stood_in,
            loosened=tuple(getattr(self.compiled, "loosened", ())),
        )
