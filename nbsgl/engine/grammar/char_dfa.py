"""From a syntax tree to the minimal automaton over classes of characters.

Partial derivatives (Antimirov 1996, "Partial derivatives of regular expressions"): a state of the nondeterministic
automaton is what is left to match, a list of parts; equal remainders are one state.  So `x{0,n}` has n states and n
edges, and alternatives with equal ends share them.  `Both` and `Not` are made from the automata of what is in them,
and stand in the tree around them as parts with states of their own.

Sets of classes are Python integers used as bits.  States are numbers; 0 is the start; there is no state for failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar.charset import CharSet
from nbsgl.engine.grammar.hashing import mix, random_words
from nbsgl.engine.grammar.syntax import Both, Chars, Concat, Either, Not, Repeat, Syntax, children, post_order
from nbsgl.engine.grammar.utf8 import Alphabet, alphabet

Edges = tuple[tuple[int, int], ...]
"""(classes as bits, target) with disjoint, non-empty classes; a target that comes twice is one edge."""

NodeId = int | frozenset[int]

SLACK = 4  # automata on the way may have this many times the states that the minimal one may have
STEPS_PER_STATE = 30  # edges looked at, in the mean; real grammars need 1-20
NODES_PER_STATE = 100  # of the tree: 10,000 choices of 40 characters are within


class TooManyStates(Exception):
    """The automaton has more states than the limit, or making it took more work than such a one may cost."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit:,} states")
        self.limit = limit


@dataclass(frozen=True, eq=False)
class CharDfa:
    """`edges[s]` and `accepting[s]` of state s; from each state but the start an accepting one can be reached."""

    edges: list[Edges]
    accepting: list[bool]


class Budget:
    """What one build may cost.  Every loop that can explode spends from it."""

    def __init__(self, max_states: int) -> None:
        self.limit = max_states
        self.max_states = SLACK * max_states
        self.steps = STEPS_PER_STATE * self.max_states
        self.nodes = NODES_PER_STATE * max_states

    def spend(self, steps: int, states: int = 0) -> None:
        self.steps -= steps
        if self.steps < 0 or states > self.max_states:
            raise TooManyStates(self.limit)

    def visit(self, nodes: int) -> None:
        self.nodes -= nodes
        if self.nodes < 0:
            raise TooManyStates(self.limit)


def char_dfa(node: Syntax, max_states: int) -> tuple[CharDfa, Alphabet]:
    """The minimal automaton of a tree and the alphabet it reads; raises `TooManyStates`."""
    terms = _Terms(Budget(max_states))
    root = terms.take(node)
    letters = alphabet(list(terms.sets))
    return _Machine(terms, letters).minimal(root), letters


# ---- terms: the tree's nodes, equal ones once, as numbers ------------------------------------------------------------

CHARS, CONCAT, EITHER, REPEAT, BOTH, NOT, PART = range(7)


