"""Jump-forward: several tokens in one step where a grammar leaves no choice.

"verify": forced text as the model has spelt it before (`habits`), or its canonical spelling, is a draft.  One extend
draws a token at each of its places; they count up to and including the first that differs from the draft.  So what
comes out is what comes out one by one: each token is drawn from the same logits, mask and random number.  "canonical":
where there is a proposal, the mask is its first token alone, so its tokens are appended without being drawn.  What
comes out depends on the tokens so far alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import eq
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nbsgl.engine.batch import Row, RowResult
from nbsgl.engine.grammar.forced import Encoder, propose, tail_of
from nbsgl.engine.habits import Habits
from nbsgl.engine.stop import Ending, Vocab
from nbsgl.errors import GrammarError
from nbsgl.protocol import SamplingParams

if TYPE_CHECKING:
    from nbsgl.engine.constraint import Constraint
    from nbsgl.engine.grammar import CompiledGrammar
    from nbsgl.engine.request import SampledRun

LEAST_DRAFT = 2  # tokens: a draft of one gives two tokens for the work of two, and its row sits out a launch ahead
MOST_DRAFT = 32  # tokens; forced text of more is rare, and its row would hold up a step of decodes
TRIES = 4  # drafts on an edge before its share of accepted tokens counts
LEAST_SHARE = 0.5
MOST_EDGES = 4096  # of one grammar


@dataclass(slots=True)
class Edge:
    """Forced text behind one place and tail: its tokens, the place behind each (in tables), and how drafts fared."""

    ids: Sequence[int]
    states: Sequence[int]
    num_tries: int = 0
    num_proposed: int = 0
    num_accepted: int = 0

    @property
    def is_worth_it(self) -> bool:
        return self.num_tries < TRIES or self.num_accepted >= LEAST_SHARE * self.num_proposed


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens to be verified; `states` (of tables) before each draw, the first -1 if the host does not know it yet."""

    ids: Sequence[int]
    states: Sequence[int]
    edge: Edge | None  # of a canonical one


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known of a grammar's forced text."""

    edges: dict[Any, Edge] = field(default_factory=dict)
    habits: Habits = field(default_factory=Habits)


