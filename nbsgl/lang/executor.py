"""`Executor`: the branches of one run, what is queued for the backend, and what comes back.

Two locks.  `_lock` guards all state and is held for moments only; `_sending` keeps submissions in order and is held
over `Run.submit`.  A finaliser takes neither: it puts a note into the janitor's queue (see `janitor`).  They are
re-entrant for the `with` blocks of a program that is dropped half-way: those end wherever the collector runs.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol, cast

import msgspec

from nbsgl import errors
from nbsgl.errors import NbsglError, StateFailed
from nbsgl.lang.branch import Branch, Scope, Slot
from nbsgl.protocol import (
    AnyEvent,
    AnyNode,
    Append,
    Backend,
    BranchFailed,
    Chunk,
    Close,
    Fork,
    Gen,
    GenDone,
    Limited,
    ModelInfo,
    Root,
    Run,
    Select,
    SelectDone,
    Text,
)

logger = logging.getLogger("nbsgl")

TICK_S = 0.1  # longest uninterrupted wait: a lost wake-up costs no more
_at_first_wait = threading.local()


def at_first_wait(call: Callable[[], None]) -> None:
    """Call it once, when this thread is about to wait for an executor."""
    _at_first_wait.call = call


class Waiter(Protocol):
    def release(self) -> None:
        """Wake whoever waits; called on the backend's thread."""


class Lease:
    """The backend's run of an executor, and the executor as long as it lives."""

    def __init__(self, executor: Executor) -> None:
        self._executor = weakref.ref(executor)
        self.run: Run | None = None

    def listen(self, events: list[AnyEvent]) -> None:
        executor = self._executor()
        if executor is not None:
            executor.on_events(events)

    def release(self, number: int) -> None:
        """The state of this branch is gone (called by the janitor)."""
        executor = self._executor()
        if executor is not None:
            executor.release(number)
        else:
            self.close()

    def fail(self, of: weakref.ref[Scope], error: BaseException) -> None:
        """End what the scope still does (called by the janitor)."""
        executor, scope = self._executor(), of()
        if executor is not None and scope is not None:
            executor.abort(lambda branch: branch.scope is scope, error)

    def close(self) -> None:
        run, self.run = self.run, None
        if run is not None:
            with contextlib.suppress(NbsglError):  # the backend is gone, and all it held with it
                run.close()


