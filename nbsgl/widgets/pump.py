"""One thread per kernel that does all the sending of all live views.

Producers never send: the pump asks.  So a page sees at most one message per view and tick, however fast tokens come,
and the budget (30 Hz a visible view) is kept in one place.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

logger = logging.getLogger("nbsgl")

IDLE_S = 0.5  # longest sleep: a view added meanwhile wakes the pump anyway


class Pumped(Protocol):
    """What the pump asks of a view."""

    def step(self, now: float) -> float | None:
        """Send what is due; return when to be asked again (monotonic seconds), or None to be let go."""


class Pump:
    """Asks each view when it is due.  The thread starts with the first view and ends with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due: dict[Pumped, float] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        with self._lock:
            return self._thread is not None and self._thread.is_alive()

    def add(self, view: Pumped) -> None:
        """Ask the view now, and from now on as often as it says.  Adding it again only makes it due at once."""
        with self._lock:
            self._due[view] = 0.0
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._loop, name="nbsgl-pump", daemon=True)
                self._thread.start()
        self._wake.set()

    def remove(self, view: Pumped) -> None:
        """Forget the view; a step of it that is under way ends first or not, it is not waited for."""
        with self._lock:
            self._due.pop(view, None)
        self._wake.set()

    def _loop(self) -> None:
        while True:
            self._wake.clear()
            now = time.monotonic()
            with self._lock:
                if not self._due:
                    self._thread = None
                    return
                ready = [view for view, due in self._due.items() if due <= now]
                for view in ready:
                    self._due[view] = now + IDLE_S  # an `add` during the step sets 0.0 and is not overwritten below
            for view in ready:
                self._step(view, now)
            with self._lock:
                first = min(self._due.values(), default=0.0)
            self._wake.wait(min(max(first - time.monotonic(), 0.0), IDLE_S))

    def _step(self, view: Pumped, now: float) -> None:
        held = now + IDLE_S
        try:
            again = view.step(now)
        except Exception:  # one view's failure must not silence the others
            logger.exception("a view failed and is no longer updated")
            again = None
        with self._lock:
            if self._due.get(view) != held:
                return
            if again is None:
                del self._due[view]
            else:
                self._due[view] = again


pump = Pump()
