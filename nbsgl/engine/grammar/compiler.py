"""Compiling beside the worker's loop: specs are read and tables made in helper processes, host grammars in threads.

    begin -> planner (a process): which engine, and in what words; llguidance is tried there
               fsm        -> tables (a process): tables, or handed over to llguidance
                          -> and a stand-in by llguidance (a thread), as its masks are the same
               llguidance -> compiled here (a thread), which lets go of the GIL

Two processes, so that no grammar waits for another one's tables.  Nothing of a user's is parsed in the worker; what
llguidance may build without an end was built in a helper first.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from nbsgl import errors
from nbsgl.engine.grammar import CompiledGrammar, Engine, HandOver, PackingEngine
from nbsgl.engine.grammar.after import limited
from nbsgl.engine.grammar.helper import Helper, HelperDied, HelperTimedOut
from nbsgl.engine.grammar.plans import GENERAL, Plan, too_expensive
from nbsgl.engine.grammar.tags import refuse_special
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.errors import NbsglError
from nbsgl.protocol import GrammarSpec

logger = logging.getLogger("nbsgl")

COMPILE_S = 5.0  # in helpers, from when the first of them begins
NOMINAL_BYTES = 256 << 10  # of a grammar whose size nobody tells
PLAN_S, TABLES_PLAN_S = 2.5, 1.0  # of them for reading the spec, and once more for the tables alone
NUM_HOSTS = 2
# Tables wait so long for their stand-in, with which the run begins: beside it they take its processor where there are
# two (a first token 5.8-7.6 ms behind llguidance's at the 90th percentile; 1.9-3.1 so).
HEAD_START_S = 0.02
# The bytes that occur in UTF-8.  With a token for each, no state of a language is one that tokens cannot leave.
_UTF8_BYTES = frozenset(range(0xC0)) | frozenset(range(0xC2, 0xF5))

Made = TypeVar("Made")


class Flight:
    """One language on its way, and what came of it.  `ended` is called once, when that is known."""

    def __init__(self, spec: GrammarSpec, ended: Callable[[Flight], None]) -> None:
        self.spec = spec
        self.done = threading.Event()
        self.standin: CompiledGrammar | None = None
        self.compile_ms = 0.0
        self.num_bytes = 0
        self.is_accident = False  # failed by no fault of its own: another try may do better
        self.making = threading.Lock()  # held while a host's grammar is compiled
        self._deadline: float | None = None
        self._compiled: CompiledGrammar | None = None
        self._error: Exception | None = None
        self._ended = ended
        self._begun = time.perf_counter()

    def left(self, limit_s: float) -> float:
        """Seconds that helpers may still take, at most so many; the clock begins with the first call."""
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + COMPILE_S
        return max(0.1, min(limit_s, self._deadline - now))

    def result(self) -> CompiledGrammar | None:
        """The grammar, None as long as there is none; raises its error."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._compiled

    def finish(self, compiled: CompiledGrammar) -> None:
        self.num_bytes = (compiled.table_bytes or NOMINAL_BYTES) + len(self.spec.text)
        self._compiled = compiled
        self._end()

    def fail(self, error: Exception, is_accident: bool = False) -> None:
        self.num_bytes = len(self.spec.text)
        self._error, self.is_accident = error, is_accident
        self._end()

    def _end(self) -> None:
        self.compile_ms = (time.perf_counter() - self._begun) * 1e3
        self.done.set()
        self._ended(self)


class Lane:
    """Threads that carry out what is put, in order, and outlive what it raises; they hold up no process at its end."""

    def __init__(self, name: str, num_threads: int = 1) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], object], threading.Event] | None] = queue.SimpleQueue()
        self._num_threads = num_threads
        for _ in range(num_threads):
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def put(self, call: Callable[[], object]) -> threading.Event:
        """Its event is set when the call has ended."""
        ended = threading.Event()
        self._calls.put((call, ended))
        return ended

    def close(self) -> None:
        """The threads end when what was put is done."""
        for _ in range(self._num_threads):
            self._calls.put(None)

    def _run(self) -> None:
        while (put := self._calls.get()) is not None:
            call, ended = put
            try:
                call()
            except Exception:
                logger.exception("the compiler of grammars failed at something")
            ended.set()


