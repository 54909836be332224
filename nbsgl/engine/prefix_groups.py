"""Which decoding rows share a prefix: what attention may then read once for all of them (cascade).

One level: every row belongs to at most one group, whose rows hold the same slots at their first positions because they
lock the same node of the tree.  Groups are taken greedily, the one that saves the most reads first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Many

from nbsgl.engine.batch import SharedPrefix
from nbsgl.engine.radix_cache import Node
from nbsgl.engine.request import Sequence

MIN_BATCH = 192  # smaller batches gain nothing (`attention.shared_prefix`)
MIN_ROWS, MIN_LENGTH = 4, 128  # of a group


class PrefixGroups:
    """Remembers the last batch's groups: they change only with its rows."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int]] = []
        self._order: list[int] = []
        self._groups: list[SharedPrefix] = []

    def of(self, seqs: Many[Sequence]) -> tuple[list[int], list[SharedPrefix]]:
        """An order of the sequences in which groups lie together, and the groups in that order; maybe none."""
        if len(seqs) < MIN_BATCH:
            return [], []
        rows = [(seq.id, seq.epoch) for seq in seqs]
        if rows != self._rows:
            self._rows = rows
            self._order, self._groups = group_by_prefix(seqs)
        return self._order, self._groups


def group_by_prefix(seqs: Many[Sequence]) -> tuple[list[int], list[SharedPrefix]]:
    """See `PrefixGroups.of`.  Linear in the number of sequences times the depth of their paths."""
    below: dict[Node, list[int]] = defaultdict(list)
    for i, seq in enumerate(seqs):
        if seq.node is not None:
            for node in seq.node.path():
                below[node].append(i)
    lengths = {node: _length(node) for node, members in below.items() if len(members) >= MIN_ROWS}
    wanted = [node for node, length in lengths.items() if length >= MIN_LENGTH]
    wanted.sort(key=lambda node: -(len(below[node]) - 1) * lengths[node])
    order: list[int] = []
    groups = []
    taken = [False] * len(seqs)
    for node in wanted:
        members = [i for i in below[node] if not taken[i]]
        if len(members) < MIN_ROWS:
            continue
        groups.append(SharedPrefix(len(order), len(order) + len(members), lengths[node]))
        order += members
        for i in members:
            taken[i] = True
    if not groups:
        return [], []
    return order + [i for i, is_taken in enumerate(taken) if not is_taken], groups


def _length(node: Node) -> int:
    return sum(len(above.key) for above in node.path())
