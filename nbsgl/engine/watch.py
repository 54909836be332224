"""Is a process still the one we know, and when does it end: pidfd where there is one, polling elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from nbsgl.engine.io_loop import IoLoop, Timer

POLL_S = 0.1


def start_time(pid: int) -> float | None:
    """When the process began, in the system's own units; None if there is no such process (or a zombie)."""
    if os.path.exists("/proc/self/stat"):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = stat[stat.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else float(fields[19])
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger holds the process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] in "Tt"


def is_same(pid: int, started: float) -> bool:
    """Whether `pid` is still the process that began then, and no stranger who got its number."""
    return start_time(pid) == started


class PidWatch:
    """Calls `on_exit` once, on the loop, when the process ends."""

    def __init__(self, loop: IoLoop, pid: int, on_exit: Callable[[], None]) -> None:
        self._loop, self._on_exit = loop, on_exit
        self._fd = -1
        self._timer: Timer | None = None
        self._pid, self._started = pid, start_time(pid)
        try:
            self._fd = os.pidfd_open(pid)
        except (AttributeError, OSError, OverflowError):  # OverflowError: a number that is no pid
            self._timer = loop.later(0.0, self._poll)
        else:
            loop.watch(self._fd, self._fire)

    def _poll(self) -> None:
        self._timer = None
        if self._started is None or not is_same(self._pid, self._started):
            self._fire()
        else:
            self._timer = self._loop.later(POLL_S, self._poll)

    def _fire(self) -> None:
        self.close()
        self._on_exit()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
