"""A byte automaton as people read it: by whole characters, chains drawn as one edge, and a text's place in it.

Needs no vocabulary and no engine: the view of a run is a function of its spec and its text.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nbsgl.automaton import MAX_NODES, Allowed, Automaton, AutomatonEdge, AutomatonNode, Place
from nbsgl.engine.grammar.charset import CharSet, charset
from nbsgl.engine.grammar.labels import class_label, literal_label
from nbsgl.engine.grammar.vocab import TokenVocab

DEAD, START = 0, 1
TOP = 10
EXPECTED = 8
FOLD_FROM = 24  # nodes from which those that look alike are drawn as one
FOLD_STEPS = 3
FOLD_LEAST = 4  # fewer may differ in what matters later
_LEADS = ((0xC2, 0xDF, 0x1F), (0xE0, 0xEF, 0x0F), (0xF0, 0xF4, 0x07))
"""(first, last, payload bits) of the bytes that begin a character of 2, 3 and 4 bytes."""


class ByteAutomaton(Protocol):
    """What is drawn: a minimal automaton over bytes, state 0 dead and state 1 its start."""

    @property
    def next(self) -> NDArray[np.int32]: ...
    @property
    def byte_class(self) -> NDArray[np.uint8]: ...
    @property
    def accepting(self) -> NDArray[np.bool_]: ...


class Characters:
    """A byte automaton's edges by whole characters.  A state is between two characters, or inside one, never both."""

    def __init__(self, dfa: ByteAutomaton) -> None:
        self.next: list[list[int]] = dfa.next.tolist()
        self.byte_class: list[int] = dfa.byte_class.tolist()
        self.accepting: list[bool] = dfa.accepting.tolist()
        self._sizes = [self._class_sizes(0x00, 0x7F), *(self._class_sizes(low, high) for low, high, _ in _LEADS)]
        self._inner_sizes = self._class_sizes(0x80, 0xBF)
        self._ends: dict[tuple[int, int], dict[int, int]] = {}
        self._tails: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        self._steps: dict[int, dict[int, int]] = {}
        self._charsets: dict[int, dict[int, CharSet]] = {}

    def _class_sizes(self, low: int, high: int) -> list[tuple[int, int]]:
        """(byte class, how many of its bytes are in low..high), the empty ones left out."""
        found: dict[int, int] = defaultdict(int)
        for byte in range(low, high + 1):
            found[self.byte_class[byte]] += 1
        return list(found.items())

    def steps(self, state: int) -> dict[int, int]:
        """State after one more character -> by how many characters it is reached."""
        if (known := self._steps.get(state)) is None:
            known = self._steps[state] = self._count(state, self._sizes)
        return known

    def _count(self, state: int, sizes: Sequence[list[tuple[int, int]]]) -> dict[int, int]:
        found: dict[int, int] = defaultdict(int)
        for left, classes in enumerate(sizes):
            for byte_class, size in classes:
                if (target := self.next[state][byte_class]) != DEAD:
                    for end, ways in self._ends_of(target, left).items():
                        found[end] += size * ways
        return dict(found)

    def _ends_of(self, state: int, left: int) -> dict[int, int]:
        """The same from inside a character that lacks `left` bytes."""
        if left == 0:
            return {state: 1}
        if (known := self._ends.get((state, left))) is None:
            known = defaultdict(int)
            for byte_class, size in self._inner_sizes:
                if (target := self.next[state][byte_class]) != DEAD:
                    for end, ways in self._ends_of(target, left - 1).items():
                        known[end] += size * ways
            self._ends[(state, left)] = known
        return known

    def between(self, state: int, target: int) -> CharSet:
        """The characters that lead from one state to another."""
        if (known := self._charsets.get(state)) is None:
            ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)
            for low, high, end in self._runs(state, 0x00, 0x7F):
                ranges[end].append((low, high))
            for left, (first, last, payload) in enumerate(_LEADS, 1):
                for low, high, inner in self._runs(state, first, last):
                    for byte in range(low, high + 1):
                        base = (byte & payload) << 6 * left
                        for a, b, end in self._tails_of(inner, left):
                            ranges[end].append((base + a, base + b))
            known = self._charsets[state] = {end: charset(pairs) for end, pairs in ranges.items()}
        return known.get(target, ())

    def _runs(self, state: int, low: int, high: int) -> list[tuple[int, int, int]]:
        """(first byte, last byte, target) of the live edges, neighbours with one target joined."""
        row, found = self.next[state], list[tuple[int, int, int]]()
        for byte in range(low, high + 1):
            target = row[self.byte_class[byte]]
            if found and found[-1][1] == byte - 1 and found[-1][2] == target:
                found[-1] = (found[-1][0], byte, target)
            elif target != DEAD:
                found.append((byte, byte, target))
        return found

    def _tails_of(self, state: int, left: int) -> list[tuple[int, int, int]]:
        """(first, last, target) of what the last `left` bytes of a character may be, as numbers of 6 bits a byte."""
        if left == 0:
            return [(0, 0, state)]
        if (known := self._tails.get((state, left))) is None:
            known, unit = [], 1 << 6 * (left - 1)
            for low, high, inner in self._runs(state, 0x80, 0xBF):
                rest = self._tails_of(inner, left - 1)
                if len(rest) == 1 and rest[0][:2] == (0, unit - 1):
                    known.append(((low - 0x80) * unit, (high - 0x7F) * unit - 1, rest[0][2]))
                    continue
                for byte in range(low, high + 1):
                    known += [((byte - 0x80) * unit + a, (byte - 0x80) * unit + b, end) for a, b, end in rest]
            self._tails[(state, left)] = known
        return known

    def is_forced(self, state: int) -> bool:
        """Exactly one byte can follow, and something must."""
        if self.accepting[state]:
            return False
        live = [byte_class for byte_class, target in enumerate(self.next[state]) if target != DEAD]
        return len(live) == 1 and self.byte_class.count(live[0]) == 1