class Compiler:
    """See the module.  `engine(name)` gives this vocabulary's engine of a name; `notify` says that a stand-in is there.

    What helpers print goes to the file `log`.
    """

    def __init__(
        self, vocab: TokenVocab, engine: Callable[[str], Engine], notify: Callable[[], None], log: Path | None
    ) -> None:
        self.vocab, self._engine, self._notify = vocab, engine, notify
        self.num_accidents = 0  # compiles that a helper did not live to end, or that ran into its clock or memory
        self.planner, self.tables = Helper(None, log), Helper(vocab, log)
        self._plan_lane, self._table_lane = Lane("nbsgl-plans"), Lane("nbsgl-tables")
        self._host_lane = Lane("nbsgl-hosts", NUM_HOSTS)
        self._can_stand_in = vocab.byte_ids.keys() >= _UTF8_BYTES

    def warm_up(self) -> None:
        """Start both helpers; returns at once."""
        self._plan_lane.put(self.planner.warm_up)
        self._table_lane.put(self.tables.warm_up)

    def close(self) -> None:
        """End the helpers; what is under way fails."""
        for helper, lane in ((self.planner, self._plan_lane), (self.tables, self._table_lane)):
            helper.close()
            lane.put(helper.drop)
            lane.close()
        self._host_lane.close()

    def begin(self, flight: Flight) -> None:
        """Compile in other threads; returns at once."""
        self._put(self._plan_lane, flight, lambda: self._plan(flight))

    def _put(self, lane: Lane, flight: Flight, act: Callable[[], None]) -> None:
        lane.put(lambda: self._guard(flight, act))

    def _guard(self, flight: Flight, act: Callable[[], None]) -> None:
        """Whatever happens, whoever waits hears of it."""
        try:
            act()
        except NbsglError as error:
            flight.fail(error)
        except Exception as error:
            logger.exception("a grammar could not be compiled")
            flight.fail(errors.decode(errors.encode(error)), is_accident=True)

    def _plan(self, flight: Flight) -> None:
        """Which engine, and in what words: read in the planner, for a spec may be hostile to its reader too."""
        refuse_special(flight.spec, self.vocab)
        plan = self._planned(flight)
        if not self._is_packed(plan):
            self._put(self._host_lane, flight, lambda: self._compile(flight, plan))
            return
        if plan.may_hand_over and self._can_stand_in:
            stood = self._host_lane.put(lambda: self._stand_in(flight, plan))
            self._table_lane.put(lambda: stood.wait(HEAD_START_S))
        self._put(self._table_lane, flight, lambda: self._unpack(flight, plan))

    def _planned(self, flight: Flight) -> Plan:
        """The plan; for the tables alone where the general engine finds no end."""
        spec = flight.spec
        try:
            return self._tried_twice(lambda: self.planner.plan(spec, flight.left(PLAN_S)))
        except (HandOver, HelperDied, HelperTimedOut) as limit:
            self.num_accidents += not isinstance(limit, HandOver)
            if spec.engine == "auto":
                alone = msgspec.structs.replace(spec, engine="fsm")
                with suppress(NbsglError, HandOver, HelperDied, HelperTimedOut):
                    return self.planner.plan(alone, flight.left(TABLES_PLAN_S))
            raise too_expensive(spec, _told(limit, PLAN_S)) from None

    def _is_packed(self, plan: Plan) -> bool:
        return isinstance(self._engine(plan.engine), PackingEngine)

    def _unpack(self, flight: Flight, plan: Plan) -> None:
        """What the helper with the vocabulary makes of it."""
        spec = flight.spec
        try:
            data = self._tried_twice(lambda: self.tables.pack(spec, flight.left(COMPILE_S)))
        except (HandOver, HelperDied, HelperTimedOut) as error:
            self.num_accidents += not isinstance(error, HandOver)
            limit = _told(error, COMPILE_S)
            if not plan.may_hand_over:
                raise too_expensive(spec, limit) from None
            logger.info("a grammar goes to %s: past the limit of tables, %s", GENERAL, limit)
            self._put(self._host_lane, flight, lambda: flight.finish(self._general(flight, plan)))
        else:
            engine = self._engine(plan.engine)
            assert isinstance(engine, PackingEngine)
            flight.finish(limited(engine.unpack(spec, data, plan.notes), self.vocab))

    def _stand_in(self, flight: Flight, plan: Plan) -> None:
        """Its failure is none of the flight's."""
        try:
            self._general(flight, plan)
        except NbsglError:
            return
        self._notify()

    def _general(self, flight: Flight, plan: Plan) -> CompiledGrammar:
        """The flight's grammar by the general engine, compiled once."""
        with flight.making:
            if flight.standin is None:
                compiled = self._engine(GENERAL).compile(flight.spec, plan.source, plan.notes)
                flight.standin = limited(compiled, self.vocab)
            return flight.standin

    def _compile(self, flight: Flight, plan: Plan) -> None:
        compiled = self._engine(plan.engine).compile(flight.spec, plan.source, plan.notes)
        flight.finish(limited(compiled, self.vocab))

    def _tried_twice(self, act: Callable[[], Made]) -> Made:
        """Once more in a new helper if the first one died: that may have had reasons outside."""
        try:
            return act()
        except HelperDied as death:
            logger.warning("a grammar's helper died (%s); trying once more", death)
            return act()


def _told(limit: Exception, most_s: float) -> str:
    """The limit that was met, for people; of time all that there was, not what an earlier part had left of it."""
    return f"{min(most_s, COMPILE_S):g} s of compiling" if isinstance(limit, HelperTimedOut) else str(limit)