class Executor:
    """Owned by the states of its branches; its run is closed when the last of them is gone.

    Errors hold tracebacks, these hold frames, and these hold states: so whatever outlives the states (the backend,
    the janitor) must not hold the executor, but only its `Lease`.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._lock = threading.RLock()
        self._sending = threading.RLock()
        self._numbers = itertools.count()
        self._slots: dict[int, Slot] = {}  # that are not final
        self._queue: list[AnyNode] = []
        self._touched: dict[int, Branch] = {}  # branches with queued nodes
        self._waiters: list[Waiter] = []
        self.lease = Lease(self)
        self._info: ModelInfo | None = None
        # by its method's name: asking a protocol takes 10 us, and there is an executor per row
        self._limits = cast(Limited, backend) if hasattr(backend, "check") else None
        self.num_submissions = 0  # that asked for something
        self.branches: dict[int, Branch] = {}  # that somebody can reach
        self.id = os.urandom(6).hex()

    @property
    def info(self) -> ModelInfo:
        """The model's facts; the first call may start the engine and wait for it."""
        if self._info is None:
            self._info = self.backend.info
        return self._info

    def check(self, node: Gen | Select, given: Collection[str]) -> None:
        """`Unsupported` if the backend knows that it cannot carry this out."""
        if self._limits is not None:
            self._limits.check(node, given)

    @property
    def lock(self) -> contextlib.AbstractContextManager[Any]:
        return self._lock

    # ---- growing (call with the lock held) ---------------------------------------------------------------------------

    def next_number(self) -> int:
        return next(self._numbers)

    def queue(self, branch: Branch, *nodes: AnyNode) -> None:
        self._queue.extend(nodes)
        self._touched[branch.number] = branch

    def add_root(self, scope: Scope) -> Branch:
        branch = Branch(self.next_number(), scope)
        scope.branches.append(branch)
        self.branches[branch.number] = branch
        self.queue(branch, Root(branch=branch.number))
        return branch

    def add_fork(self, parent: Branch, scope: Scope | None = None) -> Branch:
        child = parent.fork(self.next_number(), scope)
        child.scope.branches.append(child)
        self.branches[child.number] = child
        self.queue(child, Fork(branch=child.number, parent=parent.number))
        return child

    def add_slot(self, branch: Branch, slot: Slot) -> None:
        branch.items.append(slot)
        branch.num_sampled += 1
        self._slots[slot.number] = slot
        self.queue(branch, slot.node)

    @property
    def has_queue(self) -> bool:
        return bool(self._queue)

    # ---- sending -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Submit everything queued by any branch, in one message.  Waits for nothing.

        If the backend is gone, the branches concerned fail; nothing is raised here.
        """
        if not self._queue:
            return
        with self._sending:
            with self._lock:
                nodes, touched = self._queue, list(self._touched.values())
                self._queue, self._touched = [], {}
                self._mark_sent(touched)
            if not nodes:
                return
            try:
                if self.lease.run is None:
                    self.lease.run = self.backend.open_run(self.lease.listen)
                self.lease.run.submit(joined(nodes))
                self.num_submissions += not all(isinstance(node, Close) for node in nodes)
            except NbsglError as error:
                self._lose(touched, error)
            except BaseException as error:  # an interrupt: it may have arrived
                self._abort_at_backend(touched, error)
                self._lose(touched, error)
                raise

    def _mark_sent(self, branches: Iterable[Branch]) -> None:
        now = time.monotonic()
        for branch in branches:
            branch.is_known = True
            branch.num_sent = len(branch.items)
            for slot in branch.own_slots():
                if slot.status == "queued":
                    slot.status, slot.sent_at = "running", now

    def _lose(self, branches: Iterable[Branch], error: BaseException) -> None:
        """What was to be submitted may not have arrived."""
        with self._lock:
            for branch in branches:
                self._fail(branch, self._explained(branch, None, error))
            waiters = self._take_waiters()
        _wake(waiters)

    # ---- waiting -----------------------------------------------------------------------------------------------------

    def wait(self, is_ready: Callable[[], bool]) -> None:
        """Wait until `is_ready()`, which is called with the lock held.  Interruptible within a tick."""
        waiter = threading.Lock()
        waiter.acquire()
        while not self.is_ready_or_watch(is_ready, waiter):
            if (call := _at_first_wait.__dict__.pop("call", None)) is not None:
                call()
            waiter.acquire(timeout=TICK_S)

    def is_ready_or_watch(self, is_ready: Callable[[], bool], waiter: Waiter) -> bool:
        """Whether it is ready; if not, `waiter` is released at the next news."""
        with self._lock:
            if is_ready():
                return True
            if waiter not in self._waiters:
                self._waiters.append(waiter)
            return False

    def forget_waiter(self, waiter: Waiter) -> None:
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def wake_all(self) -> None:
        with self._lock:
            waiters = self._take_waiters()
        _wake(waiters)

    def _take_waiters(self) -> list[Waiter]:
        waiters, self._waiters = self._waiters, []
        return waiters

    # ---- what comes back ---------------------------------------------------------------------------------------------

    def on_events(self, events: list[AnyEvent]) -> None:
        """The backend's listener: on its thread, returns at once, never raises."""
        with self._lock:
            for event in events:
                try:
                    self._take(event)
                except Exception:
                    logger.exception("nbsgl: an event could not be taken in")
            waiters = self._take_waiters()
        _wake(waiters)

    def _take(self, event: AnyEvent) -> None:
        if isinstance(event, BranchFailed):
            self._take_failure(event)
            return
        slot = self._slots.get(event.slot)
        if slot is None:
            return  # it was aborted meanwhile
        if slot.first_at is None:
            slot.first_at = time.monotonic()
        if isinstance(event, Chunk):
            slot.chunks.append(event.text)
            slot.thoughts.append(event.reasoning)
            slot.num_chunk_tokens += len(event.ids) // 4
            if event.logprobs is not None:
                slot.chunk_logprobs.extend(event.logprobs.tokens)
        elif isinstance(event, GenDone):
            slot.results = event.results
            self.settle(slot)
        elif isinstance(event, SelectDone):
            slot.choice = event
            if event.index >= 0:
                slot.chosen = event.index
                self.settle(slot)

    def settle(self, slot: Slot) -> None:
        slot.end("done")
        self._slots.pop(slot.number, None)

    def _take_failure(self, event: BranchFailed) -> None:
        slot = self._slots.get(event.slot)
        if slot is not None and event.partial:
            slot.chunks = [event.partial]
        branch = self.branches.get(event.branch)
        if branch is not None:
            self._fail(branch, self._explained(branch, slot, errors.decode(event.error)))
        else:  # nobody can reach the branch, but somebody may wait for its results
            error = self._explained(self._dropped(event.branch), slot, errors.decode(event.error))
            for lost in [one for one in self._slots.values() if one.node.branch == event.branch]:
                lost.end("failed", error)
                self._slots.pop(lost.number)
            self._spread()

    # ---- failing -----------------------------------------------------------------------------------------------------

    def _dropped(self, number: int) -> Branch | None:
        """A branch that nobody can reach any more, while others of its program can be."""
        for reachable in self.branches.values():
            for branch in reachable.scope.branches:
                if branch.number == number:
                    return branch
        return None

    def _explained(self, branch: Branch | None, slot: Slot | None, cause: BaseException) -> BaseException:
        """The error every later access raises: which program, line and variable, with the cause behind it."""
        if branch is None:
            return cause
        slot = slot or next((s for s in branch.own_slots() if not s.is_final), None)
        scope = branch.scope
        where = slot.where if slot else scope.where
        values: dict[str, Any] = {
            "program": scope.title,
            "where": where,
            "variable": slot.name if slot else None,
            "partial_text": slot.text if slot else "",
        }
        if not isinstance(cause, Exception):
            cause = errors.Aborted(by=_by(cause))
        if isinstance(cause, StateFailed):
            known = {name: getattr(cause, name) for name in cause.fields}
            known |= {name: value for name, value in values.items() if known.get(name) is None}
            return type(cause)(cause.message, hint=cause.hint, **known)
        what = f"variable {slot.name!r}" if slot and slot.name is not None else "a segment"
        error = StateFailed(f"{scope.title}: {what} failed at {where}: {type(cause).__name__}: {cause}", **values)
        error.__cause__ = cause
        return error

    def _fail(self, branch: Branch, error: BaseException) -> None:
        """The branch ends here: its unfinished slots and those who hold them fail with the same error."""
        if branch.error is None:
            branch.error = error
            self._end_slots(branch, error)
            self._spread()

    def _end_slots(self, branch: Branch, error: BaseException) -> None:
        status: Any = "aborted" if isinstance(error, (errors.Aborted, errors.DeadlineExceeded)) else "failed"
        for slot in branch.own_slots():
            if not slot.is_final:
                slot.end(status, error)
                self._slots.pop(slot.number, None)

    def _spread(self) -> None:
        """A branch that holds a failed result of another has failed too."""
        changed = True
        while changed:
            changed = False
            for branch in self.branches.values():
                if branch.error is None:
                    error = next((slot.error for slot in branch.slots() if slot.error is not None), None)
                    if error is not None:
                        branch.error = error
                        self._end_slots(branch, error)
                        changed = True

    def abort(self, chosen: Callable[[Branch], bool], error: BaseException, *, all_of_them: bool = False) -> None:
        """End what the chosen branches still do: at once here, and at the backend before this returns.

        Branches with nothing under way are left alone, unless `all_of_them`.
        """
        victims: list[Branch] = []
        try:
            with self._lock:
                victims += [b for b in self.branches.values() if b.error is None and chosen(b)]
                if not all_of_them:
                    victims[:] = [b for b in victims if not b.is_done or b.number in self._touched]
                self._end(victims, error)
        finally:
            self._abort_at_backend(victims, error)
            self.wake_all()

    def _end(self, victims: list[Branch], error: BaseException) -> None:
        gone = {branch.number for branch in victims}
        known = {branch.number for branch in victims if branch.is_known}
        self._queue = [n for n in self._queue if n.branch not in gone or (isinstance(n, Close) and n.branch in known)]
        for number in gone:
            self._touched.pop(number, None)
        for branch in victims:
            branch.error = self._explained(branch, None, error) if _is_abort(error) else error
        for branch in victims:
            assert branch.error is not None
            self._end_slots(branch, branch.error)
        self._spread()

    def _abort_at_backend(self, branches: Iterable[Branch], error: BaseException) -> None:
        known = [branch.number for branch in branches if branch.is_known]
        run = self.lease.run
        if run is None or not known:
            return
        try:
            run.abort(known, by=_by(error))
        except NbsglError:
            logger.debug("nbsgl: the backend was gone before the abort", exc_info=True)

    # ---- letting go --------------------------------------------------------------------------------------------------

    def close_branch(self, branch: Branch) -> None:
        """Nothing more will be added (call with the lock held)."""
        if not branch.is_closed:
            branch.is_closed = True
            if branch.is_known or branch.number in self._touched:
                self.queue(branch, Close(branch=branch.number))

    def release(self, number: int) -> None:
        """Nobody can reach this branch any more (called by the janitor).

        What only this branch could have shown is aborted; when no branch is left, the run is closed.
        """
        with self._lock:
            branch = self.branches.pop(number, None)
            if branch is None:
                return
            is_last = not self.branches
            wanted = not is_last and self._is_wanted(branch)
            lost = [] if wanted or is_last else [slot for slot in branch.own_slots() if not slot.is_final]
            if lost and branch.error is None:
                branch.error = dropped = errors.Aborted(by="nobody: the state was dropped")
                self._end_slots(branch, dropped)
            self.close_branch(branch)
            only_closes = all(isinstance(node, Close) for node in self._queue)
            run = self.lease.run
        try:
            if is_last:
                self._close()
                return
            if lost and run is not None and branch.is_known:
                run.abort([number], by="nobody: the state was dropped")
            if only_closes:
                self.flush()
        except NbsglError:
            logger.debug("nbsgl: the backend was gone before a branch was released", exc_info=True)

    def _is_wanted(self, branch: Branch) -> bool:
        """Whether another branch holds, or is to append, a result of it or of a fork of it that is still to come."""
        pending = {id(slot) for slot in branch.own_slots() if not slot.is_final}
        if not pending:
            return True
        if branch.num_children:  # a fork that is not born yet would end with it
            family = {b.number for b in branch.scope.branches if _descends(b, branch)}
            pending |= {id(slot) for slot in self._slots.values() if slot.node.branch in family}
        for other in self.branches.values():
            held = itertools.chain(other.slots(), *(b.slots() for b in other.bindings.values()))
            if any(id(slot) in pending for slot in held):
                return True
        return any(isinstance(node, Append) and node.source == branch.number for node in self._queue)

    def _close(self) -> None:
        with self._sending:
            with self._lock:
                self._queue, self._touched = [], {}
                for slot in list(self._slots.values()):
                    slot.end("aborted", errors.Aborted(by="nobody: the state was dropped"))
                self._slots.clear()
            self.lease.close()


