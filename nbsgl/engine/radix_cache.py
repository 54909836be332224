"""The radix cache: a tree over token ids whose nodes hold the slots of their tokens' KV.

Every edge is a run of whole pages; no two children of a node begin with the same page.  A node is *locked* while a
running sequence's path ends in it or below it, and *parked* while a parked sequence's does.  Unlocked leaves can be
evicted, least recently used first, those of parked paths last.  Zheng et al. 2024, "SGLang", section 3.

The tree may hold, at one position of one path, one slot only: `insert` gives doubled slots back to its caller.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sortedcontainers import SortedList

from nbsgl.engine.kv_pool import KVPool
from nbsgl.protocol import TreeNode

TEXT_TOKENS = 24  # a view shows this many of a node's first tokens


class Node:
    """A run of tokens below its parent.  The root is an empty run."""

    __slots__ = (
        "__weakref__",
        "children",
        "evict_key",
        "hits",
        "id",
        "key",
        "last_use",
        "last_use_s",
        "locks",
        "parent",
        "parked",
        "slots",
    )

    def __init__(self, id: int, parent: Node | None, key: array[int], slots: array[int]) -> None:
        self.id = id
        self.parent = parent
        self.key = key
        self.slots = slots
        self.children: dict[Any, Node] = {}
        self.locks = 0  # running sequences whose path ends here or below
        self.parked = 0  # parked sequences whose path ends here or below
        self.hits = 0
        self.last_use = 0  # the tree's tick
        self.last_use_s = 0.0
        self.evict_key: tuple[bool, int, int] | None = None  # its place among the unlocked leaves, if it is one

    def path(self) -> Iterator[Node]:
        """The node and its ancestors, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


@dataclass(slots=True)
class PrefixMatch:
    """The longest cached prefix: `length` tokens, ending with `node`; `slots` hold their KV."""

    node: Node
    length: int
    slots: array[int]


@dataclass(slots=True)
class Inserted:
    """The node in which the inserted prefix ends; the caller's slots that the tree had no use for, and from which
    position on the caller's slot list was changed to the tree's own (its end if nowhere)."""

    node: Node
    doubled: list[int]
    changed_from: int


