"""What a sequence holds: the one place where slots move between pool, tree and sequences.

Slots and rows that a step in flight may still write are freed when that step is settled.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence as Many

from nbsgl.engine.kv_pool import KVPool
from nbsgl.engine.radix_cache import RadixCache
from nbsgl.engine.request import Sequence


class KVStore:
    """Pool and tree as one.  `launched` and `settled` number the steps."""

    def __init__(self, pool: KVPool, tree: RadixCache) -> None:
        self.pool, self.tree = pool, tree
        self.launched = 0
        self._later: deque[tuple[int, Many[int], int]] = deque()  # (step, slots, row or -1)

    @property
    def num_available(self) -> int:
        """Slots that are free or can be evicted."""
        return self.pool.num_free + self.tree.num_evictable

    def later(self) -> tuple[list[int], list[int]]:
        """Slots and rows that will be freed when the step in flight is settled."""
        return [s for _, slots, _ in self._later for s in slots], [row for _, _, row in self._later if row >= 0]

    # ---- taking

    def admit(self, seq: Sequence) -> bool:
        """Match the sequence against the tree, lock the match and take a row; False if no row is free."""
        row = self.pool.alloc_row()
        if row is None:
            return False
        self.unpark(seq)
        match = self.tree.match_prefix(seq.tokens, 0 if self.tree.is_disabled else seq.needed_from())
        self.tree.lock(match.node)
        seq.row, seq.node, seq.slots = row, match.node, match.slots
        seq.cached_len = seq.settled_len = seq.kv_len = match.length
        seq.table_len = 0
        return True

    def grant(self, seq: Sequence, length: int, ahead: int = 0) -> bool:
        """See that the sequence has slots for `length` tokens, evicting if it must; False if there are too few.

        Up to `ahead` further tokens are granted from what is free, but no more than half of it.
        """
        missing = length - len(seq.slots)
        if missing <= 0:
            return True
        size = self.pool.page_size
        pages, wanted = -(-missing // size), -(-(missing + ahead) // size)
        if pages > self.pool.num_free_pages:
            self.tree.evict((wanted - self.pool.num_free_pages) * size)
        pages = max(pages, min(wanted, self.pool.num_free_pages // 2))
        slots = self.pool.alloc(pages)
        if slots is None:
            return False
        seq.slots += slots
        return True

    def num_own(self, seq: Sequence) -> int:
        """Computed tokens that can be evicted once the sequence is released: nobody else has their path locked."""
        num_tokens = seq.settled_len - seq.cached_len
        assert seq.node is not None
        for node in seq.node.path():
            if node.locks > 1:
                break
            num_tokens += len(node.key)
        return num_tokens

    # ---- giving

    def insert(self, seq: Sequence) -> None:
        """Give the tree what is known to be good, so that others can match it; the sequence locks it instead."""
        if self.tree.is_disabled:
            return
        end = min(seq.settled_len, len(seq.tokens))
        end -= end % self.pool.page_size
        if end <= seq.cached_len:
            return
        assert seq.node is not None
        done = self.tree.insert(seq.node, seq.tokens, seq.slots, seq.cached_len, end)
        self.tree.lock(done.node)
        self.tree.unlock(seq.node)
        seq.node, seq.cached_len = done.node, end
        seq.table_len = min(seq.table_len, done.changed_from)
        if done.doubled:
            self._free(seq, done.doubled)

    def release(self, seq: Sequence, *, keep: bool = True, park: bool = False) -> None:
        """Take everything from the sequence.  With `keep` its KV goes to the tree first; with `park` it is marked."""
        if seq.node is None:
            return
        if keep:
            self.insert(seq)
        if park:
            seq.parked_node = seq.node
            self.tree.park(seq.node)
        self._free(seq, seq.slots[seq.cached_len :], seq.row)
        self.tree.unlock(seq.node)
        seq.node, seq.slots, seq.row = None, array("i"), -1
        seq.cached_len = seq.settled_len = seq.kv_len = seq.table_len = 0

    def park(self, seq: Sequence) -> None:
        """Mark the cached part of the path of a sequence that holds nothing, to be evicted last."""
        if seq.tokens and not self.tree.is_disabled:
            seq.parked_node = self.tree.match_prefix(seq.tokens).node
            self.tree.park(seq.parked_node)

    def unpark(self, seq: Sequence) -> None:
        if seq.parked_node is not None:
            self.tree.unpark(seq.parked_node)
            seq.parked_node = None

    def _free(self, seq: Sequence, slots: Many[int], row: int = -1) -> None:
        if seq.num_in_flight:
            self._later.append((self.launched, slots, row))
            return
        self.pool.free(slots)
        if row >= 0:
            self.pool.free_row(row)

    def settled(self, step: int) -> None:
        """Step number `step` and all before it have run: free what they might have written."""
        while self._later and self._later[0][0] <= step:
            _, slots, row = self._later.popleft()
            self.pool.free(slots)
            if row >= 0:
                self.pool.free_row(row)
