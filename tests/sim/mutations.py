"""Planted bugs for the mutation drill: each is a patch of production code that the simulation must find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nbsgl.engine import drafts, flights, scheduler, segment_runs, stop
from nbsgl.engine.batch import Row, RowResult
from nbsgl.engine.constraint import Constraint
from nbsgl.engine.kv_store import KVStore
from nbsgl.engine.radix_cache import Inserted, Node, RadixCache
from nbsgl.engine.request import SeqState, Sequence
from nbsgl.engine.scheduler import Scheduler
from tests.sim import oracle

Patch = Callable[[Any], None]  # gets pytest's monkeypatch
MUTATIONS: dict[str, Patch] = {}


def planted(patch: Patch) -> Patch:
    MUTATIONS[patch.__name__] = patch
    return patch


@planted
def doubled_slots_not_freed(monkeypatch: Any) -> None:
    insert = RadixCache.insert

    def losing(self: RadixCache, *args: Any) -> Inserted:
        done = insert(self, *args)
        return Inserted(done.node, [], done.changed_from)

    monkeypatch.setattr(RadixCache, "insert", losing)


@planted
def doubled_slots_kept_in_the_sequence(monkeypatch: Any) -> None:
    insert = RadixCache.insert

    def keeping(self: RadixCache, node: Node, tokens: Any, slots: list[int], start: int, end: int) -> Inserted:
        return insert(self, node, tokens, list(slots), start, end)

    monkeypatch.setattr(RadixCache, "insert", keeping)


@planted
def eviction_ignores_locks(monkeypatch: Any) -> None:
    def settle_leaf(self: RadixCache, node: Node) -> None:
        is_evictable = not node.children and node.parent is not None
        key = (node.parked > 0, node.last_use, node.id) if is_evictable else None
        if node.evict_key is not None:
            self._leaves.discard(node.evict_key)
        if key is not None:
            self._leaves.add(key)
        node.evict_key = key

    monkeypatch.setattr(RadixCache, "_settle_leaf", settle_leaf)


@planted
def double_free_at_retraction(monkeypatch: Any) -> None:
    retract = Scheduler._retract

    def twice(self: Scheduler, seq: Sequence) -> None:
        own = seq.slots[seq.cached_len :]
        retract(self, seq)
        self.pool.free(own)

    monkeypatch.setattr(Scheduler, "_retract", twice)


@planted
def split_swaps_slot_order(monkeypatch: Any) -> None:
    split = RadixCache._split

    def swapping(self: RadixCache, node: Node, length: int) -> Node:
        upper = split(self, node, length)
        upper.slots.reverse()
        return upper

    monkeypatch.setattr(RadixCache, "_split", swapping)


@planted
def split_forgets_the_lock(monkeypatch: Any) -> None:
    split = RadixCache._split

    def forgetting(self: RadixCache, node: Node, length: int) -> Node:
        upper = split(self, node, length)
        if upper.locks:
            upper.locks -= 1
        return upper

    monkeypatch.setattr(RadixCache, "_split", forgetting)


@planted
def lock_never_released(monkeypatch: Any) -> None:
    monkeypatch.setattr(RadixCache, "unlock", lambda self, node: None)


@planted
def parked_mark_never_taken_back(monkeypatch: Any) -> None:
    monkeypatch.setattr(KVStore, "unpark", lambda self, seq: setattr(seq, "parked_node", None))


@planted
def stale_node_after_flush(monkeypatch: Any) -> None:
    def flush(self: RadixCache) -> int:
        for node in self.nodes():
            if node.evict_key is not None:
                self.pool.free(node.slots)
        return 0

    monkeypatch.setattr(RadixCache, "flush", flush)


@planted
def chunk_off_by_one(monkeypatch: Any) -> None:
    chunk = Scheduler._chunk

    def longer(self: Scheduler, seq: Sequence, *room: int) -> int:
        num_tokens = chunk(self, seq, *room)
        if num_tokens > 2 and num_tokens < len(seq.tokens) - seq.kv_len:
            seq.kv_len += 1  # one token is skipped
            return num_tokens - 1
        return num_tokens

    monkeypatch.setattr(Scheduler, "_chunk", longer)


@planted
def run_idx_reset_after_retraction(monkeypatch: Any) -> None:
    entry_of = flights.entry_of

    def resetting(seq: Sequence, *what: Any, **how: Any) -> Any:
        is_fresh = seq.run is not None and seq.run.is_fresh
        made = entry_of(seq, *what, **how)
        if is_fresh and made.row.params is not None:
            made.row.run_idx = 0
        return made

    monkeypatch.setattr(flights, "entry_of", resetting)


@planted
def tail_kept_wrong(monkeypatch: Any) -> None:
    cut = stop.StopStrings._cut

    def whole_token(self: Any, start: int) -> tuple[int, bytes]:
        kept, tail = cut(self, start)
        return (kept + 1, b"") if tail else (kept, tail)

    monkeypatch.setattr(stop.StopStrings, "_cut", whole_token)


@planted
def nothing_is_held_back(monkeypatch: Any) -> None:
    monkeypatch.setattr(stop.StopRules, "num_released", property(lambda self: self._num))


@planted
def overrun_row_is_kept(monkeypatch: Any) -> None:
    settle_row = Scheduler._settle_row

    def end_run(*args: Any) -> Any:
        seq = args[0]
        epoch = seq.epoch
        update = _end_run(*args)
        seq.epoch = epoch
        return update

    def forgiving(self: Scheduler, entry: Any, result: Any) -> None:
        if entry.row.params is None or entry.seq.run is not None:
            settle_row(self, entry, result)

    _end_run = segment_runs.end_run
    monkeypatch.setattr(segment_runs, "end_run", end_run)
    monkeypatch.setattr(Scheduler, "_settle_row", forgiving)


@planted
def slots_in_flight_are_freed_at_once_and_again(monkeypatch: Any) -> None:
    free = KVStore._free

    def both(self: KVStore, seq: Sequence, slots: list[int], row: int = -1) -> None:
        free(self, seq, slots, row)
        if seq.num_in_flight:
            self.pool.free(slots)

    monkeypatch.setattr(KVStore, "_free", both)


@planted
def slots_granted_ahead_are_lost(monkeypatch: Any) -> None:
    release = KVStore.release

    def losing(self: KVStore, seq: Sequence, **how: Any) -> None:
        del seq.slots[max(seq.kv_len, seq.cached_len) :]
        release(self, seq, **how)

    monkeypatch.setattr(KVStore, "release", losing)


@planted
def nan_is_cached(monkeypatch: Any) -> None:
    settle_row = Scheduler._settle_row

    def caching(self: Scheduler, entry: Any, result: Any) -> None:
        if not result.is_finite:
            entry.seq.settled_len = min(entry.row.start + entry.row.num_tokens, len(entry.seq.tokens))
            self.kv.insert(entry.seq)
        settle_row(self, entry, result)

    monkeypatch.setattr(Scheduler, "_settle_row", caching)


@planted
def trimmed_tokens_stay_settled(monkeypatch: Any) -> None:
    end_run = segment_runs.end_run

    def keeping(seq: Sequence, *args: Any) -> Any:
        settled, kv = seq.settled_len, seq.kv_len
        update = end_run(seq, *args)
        seq.settled_len, seq.kv_len = settled, kv
        return update

    monkeypatch.setattr(segment_runs, "end_run", keeping)


@planted
def table_not_rewritten_after_insert(monkeypatch: Any) -> None:
    insert = KVStore.insert

    def forgetting(self: KVStore, seq: Sequence) -> None:
        table_len = seq.table_len
        insert(self, seq)
        seq.table_len = table_len

    monkeypatch.setattr(KVStore, "insert", forgetting)


@planted
def parent_ends_off_by_one(monkeypatch: Any) -> None:
    open_children = Scheduler._open_children

    def early(self: Scheduler, parent: Sequence) -> None:
        for child in parent.waiting_children:
            child.after = max(0, child.after - 1)
        open_children(self, parent)

    monkeypatch.setattr(Scheduler, "_open_children", early)


@planted
def scores_shifted(monkeypatch: Any) -> None:
    scores_of = flights.scores_of

    def shifted(seq: Sequence, start: int, end: int) -> Any:
        forced, wanted = scores_of(seq, start, end)
        if len(wanted) > 1:
            wanted = range(wanted.start, wanted.stop - 1)
        return forced, wanted

    monkeypatch.setattr(flights, "scores_of", shifted)


@planted
def row_not_given_back(monkeypatch: Any) -> None:
    release = KVStore.release

    def keeping(self: KVStore, seq: Sequence, **how: Any) -> None:
        if seq.state is SeqState.RUNNING:
            seq.row = -1
        release(self, seq, **how)

    monkeypatch.setattr(KVStore, "release", keeping)


@planted
def draws_behind_a_refused_token_count(monkeypatch: Any) -> None:
    def all_of_them(row: Row, result: RowResult, constraint: Any) -> list[int]:
        return [result.token, *result.more]

    monkeypatch.setattr(scheduler, "counted", all_of_them)


@planted
def kv_of_a_refused_draft_stays(monkeypatch: Any) -> None:
    settle_row = Scheduler._settle_row

    def keeping(self: Scheduler, entry: Any, result: Any) -> None:
        settle_row(self, entry, result)
        seq = entry.seq
        if entry.draft is not None and seq.run is not None and seq.state is SeqState.RUNNING:
            seq.kv_len = seq.settled_len = min(entry.row.start + entry.row.num_tokens, len(seq.tokens))

    monkeypatch.setattr(Scheduler, "_settle_row", keeping)


@planted
def draws_of_a_draft_share_one_random_number(monkeypatch: Any) -> None:
    lines_of = drafts.lines_of

    def sharing(row: Row) -> list[Row]:
        return [replace(line, run_idx=row.run_idx) for line in lines_of(row)]

    monkeypatch.setattr(oracle, "lines_of", sharing)


@planted
def state_after_a_draft_is_left_to_the_device(monkeypatch: Any) -> None:
    ask = flights.ask_for_draws

    def leaving(row: Row, run: Any, draft: Any, **how: Any) -> None:
        ask(row, run, draft, **how)
        if row.states and row.run_idx:
            row.states = (-1, *row.states[1:])

    monkeypatch.setattr(flights, "ask_for_draws", leaving)


@planted
def stand_in_hands_over_without_its_tokens(monkeypatch: Any) -> None:
    take_over = Constraint.take_over

    def forgetting(self: Constraint, begin: int) -> None:
        take_over(self, len(self.tokens))

    monkeypatch.setattr(Constraint, "take_over", forgetting)
