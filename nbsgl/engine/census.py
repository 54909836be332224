"""The census: every slot, lock, row and state counted anew, from the sequences and nodes, not from the counters.

`findings` names what is wrong (invariants I1-I8); `repair` mends it in production: a leaked slot goes to quarantine, a
slot held twice ends the sequences on it and drops the cache.  A leak is no crash.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from nbsgl.engine.request import SeqState

if TYPE_CHECKING:
    from nbsgl.engine.radix_cache import Node, RadixCache
    from nbsgl.engine.scheduler import Scheduler

log = logging.getLogger("nbsgl")


def check(scheduler: Scheduler) -> None:
    """Raise AssertionError naming everything that is wrong."""
    found = findings(scheduler)
    if found:
        raise AssertionError("; ".join(found))


def findings(scheduler: Scheduler) -> list[str]:
    """What is wrong, each with its invariant; empty if nothing is.  O(slots + sequences)."""
    return [
        *_slots(scheduler),
        *_sequences(scheduler),
        *_tree(scheduler.tree),
        *_locks(scheduler),
        *_states(scheduler),
        *_batch(scheduler),
    ]


def _holders(scheduler: Scheduler) -> Counter[int]:
    """How many hold each slot."""
    pool = scheduler.pool
    held = [*pool.free_slots(), *pool.quarantined_slots(), *scheduler.kv.later()[0]]
    for node in scheduler.tree.nodes():
        held += node.slots
    for seq in scheduler.seqs.values():
        if seq.slots:
            held += seq.slots[seq.cached_len :]
    return Counter(held)


def _slots(scheduler: Scheduler) -> list[str]:
    """I1: each slot is held exactly once."""
    held = _holders(scheduler)
    found = []
    num_slots = scheduler.pool.num_slots
    if len(held) != num_slots or held.total() != num_slots:
        leaked = [slot for slot in range(num_slots) if not held[slot]]
        twice = [slot for slot, count in held.items() if count > 1]
        found.append(f"I1: leaked slots {leaked[:16]}, slots held twice {twice[:16]}")
    if scheduler.pool.double_frees:
        found.append(f"I1: {scheduler.pool.double_frees} pages were freed twice")
    rows = [*scheduler.pool.free_rows(), *scheduler.kv.later()[1]]
    rows += [seq.row for seq in scheduler.running.values()]
    if sorted(rows) != list(range(scheduler.pool.num_rows)):
        found.append(f"I1: rows {sorted(rows)[:16]}... are not each held once")
    return found


def _sequences(scheduler: Scheduler) -> list[str]:
    """I2, I8: a running sequence's slots are its locked path's, then its own; its lengths are in order."""
    found = []
    size = scheduler.pool.page_size
    for seq in scheduler.running.values():
        if seq.node is None:
            found.append(f"I2: running sequence {seq.id} has no path")
            continue
        path = list(seq.node.path())[::-1]
        slots = [slot for node in path for slot in node.slots]
        if slots != seq.slots[: seq.cached_len].tolist():
            found.append(f"I2: sequence {seq.id}'s first {seq.cached_len} slots are not those of its path")
        if [token for node in path for token in node.key] != seq.tokens[: seq.cached_len].tolist():
            found.append(f"I2: sequence {seq.id}'s path is not its tokens")
        if seq.cached_len % size or len(seq.slots) % size:
            found.append(f"I2: sequence {seq.id} holds parts of pages")
        own = seq.slots[seq.cached_len :]
        if size > 1 and any(own[i] % size != i % size for i in range(len(own))):
            found.append(f"I2: sequence {seq.id}'s pages are out of order")
        drawn_ahead = seq.run.num_pending if seq.run else 0
        lengths = (0, seq.cached_len, seq.kv_len, min(len(seq.slots), len(seq.tokens) + drawn_ahead))
        if list(lengths) != sorted(lengths) or not seq.cached_len <= seq.settled_len <= seq.kv_len:
            found.append(f"I8: sequence {seq.id}'s lengths {lengths}, settled {seq.settled_len}, are out of order")
        if seq.table_len > len(seq.slots):
            found.append(f"I8: sequence {seq.id}'s table is longer than its slots")
    return found


def _tree(tree: RadixCache) -> list[str]:
    """I3, I5: nodes are well formed; sizes and the set of unlocked leaves equal a recount."""
    found = []
    num_tokens = num_locked = 0
    leaves = []
    reached: list[Node] = []
    stack = [tree.root]
    while stack:
        node = stack.pop()
        for first, child in node.children.items():
            page = child.key[0] if tree.page_size == 1 else tuple(child.key[: tree.page_size])
            if child.parent is not node or first != page:
                found.append(f"I3: node {child.id} is not where it should be")
            stack.append(child)
        if node is tree.root:
            continue
        reached.append(node)
        if not len(node.key) == len(node.slots) > 0 or len(node.key) % tree.page_size:
            found.append(f"I3: node {node.id} has {len(node.key)} tokens and {len(node.slots)} slots")
        num_tokens += len(node.key)
        num_locked += len(node.key) if node.locks else 0
        if not node.children and not node.locks:
            leaves.append((node.parked > 0, node.last_use, node.id))
    if sorted(node.id for node in reached) != sorted(node.id for node in tree.nodes()):
        found.append("I3: the tree's nodes are not those reached from its root")
    if (num_tokens, num_locked) != (tree.num_tokens, tree.num_locked):
        found.append(f"I5: {num_tokens} tokens, {num_locked} locked; counted {tree.num_tokens}, {tree.num_locked}")
    if sorted(leaves) != tree.evict_keys():
        found.append("I5: the evictable leaves are not the unlocked ones")
    return found


def _locks(scheduler: Scheduler) -> list[str]:
    """I4: locks and marks recounted from the sequences equal those of the nodes."""
    locks: Counter[int] = Counter()
    parked: Counter[int] = Counter()
    for seq in scheduler.seqs.values():
        for end, counts in ((seq.node, locks), (seq.parked_node, parked)):
            for node in end.path() if end is not None else ():
                counts[node.id] += 1
    found = []
    for node in scheduler.tree.nodes():
        if node.locks != locks[node.id] or node.parked != parked[node.id]:
            found.append(
                f"I4: node {node.id} has locks {node.locks}, parked {node.parked}; "
                f"its sequences make {locks[node.id]}, {parked[node.id]}"
            )
    return found


def _states(scheduler: Scheduler) -> list[str]:
    """I7: each sequence is in one state, and holds what that state may hold."""
    found = []
    for seq in scheduler.seqs.values():
        state = seq.state
        is_running, is_waiting = seq.id in scheduler.running, seq.id in scheduler.waiting
        is_right = is_running is (state is SeqState.RUNNING) and is_waiting is (state is SeqState.WAITING)
        if not is_right or state is SeqState.FINISHED:
            found.append(f"I7: sequence {seq.id} is {seq.state.name}, running {is_running}, waiting {is_waiting}")
        holds = seq.row >= 0 or bool(seq.slots) or seq.node is not None
        if holds != is_running:
            found.append(f"I7: sequence {seq.id} is {seq.state.name} and holds a row, slots or a lock: {holds}")
        if seq.state is SeqState.PARKED and seq.has_work:
            found.append(f"I7: sequence {seq.id} is parked with work to do")
    for seq_id in (*scheduler.running, *scheduler.waiting):
        if seq_id not in scheduler.seqs:
            found.append(f"I7: sequence {seq_id} has ended and is still queued")
    if scheduler.flight is not None:
        counts = Counter(id(entry.seq) for entry in scheduler.flight.entries)
        for seq in scheduler.seqs.values():
            if seq.num_in_flight != counts[id(seq)]:
                found.append(f"I7: sequence {seq.id} has {seq.num_in_flight} rows in flight, not {counts[id(seq)]}")
    return found


def _batch(scheduler: Scheduler) -> list[str]:
    """I8: the batch in flight and the running sequences are within their limits."""
    found = []
    if len(scheduler.running) > scheduler.limits.max_running:
        found.append(f"I8: {len(scheduler.running)} run, the limit is {scheduler.limits.max_running}")
    if scheduler.flight is not None:
        num_tokens = sum(entry.row.num_tokens for entry in scheduler.flight.entries)
        if num_tokens > scheduler.budget.most:
            found.append(f"I8: {num_tokens} tokens in flight, a step may have {scheduler.budget.most}")
        rows = [entry.row.row for entry in scheduler.flight.entries]
        if len(set(rows)) != len(rows):
            found.append("I8: a row is twice in one batch")
    return found


def repair(scheduler: Scheduler) -> int:
    """Mend what a census finds; returns the number of slots put in quarantine.

    Corruption (a slot held twice, counters or locks that do not add up) drops the whole cache and ends the sequences
    on it, or all running ones if it cannot be told which; the others are computed anew.
    """
    found = findings(scheduler)
    if not found:
        return 0
    for finding in found:
        log.error("the bookkeeping is wrong: %s", finding)
    held = _holders(scheduler)
    if any(not _is_leak(finding) for finding in found):
        twice = {slot for slot, count in held.items() if count > 1}
        scheduler.start_anew(lambda seq: not twice or bool(twice & set(seq.slots)))
        scheduler.stats.leaks_repaired += 1
        return 0
    leaked = [slot for slot in range(scheduler.pool.num_slots) if not held[slot]]
    before = scheduler.pool.num_quarantined
    scheduler.pool.quarantine(leaked)
    scheduler.stats.leaks_repaired += len(leaked)
    log.error("leaked slots %s are in quarantine now", leaked[:16])
    return scheduler.pool.num_quarantined - before


def _is_leak(finding: str) -> bool:
    """Whether it is only about slots that nobody holds."""
    return finding.startswith("I1: leaked") and finding.endswith("twice []")