class _Terms:
    """`kind[t]` and `args[t]` of term t; `nullable[t]`: the empty text is in it.

    args: a set's index; the parts; (inner, low, high); (automaton, state) for PART, a place in a finished automaton.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.kind: list[int] = []
        self.args: list[tuple[int | None, ...]] = []
        self.nullable: list[bool] = []
        self.sets: dict[CharSet, int] = {}
        self._known: dict[tuple[int, tuple[int | None, ...]], int] = {}

    def take(self, root: Syntax) -> int:
        """The term of a tree."""
        done: dict[int, int] = {}
        for node in post_order(root):
            self.budget.visit(len(children(node)) + 1)
            done[id(node)] = self._make(node, done)
        return done[id(root)]

    def _make(self, node: Syntax, done: dict[int, int]) -> int:
        if isinstance(node, Chars):
            return self.term(CHARS, (self.sets.setdefault(node.chars, len(self.sets)),))
        if isinstance(node, Repeat):
            return self.term(REPEAT, (done[id(node.inner)], node.low, node.high))
        kind = _KINDS[type(node)]
        return self.term(kind, tuple(done[id(child)] for child in children(node)))

    def term(self, kind: int, args: tuple[int | None, ...], nullable: bool = False) -> int:
        key = (kind, args)
        if (known := self._known.get(key)) is None:
            known = self._known[key] = len(self.kind)
            self.kind.append(kind)
            self.args.append(args)
            self.nullable.append(nullable or self._is_nullable(kind, args))
        return known

    def _is_nullable(self, kind: int, args: tuple[int | None, ...]) -> bool:
        nullable = self.nullable
        if kind == REPEAT:
            return args[1] == 0 or nullable[args[0]]
        if kind in (CONCAT, BOTH):
            return all(nullable[part] for part in args)
        if kind == EITHER:
            return any(nullable[part] for part in args)
        return kind == NOT and not nullable[args[0]]


_KINDS: dict[type, int] = {Concat: CONCAT, Either: EITHER, Both: BOTH, Not: NOT}


# ---- subset construction over what is left to match ------------------------------------------------------------------

END_NODE = 0


class _Machine:
    """Nodes are lists of terms still to match: `heads[n]`, then node `tails[n]`; node 0 is the empty list."""

    def __init__(self, terms: _Terms, letters: Alphabet) -> None:
        self.terms = terms
        self.budget = terms.budget
        self.masks = letters.masks
        self.everything = (1 << letters.num_classes) - 1
        self.heads = [-1]
        self.tails = [-1]
        self._nodes: dict[tuple[int, int], int] = {}
        self._steps: dict[int, tuple[list[tuple[int, int]], bool]] = {END_NODE: ([], True)}
        self._automata: list[CharDfa] = []
        self._parts: dict[int, int] = {}

    def minimal(self, term: int) -> CharDfa:
        """The minimal automaton of a term."""
        kind, args = self.terms.kind[term], self.terms.args[term]
        if kind == NOT:
            return minimise(_trim(_complement(self.minimal(args[0]), self.everything)))
        if kind == BOTH:
            found = self.minimal(args[0])
            for part in args[1:]:
                found = minimise(_trim(product(found, self.minimal(part), _both, self.budget)))
            return found
        return minimise(_trim(self.subsets(self.node(term, END_NODE))))  # an empty intersection inside leads nowhere

    def node(self, head: int, tail: int) -> int:
        key = (head, tail)
        if (known := self._nodes.get(key)) is None:
            known = self._nodes[key] = len(self.heads)
            self.heads.append(head)
            self.tails.append(tail)
        return known

    def subsets(self, start: int) -> CharDfa:
        """Deterministic states are sets of nodes.  A state with one node is that number: most are, in real grammars."""
        ids: dict[NodeId, int] = {start: 0}
        queue: list[NodeId] = [start]
        edges: list[Edges] = []
        accepting: list[bool] = []
        for state in queue:  # grows while it is walked
            found, accepts = self.step(state) if isinstance(state, int) else self.step_all(state)
            self.budget.spend(len(found) + 1, len(queue))
            out: list[tuple[int, int]] = []
            for mask, target in found if len(found) == 1 else _disjoint(found):
                if (number := ids.get(target)) is None:
                    number = ids[target] = len(queue)
                    queue.append(target)
                out.append((mask, number))
            edges.append(tuple(out))
            accepting.append(accepts)
        return CharDfa(edges, accepting)

    def step_all(self, nodes: frozenset[int]) -> tuple[list[tuple[int, int]], bool]:
        steps = [self.step(node) for node in nodes]
        return [pair for found, _ in steps for pair in found], any(accepts for _, accepts in steps)

    def step(self, node: int) -> tuple[list[tuple[int, int]], bool]:
        """(classes, next node) pairs of a node, and whether it accepts.  The classes of pairs may overlap."""
        if (known := self._steps.get(node)) is not None:
            return known
        head = self.heads[node]
        if self.terms.kind[head] == CHARS and (mask := self.masks[self.terms.args[head][0]]):
            known = self._steps[node] = ([(mask, self.tails[node])], False)
            return known
        found: list[tuple[int, int]] = []
        place, nullable = node, self.terms.nullable
        while place != END_NODE:
            self.derive(self.heads[place], self.tails[place], found)
            if not nullable[self.heads[place]]:
                break
            place = self.tails[place]
        if len(found) > 1:
            found = list(dict.fromkeys(found))
        self.budget.spend(len(found))
        made = self._steps[node] = (found, place == END_NODE)
        return made

    def derive(self, term: int, tail: int, found: list[tuple[int, int]]) -> None:
        """Add what one character of `term`, and then `tail`, can be."""
        kinds, all_args, nullable = self.terms.kind, self.terms.args, self.terms.nullable
        stack = [(term, tail)]
        while stack:
            term, tail = stack.pop()
            kind, args = kinds[term], all_args[term]
            if kind == CHARS:
                if mask := self.masks[args[0]]:
                    found.append((mask, tail))
            elif kind == CONCAT:
                tails = [tail]
                for part in reversed(args[1:]):
                    tails.append(self.node(part, tails[-1]))
                for part in args:
                    stack.append((part, tails.pop()))
                    if not nullable[part]:
                        break
            elif kind == EITHER:
                self.budget.spend(len(args))
                stack += [(option, tail) for option in args]
            elif kind == REPEAT:
                stack.append(self.unrolled(*args, tail))
            else:
                self.step_part(term if kind == PART else self.part(term), tail, found)

    def unrolled(self, inner: int, low: int, high: int | None, tail: int) -> tuple[int, int]:
        """One round of a repeat, and what is left after it."""
        low = 0 if low == 0 or self.terms.nullable[inner] else low - 1
        if high is None or high > 1:
            left = (inner, low, None if high is None else high - 1)
            tail = self.node(inner if left[1:] == (1, 1) else self.terms.term(REPEAT, left), tail)
        return inner, tail

    def part(self, term: int) -> int:
        """The start of a `Both` or `Not` as a term of its own."""
        if (known := self._parts.get(term)) is None:
            self._automata.append(self.minimal(term))
            known = self._parts[term] = self.place(len(self._automata) - 1, 0)
        return known

    def place(self, automaton: int, state: int) -> int:
        return self.terms.term(PART, (automaton, state), self._automata[automaton].accepting[state])

    def step_part(self, term: int, tail: int, found: list[tuple[int, int]]) -> None:
        automaton, state = self.terms.args[term]
        edges = self._automata[automaton].edges
        for mask, target in edges[state]:
            found.append((mask, self.node(self.place(automaton, target), tail) if edges[target] else tail))


def _disjoint(found: list[tuple[int, int]]) -> list[tuple[int, NodeId]]:
    """Overlapping (classes, node) pairs as (classes, set of nodes) with disjoint classes."""
    by_mask: dict[int, list[int]] = {}
    for mask, target in found:
        by_mask.setdefault(mask, []).append(target)
    parts: list[tuple[int, list[int]]] = []
    covered = 0
    for mask, targets in by_mask.items():
        if not mask & covered:
            parts.append((mask, targets))
            covered |= mask
            continue
        split, left = [], mask & ~covered
        for old, known in parts:
            if shared := old & mask:
                split.append((shared, known + targets))
                if old := old & ~mask:
                    split.append((old, known))
            else:
                split.append((old, known))
        if left:
            split.append((left, targets))
        parts, covered = split, covered | mask
    joined: dict[NodeId, int] = {}
    for mask, targets in parts:
        key = targets[0] if len(targets) == 1 else frozenset(targets)
        if not isinstance(key, int) and len(key) == 1:
            (key,) = key
        joined[key] = joined.get(key, 0) | mask
    return [(mask, key) for key, mask in joined.items()]


# ---- algebra ---------------------------------------------------------------------------------------------------------


def _both(left: bool, right: bool) -> bool:
    return left and right


def product(left: CharDfa, right: CharDfa, accepts: Callable[[bool, bool], bool], budget: Budget) -> CharDfa:
    """Both automata at once, as far as both go on; pairs that cannot be reached are not made."""
    ids: dict[tuple[int, int], int] = {(0, 0): 0}
    queue = [(0, 0)]
    edges: list[Edges] = []
    for a, b in queue:
        out: dict[int, int] = {}
        for mask, target in left.edges[a]:
            for other_mask, other in right.edges[b]:
                if shared := mask & other_mask:
                    pair = (target, other)
                    if (number := ids.get(pair)) is None:
                        number = ids[pair] = len(queue)
                        queue.append(pair)
                    out[number] = out.get(number, 0) | shared
        budget.spend(len(left.edges[a]) * len(right.edges[b]) + 1, len(queue))
        edges.append(tuple((mask, number) for number, mask in out.items()))
    return CharDfa(edges, [accepts(left.accepting[a], right.accepting[b]) for a, b in queue])


def _complement(dfa: CharDfa, everything: int) -> CharDfa:
    """All texts over the alphabet that the automaton does not take."""
    sink = len(dfa.edges)
    edges: list[Edges] = []
    for out in dfa.edges:
        left = everything & ~sum([mask for mask, _ in out])
        edges.append((*out, (left, sink)) if left else out)
    edges.append(((everything, sink),) if everything else ())
    return CharDfa(edges, [*[not accepts for accepts in dfa.accepting], True])


def _trim(dfa: CharDfa) -> CharDfa:
    """Without states that reach no accepting one; the start stays."""
    sources: list[list[int]] = [[] for _ in dfa.edges]
    for state, out in enumerate(dfa.edges):
        for _, target in out:
            sources[target].append(state)
    queue = [state for state, accepts in enumerate(dfa.accepting) if accepts]
    alive = set(queue)
    for state in queue:
        for source in sources[state]:
            if source not in alive:
                alive.add(source)
                queue.append(source)
    if len(alive) == len(dfa.edges):
        return dfa
    kept = sorted(alive | {0})
    number = {state: i for i, state in enumerate(kept)}
    edges = [tuple((mask, number[t]) for mask, t in dfa.edges[state] if t in alive) for state in kept]
    return CharDfa(edges, [dfa.accepting[state] for state in kept])


# ---- minimisation ----------------------------------------------------------------------------------------------------


def minimise(dfa: CharDfa) -> CharDfa:
    """One state for each remainder of the language, in the order they are first met; all states must be alive.

    States whose language is finite are compared exactly, ends first; the others by Moore's rounds, each of which is a
    random linear hash of a state's row (Moore 1956), so that a round is four numpy calls whatever the alphabet.
    """
    canonical = _merge_finite(dfa)
    rest = [state for state, found in enumerate(canonical) if found < 0]
    if len(rest) == 1:
        canonical[rest[0]] = rest[0]
    elif rest:
        _merge_rest(dfa, canonical, rest)
    return _quotient(dfa, canonical)


def _merge_finite(dfa: CharDfa) -> list[int]:
    """For states that reach no loop: the first state with the same language; -1 for the others."""
    sources: list[list[int]] = [[] for _ in dfa.edges]
    for state, out in enumerate(dfa.edges):
        for _, target in out:
            sources[target].append(state)
    waiting = [len(out) for out in dfa.edges]
    queue = [state for state, count in enumerate(waiting) if not count]
    canonical = [-1] * len(dfa.edges)
    known: dict[tuple[bool, frozenset[tuple[int, int]]], int] = {}
    for state in queue:
        out = dfa.edges[state]
        canonical[state] = known.setdefault((dfa.accepting[state], _merged(out, canonical)), state)
        for source in sources[state]:
            waiting[source] -= 1
            if not waiting[source]:
                queue.append(source)
    return canonical


def _merged(out: Edges, canonical: list[int]) -> frozenset[tuple[int, int]]:
    if len(out) == 1:
        return frozenset([(canonical[out[0][1]], out[0][0])])
    joined: dict[int, int] = {}
    for mask, target in out:
        target = canonical[target]
        joined[target] = joined.get(target, 0) | mask
    return frozenset(joined.items())


def _merge_rest(dfa: CharDfa, canonical: list[int], rest: list[int]) -> None:
    """Moore's rounds for the states that reach a loop; fills `canonical`."""
    size = len(dfa.edges)
    targets, masks, starts = [], [], []
    for state in rest:
        starts.append(len(targets))
        # An edge to nowhere first: it holds whether the state accepts, and no state is without an edge.
        targets.append(size)
        masks.append(-1 if dfa.accepting[state] else -2)
        for mask, target in dfa.edges[state]:
            targets.append(target if canonical[target] < 0 else canonical[target])
            masks.append(mask)
    weights = _mask_weights(masks)
    targets_of, starts_of, rest_of = np.array(targets), np.array(starts), np.array(rest)
    value = mix(np.arange(1, size + 2, dtype=np.uint64))
    value[rest_of] = _distances(dfa, rest)
    blocks, rounds = -1, 1
    while True:
        for _ in range(rounds):
            value[rest_of] = mix(np.add.reduceat(value[targets_of] * weights, starts_of))
        # A round never joins blocks, so as many as some rounds ago are the same as then, and stay so.
        before, blocks = blocks, len(np.unique(value[rest_of]))
        if blocks in (before, len(rest)):
            break
        rounds = min(2 * rounds, 64)
    first: dict[int, int] = {}
    for state, found in zip(rest, value[rest_of].tolist()):
        canonical[state] = first.setdefault(found, state)