class JumpForward:
    """What is known of forced text, by grammar, and the counters of all runs.  Without an encoder nothing jumps."""

    def __init__(self, vocab: Vocab, encode: Encoder | None) -> None:
        self._vocab, self._encode = vocab, encode
        self._known: WeakKeyDictionary[Any, Known] = WeakKeyDictionary()
        self.proposed = self.accepted = self.steps_saved = 0

    def serve(self, constraint: Constraint) -> None:
        """Let a run's grammar have proposals, if it asks for them."""
        if self._encode is not None and constraint.spec.jump != "off":
            constraint.jump, constraint.known = self, self.known_of(constraint.compiled)

    def known_of(self, compiled: CompiledGrammar) -> Known:
        return self._known.setdefault(compiled, Known())

    def edge(self, constraint: Constraint) -> Edge | None:
        """What is forced where the constraint is; None if nothing is."""
        if constraint.is_near_limit(0) or not constraint.tokens:
            return None
        matcher, tail = constraint.matcher, tail_of(constraint.tokens, self._vocab)
        place = matcher.state if constraint.tables is not None else matcher.forced_bytes()
        edges = constraint.known.edges
        edge = edges.get((place, tail))
        if edge is None:
            if len(edges) >= MOST_EDGES:
                edges.clear()
            edge = edges[place, tail] = self._new_edge(constraint, tail)
        return edge if edge.ids else None

    def _new_edge(self, constraint: Constraint, tail: bytes) -> Edge:
        assert self._encode is not None
        try:
            ids = propose(constraint.matcher, tail, self._vocab, self._encode, MOST_DRAFT)
        except GrammarError:  # it grew past its limits: the run will hear of it, if it gets as far
            ids = ()
        if constraint.tables is None:
            return Edge(ids, ())
        place, states = constraint.matcher.fork(), []
        for token in ids:
            place.advance(token)
            states.append(place.state)
        return Edge(ids, states)

    # ---- verified

    def draft(self, run: SampledRun, most: int) -> Draft | None:
        """At most `most` tokens to be verified by the run's next row; None if there are too few.

        With a token in flight it is taken to be the proposal's first: if it is not, the row draws one token as ever.
        Penalties count the tokens drawn before, log-probabilities and banned ids belong to single draws: such rows
        draw one by one.
        """
        constraint, ahead = run.constraint, run.num_pending
        if constraint is None or constraint.jump is None or constraint.spec.jump != "verify" or most < LEAST_DRAFT:
            return None
        params = run.params
        if _draws_alone(params) or constraint.num_taken + ahead < params.min_tokens:
            return None
        ids, states, edge = self._spelling(constraint)
        most = min(most, run.limit - constraint.num_taken - ahead - 1)
        ids = ids[ahead : ahead + most]
        if len(ids) < LEAST_DRAFT or constraint.is_near_limit(ahead + len(ids)):
            return None
        first = (-1,) if ahead else (constraint.matcher.state,) if states else ()
        return Draft(ids, (*first, *states[ahead : ahead + len(ids)]), edge)

    def _spelling(self, constraint: Constraint) -> tuple[Sequence[int], Sequence[int], Edge | None]:
        """What is most likely to come: tokens, the states behind them (of tables), and the edge if it is canonical.

        The canonical spelling is taken where it goes on from the habit, or where there is none.
        """
        ids, states = constraint.habit(MOST_DRAFT)
        edge = self.edge(constraint)
        if edge is None or not edge.is_worth_it or list(edge.ids[: len(ids)]) != ids:
            return ids, states, None
        return edge.ids, edge.states, edge

    def settled(self, constraint: Constraint, draft: Draft, taken: Sequence[int]) -> None:
        """Of a row with this draft these tokens count."""
        num_accepted = sum(map(eq, draft.ids, taken))  # only the last one taken can differ
        self._count(constraint, len(draft.ids), num_accepted, len(taken) - 1)
        if draft.edge is not None:
            draft.edge.num_tries += 1
            draft.edge.num_proposed += len(draft.ids)
            draft.edge.num_accepted += num_accepted

    def _count(self, constraint: Constraint, proposed: int, accepted: int, saved: int) -> None:
        for who in (self, constraint):
            who.proposed += proposed
            who.accepted += accepted
            who.steps_saved += saved

    # ---- canonical

    def spell(self, run: SampledRun, tokens: Any) -> Ending | None:
        """Append what the masks leave no choice about; the run's end if that was it.

        Not where each token's log-probability is wanted: those are drawn one by one, under the same masks.
        """
        constraint = run.constraint
        if constraint is None or not constraint.is_canonical or run.params.return_logprob:
            return None
        try:
            while ids := constraint.proposal():
                for token in ids:
                    ending = run.rules.feed(token)
                    tokens.append(token)
                    self._count(constraint, 1, 1, 1)
                    if ending is not None:
                        return ending
        except GrammarError as error:
            constraint.failure = error  # for whoever takes the next draw
        return None


def _draws_alone(params: SamplingParams) -> bool:
    has_penalty = params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1.0
    return params.return_logprob or bool(has_penalty)


def counted(row: Row, result: RowResult, constraint: Constraint | None) -> Iterator[int]:
    """The drawn tokens that count, in order; between two of them the constraint takes the first.

    A draw behind a token that is not the draft's, or under another place's mask, is not one of the run's.
    """
    yield result.token
    before = result.token
    for proposed, state, token in zip(row.draft, row.states[1:] or (None,) * len(row.draft), result.more):
        if before != proposed or (state is not None and constraint is not None and constraint.matcher.state != state):
            return
        yield token
        before = token
