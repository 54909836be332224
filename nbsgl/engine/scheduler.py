"""The scheduler: sequences and their segments in, batches to the runner, updates out.

A step chooses a batch, launches it, and settles the one before.  What runs is decided in `_next_batch`: decodes and
extends of the running sequences, then waiting ones in the order of the policy, all under the token budget, which is
smaller while somebody reads along; beginners wait for the rest of their burst (`bursts`); when slots run out, unlocked
leaves of the tree are evicted, then the running sequences retracted that lose the least.  One thread; every method
returns at once; errors of one sequence end that sequence.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any

from nbsgl import errors
from nbsgl.engine import census, flights, segment_runs
from nbsgl.engine.admission import SLACK_SHARE, RoomEstimate, TokenBudget
from nbsgl.engine.batch import Batch, Row, RowResult, Runner, SharedPrefix, StepOutOfMemory
from nbsgl.engine.bursts import on_their_way
from nbsgl.engine.flights import Entry, Flight
from nbsgl.engine.grammar.forced import Encoder
from nbsgl.engine.jump_forward import Draft, JumpForward, counted
from nbsgl.engine.kv_pool import KVPool
from nbsgl.engine.kv_store import KVStore
from nbsgl.engine.limits import Limits
from nbsgl.engine.pace import Pace
from nbsgl.engine.policy import POLICIES, order_waiting
from nbsgl.engine.prefix_groups import PrefixGroups
from nbsgl.engine.radix_cache import RadixCache
from nbsgl.engine.request import Queued, SampledRun, SeqState, Sequence
from nbsgl.engine.segment_runs import Bounds
from nbsgl.engine.segments import AbortSeqs, CloseSeq, Extend, Open, Sampled, Segment, Update
from nbsgl.engine.stats import Stats
from nbsgl.engine.stop import Ending, Vocab
from nbsgl.errors import Aborted, EngineError, GrammarError, NumericalError, OutOfMemory, ParameterError
from nbsgl.protocol import GrammarSpec, TreeNode

log = logging.getLogger("nbsgl")

LAUNCH_S = 0.01  # to choose and launch a step of many rows
GRANT_AHEAD = 16  # slots for so many tokens at once: a decode row asks the pool once in 16 steps
REMEMBERED_FAILURES = 1024  # ended sequences whose error a child opened later still gets


Plan = list[tuple[Sequence, int, Draft | None]]  # who computes how many known tokens, and a draft behind them
Page = tuple[int, bytes]  # a tree node, and the tokens behind it


class Scheduler:
    """See the module.

    `emit` gets all updates of a step in one call.  `compile_grammar(spec)` gives something with `matcher()`; what it
    raises ends the sequence that asked; it may give a pending grammar as well, with `ready()`, the grammar once it is
    there, and `standin()`, one to begin with.  `vocab_bytes[id]` are a token's bytes (None: special); without `encode`
    nothing jumps forward.  With `strict` the census runs after every step and raises; otherwise `repair` mends what it
    finds.  `dtype` is for messages.
    """

    def __init__(
        self,
        limits: Limits,
        runner: Runner,
        *,
        eos_ids: Iterable[int],
        vocab_bytes: Vocab,
        compile_grammar: Callable[[GrammarSpec], Any],
        context_length: int,
        emit: Callable[[list[Update]], None],
        encode: Encoder | None = None,
        clock: Callable[[], float] = time.monotonic,
        strict: bool = False,
        dtype: str = "the model's dtype",
    ) -> None:
        self.limits, self.runner, self.policy, self.strict = limits, runner, limits.policy, strict
        self._clock = clock
        self._build_pool()
        self.bounds = Bounds(tuple(eos_ids), vocab_bytes, context_length, self.pool.num_slots, limits.page_size)
        self.jump = JumpForward(vocab_bytes, encode)
        self.budget = TokenBudget(limits.token_budget)
        self.pace = Pace()
        self.groups = PrefixGroups()
        self.room = RoomEstimate()
        self.stats = Stats()
        self.seqs: dict[int, Sequence] = {}
        self.waiting: dict[int, Sequence] = {}
        self.running: dict[int, Sequence] = {}
        self.compiling: dict[int, Sequence] = {}  # whose next run waits for its grammar
        self.standing_in: dict[int, Sequence] = {}  # whose run goes on in tables once they are there
        self.flight: Flight | None = None
        self._compile, self._emit, self._dtype = compile_grammar, emit, dtype
        self._updates: list[Update] = []
        self._failures: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._arrivals = 0
        self._prefilled = self._decoded = 0  # in this step
        self._lets_launch_first = False  # news of the last step was kept for this one
        self._settled_at = 0.0

    def _build_pool(self) -> None:
        limits = self.limits
        self.pool = KVPool(limits.num_slots, limits.page_size, limits.max_running)
        self.tree = RadixCache(self.pool, is_disabled=limits.disable_radix_cache, clock=self._clock)
        self.kv = KVStore(self.pool, self.tree)

    # ---- the door

    def take(self, message: Open | Extend | CloseSeq | AbortSeqs) -> None:
        """Carry out one of the front's messages."""
        match message:
            case Open():
                self.open(message.seq, message.parent, message.after)
            case Extend():
                self.extend(message.seq, message.first, message.generation, message.segments)
            case CloseSeq():
                self.close(message.seq)
            case AbortSeqs():
                self.abort(message.seqs)

    def open(self, seq: int, parent: int | None = None, after: int = 0) -> None:
        """A new sequence; with `parent`, a copy of its tokens at the end of its first `after` segments."""
        self._arrivals += 1
        new = self.seqs[seq] = Sequence(id=seq, arrival=self._arrivals, parent=parent, after=after)
        if parent is None:
            new.ends.append(0)
            return
        source = self.seqs.get(parent)
        if source is None:
            self._fail_encoded(new, self._failures.get(parent) or errors.encode(_gone(parent)))
            return
        new.state = SeqState.UNOPENED
        source.waiting_children.append(new)
        self._open_children(source)
        self._forget_if_closed(source)

    def extend(self, seq: int, first: int, generation: int, segments: Many[Segment]) -> None:
        """Queue segments; those of an older generation, and of sequences that have ended, are ignored."""
        target = self.seqs.get(seq)
        if target is None:
            return
        if generation < target.generation:
            target.awaits_resend = True
            return
        if first != target.next_number:
            allowed = f"{target.next_number}, the number of the sequence's next segment"
            self._fail(target, ParameterError(name="first", value=first, allowed=allowed))
            return
        target.awaits_resend = False
        now = self._clock()
        for segment in segments:
            target.queue.append(self._queued(target.next_number, segment, now))
            target.next_number += 1
        try:
            segment_runs.check_fits(target, self.bounds)
        except OutOfMemory as error:
            self._fail(target, error)
            return
        if target.state is SeqState.PARKED:
            self._go_on(target)
        elif target.run is None and target.kv_len < len(target.tokens):
            self._begin(target)
            target.match_version = -1

    def _queued(self, number: int, segment: Segment, now: float) -> Queued:
        queued = Queued(number, segment, now)
        if isinstance(segment, Sampled) and segment.grammar is not None:
            try:
                queued.grammar = self._compile(segment.grammar)
            except Exception as error:
                queued.error = error
        return queued

    def close(self, seq: int) -> None:
        """No further segments: forget the sequence when its queue is empty and its waiting children are opened."""
        target = self.seqs.get(seq)
        if target is not None:
            target.is_closing = True
            self._forget_if_closed(target)

    def abort(self, seqs: Iterable[int]) -> None:
        """End these sequences now, whatever they do; nothing more is said of them.  Unknown ones are ignored."""
        ended = set(seqs)
        for seq in sorted(ended & self.seqs.keys()):
            self._drop(self.seqs[seq], errors.encode(Aborted(by="the end of its parent")))
        self._updates = [update for update in self._updates if update.seq not in ended]

    def flush_cache(self) -> int:
        """Drop every cached prefix that nobody has locked; returns how many tokens."""
        return self.tree.flush()

    def set_policy(self, policy: str) -> None:
        if policy not in POLICIES:
            raise ParameterError(name="schedule_policy", value=policy, allowed=" | ".join(POLICIES))
        self.policy = policy

    # ---- the step

    def step(self) -> bool:
        """Choose a batch, launch it, settle the one before.  False when nothing is left to do."""
        begin = self._clock()
        if self._is_held_by_grammars():
            self._settle()
        self._look_for_grammars()
        flight = self._launch(self._next_batch())
        self._settle()
        self.flight = flight
        if not self.limits.overlap:
            self._settle()
        self._report(begin)
        return self.has_work

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self.flight or self._updates)

    @property
    def awaits_grammars(self) -> bool:
        """Whether a step might find a grammar compiled that sequences wait for, though there is no work."""
        return bool(self.compiling)

    def _report(self, begin: float) -> None:
        self._lets_launch_first = self._is_device_waiting and not self._lets_launch_first
        if self._updates and not self._lets_launch_first:
            updates, self._updates = self._updates, []
            self._emit(updates)
        now = self._clock()
        self.stats.steps += 1
        self.stats.last_step_s = now - begin
        if self._prefilled or self._decoded:
            self.stats.rates.add(now, self._prefilled, self._decoded)
            self._prefilled = self._decoded = 0
        if self.strict:
            census.check(self)

    def patience(self) -> float:
        """Seconds for which the next step can wait for arrivals: those of a long step, as long as they would fit."""
        flight = self.flight
        length = self.pace.at_least(flight.num_decodes, flight.num_extended) if flight is not None else 0.0
        if flight is None or length <= LAUNCH_S:
            return 0.0
        if sum(len(seq.tokens) for seq in self.waiting.values()) >= self.budget.now:
            return 0.0
        begin = max(flight.launched_at, self._settled_at)
        return max(0.0, begin + length - LAUNCH_S - self._clock())

    @property
    def _is_device_waiting(self) -> bool:
        """Whether the next step may have work for a device that has none: then news can wait for its launch."""
        return self.limits.overlap and self.flight is None and bool(self.running)

    def _is_held_by_grammars(self) -> bool:
        """Whether so many rows wait for their last token that running ahead would cost more than it saves."""
        if self.flight is None:
            return False
        held = sum(
            entry.draft is not None or (entry.row.matcher is not None and entry.row.tables is None)
            for entry in self.flight.entries
        )
        return held * 4 > len(self.flight.entries)

    def _look_for_grammars(self) -> None:
        """Let sequences go on whose grammar is there now; runs on a stand-in change over where nothing is in flight."""
        for seq in list(self.compiling.values()):
            if seq.state is SeqState.PARKED:
                self._go_on(seq)
            elif seq.kv_len < len(seq.tokens) and self._begin(seq):
                seq.match_version = -1
        for seq in list(self.standing_in.values()):
            run = seq.run
            constraint = run.constraint if run is not None else None
            if run is not None and constraint is not None and constraint.pending is not None and not run.num_pending:
                constraint.take_over(run.begin)
            if constraint is None or constraint.pending is None:
                del self.standing_in[seq.id]

    # ---- choosing

    def _next_batch(self) -> Plan:
        """Who computes what in this step.  Settles the step in flight, then retracts, until the decodes fit."""
        while True:
            plan = self._plan()
            if plan is not None:
                return plan
            if self.flight is not None:
                self._settle()
            else:
                self._retract(self._victim())

    def _plan(self) -> Plan | None:
        """One try at a batch: None if a running sequence cannot go on for want of slots."""
        decodes, extends = self._ready()
        if (extends or self.waiting) and not self._is_read_along():
            moving = on_their_way(decodes, self._clock())
            plan = self._compose(moving, extends) if len(moving) < len(decodes) else None
            if plan is not None and len(plan) > len(moving):
                return plan
        return self._compose(decodes, extends)

    def _compose(self, decodes: list[Sequence], extends: list[Sequence]) -> Plan | None:
        """These, and as much of what waits as the budget has room for."""
        plan: Plan = []
        budget = self.budget.now
        if len(decodes) + bool(extends) > budget:
            decodes, extends = self._take_turns(decodes, extends, budget)
        for seq in decodes:
            has_slot = seq.kv_len < len(seq.slots)  # 15 times of 16
            if not has_slot and not self.kv.grant(seq, seq.kv_len + 1, min(GRANT_AHEAD, seq.room_for_run)):
                return None
            plan.append((seq, 1, None))
        has_others = bool(extends or self.waiting)
        budget = self._most_extended(len(decodes)) if has_others else 0
        budget = max(0, budget - self._add_drafts(plan, has_others))
        slack = budget // SLACK_SHARE
        is_short = False  # of slots: then nobody else is let in
        for seq in extends:
            num_tokens = self._chunk(seq, budget, slack)
            is_short = is_short or (budget > 0 and num_tokens == 0)
            if num_tokens:
                budget -= self._add_extend(plan, seq, num_tokens, budget)
        if budget + slack > 0 and self.waiting and not is_short:
            self._admit_waiting(plan, budget, slack)
        return plan if plan or not is_short else None

    def _add_drafts(self, plan: Plan, has_others: bool) -> int:
        """Give the plan's decodes drafts where grammars leave no choice; how many tokens that is.

        A quarter of the budget is left to others that extend.
        """
        drafting = [i for i, (seq, _, _) in enumerate(plan) if seq.run is not None and seq.run.constraint is not None]
        if not drafting:
            return 0
        most = self._most_extended(len(plan))
        left = most = most - most // 4 if has_others else most
        for i in drafting:
            seq, num_tokens, _ = plan[i]
            draft = self._draft(seq, num_tokens, left)
            if draft is not None:
                plan[i] = seq, num_tokens, draft
                left -= len(draft.ids)
        return most - left

    def _add_extend(self, plan: Plan, seq: Sequence, num_tokens: int, budget: int) -> int:
        """Put an extend into the plan, with a draft if a run begins behind it; how many tokens that is."""
        draft = None
        if seq.kv_len + num_tokens == len(seq.tokens):
            draft = self._draft(seq, num_tokens, budget - num_tokens)
        plan.append((seq, num_tokens, draft))
        return num_tokens + (len(draft.ids) if draft is not None else 0)

    def _draft(self, seq: Sequence, num_tokens: int, budget: int) -> Draft | None:
        """A draft behind the sequence's next tokens, if there are slots for it: no decode is held up for its sake."""
        run = seq.run
        draft = self.jump.draft(run, budget) if run is not None and run.constraint is not None else None
        if draft is None or not self.kv.grant(seq, seq.kv_len + num_tokens + len(draft.ids)):
            return None
        return draft

    def _ready(self) -> tuple[list[Sequence], list[Sequence]]:
        """The running sequences that can compute something now: those that decode, and those that extend."""
        decodes, extends = [], []
        for seq in self.running.values():
            run = seq.run
            known = len(seq.tokens) - seq.kv_len
            if run is not None and run.num_pending:
                # Its next token is drawn in the step in flight: go on with it unseen, unless the mask depends on it.
                if self._can_run_ahead(run) and len(seq.tokens) - run.begin + run.num_pending < run.limit:
                    decodes.append(seq)
            elif known == 1 and run is not None and seq.kv_len >= run.begin:
                decodes.append(seq)
            elif known:
                extends.append(seq)
        return decodes, extends

    def _can_run_ahead(self, run: SampledRun) -> bool:
        """Whether one token is in flight, and the next one's mask can do without the host's knowing it."""
        if run.num_pending > 1:
            return False
        return run.constraint is None or (self.runner.has_device_grammars and run.constraint.can_run_ahead())

    def _most_extended(self, num_decodes: int) -> int:
        """Most known tokens that the step may compute beside so many decodes."""
        left = self.budget.now - num_decodes
        return min(left, self.pace.limit(num_decodes)) if self._is_read_along() else left

    def _is_read_along(self) -> bool:
        """Whether a running sequence draws tokens that somebody sees as they come.

        Not only one that decodes in this step: with a grammar it may sit out every other one.
        """
        return any(
            (run := seq.run) is not None and run.stream and seq.kv_len >= run.begin for seq in self.running.values()
        )

    def _take_turns(self, decodes: list[Sequence], extends: list[Sequence], budget: int) -> tuple[list, list]:
        """More rows than budget: leave a quarter to extends, and let those that take part go to the back."""
        for_extends = max(1, budget // 4) if extends and budget > 1 else 0
        taken = decodes[: budget - for_extends]
        if budget == 1 and extends and (not decodes or self.stats.steps % 2):
            taken = []
        for seq in (*taken, *(extends[:1] if len(taken) < budget else ())):
            self.running[seq.id] = self.running.pop(seq.id)
        return taken, extends

    def _chunk(self, seq: Sequence, budget: int, slack: int) -> int:
        """How many tokens the sequence extends by: what the budget allows and the pool has slots for.

        `slack` tokens more are taken where that finishes the sequence's known tokens: a step less.  Sequences before
        it may have used some of the slack: then the budget is below zero.
        """
        num_tokens = len(seq.tokens) - seq.kv_len
        if num_tokens > budget + slack:
            num_tokens = budget
        if num_tokens <= 0:
            return 0
        room = len(seq.slots) - seq.kv_len + self.kv.num_available
        num_tokens = min(num_tokens, room)
        ahead = min(GRANT_AHEAD, seq.room_for_run) if seq.kv_len + num_tokens == len(seq.tokens) else 0
        if num_tokens <= 0 or not self.kv.grant(seq, seq.kv_len + num_tokens, ahead):
            return 0
        return num_tokens

    # ---- admitting

    def _admit_waiting(self, plan: Plan, budget: int, slack: int) -> None:
        if self.pool.num_free_rows == 0 or len(self.running) >= self.limits.max_running:
            return
        leaders = {self._led_by(seq) for seq in self.running.values() if _prefills(seq)}
        promised = self.room.promised(self.running.values())
        for seq in order_waiting(self.policy, self.waiting.values(), self.stats.steps, self._look_up):
            if budget + slack <= 0 or len(self.running) >= self.limits.max_running or self.pool.num_free_rows == 0:
                return
            self._look_up(seq)
            if budget <= 0 and len(seq.tokens) - seq.match_len > budget + slack:
                return  # all that is left is slack, and too little of it
            page = self._next_page(seq, seq.match_node, seq.match_len)
            if page is not None and page in leaders:
                continue  # another computes this prefix now: use it once it is in the tree
            if not self._has_room(seq, promised):
                if self.running or self.flight:
                    return
                self._fail(seq, OutOfMemory(needs=len(seq.tokens), has=self.pool.capacity))
                continue
            comes_first = seq.comes_first
            if not self._admit(seq):
                return
            if seq.state is not SeqState.RUNNING:
                continue  # all of it was cached
            num_tokens = self._chunk(seq, budget, slack)
            if not num_tokens:
                self._queue(seq, comes_first=comes_first)
                return
            budget -= self._add_extend(plan, seq, num_tokens, budget)
            promised += self.room.promised([seq])
            leaders.add(self._led_by(seq))

    def _look_up(self, seq: Sequence) -> None:
        """Fill in the sequence's cached prefix; nothing to do while the tree is as it was."""
        if seq.match_version != self.tree.version:
            limit = 0 if self.tree.is_disabled else seq.needed_from()
            seq.match_node, seq.match_len = self.tree.peek(seq.tokens, limit)
            seq.match_version = self.tree.version

    def _next_page(self, seq: Sequence, node: Any, length: int) -> Page | None:
        """The page of known tokens right behind the sequence's cached prefix; None if there is none."""
        size = self.pool.page_size
        if node is None or self.tree.is_disabled or seq.needed_from() - length < size:
            return None
        return node.id, seq.tokens[length : length + size].tobytes()

    def _led_by(self, seq: Sequence) -> Page | None:
        """What others wait for while this sequence computes it, however little: it costs them one small step.

        Once its first chunk is in the tree, whoever matches exactly that far shares what it does, and waits for the
        rest of it too.
        """
        return self._next_page(seq, seq.node, seq.cached_len)

    def _has_room(self, seq: Sequence, promised: int) -> bool:
        """Whether the sequence fits beside what the running ones are expected to need."""
        size = self.pool.page_size
        needs = -(-(len(seq.tokens) - seq.match_len) // size) * size
        if self.running:
            needs += promised + self.room.drawn_by(seq)
        to_lock = sum(len(node.key) for node in seq.match_node.path() if not node.locks)
        return needs <= self.kv.num_available - min(to_lock, seq.match_len)

    def _admit(self, seq: Sequence) -> bool:
        """Lock the sequence's cached prefix and give it a row; one with nothing to compute is done at once."""
        if not self.kv.admit(seq):
            return False
        del self.waiting[seq.id]
        self.running[seq.id] = seq
        seq.state, seq.has_gained, seq.comes_first = SeqState.RUNNING, False, False
        seq.admitted_len = seq.cached_len
        if seq.run is not None:
            seq.run.is_fresh = True
        cached = max(0, seq.cached_len - seq.credited_len)
        seq.credited_len = max(seq.credited_len, seq.cached_len)
        seq.prefill_cached += cached
        self.stats.prefill_cached += cached
        if seq.kv_len == len(seq.tokens):
            self._go_on(seq)
        return True

    # ---- taking back

    def _victim(self) -> Sequence:
        """The sequence that loses the least, of equals the newest.

        Not the oldest, so that one always goes on; and each gains something between two retractions.
        """
        oldest = min(self.running.values(), key=lambda seq: seq.arrival)
        others = [seq for seq in self.running.values() if seq is not oldest] or [oldest]
        gained = [seq for seq in others if seq.has_gained]
        return min(gained or others, key=lambda seq: (self.kv.num_own(seq), -seq.arrival))

    def _retract(self, seq: Sequence) -> None:
        self.stats.retractions += 1
        self.room.retracted()
        log.debug("sequence %d is retracted at %d tokens", seq.id, len(seq.tokens))
        self._queue(seq, comes_first=True)

    def _queue(self, seq: Sequence, *, comes_first: bool = False) -> None:
        """Make the sequence wait, whatever it held."""
        self._let_go(seq)
        self.running.pop(seq.id, None)
        self.waiting[seq.id] = seq
        seq.state, seq.comes_first, seq.queued_step = SeqState.WAITING, comes_first, self.stats.steps
        seq.match_version = -1

    def _let_go(self, seq: Sequence, *, keep: bool = True, park: bool = False) -> None:
        """Free what a running sequence holds; the results of its rows in flight no longer count."""
        seq.epoch += 1
        if seq.run is not None:
            seq.run.num_pending = 0
        self.kv.release(seq, keep=keep, park=park)

    # ---- launching

    def _launch(self, plan: Plan) -> Flight | None:
        if not plan:
            return None
        entries, shared = self._entries(plan)
        chunks = [entry.row.num_tokens for entry in entries if entry.row.num_tokens > 1]
        batch = Batch([entry.row for entry in entries], step=self.stats.batches + 1, shared=shared)
        launched_at = self._clock()
        try:
            launched = self.runner.launch(batch)
        except StepOutOfMemory:
            flights.take_back(entries)
            self._shrink(entries)
            return None
        self.stats.batches = self.kv.launched = batch.step
        return Flight(batch.step, launched, entries, launched_at, len(plan) - len(chunks), sum(chunks))

    def _entries(self, plan: Plan) -> tuple[list[Entry], list[SharedPrefix]]:
        """The plan's rows; where all decode, in an order in which those that share a prefix lie together."""
        groups: list[SharedPrefix] = []
        if all(num_tokens == 1 and draft is None for _, num_tokens, draft in plan):
            order, groups = self.groups.of([seq for seq, _, _ in plan])
            plan = [plan[i] for i in order] if groups else plan
        now, on_device = self._clock(), self.runner.has_device_grammars
        return [flights.entry_of(*planned, now, on_device=on_device) for planned in plan], groups

    def _shrink(self, entries: list[Entry]) -> None:
        """Try the next steps with less; one token that does not fit alone ends its sequence."""
        self.stats.oom_shrinks += 1
        num_tokens = sum(entry.row.num_tokens for entry in entries)
        seq = entries[0].seq
        if num_tokens > 1:
            log.warning("no device memory for a step of %d tokens: the next ones are smaller", num_tokens)
            self.budget.shrink(num_tokens)
        elif seq.state is SeqState.RUNNING:
            self._fail(seq, OutOfMemory("The device has no memory for one more token of this request."))

    # ---- settling

    def _settle(self) -> None:
        """Wait for the step in flight and carry its results into the sequences."""
        flight, self.flight = self.flight, None
        if flight is None:
            return
        try:
            results = flight.launched.result()
            self._time(flight)
        except StepOutOfMemory:
            flights.undo(flight.entries)
            self._shrink(flight.entries)
            self.kv.settled(flight.step)
            return
        for entry, result in zip(flight.entries, results, strict=True):
            seq = entry.seq
            seq.num_in_flight -= 1
            if entry.epoch == seq.epoch:
                self._settle_row(entry, result)
            else:
                self.stats.overruns += 1
        self.kv.settled(flight.step)
        self.budget.good_step()
        self.room.good_step()

    def _time(self, flight: Flight) -> None:
        """Tell the pace how long the step took: it ran when it was launched and the one before it was done."""
        now = self._clock()
        self.pace.saw(now - max(flight.launched_at, self._settled_at), flight.num_decodes, flight.num_extended)
        self._settled_at = now

    def _settle_row(self, entry: Entry, result: RowResult) -> None:
        seq, row = entry.seq, entry.row
        end = row.start + row.num_tokens - len(row.draft)
        if not result.is_finite or (row.params is not None and result.token < 0):
            self.stats.numerical_errors += 1
            error = NumericalError(position=end - 1, step=self.stats.steps, dtype=self._dtype)
            self._fail(seq, error, keep=False)
            return
        num_done = seq.num_done
        seq.settled_len = end
        seq.has_gained = True
        if entry.scored is not None:
            entry.scored.logprobs += result.scores
            entry.scored.tops += result.score_tops
        if entry.is_extend:
            self._count_extend(seq, row)
            self.kv.insert(seq)
        while seq.forced and seq.forced[0].end <= seq.settled_len:
            self._updates.append(segment_runs.end_forced(seq, self._clock()))
        ending = self._take_tokens(entry, result) if row.params is not None else None
        if seq.state is not SeqState.RUNNING:
            return
        if ending is not None:
            self._updates.append(segment_runs.end_run(seq, ending, self._clock()))
        if not seq.has_work:
            self._go_on(seq)
        elif num_done != seq.num_done:
            self._open_children(seq)

    def _count_extend(self, seq: Sequence, row: Row) -> None:
        num_tokens = row.num_tokens - len(row.draft)
        seq.prefill_computed += num_tokens
        seq.computed_for_run += num_tokens
        seq.credited_len = max(seq.credited_len, row.start + num_tokens)
        self.stats.prefill_computed += num_tokens
        self._prefilled += num_tokens

    def _take_tokens(self, entry: Entry, result: RowResult) -> Ending | None:
        """Take what was drawn, of a draft as far as it was met; the run's end, if this was it."""
        seq, row, run = entry.seq, entry.row, entry.seq.run
        assert run is not None
        run.num_pending -= 1 + len(row.draft)
        if run.first_at is None:
            run.first_at = self._clock()
        num_before, constraint = len(seq.tokens), run.constraint
        num_matched = constraint.num_taken if constraint is not None else 0
        try:
            ending = segment_runs.take_tokens(run, seq.tokens, counted(row, result, constraint), result)
        except GrammarError as error:
            self._fail(seq, error)
            return None
        num_taken = len(seq.tokens) - num_before
        self.stats.decode_tokens += num_taken
        self._decoded += num_taken
        if constraint is not None:
            constraint.learn(num_before, constraint.num_taken - num_matched)
        if entry.draft is not None:
            assert constraint is not None
            self.jump.settled(constraint, entry.draft, seq.tokens[-num_taken:])
            # what was computed behind the last token that counts is as if it had not been: its slots are granted ahead
            seq.settled_len += num_taken - 1
            seq.kv_len = seq.settled_len
        if ending is None:
            ending = self.jump.spell(run, seq.tokens)
        if ending is None and run.stream:
            update = segment_runs.news_of(seq, run)
            if update is not None:
                self._updates.append(update)
        return ending

    # ---- going on

    def _go_on(self, seq: Sequence) -> None:
        """Begin what the sequence can do next, end what needs no computing, and put it where it belongs."""
        while self._begin(seq) and self._end_for_free(seq):
            pass
        if seq.state is SeqState.FINISHED:
            return
        self._open_children(seq)
        if seq.state is SeqState.RUNNING:
            self._go_on_running(seq)
        elif seq.state is SeqState.PARKED and seq.has_work:
            self._queue(seq)
        elif seq.state is SeqState.PARKED and seq.parked_node is None:
            self.kv.park(seq)
        self._forget_if_closed(seq)

    def _begin(self, seq: Sequence) -> bool:
        """Begin the segments that can be computed together; False if that failed and the sequence has ended."""
        try:
            is_compiling = segment_runs.begin_segments(seq, self.bounds, self.jump)
        except Exception as error:  # a grammar's compiler or matcher may raise anything
            self._fail(seq, error, segment=seq.queue[0].number)
            return False
        if is_compiling:
            self.compiling[seq.id] = seq
        else:
            self.compiling.pop(seq.id, None)
        if seq.run is not None and seq.run.constraint is not None and seq.run.constraint.pending is not None:
            self.standing_in[seq.id] = seq
        return True

    def _end_for_free(self, seq: Sequence) -> bool:
        """End the first segment under way if nothing has to be computed for it."""
        if seq.forced:
            forced = seq.forced[0]
            if forced.end > seq.settled_len and forced.begin < forced.end:
                return False
            self._updates.append(segment_runs.end_forced(seq, self._clock()))
            return True
        ending = segment_runs.ending_at_start(seq)
        if ending is None:
            return False
        self._updates.append(segment_runs.end_run(seq, ending, self._clock()))
        return True

    def _go_on_running(self, seq: Sequence) -> None:
        if not seq.has_work:
            self._let_go(seq, park=True)
            del self.running[seq.id]
            seq.state = SeqState.PARKED
            return
        if seq.run is None or not seq.run.num_pending:
            needed = seq.needed_from()
            if needed < seq.kv_len:
                seq.kv_len = needed
                seq.settled_len = min(seq.settled_len, needed)
        if seq.kv_len < seq.cached_len:  # computing into the tree's own slots is not allowed: match it anew
            self._queue(seq, comes_first=True)

    def _open_children(self, parent: Sequence) -> None:
        """Open the children whose point of the fork the parent has reached."""
        if not parent.waiting_children:
            return
        ready = [child for child in parent.waiting_children if child.after <= parent.num_done]
        if not ready:
            return
        if parent.state is SeqState.RUNNING:
            self.kv.insert(parent)
        parent.waiting_children = [child for child in parent.waiting_children if child.after > parent.num_done]
        for child in ready:
            child.tokens = parent.tokens[: parent.ends[child.after]]
            child.ends.append(len(child.tokens))
            child.state = SeqState.PARKED
            try:
                segment_runs.check_fits(child, self.bounds)
            except OutOfMemory as error:
                self._fail(child, error)
                continue
            self._go_on(child)

    # ---- ending

    def _forget_if_closed(self, seq: Sequence) -> None:
        """Let go of a closed sequence that has nothing left to do; children it can no longer open fail."""
        is_idle = seq.state is SeqState.PARKED and not seq.queue and not seq.awaits_resend
        if seq.is_closing and is_idle:
            self._drop(seq, errors.encode(_gone(seq.id)))

    def _fail(self, seq: Sequence, error: Exception, *, segment: int | None = None, keep: bool = True) -> None:
        """End the sequence with an error, and the children that wait for it with the same."""
        if segment is None:
            segment = max(0, seq.num_done)
        self._fail_encoded(seq, errors.encode(error), segment=segment, keep=keep)

    def _fail_encoded(self, seq: Sequence, error: dict[str, Any], *, segment: int = 0, keep: bool = True) -> None:
        self._updates.append(Update(seq=seq.id, segment=segment, done=True, error=error))
        self._drop(seq, error, keep=keep)

    def _drop(self, seq: Sequence, error: dict[str, Any], *, keep: bool = True) -> None:
        """Free everything the sequence holds and forget it; `error` is what its waiting children get."""
        self._let_go(seq, keep=keep)
        self.kv.unpark(seq)
        self.running.pop(seq.id, None)
        self.waiting.pop(seq.id, None)
        self.compiling.pop(seq.id, None)
        self.standing_in.pop(seq.id, None)
        self.seqs.pop(seq.id, None)
        if seq.state is SeqState.UNOPENED and seq.parent in self.seqs:
            siblings = self.seqs[seq.parent].waiting_children
            self.seqs[seq.parent].waiting_children = [child for child in siblings if child is not seq]
        seq.state, seq.run = SeqState.FINISHED, None
        seq.forced.clear()
        seq.queue.clear()
        self._failures[seq.id] = error
        if len(self._failures) > REMEMBERED_FAILURES:
            self._failures.popitem(last=False)
        children, seq.waiting_children = seq.waiting_children, []
        for child in children:
            self._fail_encoded(child, error)

    # ---- showing

    def census(self) -> list[str]:
        """What is wrong in the bookkeeping (empty: nothing).  O(slots)."""
        return census.findings(self)

    def repair(self) -> int:
        """Mend what the census finds: leaked slots go to quarantine, sequences on corrupt slots end with an error.

        Returns the number of slots put away.  Meant for idle moments: it drops the cache where it has to.
        """
        put_away = census.repair(self)
        self.bounds = replace(self.bounds, capacity=self.pool.capacity)
        return put_away

    def start_anew(self, must_end: Callable[[Sequence], bool]) -> None:
        """Build pool and tree anew after damage: the cache is empty, running sequences wait or, if they must, end."""
        flight, self.flight = self.flight, None
        if flight is not None:
            flight.launched.result()
        damaged = [seq for seq in self.running.values() if must_end(seq)]
        for seq in self.seqs.values():
            seq.node = seq.parked_node = None
            seq.num_in_flight = 0
        quarantined = self.pool.quarantined_slots()
        step = self.kv.launched
        self._build_pool()
        self.kv.launched = step
        self.pool.quarantine(quarantined)
        self.runner.forget()
        for seq in list(self.running.values()):
            seq.slots, seq.row = array("i"), -1
            seq.cached_len = seq.settled_len = seq.kv_len = seq.table_len = 0
            self._queue(seq, comes_first=True)
        for seq in damaged:
            self._fail(seq, EngineError("The bookkeeping of the KV pool was damaged; the requests on it were ended."))

    def tree_nodes(self, text_of: Callable[[list[int]], str]) -> list[TreeNode]:
        """The prefix tree for a view."""
        return self.tree.dump(text_of)

    def snapshot(self) -> dict[str, Any]:
        """The fields of `protocol.EngineSnapshot` that the scheduler knows."""
        prefill_tok_s, decode_tok_s = self.stats.rates.rates(self._clock())
        pool, tree, stats = self.pool, self.tree, self.stats
        num_decodes = len(self._ready()[0])
        return {
            "policy": self.policy,
            "slots_total": pool.num_slots,
            "slots_free": pool.num_free,
            "slots_in_tree": tree.num_tokens,
            "slots_owned": pool.num_slots - pool.num_free - pool.num_quarantined - tree.num_tokens,
            "slots_quarantined": pool.num_quarantined,
            "slots_evictable": tree.num_evictable,
            "running": len(self.running),
            "waiting": len(self.waiting),
            "parked": sum(seq.state is SeqState.PARKED for seq in self.seqs.values()),
            "steps": stats.steps,
            "last_step_ms": stats.last_step_s * 1e3,
            "prefill_tokens_computed": stats.prefill_computed,
            "prefill_tokens_cached": stats.prefill_cached,
            "decode_tokens": stats.decode_tokens,
            "hit_rate": stats.hit_rate,
            "prefill_tok_s": prefill_tok_s,
            "decode_tok_s": decode_tok_s,
            "retractions": stats.retractions,
            "evicted_tokens": tree.evicted_tokens,
            "counters": {
                "oom.shrinks": stats.oom_shrinks,
                "overruns": stats.overruns,
                "numerical_errors": stats.numerical_errors,
                "leaks.repaired": stats.leaks_repaired,
                "jump.proposed": self.jump.proposed,
                "jump.accepted": self.jump.accepted,
                "jump.steps_saved": self.jump.steps_saved,
                "budget": num_decodes + self._most_extended(num_decodes),
                "tree.nodes": len(tree),
            },
        }


def _gone(parent: int) -> ParameterError:
    return ParameterError(
        f"The parent sequence {parent} has ended and did not reach the point of the fork.", name="parent", value=parent
    )


def _prefills(seq: Sequence) -> bool:
    """Whether the sequence still computes known tokens, which go to the tree chunk by chunk."""
    return seq.settled_len < (seq.run.begin if seq.run else len(seq.tokens))
