"""Sim A: the production scheduler, tree, pool and policies over the KV-oracle, under seeded work and faults.

One thread, no sleep, no clock but the world's.  Work and faults have generators of their own.  After every step the
census (I1-I8) is taken; I9-I14 are checked where they are named.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from nbsgl.engine import census
from nbsgl.engine.admission import most_tokens
from nbsgl.engine.batch import Batch, Row
from nbsgl.engine.pace import Pace
from nbsgl.engine.radix_cache import Node
from nbsgl.engine.request import Sequence
from nbsgl.engine.scheduler import Scheduler
from nbsgl.engine.segments import Forced, Segment, Update
from nbsgl.protocol import GrammarSpec, unpack_ids
from tests.sim.oracle import EOS, START, VOCAB, OracleRunner, entries_of, kv_entry
from tests.sim.reference import Outcome, run_segment
from tests.sim.toy_grammar import ToyEncoder, ToyGrammar, ToyPending
from tests.sim.workload import SwarmConfig, Workload

DRAIN_STEPS = 10_000
KV_CHECK_EVERY = 8
MAX_DEPTH = 3


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class Branch:
    """What the outside knows of a sequence, and what must become of it."""

    id: int
    depth: int = 0
    parent: Branch | None = None
    tokens: list[int] = field(default_factory=list)  # at the end of `outcomes`
    ends: list[int] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    sent: list[Segment] = field(default_factory=list)  # by number
    dropped: list[Segment] = field(default_factory=list)  # sent behind a run that ends inside a token
    got: list[int] = field(default_factory=list)  # ids of the segment under way
    got_logprobs: list[float | None] = field(default_factory=list)
    num_done: int = 0
    generation: int = 0
    is_cut: bool = False
    most_tokens: int = 0  # bound of its length
    is_closed: bool = False
    is_dead: bool = False
    may_be_nan: bool = False

    @property
    def is_idle(self) -> bool:
        return self.num_done == len(self.outcomes)


class World:
    """One seed's simulation."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.config = SwarmConfig.draw(random.Random(f"config {seed}"))
        self.work_rng, self.fault_rng = random.Random(f"work {seed}"), random.Random(f"faults {seed}")
        self.compile_rng = random.Random(f"compiles {seed}")
        self.workload = Workload(self.work_rng, self.config)
        self.now = 0.0
        self.step_no = 0
        self.has_faults = True
        self.may_be_oom = False
        self.branches: dict[int, Branch] = {}
        self.live: dict[int, Branch] = {}
        self.next_id = 0
        self.trace = hashlib.blake2b(digest_size=16)
        self.events: deque[str] = deque(maxlen=20)
        self.num_finished = 0
        limits = self.config.limits
        self.runner = OracleRunner(
            limits.num_slots, self._nan_fault, self._fault("launch_oom"), self._fault("result_oom"), self._watch
        )
        self.runner.has_device_grammars = limits.overlap  # as on a GPU
        self.scheduler = Scheduler(
            limits,
            self.runner,
            eos_ids=[EOS],
            vocab_bytes=VOCAB,
            compile_grammar=self._compile,
            encode=ToyEncoder(VOCAB),
            context_length=self.config.context_length,
            emit=self._take,
            clock=lambda: self.now,
        )
        self.scheduler.pace = Pace(least=4, most=32)  # as tight as the budgets are
        if self.config.is_reckless:
            self.scheduler.room.promised = lambda running: 0  # type: ignore[method-assign]
            self.scheduler.room.drawn_by = lambda seq: 0  # type: ignore[method-assign]
        self._spoil_allocator()
        self._watch_admission()
        self._watch_retractions()

    # ---- the outside

    def step(self) -> bool:
        """Some work, some faults, one step of the scheduler, all checks.  False if there was nothing to do."""
        self.step_no += 1
        for _ in range(self.work_rng.choice((0, 1, 2, 3))):
            self._do_work()
        if self.has_faults:
            self._do_faults()
        has_work = self.scheduler.step()
        self._check()
        return has_work

    def _do_work(self) -> None:
        rng = self.work_rng
        live = self._live()
        if len(live) < self.config.max_live and rng.random() < 0.5:
            self._open_root()
        if not live:
            return
        branch = rng.choice(live)
        kind = rng.random()
        if branch.is_closed:
            return
        if kind < 0.15 and branch.depth < MAX_DEPTH:
            for _ in range(rng.choice((1, 1, 2, 5))):
                self._fork(branch)
        elif kind < 0.4 and (branch.is_idle or rng.random() < 0.2):
            self._submit(branch, self.workload.segments(bool(branch.sent)))
        elif kind < 0.6:
            self._close(branch)

    def _live(self) -> list[Branch]:
        gone = [b.id for b in self.live.values() if b.is_dead or (b.is_closed and b.is_idle)]
        for branch_id in gone:
            del self.live[branch_id]
        return list(self.live.values())

    def _open_root(self) -> None:
        branch = self._new_branch()
        branch.ends.append(0)
        self.scheduler.open(branch.id)
        self._note("open", branch.id)
        self._submit(branch, self.workload.segments(False))

    def _new_branch(self) -> Branch:
        self.next_id += 1
        branch = self.branches[self.next_id] = self.live[self.next_id] = Branch(self.next_id)
        return branch

    def _fork(self, parent: Branch) -> None:
        after = self.work_rng.randint(max(0, len(parent.ends) - 3), len(parent.ends) - 1)
        child = self._new_branch()
        child.parent, child.depth = parent, parent.depth + 1
        child.tokens = parent.tokens[: parent.ends[after]]
        child.ends.append(len(child.tokens))
        child.most_tokens = len(child.tokens)
        self._note("fork", child.id, parent.id, after)
        self.scheduler.open(child.id, parent.id, after)
        if self.work_rng.random() < 0.8:
            self._submit(child, self.workload.segments(True))

    def _submit(self, branch: Branch, segments: list[Segment]) -> None:
        first = len(branch.sent)
        for segment in segments:
            branch.sent.append(segment)
            branch.most_tokens += self._most(segment)
            if branch.is_cut or (branch.outcomes and branch.outcomes[-1].error):
                branch.dropped.append(segment)
                continue
            limits = self.config.limits
            outcome = run_segment(branch.tokens, segment, self.config.context_length, limits.num_slots)
            branch.outcomes.append(outcome)
            branch.ends.append(len(branch.tokens))
            branch.is_cut = bool(outcome.tail)
        self._note("extend", branch.id, first, len(segments))
        self.scheduler.extend(branch.id, first, branch.generation, segments)

    def _most(self, segment: Segment) -> int:
        if isinstance(segment, Forced):
            return len(segment.ids) // 4
        return self.config.limits.num_slots if segment.params.max_tokens == "fit" else segment.params.max_tokens

    def _close(self, branch: Branch) -> None:
        branch.is_closed = True
        self._note("close", branch.id)
        self.scheduler.close(branch.id)

    def _compile(self, spec: GrammarSpec) -> ToyGrammar | ToyPending:
        """At once, or after a while with something to stand in or without."""
        rng = self.compile_rng
        has_tables = rng.random() < 0.6
        if rng.random() < 0.5:
            return ToyGrammar(spec.text, VOCAB, has_tables=has_tables)
        return ToyPending(
            spec.text, VOCAB, rng.choice((0, 1, 3, 9)), stands_in=rng.random() < 0.5, has_tables=has_tables
        )

    # ---- faults

    def _rolls(self, name: str) -> bool:
        rate = self.config.rates.get(name, 0.0)
        return self.has_faults and rate > 0 and self.fault_rng.random() < rate

    def _fault(self, name: str) -> Any:
        def does_fail(batch: Batch) -> bool:
            if not self._rolls(name):
                return False
            self._note(name, batch.num_tokens)
            self.may_be_oom = True
            return True

        return does_fail

    def _nan_fault(self, row: Row) -> bool:
        if not self._rolls("nan"):
            return False
        for seq in self.scheduler.running.values():
            if seq.row == row.row:
                self.branches[seq.id].may_be_nan = True
                self._note("nan", seq.id)
        return True

    def _do_faults(self) -> None:
        rng, scheduler = self.fault_rng, self.scheduler
        live = self._live()
        if live and self._rolls("abort"):
            branch = rng.choice(live)
            self._note("abort", branch.id)
            self._die(branch)
            scheduler.abort([branch.id])
        if self._rolls("evict"):
            self._note("evict", scheduler.tree.evict(rng.randrange(1, 64)))
        if self._rolls("flush"):
            self._note("flush", scheduler.flush_cache())
        if scheduler.running and self._rolls("retract"):
            victim = rng.choice(list(scheduler.running.values()))
            self._note("retract", victim.id)
            scheduler._retract(victim)
        if self._rolls("policy"):
            scheduler.set_policy(rng.choice(("fcfs", "lpm", "dfs-weight")))

    def _die(self, branch: Branch) -> None:
        branch.is_dead = True

    def _spoil_allocator(self) -> None:
        pool, alloc = self.scheduler.pool, self.scheduler.pool.alloc

        def refusing(num_pages: int) -> list[int] | None:
            return None if self._rolls("refuse") else alloc(num_pages)

        pool.alloc = refusing  # type: ignore[method-assign]

    # ---- what comes back (I10, I11)

    def _take(self, updates: list[Update]) -> None:
        for update in updates:
            self.trace.update(msgspec.msgpack.encode(update))
            self._note("update", update.seq, update.segment, unpack_ids(update.ids), update.finish, update.error)
            branch = self.branches[update.seq]
            self._demand(not branch.is_dead, f"I10: an update of sequence {branch.id} after its end")
            if update.error is not None:
                self._take_error(branch, update.error["cls"])
            else:
                self._take_news(branch, update)

    def _take_error(self, branch: Branch, name: str) -> None:
        # forced runs not done yet may be passed over: what cannot be is refused before it is computed
        under_way = itertools.dropwhile(lambda o: o.finish is None and not o.error, branch.outcomes[branch.num_done :])
        expected = next((outcome.error for outcome in under_way), "")
        capacity = self.config.limits.num_slots
        is_fair = (
            name == expected
            or (name == "NumericalError" and branch.may_be_nan)
            or (name == "OutOfMemory" and (self.may_be_oom or branch.most_tokens > capacity))
            or (branch.parent is not None and branch.parent.is_dead and branch.num_done == 0)
        )
        self._demand(is_fair, f"I11: sequence {branch.id} ended with {name}, expected {expected or 'no error'}")
        self._die(branch)

    def _take_news(self, branch: Branch, update: Update) -> None:
        self._demand(update.segment == branch.num_done, f"I10: {branch.id}: segment {update.segment} out of order")
        outcome = branch.outcomes[update.segment]
        branch.got += unpack_ids(update.ids)
        branch.got_logprobs += update.scores.logprobs if update.scores else []
        is_right = branch.got == outcome.ids if update.done else branch.got == outcome.ids[: len(branch.got)]
        self._demand(is_right, f"I11: {branch.id}.{update.segment}: got {branch.got}, alone it is {outcome.ids}")
        if update.done:
            ends = (update.finish, update.tail, update.complete)
            expected = (outcome.finish, outcome.tail, outcome.complete)
            self._demand(ends == expected, f"I11: {branch.id}.{update.segment}: ended {ends}, alone {expected}")
            self._check_scores(branch, update, outcome)
            self._end_segment(branch, update)

    def _check_scores(self, branch: Branch, update: Update, outcome: Outcome) -> None:
        if outcome.logprobs is None:
            return
        got, expected = branch.got_logprobs, outcome.logprobs
        self._demand(update.scores is not None, f"I11: {branch.id}.{update.segment}: no scores came")
        self._demand(got == expected, f"I11: {branch.id}.{update.segment}: scores {got}, alone {expected}")

    def _end_segment(self, branch: Branch, update: Update) -> None:
        branch.got, branch.got_logprobs = [], []
        branch.num_done += 1
        self.num_finished += 1
        if not update.tail:
            return
        old = branch.generation
        branch.generation += 1
        branch.is_cut = False
        dropped, branch.dropped = branch.dropped, []
        if dropped:
            if self.work_rng.random() < 0.3:  # one that was on its way
                self.scheduler.extend(branch.id, len(branch.sent), old, dropped)
            del branch.sent[branch.num_done :]
            self._submit(branch, dropped)

    # ---- invariants

    def _check(self) -> None:
        found = census.findings(self.scheduler)
        self._demand(not found, "; ".join(found))
        if self.step_no % KV_CHECK_EVERY == 0:
            self._check_kv()
            for seq in self.scheduler.waiting.values():
                waited = self.scheduler.stats.steps - seq.queued_step
                self._demand(waited < DRAIN_STEPS, f"I12: sequence {seq.id} has waited for {waited} steps")

    def _check_kv(self) -> None:
        """I6: the KV of every tree slot, and of what running sequences know to be good, is the oracle's."""
        kv = self.runner.kv
        stack: list[tuple[Node, int, int]] = [(node, START, 0) for node in self.scheduler.tree.root.children.values()]
        while stack:
            node, before, position = stack.pop()
            for token, slot in zip(node.key, node.slots):
                before = kv_entry(before, token, position)
                self._demand(kv[slot] == before, f"I6: stale KV in node {node.id}, slot {slot}")
                position += 1
            stack += [(child, before, position) for child in node.children.values()]
        for seq in self.scheduler.running.values():
            good = min(seq.settled_len, len(seq.tokens))
            entries = entries_of(seq.tokens[:good])
            is_good = [kv[slot] for slot in seq.slots[:good]] == entries
            self._demand(is_good, f"I6: stale KV in sequence {seq.id}")

    def _watch(self, batch: Batch) -> None:
        """The batch as launched (I8), and into the trace."""
        self._demand(
            batch.num_tokens <= most_tokens(self.config.limits.token_budget), "I8: the batch is over the budget"
        )
        self._demand(len(batch.rows) <= self.config.limits.max_running, "I8: more rows than may run")
        for row in batch.rows:
            self.trace.update(b"%d %d %d;" % (row.row, row.start, row.num_tokens))
        self.now += 0.001 + 1e-4 * batch.num_tokens

    def _watch_admission(self) -> None:
        """I9: what is admitted has all of its cached prefix."""
        admit = self.scheduler.kv.admit

        def watched(seq: Sequence) -> bool:
            check = self.step_no % KV_CHECK_EVERY == 0 and not self.scheduler.tree.is_disabled
            expected = self._cached_prefix(seq.tokens, seq.needed_from()) if check else 0
            is_admitted = admit(seq)
            if check and is_admitted:
                self._demand(seq.cached_len == expected, f"I9: {seq.id}: {seq.cached_len} of {expected} cached tokens")
            return is_admitted

        self.scheduler.kv.admit = watched  # type: ignore[method-assign]

    def _watch_retractions(self) -> None:
        """I12: the oldest goes on; others gain something between two retractions, unless steps failed meanwhile."""
        victim = self.scheduler._victim
        rates = self.config.rates
        is_smooth = not (rates["refuse"] or rates["launch_oom"] or rates["result_oom"] or rates["retract"])

        def watched() -> Sequence:
            seq = victim()
            running = self.scheduler.running.values()
            is_oldest = len(running) > 1 and seq.arrival == min(other.arrival for other in running)
            self._demand(not is_oldest, f"I12: the oldest sequence, {seq.id}, is retracted")
            self._demand(seq.has_gained or not is_smooth, f"I12: {seq.id} is retracted before it gained a token")
            return seq

        self.scheduler._victim = watched  # type: ignore[method-assign]

    def _cached_prefix(self, tokens: list[int], limit: int) -> int:
        node, length, best = self.scheduler.tree.root, 0, 0
        while True:
            for child in node.children.values():
                if length < limit and child.key[0] == tokens[length]:
                    same = 0
                    while same < len(child.key) and length + same < limit and child.key[same] == tokens[length + same]:
                        same += 1
                    if same == len(child.key):
                        node, length = child, length + same
                        best = max(best, length)
                        break
                    best = max(best, length + same)
            else:
                return best - best % self.config.limits.page_size

    def drain(self) -> None:
        """I13: without faults all work ends, and nothing is held afterwards."""
        self.has_faults = False
        scheduler, begin = self.scheduler, self.step_no
        while scheduler.step() or scheduler.awaits_grammars:
            self.step_no += 1
            self._check()
            self._demand(self.step_no - begin < DRAIN_STEPS, "I13: the work does not end")
        for branch in self.branches.values():
            if not branch.is_dead:
                self._demand(branch.is_idle, f"I13: {branch.id} has {branch.num_done} of {len(branch.outcomes)} done")
                self._close(branch)
        while scheduler.step():
            pass
        self._demand(not scheduler.seqs, f"I13: sequences {list(scheduler.seqs)} are left")
        self._check()
        pool, tree = scheduler.pool, scheduler.tree
        self._demand(tree.num_locked == 0, "I13: locks are left")
        self._demand(pool.num_free + tree.num_evictable == pool.num_slots, "I13: slots are left")
        scheduler.flush_cache()
        self._demand(pool.num_free == pool.num_slots, "I13: slots are left after the flush")

    def _demand(self, holds: bool, message: str) -> None:
        if not holds:
            raise Violation(message)

    def _note(self, *event: object) -> None:
        self.events.append(f"{self.step_no}: " + " ".join(map(str, event)))


def simulate(seed: int, steps: int) -> World:
    """Run a seed; a Violation names the command that repeats it and the last 20 events."""
    world = World(seed)
    try:
        for _ in range(steps):
            world.step()
        world.drain()
    except Exception as error:
        line = f"python -m tests.sim --seed {seed} --steps {steps}"
        events = "\n  ".join(world.events)
        raise Violation(f"step {world.step_no}: {error}\n{line}\n  {events}") from error
    return world
