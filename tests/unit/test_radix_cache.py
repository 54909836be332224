from __future__ import annotations

import random
from array import array
from typing import Any

import pytest

from nbsgl.engine.kv_pool import KVPool
from nbsgl.engine.radix_cache import Node, RadixCache


def grow(tree: RadixCache, tokens: list[int]) -> tuple[Node, array[int]]:
    """Insert a whole sequence from the root; frees what was doubled; returns its end and its slots."""
    pages = -(-len(tokens) // tree.page_size)
    slots = tree.pool.alloc(pages)
    assert slots is not None
    whole = len(tokens) - len(tokens) % tree.page_size
    done = tree.insert(tree.root, tokens, slots, 0, whole)
    tree.pool.free(done.doubled)
    tree.pool.free(slots[whole:])
    return done.node, slots[:whole]


def tree_of(num_slots: int = 64, page_size: int = 1) -> RadixCache:
    return RadixCache(KVPool(num_slots, page_size), clock=lambda: 0.0)


def test_match_finds_the_longest_prefix() -> None:
    tree = tree_of()
    grow(tree, [1, 2, 3, 4])
    match = tree.match_prefix([1, 2, 3, 9])
    assert (match.length, match.slots.tolist()) == (3, [0, 1, 2])
    assert tree.match_prefix([9]).node is tree.root
    assert tree.match_prefix([1, 2, 3, 4], limit=2).length == 2


def test_split_node_keeps_slot_order() -> None:
    tree = tree_of()
    end, slots = grow(tree, [1, 2, 3, 4])
    upper = tree.match_prefix([1, 2]).node
    assert (upper.key.tolist(), upper.slots) == ([1, 2], slots[:2])
    assert (end.key.tolist(), end.slots, end.parent) == ([3, 4], slots[2:], upper)


def test_split_keeps_the_id_and_the_holders_of_the_lower_part() -> None:
    tree = tree_of()
    end, _ = grow(tree, [1, 2, 3, 4])
    old_id = end.id
    tree.lock(end)
    upper = tree.match_prefix([1, 2]).node
    assert (end.id, upper.locks, end.locks) == (old_id, 1, 1)
    tree.unlock(end)
    assert tree.num_evictable == 4


def test_match_is_cut_to_whole_pages() -> None:
    tree = tree_of(page_size=4)
    grow(tree, [1, 2, 3, 4, 5, 6, 7, 8])
    assert tree.match_prefix([1, 2, 3, 4, 5, 6, 7, 9]).length == 4
    assert tree.match_prefix([1, 2, 3, 9]).length == 0


def test_doubled_slots_come_back_and_the_trees_own_are_used() -> None:
    tree = tree_of()
    _, first = grow(tree, [1, 2, 3])
    slots = tree.pool.alloc(4)
    assert slots is not None
    assert slots.tolist() == [3, 4, 5, 6]
    done = tree.insert(tree.root, [1, 2, 3, 4], slots, 0, 4)
    assert done.doubled == [3, 4, 5]
    assert slots.tolist() == [*first, 6]
    assert done.changed_from == 0


def test_locked_paths_are_not_evicted() -> None:
    tree = tree_of(num_slots=6)
    kept, _ = grow(tree, [1, 2, 3])
    grow(tree, [7, 8, 9])
    tree.lock(kept)
    assert tree.evict(6) == 3
    assert tree.match_prefix([1, 2, 3]).length == 3
    tree.unlock(kept)
    assert tree.evict(6) == 3
    assert (tree.num_tokens, tree.pool.num_free) == (0, 6)


def test_the_least_recently_used_leaf_goes_first() -> None:
    tree = tree_of()
    grow(tree, [1, 2])
    grow(tree, [3, 4])
    tree.match_prefix([1, 2])
    tree.evict(2)
    assert tree.match_prefix([1, 2]).length == 2
    assert tree.match_prefix([3, 4]).length == 0


def test_parked_paths_are_evicted_last() -> None:
    tree = tree_of()
    parked, _ = grow(tree, [1, 2])
    tree.park(parked)
    grow(tree, [3, 4])
    tree.match_prefix([3, 4])
    tree.evict(2)
    assert tree.match_prefix([1, 2]).length == 2
    tree.evict(2)
    tree.unpark(parked)  # the node is gone; its ancestors' counts are right all the same
    assert len(tree) == 0


def test_a_long_leaf_only_loses_its_end() -> None:
    tree = tree_of(page_size=4)
    grow(tree, list(range(12)))
    assert tree.evict(3) == 4
    assert tree.match_prefix(list(range(12))).length == 8


def test_a_leaf_grows_unless_somebody_else_has_locked_it() -> None:
    tree = tree_of()
    end, _ = grow(tree, [1, 2])
    assert grow(tree, [1, 2, 3])[0] is end
    tree.lock(end)  # of a caller that has [1, 2, 3] and goes on from there
    mine = tree.pool.alloc(1)
    assert mine is not None
    assert tree.insert(end, [1, 2, 3, 4], array("i", [0, 0, 0, *mine]), 3, 4).node is end
    assert (tree.num_locked, end.slots[-1]) == (4, mine[0])
    assert grow(tree, [1, 2, 3, 4, 5])[0].parent is end


def test_flush_spares_what_is_locked() -> None:
    tree = tree_of()
    grow(tree, [1, 2, 3])
    tree.lock(tree.match_prefix([1, 2]).node)
    assert tree.flush() == 1
    assert tree.num_tokens == 2


def test_dump_shows_each_node_with_its_first_tokens() -> None:
    tree = tree_of(num_slots=99)
    end, _ = grow(tree, [*range(30), 50])
    tree.match_prefix(list(range(30)))
    upper, lower = sorted(tree.dump(str), key=lambda node: node.depth)
    assert (upper.num_tokens, upper.parent, upper.text) == (30, 0, str(list(range(24))))
    assert (lower.id, lower.parent, lower.num_tokens, lower.text) == (end.id, upper.id, 1, "[50]")


class Model:
    """The tree as a dictionary: every cached prefix, in whole pages, and the slots of its last page."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.pages: dict[tuple[int, ...], list[int]] = {}

    def match(self, tokens: list[int]) -> list[int]:
        size, slots = self.page_size, []
        for end in range(size, len(tokens) + 1, size):
            page = self.pages.get(tuple(tokens[:end]))
            if page is None:
                break
            slots += page
        return slots

    def insert(self, tokens: list[int], slots: list[int]) -> None:
        for end in range(self.page_size, len(tokens) + 1, self.page_size):
            self.pages.setdefault(tuple(tokens[:end]), slots[end - self.page_size : end])

    def forget_freed(self, tree: RadixCache) -> None:
        """Take over what the tree evicted; what is left must be a tree still."""
        cached: dict[tuple[int, ...], list[int]] = {}
        stack: list[tuple[Node, tuple[int, ...]]] = [(tree.root, ())]
        while stack:
            node, prefix = stack.pop()
            for end in range(self.page_size, len(node.key) + 1, self.page_size):
                cached[prefix + tuple(node.key[:end])] = node.slots[end - self.page_size : end].tolist()
            stack += [(child, prefix + tuple(node.key)) for child in node.children.values()]
        assert cached.items() <= self.pages.items()
        self.pages = cached


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_radix_random_operations_against_a_dictionary(page_size: int) -> None:
    """S5: match, split, insert, lock, unlock, evict in random order; nothing is lost and nothing is found twice."""
    rng = random.Random(page_size)
    tree = tree_of(num_slots=rng.choice((64, 256)) * page_size, page_size=page_size)
    model, locked = Model(page_size), []
    patterns = [[0] * (page_size - 1) + [last] for last in range(3)]  # pages that differ at their end only
    for step in range(40_000):
        pages = [rng.choice(patterns) for _ in range(rng.randrange(1, 8))]
        tokens = [token for page in pages for token in page] + [0] * rng.randrange(page_size)
        kind = rng.random()
        if kind < 0.35:
            match = tree.match_prefix(tokens)
            assert match.slots.tolist() == model.match(tokens)
            if rng.random() < 0.3 and len(locked) < 4:
                tree.lock(match.node)
                locked.append(match.node)
        elif kind < 0.8:
            _insert(tree, model, tokens)
        elif kind < 0.9 and locked:
            tree.unlock(locked.pop(rng.randrange(len(locked))))
        elif kind > 0.97:
            tree.evict(rng.randrange(1, 40))
            model.forget_freed(tree)
        assert tree.pool.num_free + tree.num_tokens == tree.pool.num_slots
        if step % 1000 == 0:
            _recount(tree, locked)
    for node in locked:
        tree.unlock(node)
    tree.flush()
    assert tree.pool.num_free == tree.pool.num_slots


def _insert(tree: RadixCache, model: Model, tokens: list[int]) -> None:
    size = tree.page_size
    whole = len(tokens) - len(tokens) % size
    slots = tree.pool.alloc(whole // size)
    if slots is None:
        tree.evict(whole)
        model.forget_freed(tree)
        return
    done = tree.insert(tree.root, tokens, slots, 0, whole)
    tree.pool.free(done.doubled)
    model.insert(tokens[:whole], slots.tolist())
    assert slots.tolist() == model.match(tokens[:whole])


def _recount(tree: RadixCache, locked: list[Node]) -> None:
    locks: dict[int, int] = {}
    for end in locked:
        for node in end.path():
            locks[node.id] = locks.get(node.id, 0) + 1
    nodes: list[Any] = tree.nodes()
    assert {node.id: node.locks for node in nodes if node.locks} == locks
    leaves = [(node.parked > 0, node.last_use, node.id) for node in nodes if not node.children and not node.locks]
    assert sorted(leaves) == tree.evict_keys()
    assert tree.num_evictable == sum(len(node.key) for node in nodes if not node.locks)