class RadixCache:
    """See the module.  With `is_disabled` nothing is ever matched or inserted."""

    def __init__(self, pool: KVPool, *, is_disabled: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.pool, self.page_size, self.is_disabled = pool, pool.page_size, is_disabled
        self.root = Node(0, None, array("i"), array("i"))
        self.num_tokens = 0  # in the tree
        self.num_locked = 0  # of them in locked nodes
        self.evicted_tokens = 0
        self.version = 0  # changes whenever a match could come out differently
        self._clock = clock
        self._tick = 0
        self._last_id = 0
        self._nodes: dict[int, Node] = {}
        self._leaves: SortedList = SortedList()  # evict_key of exactly the unlocked leaves

    # ---- reading

    @property
    def num_evictable(self) -> int:
        return self.num_tokens - self.num_locked

    def __len__(self) -> int:
        return len(self._nodes)

    def nodes(self) -> list[Node]:
        return list(self._nodes.values())

    def evict_keys(self) -> list[tuple[bool, int, int]]:
        return list(self._leaves)

    def peek(self, tokens: Sequence[int], limit: int) -> tuple[Node, int]:
        """The longest cached prefix of tokens[:limit] and the node it ends in or inside; changes nothing."""
        tokens = _as_array(tokens)
        node, length = self.root, 0
        while (child := self._child(node, tokens, length, limit)) is not None:
            same = self._common(child.key, tokens, length, limit)
            length += same
            node = child
            if same < len(child.key):
                break
        return node, length

    def match_prefix(self, tokens: Sequence[int], limit: int | None = None) -> PrefixMatch:
        """Find the longest cached prefix of tokens[:limit], in whole pages, and mark its nodes as just used.

        Splits a node when the match ends inside it, so the tree may gain a node; no slot is allocated or freed, and
        nothing is locked: call `lock` before the next `evict`.  O(length matched).
        """
        tokens = _as_array(tokens)
        limit = len(tokens) if limit is None else limit
        node, length, slots = self.root, 0, array("i")
        self._tick += 1
        while (child := self._child(node, tokens, length, limit)) is not None:
            same = self._common(child.key, tokens, length, limit)
            if same < len(child.key):
                child = self._split(child, same)
            self._touch(child)
            child.hits += 1
            slots.extend(child.slots)
            length += same
            node = child
        return PrefixMatch(node, length, slots)

    def _child(self, node: Node, tokens: array[int], start: int, limit: int) -> Node | None:
        if start + self.page_size > limit:
            return None
        return node.children.get(self._first_page(tokens, start))

    def _first_page(self, tokens: array[int], start: int) -> Any:
        return tokens[start] if self.page_size == 1 else tuple(tokens[start : start + self.page_size])

    def _common(self, key: array[int], tokens: array[int], start: int, limit: int) -> int:
        """How many tokens of `key` agree with tokens[start:limit], in whole pages."""
        high = min(len(key), limit - start)
        if key[:high] == tokens[start : start + high]:
            low = high
        else:
            low = 0  # key[:low] agrees, key[:high] does not
            while high - low > 1:
                middle = (low + high) // 2
                if key[low:middle] == tokens[start + low : start + middle]:
                    low = middle
                else:
                    high = middle
        return low - low % self.page_size

    # ---- growing

    def insert(self, node: Node, tokens: Sequence[int], slots: array[int], start: int, end: int) -> Inserted:
        """Give the tree tokens[start:end], KV in slots[start:end], below `node`, whose path is tokens[:start].

        Where the tree has the tokens already, `slots` is changed in place to the tree's own and the caller's are
        returned as doubled: they are the caller's to free.  Locks nothing.  start and end are multiples of the page.
        A leaf that nobody else has locked grows, so a conversation of many turns stays one node.
        """
        assert start % self.page_size == 0
        assert end % self.page_size == 0
        tokens = _as_array(tokens)
        doubled: list[int] = []
        changed_from = len(slots)
        num_own = 1  # locks of `node` that are the caller's
        self._tick += 1
        while start < end:
            child = self._child(node, tokens, start, end)
            if child is None:
                if node is self.root or node.children or node.locks > num_own:
                    node = self._add(node, tokens[start:end], slots[start:end])
                else:
                    self._grow(node, tokens[start:end], slots[start:end])
                break
            same = self._common(child.key, tokens, start, end)
            if same < len(child.key):
                child = self._split(child, same)
            doubled += slots[start : start + same]
            slots[start : start + same] = child.slots
            changed_from = min(changed_from, start)
            self._touch(child)
            start += same
            node, num_own = child, 0
        return Inserted(node, doubled, changed_from)

    def _add(self, parent: Node, key: array[int], slots: array[int]) -> Node:
        node = self._new_node(parent, key, slots)
        parent.children[self._first_page(key, 0)] = node
        node.last_use, node.last_use_s = self._tick, self._clock()
        self.num_tokens += len(key)
        self.version += 1
        self._settle_leaf(parent)
        self._settle_leaf(node)
        return node

    def _grow(self, leaf: Node, key: array[int], slots: array[int]) -> None:
        leaf.key.extend(key)
        leaf.slots.extend(slots)
        self.num_tokens += len(key)
        if leaf.locks:
            self.num_locked += len(key)
        self.version += 1
        self._touch(leaf)

    def _new_node(self, parent: Node, key: array[int], slots: array[int]) -> Node:
        self._last_id += 1
        node = self._nodes[self._last_id] = Node(self._last_id, parent, key, slots)
        return node

    def _split(self, node: Node, length: int) -> Node:
        """Cut a node after `length` tokens.  The new node is the upper part: `node` keeps its id, end and holders."""
        parent = node.parent
        assert parent is not None
        assert 0 < length < len(node.key)
        upper = self._new_node(parent, node.key[:length], node.slots[:length])
        upper.locks, upper.parked, upper.hits = node.locks, node.parked, node.hits
        upper.last_use, upper.last_use_s = node.last_use, node.last_use_s
        parent.children[self._first_page(upper.key, 0)] = upper
        node.key, node.slots, node.parent = node.key[length:], node.slots[length:], upper
        upper.children[self._first_page(node.key, 0)] = node
        self.version += 1
        return upper

    def _touch(self, node: Node) -> None:
        node.last_use, node.last_use_s = self._tick, self._clock()
        if node.evict_key is not None:
            self._settle_leaf(node)

    # ---- holding

    def lock(self, node: Node) -> None:
        """Count a user on the node and its ancestors: none of them is evicted until `unlock`."""
        for each in node.path():
            if each.locks == 0:
                self.num_locked += len(each.key)
            each.locks += 1
            if each.evict_key is not None:
                self._settle_leaf(each)

    def unlock(self, node: Node) -> None:
        for each in node.path():
            assert each.locks > 0, f"node {each.id} was unlocked once too often"
            each.locks -= 1
            if each.locks == 0:
                self.num_locked -= len(each.key)
                self._settle_leaf(each)

    def park(self, node: Node) -> None:
        """Mark the path as a parked sequence's: among the unlocked leaves it is evicted last."""
        self._count_parked(node, 1)

    def unpark(self, node: Node) -> None:
        """Take the mark back; the node itself may have been evicted since."""
        self._count_parked(node, -1)

    def _count_parked(self, node: Node, by: int) -> None:
        for each in node.path():
            each.parked += by
            if each.evict_key is not None:
                self._settle_leaf(each)

    def _settle_leaf(self, node: Node) -> None:
        """Put the node where it belongs among the unlocked leaves, or take it out."""
        is_evictable = not node.children and node.locks == 0 and node.parent is not None
        key = (node.parked > 0, node.last_use, node.id) if is_evictable else None
        if key == node.evict_key:
            return
        if node.evict_key is not None:
            self._leaves.remove(node.evict_key)
        if key is not None:
            self._leaves.add(key)
        node.evict_key = key

    # ---- shrinking

    def evict(self, num_tokens: int) -> int:
        """Free at least `num_tokens` slots of unlocked leaves, if there are as many; returns how many were freed.

        A leaf longer than what is still needed only loses its end.
        """
        freed = 0
        while freed < num_tokens and self._leaves:
            node = self._nodes[self._leaves[0][2]]
            freed += self._cut_end(node, num_tokens - freed)
        self.evicted_tokens += freed
        return freed

    def _cut_end(self, node: Node, num_tokens: int) -> int:
        num_tokens = min(len(node.key), -(-num_tokens // self.page_size) * self.page_size)
        self.pool.free(node.slots[-num_tokens:])
        self.num_tokens -= num_tokens
        self.version += 1
        if num_tokens == len(node.key):
            self._remove(node)
        else:
            del node.key[-num_tokens:], node.slots[-num_tokens:]
        return num_tokens

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        assert not node.children
        del node.parent.children[self._first_page(node.key, 0)]
        self._leaves.remove(node.evict_key)
        node.evict_key = None
        del self._nodes[node.id]
        self._settle_leaf(node.parent)

    def flush(self) -> int:
        """Free everything nobody has locked; returns how many tokens."""
        return self.evict(self.num_evictable)

    # ---- showing

    def dump(self, text_of: Callable[[list[int]], str]) -> list[TreeNode]:
        """All nodes, parents before children; `text_of` makes a node's text from its first 24 token ids."""
        now, found = self._clock(), []
        stack = [(child, 1) for child in self.root.children.values()]
        while stack:
            node, depth = stack.pop()
            assert node.parent is not None
            found.append(
                TreeNode(
                    id=node.id,
                    parent=node.parent.id,
                    num_tokens=len(node.key),
                    locks=node.locks,
                    hits=node.hits,
                    age_s=max(0.0, now - node.last_use_s),
                    depth=depth,
                    parked=node.parked > 0,
                    text=text_of(node.key[:TEXT_TOKENS].tolist()),
                )
            )
            stack += [(child, depth + 1) for child in node.children.values()]
        return found


def _as_array(tokens: Sequence[int]) -> array[int]:
    """Comparing two lists of 2,000 ids takes 22 us, two arrays under 1; sequences hold theirs as arrays."""
    return tokens if isinstance(tokens, array) else array("i", tokens)
