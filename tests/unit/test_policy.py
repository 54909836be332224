from dataclasses import dataclass
from typing import Any

from nbsgl.engine.kv_pool import KVPool
from nbsgl.engine.policy import MAX_WAIT_STEPS, dfs_weight, fcfs, lpm, order_waiting
from nbsgl.engine.radix_cache import RadixCache


@dataclass
class Seq:
    """What a policy looks at."""

    arrival: int
    match_len: int = 0
    match_node: Any = None
    comes_first: bool = False
    queued_step: int = 0


def arrivals(order: list[Any]) -> list[int]:
    return [seq.arrival for seq in order]


def test_fcfs_is_the_order_of_arrival() -> None:
    assert arrivals(fcfs([Seq(3), Seq(1), Seq(2)])) == [1, 2, 3]


def test_lpm_takes_the_longest_match_first_and_ties_by_arrival() -> None:
    assert arrivals(lpm([Seq(1, 2), Seq(2, 9), Seq(3, 9)])) == [2, 3, 1]


def test_dfs_weight_takes_the_fuller_branch_first() -> None:
    tree = RadixCache(KVPool(16), clock=lambda: 0.0)
    for tokens in ([1, 2], [1, 3], [7]):
        slots = tree.pool.alloc(len(tokens))
        assert slots is not None
        tree.pool.free(tree.insert(tree.root, tokens, slots, 0, len(tokens)).doubled)
    ends = {tokens: tree.match_prefix(list(tokens)).node for tokens in ((1, 2), (1, 3), (1,), (7,))}
    waiting = [
        Seq(1, 1, ends[7,]),
        Seq(2, 1, ends[1,]),
        Seq(3, 2, ends[1, 2]),
        Seq(4, 2, ends[1, 3]),
        Seq(5, 2, ends[1, 3]),
        Seq(6, 0, tree.root),
    ]
    assert arrivals(dfs_weight(waiting)) == [4, 5, 3, 2, 1, 6]


def test_what_ran_before_and_what_waited_long_comes_first() -> None:
    waiting = [Seq(1), Seq(2, 50, queued_step=900), Seq(3, comes_first=True), Seq(4, queued_step=900)]
    order = order_waiting("lpm", waiting, MAX_WAIT_STEPS + 1, lambda seq: None)
    assert arrivals(order) == [1, 3, 2, 4]