def joined(nodes: Sequence[AnyNode]) -> list[AnyNode]:
    """Neighbouring texts of one branch as one node."""
    out: list[AnyNode] = []
    texts: list[str] = []
    for node in nodes:
        last = out[-1] if out else None
        if isinstance(node, Text) and isinstance(last, Text) and _go_together(last, node):
            texts.append(node.text)
            continue
        if len(texts) > 1 and isinstance(last, Text):
            out[-1] = msgspec.structs.replace(last, text="".join(texts))
        out.append(node)
        texts = [node.text] if isinstance(node, Text) else []
    if len(texts) > 1 and isinstance(out[-1], Text):
        out[-1] = msgspec.structs.replace(out[-1], text="".join(texts))
    return out


def _descends(branch: Branch | None, ancestor: Branch) -> bool:
    while branch is not None and branch is not ancestor:
        branch = branch.parent
    return branch is ancestor


def _by(error: BaseException) -> str:
    if isinstance(error, errors.Aborted):
        return str(error.by)
    return "an interrupt" if isinstance(error, KeyboardInterrupt) else type(error).__name__


def _is_abort(error: BaseException) -> bool:
    """Not an exception of the program's own, which stays as it is."""
    return not isinstance(error, Exception) or (
        isinstance(error, (errors.Aborted, errors.DeadlineExceeded)) and error.program is None
    )


def _go_together(last: Text, node: Text) -> bool:
    return (node.branch, node.parse_special) == (last.branch, last.parse_special)


def _wake(waiters: Iterable[Waiter]) -> None:
    for waiter in waiters:
        waiter.release()
