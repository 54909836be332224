"""All tokens of a vocabulary as one tree of bytes, in arrays that are walked a level at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class VocabTrie:
    """Nodes by depth, and within a depth by the bytes that lead to them; node 0 is the root.

    Node n was entered from `parent[n]` by `byte[n]`; its children are [first_child[n], first_child[n + 1]).  Depth d
    holds the nodes [levels[d], levels[d + 1]).  A token's bytes end at `node_of[token]`; for special tokens, and for
    tokens without bytes, that is the number of nodes.  All intp: numpy takes by these the fastest.
    """

    parent: Ints
    byte: Ints
    first_child: Ints
    levels: tuple[int, ...]
    node_of: Ints

    def __len__(self) -> int:
        return len(self.parent)

    @classmethod
    def of(cls, tokens: Sequence[bytes | None]) -> VocabTrie:
        """O(bytes of all tokens), after sorting them."""
        texts = [token or b"" for token in tokens]
        order = np.array(sorted(range(len(texts)), key=texts.__getitem__), np.intp)
        lengths = np.fromiter(map(len, texts), np.intp, len(texts))[order]
        ends = np.cumsum(lengths)
        data = np.frombuffer(b"".join([texts[i] for i in order.tolist()]), np.uint8)
        at = np.zeros(len(texts), np.intp)  # the node that each token, in order, has come to
        parents, edges, levels = [np.zeros(1, np.intp)], [np.zeros(1, np.intp)], [0, 1]
        longer = np.flatnonzero(lengths)
        while len(longer):
            below = at[longer]
            byte = data[ends[longer] - lengths[longer] + len(levels) - 2]
            is_new = np.ones(len(longer), np.bool_)  # sorted: equal prefixes are neighbours
            is_new[1:] = (below[1:] != below[:-1]) | (byte[1:] != byte[:-1])
            parents.append(below[is_new])
            edges.append(byte[is_new].astype(np.intp))
            at[longer] = levels[-1] - 1 + np.cumsum(is_new)
            levels.append(levels[-1] + len(parents[-1]))
            longer = longer[lengths[longer] >= len(levels) - 1]
        parent = np.concatenate(parents)
        node_of = np.empty(len(texts), np.intp)
        node_of[order] = np.where(lengths > 0, at, len(parent))
        first_child = np.searchsorted(parent[1:], np.arange(len(parent) + 1)) + 1
        return cls(parent, np.concatenate(edges), first_child, tuple(levels), node_of)
