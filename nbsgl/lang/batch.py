"""`run_batch`: many instances of one program, in order of their inputs."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from nbsgl.errors import Aborted
from nbsgl.lang.executor import TICK_S, at_first_wait
from nbsgl.lang.global_config import show_waited
from nbsgl.lang.janitor import janitor
from nbsgl.lang.state import ProgramState

if TYPE_CHECKING:
    from nbsgl.lang.program import Job
    from nbsgl.protocol import Backend

WINDOW = 1024  # instances begun ahead of the first unfinished one, if the caller sets no limit


class Batch:
    """Bodies run in threads, which do not wait for the gens they queue unless the caller limits `num_threads`.

    A thread begins the next one when it first waits for the engine: bodies that only queue run in one, and do not take
    turns with the thread that sends what they queued.
    """

    def __init__(
        self, job: Job, backend: Backend, rows: Sequence[Mapping[str, Any]], num_threads: int | None, on_error: str
    ) -> None:
        self._job, self._backend, self._rows, self._on_error = job, backend, rows, on_error
        self._limit = num_threads
        self._lock = threading.Lock()
        self._news = threading.Semaphore(0)  # one release per body that has ended
        self._next = 0
        self._num_read = 0  # states the caller has, or that are done
        self._stopped: BaseException | None = None
        self._states: list[ProgramState | None] = [None] * len(rows)
        self._errors: dict[int, BaseException] = {}
        self._broken: Exception | None = None  # no state could be made
        self._over: set[int] = set()  # bodies that have ended
        self._num_threads = 0
        self._most_threads = min(num_threads or max(96, 16 * (os.cpu_count() or 1)), len(rows))

    def states(self, progress_bar: bool) -> Iterator[ProgramState]:
        """Start, and yield each state when it and those before it are done.  Left early, it aborts the rest."""
        bar = _bar(len(self._rows)) if progress_bar else None
        try:
            self._add_threads(1)
            for i in range(len(self._rows)):
                state = self._wait(i)
                if bar is not None:
                    bar.update()
                yield state
            self._raise_first()
        except GeneratorExit as left:  # perhaps by the collector, at any line of any thread
            self._stopped = left
            janitor.soon(partial(self._stop, left))
            raise
        except BaseException as error:
            self._stop(error)
            raise
        finally:
            if bar is not None:
                bar.close()

    def _add_threads(self, most: int) -> None:
        """So many more, if there are rows and threads left."""
        with self._lock:
            num = min(most, self._most_threads - self._num_threads, len(self._rows) - self._next)
            self._num_threads += max(0, num)
        for _ in range(num):
            threading.Thread(target=self._work, name="nbsgl-batch", daemon=True).start()

    def _wait(self, i: int) -> ProgramState:
        while i not in self._over:
            if self._broken is not None:
                raise self._broken
            before = self._next
            if not self._news.acquire(timeout=TICK_S) and self._next == before:
                self._add_threads(self._num_threads)  # bodies that wait for something else than the engine
        state = self._states[i]
        assert state is not None
        state.wait_all()
        self._num_read = i + 1
        show_waited(state)
        return state

    def _raise_first(self) -> None:
        if self._errors and self._on_error == "raise":
            failed = sorted(self._errors)
            error = self._errors[failed[0]]
            error.add_note(f"run_batch: the bodies of instances {failed} raised; this is the first.")
            raise error

    def _stop(self, error: BaseException) -> None:
        """Abort what still runs; what is finished stays readable through the exception."""
        with self._lock:
            self._stopped = error
            states = list(self._states)
        by = "an interrupt" if isinstance(error, KeyboardInterrupt) else "run_batch"
        for state in states:
            if state is not None:
                state.end_scope(Aborted(by=by))
        error.states = states  # type: ignore[attr-defined]

    # ---- in the threads ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        at_first_wait(lambda: self._add_threads(1))
        while True:
            with self._lock:
                i = self._next
                if self._stopped is not None or i >= len(self._rows):
                    return
                is_far = self._limit is None and i >= self._num_read + WINDOW
                if not is_far:
                    self._next += 1
                    try:
                        state = self._states[i] = self._job.new_state(self._backend, i)
                    except Exception as error:
                        self._broken = error
                        return
            if is_far:
                threading.Event().wait(TICK_S / 4)
                continue
            self._run(i, state)
            del state
            time.sleep(0)  # the thread that sends may want to run

    def _run(self, i: int, state: ProgramState) -> None:
        try:
            self._job.run_body(state, (), self._rows[i])
            if self._limit is not None:
                state.wait_all()
        except BaseException as error:  # also SystemExit of a body: it is that instance's result
            self._errors[i] = error
        finally:
            self._over.add(i)
            self._news.release()


def _bar(total: int) -> Any:
    """A bar made for where it stands: a notebook or a terminal."""
    if "ipykernel" in sys.modules:
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm(total=total)
