"""Nodes of a drawn automaton that look alike, drawn as one: a count (`.{1,20}`) is one node that is n."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

STEPS = 3
LEAST = 4  # fewer may differ in what matters later

Link = tuple[int, int, object]
"""(source, target, what leads there)."""


def folded(kinds: Mapping[int, int], links: Sequence[Link]) -> dict[int, int]:
    """Node -> the node it is drawn as: the first (in the order of `kinds`) of those whose next steps are the same and
    that are neighbours, through others that are folded.

    `kinds` numbers the kinds of node there are: two kinds are never drawn as one.
    """
    near: dict[int, list[int]] = {node: [] for node in kinds}
    for source, target, _ in links:
        near[source].append(target)
        near[target].append(source)
    group: Mapping[int, object] = _looks(kinds, links)
    num_groups = 0
    while num_groups < len(set(group.values())):  # what splits here may leave other stretches apart
        num_groups, size = len(set(group.values())), Counter(group.values())
        stretch = _stretches({node for node in kinds if size[group[node]] >= LEAST}, near)
        group = {node: (group[node], stretch.get(node)) for node in kinds}
    size = Counter(group.values())
    first: dict[object, int] = {}
    return {node: first.setdefault(group[node], node) if size[group[node]] >= LEAST else node for node in kinds}


def _looks(kinds: Mapping[int, int], links: Sequence[Link]) -> dict[int, int]:
    """Node -> a number that nodes share whose next steps are the same."""
    after: dict[int, list[tuple[object, int]]] = defaultdict(list)
    for source, target, what in links:
        after[source].append((what, target))
    group = dict(kinds)
    for _ in range(STEPS):
        numbers: dict[object, int] = {}
        signs = {node: (group[node], frozenset((what, group[end]) for what, end in after[node])) for node in kinds}
        group = {node: numbers.setdefault(sign, len(numbers)) for node, sign in signs.items()}
    return group


def _stretches(nodes: set[int], near: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Node -> a number that nodes share between which edges lead without leaving the set."""
    found: dict[int, int] = {}
    for root in nodes:
        queue = [] if root in found else [root]
        while queue:
            node = queue.pop()
            if node not in found:
                found[node] = root
                queue += [other for other in near[node] if other in nodes]
    return found