class Chain:
    """An edge of the drawing: the states it passes, both ends included."""

    def __init__(self, states: list[int], is_literal: bool, is_forced: bool) -> None:
        self.states = states
        self.is_literal = is_literal
        self.is_forced = is_forced


class Graph:
    """The compressed automaton: nodes are where something is decided or may end; between them, chains.

    A literal (each character the only one towards the next state) is one edge, and so is a class repeated n times.
    Made in O(states x byte classes); labels only when shown.
    """

    def __init__(self, dfa: ByteAutomaton) -> None:
        self.dfa = dfa
        self.chars = Characters(dfa)
        self.accepting = self.chars.accepting
        self.states = self._reachable()
        self._num_before: dict[int, int] = defaultdict(int)
        for state in self.states:
            for target in self.chars.steps(state):
                self._num_before[target] += 1
        self.edges = self._chains()
        self.nodes = sorted({START, *(chain.states[-1] for chain in self.edges)})
        self.kin = self._alike() if len(self.nodes) > FOLD_FROM else {node: node for node in self.nodes}
        self._hop = {
            hop: (edge, i) for edge, chain in enumerate(self.edges) for i, hop in enumerate(pairwise(chain.states))
        }

    @property
    def num_states(self) -> int:
        """Of the byte automaton, without the dead one."""
        return len(self.accepting) - 1

    def _reachable(self) -> list[int]:
        """The states between characters, nearest to the start first."""
        found, queue = {START: None}, deque([START])
        while queue:
            for target in self.chars.steps(queue.popleft()):
                if target not in found:
                    found[target] = None
                    queue.append(target)
        return list(found)

    def _chains(self) -> list[Chain]:
        made, seen, queue = [], {START}, deque([START])
        while queue:
            state = queue.popleft()
            for target in self.chars.steps(state):
                chain = self._chain(state, target)
                made.append(chain)
                if chain.states[-1] not in seen:
                    seen.add(chain.states[-1])
                    queue.append(chain.states[-1])
        return made

    def _chain(self, state: int, target: int) -> Chain:
        """From a node over its edge to `target`, on through states with one way in and one way out."""
        ways = self.chars.steps(state)
        size, is_forced = ways[target], len(ways) == 1 and not self.accepting[state]
        states = [state, target]
        while (after := self._only_step(target)) is not None and self.chars.steps(target)[after] == size:
            if size > 1 and self.chars.between(target, after) != self.chars.between(state, states[1]):
                break
            target = after
            states.append(target)
        return Chain(states, size == 1, is_forced and size == 1)

    def _only_step(self, state: int) -> int | None:
        """The one state after this one, if this one needs no node of its own."""
        ways = self.chars.steps(state)
        if state == START or self.accepting[state] or self._num_before[state] != 1 or len(ways) != 1:
            return None
        return next(iter(ways))

    def _alike(self) -> dict[int, int]:
        """Node -> the node it is drawn as: the first of those that look alike for the next few steps.

        So a count (`.{1,20}`) is drawn as one node that is n, and its last steps one by one.
        """
        outgoing: dict[int, list[int]] = defaultdict(list)
        for i, chain in enumerate(self.edges):
            outgoing[chain.states[0]].append(i)
        what = [(chain.is_literal, len(chain.states), self._meaning(i)) for i, chain in enumerate(self.edges)]
        group = {node: int(self.accepting[node]) + 2 * (node == START) for node in self.nodes}
        for _ in range(FOLD_STEPS):
            signs = {
                node: (group[node], frozenset((what[i], group[self.edges[i].states[-1]]) for i in outgoing[node]))
                for node in self.nodes
            }
            numbers: dict[object, int] = {}
            group = {node: numbers.setdefault(sign, len(numbers)) for node, sign in signs.items()}
        size = Counter(group.values())
        first: dict[int, int] = {}
        return {
            node: first.setdefault(group[node], node) if size[group[node]] >= FOLD_LEAST else node
            for node in self._by_distance()
        }

    def _meaning(self, i: int) -> object:
        chain = self.edges[i]
        return self.literal(i) if chain.is_literal else self.chars.between(chain.states[0], chain.states[1])

    def _by_distance(self) -> list[int]:
        place = {state: i for i, state in enumerate(self.states)}
        return sorted(self.nodes, key=place.__getitem__)

    # ---- what is shown -----------------------------------------------------------------------------------------------

    def shown(self, around: Iterable[int] = (), limit: int = MAX_NODES) -> Automaton:
        """At most `limit` nodes, nearest to `around` (without any: to the start), with the edges between them."""
        kept = self._nearest([self.kin[node] for node in around if node in self.kin] or [START], limit)
        times = Counter(self.kin.values())
        hidden: dict[int, int] = defaultdict(int)
        edges: dict[tuple[int, int, object], AutomatonEdge] = {}
        for i, chain in enumerate(self.edges):
            source, target = self.kin[chain.states[0]], self.kin[chain.states[-1]]
            if source in kept and target in kept:
                edges.setdefault(self._drawn[i], self._edge(i))
            elif source in kept:
                hidden[source] += 1
        nodes = [AutomatonNode(n, n == START, self.accepting[n], hidden[n], times[n]) for n in self.nodes if n in kept]
        num_hidden = len(times) - len(nodes)
        return Automaton(nodes, list(edges.values()), num_hidden, self.num_states)

    @cached_property
    def _drawn(self) -> list[tuple[int, int, object]]:
        """Edge -> what it looks like: two of the same looks, between the same drawn nodes, are drawn once."""
        return [
            (self.kin[chain.states[0]], self.kin[chain.states[-1]], (len(chain.states), self._meaning(i)))
            for i, chain in enumerate(self.edges)
        ]

    @cached_property
    def _drawn_as(self) -> list[int]:
        """Edge -> the edge that is drawn for it."""
        first: dict[object, int] = {}
        return [first.setdefault(looks, i) for i, looks in enumerate(self._drawn)]

    @cached_property
    def _beside(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {node: [] for node in self.kin.values()}
        for chain in self.edges:
            source, target = self.kin[chain.states[0]], self.kin[chain.states[-1]]
            found[source].append(target)
            found[target].append(source)
        return found

    def _nearest(self, around: list[int], limit: int) -> set[int]:
        kept, queue = dict.fromkeys(around[:limit]), deque(around[:limit])
        while queue:
            for node in self._beside[queue.popleft()]:
                if node not in kept and len(kept) < limit:
                    kept[node] = None
                    queue.append(node)
        return set(kept)

    def _edge(self, i: int) -> AutomatonEdge:
        """Drawn in the place of all that look like it."""
        chain, i = self.edges[i], self._drawn_as[i]
        label = literal_label(self.literal(i)) if chain.is_literal else self._class_label(chain)
        source, target = self.kin[chain.states[0]], self.kin[chain.states[-1]]
        return AutomatonEdge(i, source, target, label, chain.is_literal, chain.is_forced)

    def literal(self, edge: int) -> str:
        """The text of a literal edge."""
        return "".join(chr(self.chars.between(a, b)[0][0]) for a, b in pairwise(self.edges[edge].states))

    def _class_label(self, chain: Chain) -> str:
        label, times = class_label(self.chars.between(chain.states[0], chain.states[1])), len(chain.states) - 1
        return label if times == 1 else f"{label}{{{times}}}"

    # ---- where a text stands -----------------------------------------------------------------------------------------

    def place(self, text: str | bytes) -> Place:
        """Walk a text from the start; stops before the first byte that no text of the language has there."""
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        state, node, edge, inside, at = START, START, -1, 0, START
        path: list[list[int]] = []
        forced = bytearray()
        for byte in data:
            after = self.chars.next[state][self.chars.byte_class[byte]]
            if after == DEAD:
                break
            forced.append(self.chars.is_forced(state))
            state, inside = after, inside + 1
            if (at, state) not in self._hop:
                continue  # inside a character
            number, hop = self._hop[at, state]
            edge, at = self._drawn_as[number], state
            if hop == 0 and path and path[-1][0] == edge:
                path[-1][1] += 1
            elif hop == 0:
                path.append([edge, 1])
            if state == self.edges[number].states[-1]:
                node, edge, inside = self.kin[state], -1, 0
        taken = data[: len(forced)]
        return Place(
            node=node,
            edge=edge,
            inside=inside,
            accepting=self.accepting[state],
            matched=len(taken.decode("utf-8", "ignore")),
            path=[(edge, times) for edge, times in path],
            forced=spans(taken, forced),
        )

    def state_after(self, data: bytes) -> int:
        """The byte automaton's state after these bytes; 0 where the language has no such prefix."""
        state = START
        for byte in data:
            state = self.chars.next[state][self.chars.byte_class[byte]]
        return state

    def around(self, place: Place) -> list[int]:
        """The nodes a view of this place is about: the current one first, then the path backwards."""
        path = [self.kin[self.edges[edge].states[0]] for edge, _ in reversed(place.path)]
        ahead = [self.kin[self.edges[place.edge].states[-1]]] if place.edge >= 0 else []
        return list(dict.fromkeys([place.node, *ahead, *path]))


def spans(data: bytes, forced: Sequence[int]) -> list[tuple[int, int]]:
    """Stretches of forced characters; one is forced if all its bytes are."""
    found: list[tuple[int, int]] = []
    starts = [i for i, byte in enumerate(data) if byte & 0xC0 != 0x80]
    for place, (begin, end) in enumerate(pairwise([*starts, len(data)])):
        if not all(forced[begin:end]):
            continue
        if found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return found


# ---- tokens --------------------------------------------------------------------------------------------------------


class Mask(Protocol):
    """What tells the tokens allowed at a place: a matcher."""

    def fill_mask(self, row: NDArray[np.uint32]) -> None: ...


def allowed_tokens(
    matcher: Mask, vocab: TokenVocab, top: Sequence[tuple[float | None, int]] = (), limit: int = TOP
) -> Allowed:
    """How many tokens a place allows, and the likeliest of them: of the (log-probability, id) pairs in `top`, else the
    lowest ids."""
    ids = allowed_ids(matcher, vocab)
    open_ids = set(ids.tolist())
    likely = sorted(((p, i) for p, i in top if p is not None and i in open_ids), reverse=True)[:limit]
    if likely:
        shown = [(vocab.shown([i]), i, float(np.exp(p))) for p, i in likely]
    else:
        shown = [(vocab.shown([i]), i, None) for i in ids[:limit].tolist()]
    return Allowed(len(ids), len(vocab), shown)


def allowed_ids(matcher: Mask, vocab: TokenVocab) -> NDArray[np.int64]:
    """The tokens that may come next, in order."""
    row = np.zeros((len(vocab) + 31) // 32, np.uint32)
    matcher.fill_mask(row)
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")[: len(vocab)]
    return np.flatnonzero(bits)


def host_place(matcher: Mask, vocab: TokenVocab, text: str, is_accepting: bool) -> Place:
    """A place in a grammar without an automaton: what may come next, shortest first."""
    allowed = allowed_tokens(matcher, vocab)
    ordinary = [i for i in allowed_ids(matcher, vocab).tolist() if vocab.tokens[i]]
    ordinary.sort(key=lambda i: (len(vocab.tokens[i] or b""), i))
    expected = [vocab.shown([i]) for i in ordinary[:EXPECTED]]
    return Place(accepting=is_accepting, matched=len(text), allowed=allowed, expected=expected)
