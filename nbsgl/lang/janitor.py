"""One small thread for what must not be done where it is noticed: releasing dropped states, ending late runs.

A finaliser may run at any line of any thread, also one that holds a lock; `SimpleQueue.put` is safe there.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

logger = logging.getLogger("nbsgl")


class Janitor:
    """Carries out calls, now or at a time; its thread starts with the first `start` in a process."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[float, Callable[[], None]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._pid = 0

    def start(self) -> None:
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    threading.Thread(target=self._work, name="nbsgl-janitor", daemon=True).start()
                    self._pid = os.getpid()

    def soon(self, call: Callable[[], None]) -> None:
        self._calls.put((0.0, call))

    def at(self, when: float, call: Callable[[], None]) -> None:
        """`when` as of `time.monotonic()`."""
        self._calls.put((when, call))

    def watch(self, owner: object, call: Callable[[int], None], number: int) -> None:
        """Call `call(number)` soon after `owner` has become unreachable."""
        weakref.finalize(owner, self._calls.put, (0.0, lambda: call(number))).atexit = False

    def _work(self) -> None:
        later: list[tuple[float, int, Callable[[], None]]] = []
        order = itertools.count()
        while True:
            timeout = max(0.0, later[0][0] - time.monotonic()) if later else None
            try:
                when, call = self._calls.get(timeout=timeout)
            except Empty:
                when, _, call = heapq.heappop(later)
            if when > time.monotonic():
                heapq.heappush(later, (when, next(order), call))
            else:
                _carry_out(call)
            del call  # it may hold the last reference to a run


def _carry_out(call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception:
        logger.exception("nbsgl: the janitor could not finish a task")


janitor = Janitor()
