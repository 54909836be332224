"""Policies: in which order waiting sequences are admitted.  Pure functions of the waiting list and the tree.

fcfs         first come, first served
lpm          longest cached prefix first: what is in the tree is used before it is evicted
dfs-weight   depth first over the tree, the branch with more waiting sequences first: neighbours run together

Whatever the policy, sequences that were taken off the batch come first, then those that have waited `MAX_WAIT_STEPS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

MAX_WAIT_STEPS = 500  # no stream of luckier arrivals keeps a sequence waiting for longer
MAX_RANKED = 256  # a longer queue is served in order of arrival behind its first 256: ranking costs a match each


class Waiting(Protocol):
    """What a policy looks at."""

    arrival: int  # place in the order of arrival
    comes_first: bool  # it was running already
    queued_step: int  # when it began to wait
    match_len: int  # cached prefix
    match_node: Any  # the tree's node in which it ends


def fcfs(waiting: list[Waiting]) -> list[Waiting]:
    return sorted(waiting, key=lambda seq: seq.arrival)


def lpm(waiting: list[Waiting]) -> list[Waiting]:
    return sorted(waiting, key=lambda seq: (-seq.match_len, seq.arrival))


def dfs_weight(waiting: list[Waiting]) -> list[Waiting]:
    """Visit the tree depth first, heavier children first; a node's own sequences come after those below it."""
    weight: dict[int, int] = {}
    below: dict[int, dict[int, None]] = {}
    here: dict[int, list[Waiting]] = {}
    for seq in fcfs(waiting):
        node = seq.match_node
        here.setdefault(node.id, []).append(seq)
        while node is not None:
            weight[node.id] = weight.get(node.id, 0) + 1
            if node.parent is not None:
                below.setdefault(node.parent.id, {})[node.id] = None
            node = node.parent
    order: list[Waiting] = []
    stack = [(0, False)]  # the root is node 0
    while stack:
        node_id, is_left = stack.pop()
        if is_left:
            order += here.get(node_id, ())
            continue
        stack.append((node_id, True))
        stack += [(child, False) for child in sorted(below.get(node_id, ()), key=lambda child: (weight[child], -child))]
    return order


POLICIES: dict[str, Callable[[list[Waiting]], list[Waiting]]] = {"fcfs": fcfs, "lpm": lpm, "dfs-weight": dfs_weight}


def order_waiting(policy: str, waiting: Iterable[Waiting], step: int, look_up: Callable[[Any], None]) -> list[Waiting]:
    """The waiting sequences in the order in which to admit them.  `look_up` fills in a sequence's cached prefix."""
    first: list[Waiting] = []
    rest: list[Waiting] = []
    for seq in fcfs(list(waiting)):
        is_due = seq.comes_first or step - seq.queued_step > MAX_WAIT_STEPS
        (first if is_due else rest).append(seq)
    if policy == "fcfs":
        return first + rest
    ranked, late = rest[:MAX_RANKED], rest[MAX_RANKED:]
    for seq in ranked:
        look_up(seq)
    return first + POLICIES[policy](ranked) + late
