"""A byte automaton as people read it: by whole characters, chains drawn as one edge, and a text's place in it.

Needs no vocabulary and no engine: the view of a run is a function of its spec and its text.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nbsgl.automaton import MAX_NODES, Allowed, Automaton, AutomatonEdge, AutomatonNode, Place
from nbsgl.engine.grammar.chains import Chains, close_escapes, label_of, meaning, states_of
from nbsgl.engine.grammar.characters import DEAD, START, ByteAutomaton, Characters
from nbsgl.engine.grammar.folding import Link, folded
from nbsgl.engine.grammar.vocab import TokenVocab

TOP = 10
EXPECTED = 8
FOLD_FROM = 24  # nodes from which escapes and counts are drawn as one


class Graph:
    """The compressed automaton: nodes are where something is decided or may end; between them, edges (`chains`).

    From `FOLD_FROM` nodes on, escapes are one edge each, and nodes that look alike are drawn as one.  Made in
    O(states x byte classes); labels only when shown.
    """

    def __init__(self, dfa: ByteAutomaton) -> None:
        self.chars = Characters(dfa)
        self.accepting = self.chars.accepting
        self.states = states_of(self.chars)
        self.chains = Chains(self.chars, self.states).all()
        nodes = {START, *(chain.target for chain in self.chains)}
        is_large = len(nodes) > FOLD_FROM
        if is_large:
            close_escapes(self.chars, self.chains)
        inside = {node: i for i, chain in enumerate(self.chains) for node in chain.inside}
        self.nodes = [state for state in self.states if state in nodes and state not in inside]
        # an edge within an escape is shown by the edge that leads into it
        self._shown_by = [inside.get(chain.source, i) for i, chain in enumerate(self.chains)]
        links = [
            (self.chains[i].source, self.chains[i].target, meaning(self.chars, self.chains[i]))
            for i in sorted(set(self._shown_by))
        ]
        kinds = {node: int(self.accepting[node]) + 2 * (node == START) for node in self.nodes}
        self.kin = folded(kinds, links) if is_large else {node: node for node in self.nodes}
        self.edges = self._merged(links)
        self._hop = {hop: (i, j) for i, chain in enumerate(self.chains) for j, hop in enumerate(pairwise(chain.states))}

    def _merged(self, links: list[Link]) -> dict[int, tuple[int, int]]:
        """Edge -> (source, target) as drawn; of those that look alike between the same two nodes, the first."""
        first: dict[object, int] = {}
        for i, (source, target, what) in zip(sorted(set(self._shown_by)), links, strict=True):
            first.setdefault((self.kin[source], self.kin[target], what), i)
            self._shown_by[i] = first[self.kin[source], self.kin[target], what]
        self._shown_by = [self._shown_by[i] for i in self._shown_by]
        return {i: (self.kin[self.chains[i].source], self.kin[self.chains[i].target]) for i in sorted(first.values())}

    @property
    def num_states(self) -> int:
        """Of the byte automaton, without the dead one."""
        return len(self.accepting) - 1

    # ---- what is shown -----------------------------------------------------------------------------------------------

    def shown(self, around: Iterable[int] = (), limit: int = MAX_NODES) -> Automaton:
        """At most `limit` nodes, nearest to `around` (without any: to the start), with the edges between them."""
        kept = self._nearest([self.kin[node] for node in around if node in self.kin] or [START], limit)
        times = Counter(self.kin.values())
        hidden = Counter(source for source, target in self.edges.values() if source in kept and target not in kept)
        nodes = [
            AutomatonNode(n, n == START, self.accepting[n], hidden[n], times[n]) for n in sorted(times) if n in kept
        ]
        edges = [self._edge(i) for i, ends in self.edges.items() if kept.issuperset(ends)]
        return Automaton(nodes, edges, len(times) - len(nodes), self.num_states)

    @cached_property
    def _beside(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {node: [] for node in self.kin.values()}
        for source, target in self.edges.values():
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
        chain = self.chains[i]
        is_literal = chain.is_literal and not chain.inside
        return AutomatonEdge(i, *self.edges[i], label_of(self.chars, chain), is_literal, chain.is_forced)

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
            is_new = hop == 0 and at in self.kin
            edge, at = self._shown_by[number], state
            if is_new and path and path[-1][0] == edge:
                path[-1][1] += 1
            elif is_new:
                path.append([edge, 1])
            if state in self.kin:
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
        path = [self.edges[edge][0] for edge, _ in reversed(place.path)]
        ahead = [self.edges[place.edge][1]] if place.edge >= 0 else []
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
    shown: list[tuple[str, int, float | None]]
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
