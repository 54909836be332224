"""Ends a process that hangs, and says where: a test run on a card must not wait for its time limit."""

from __future__ import annotations

import faulthandler
import time
from types import TracebackType

ARM_EVERY_S = 1.0  # arming starts a thread


class HangGuard:
    """Within `with`: exit(1) with the stacks of all threads on `fd` if `beat` is not called for `limit_s` seconds.

    The watching thread runs no Python: a host stuck in a driver's call that holds the interpreter is ended as well.
    """

    def __init__(self, limit_s: float, fd: int = 2) -> None:
        self._limit_s, self._fd, self._armed = limit_s, fd, 0.0

    def __enter__(self) -> HangGuard:
        self._arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """It lives."""
        if time.monotonic() - self._armed > min(ARM_EVERY_S, self._limit_s / 4):
            self._arm()

    def _arm(self) -> None:
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=self._fd)
        self._armed = time.monotonic()