def _distances(dfa: CharDfa, rest: list[int]) -> NDArray[np.uint64]:
    """The length of the shortest text each state accepts, hashed: tells most states apart before the first round."""
    sources: list[list[int]] = [[] for _ in dfa.edges]
    for state, out in enumerate(dfa.edges):
        for _, target in out:
            sources[target].append(state)
    queue = [state for state, accepts in enumerate(dfa.accepting) if accepts]
    distance = dict.fromkeys(queue, 0)
    for state in queue:
        for source in sources[state]:
            if source not in distance:
                distance[source] = distance[state] + 1
                queue.append(source)
    return mix(np.array([distance.get(state, -1) for state in rest], np.int64).astype(np.uint64))


def _mask_weights(masks: list[int]) -> NDArray[np.uint64]:
    """A random weight for each class; a set of classes weighs their sum, so a row split differently weighs the same."""
    distinct = dict.fromkeys(masks)
    positive = [mask for mask in distinct if mask >= 0]
    matrix = bit_matrix(positive, max(positive).bit_length() if positive else 1)
    weight = dict(zip(positive, (matrix * random_words(matrix.shape[1])).sum(1, dtype=np.uint64).tolist()))
    weight[-1], weight[-2] = 3, 5
    return np.array([weight[mask] for mask in masks], np.uint64)


def _quotient(dfa: CharDfa, canonical: list[int]) -> CharDfa:
    number = {canonical[0]: 0}
    queue = [canonical[0]]
    edges: list[Edges] = []
    for state in queue:
        joined: dict[int, int] = {}
        for mask, target in dfa.edges[state]:
            target = canonical[target]
            if (found := number.get(target)) is None:
                found = number[target] = len(queue)
                queue.append(target)
            joined[found] = joined.get(found, 0) | mask
        edges.append(tuple((mask, target) for target, mask in joined.items()))
    return CharDfa(edges, [dfa.accepting[state] for state in queue])


def bit_matrix(masks: list[int], width: int) -> NDArray[np.uint8]:
    """uint8 [masks, width] of the bits of each."""
    num_bytes = (width + 7) // 8
    packed = np.frombuffer(b"".join([mask.to_bytes(num_bytes, "little") for mask in masks]), np.uint8)
    return np.unpackbits(packed.reshape(-1, num_bytes), axis=1, count=width, bitorder="little")
