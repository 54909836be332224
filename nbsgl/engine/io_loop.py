"""One thread that owns all sockets of a process: other threads leave calls in its queue and wake it up."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

logger = logging.getLogger("nbsgl")

JUMP_S = 5.0  # a tick this much later than planned is a stopped process or a sleeping laptop, not a slow peer
MAX_WAIT_S = 1.0


class Timer:
    """A call at `at` (monotonic seconds).  Moving `at` moves the call."""

    def __init__(self, loop: IoLoop, at: float, call: Callable[[], None], every_s: float | None) -> None:
        self._loop, self.at, self.call, self.every_s = loop, at, call, every_s

    def cancel(self) -> None:
        self._loop.timers.discard(self)


class IoLoop:
    """A poller over sockets and file descriptors, timers, and calls from other threads.

    Only `call` may be used from other threads.  A clock jump moves all timers, so that no deadline fires by itself
    after a suspend.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.context = zmq.Context()
        self.timers: set[Timer] = set()
        self.num_jumps = 0
        self.thread: threading.Thread | None = None
        self.on_crash: list[Callable[[], None]] = []  # called, on the thread, if it ends by an error
        self._poller = zmq.Poller()
        self._on_ready: dict[Any, Callable[[], None]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self.watch(self._wake_r.fileno(), self._woken)
        self._is_stopping = False
        self._planned = clock()

    @property
    def is_alive(self) -> bool:
        """Whether a thread of its own serves it."""
        return self.thread is not None and self.thread.is_alive()

    # ---- from any thread ---------------------------------------------------------------------------------------------

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Run it on the loop's thread, in the order of the calls."""
        self._calls.append(functools.partial(function, *args))
        with contextlib.suppress(OSError):  # full: it is awake; closed: nobody is left to run it
            self._wake_w.send(b"\0")

    # ---- on the loop -------------------------------------------------------------------------------------------------

    def watch(self, what: Any, on_ready: Callable[[], None], events: int = zmq.POLLIN) -> None:
        """Call `on_ready` whenever the socket or descriptor is ready; errors and hang-ups count as ready."""
        self._poller.register(what, events)
        self._on_ready[what] = on_ready

    def unwatch(self, what: Any) -> None:
        if self._on_ready.pop(what, None) is not None:
            self._poller.unregister(what)

    def later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self, self.clock() + delay_s, call, None)
        self.timers.add(timer)
        return timer

    def every(self, period_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self, self.clock() + period_s, call, period_s)
        self.timers.add(timer)
        return timer

    def run(self) -> None:
        """Serve until `stop`."""
        try:
            self._serve()
        except BaseException:
            for tell in list(self.on_crash):  # nobody is to wait for a thread that has ended
                tell()
            raise

    def _serve(self) -> None:
        while not self._is_stopping:
            now = self.clock()
            wait = min((timer.at - now for timer in self.timers), default=MAX_WAIT_S)
            wait = 0.0 if self._calls else max(0.0, min(wait, MAX_WAIT_S))
            self._planned = now + wait
            polled = self._poller.poll(math.ceil(wait * 1000))
            ready = [(what, self._on_ready[what]) for what, _ in polled]
            self.tick()
            for what, on_ready in ready:
                if self._on_ready.get(what) is on_ready:  # else closed meanwhile, and the number perhaps taken again
                    on_ready()

    def tick(self) -> None:
        """Notice a clock jump, run what other threads left, and the timers that are due."""
        now = self.clock()
        late = now - self._planned
        if late > JUMP_S:
            self.num_jumps += 1
            logger.warning("the clock jumped by %.1f s: all deadlines start anew", late)
            for timer in self.timers:
                timer.at += late
        self._planned = now
        for _ in range(len(self._calls)):
            self._calls.popleft()()
        for timer in [timer for timer in self.timers if timer.at <= now]:
            if timer not in self.timers:
                continue
            if timer.every_s is None:
                self.timers.discard(timer)
            else:
                timer.at = now + timer.every_s
            timer.call()

    def stop(self) -> None:
        self._is_stopping = True

    def close(self) -> None:
        """After `run` has returned: let go of the wake-up pair and the context (sockets are their owners')."""
        self._wake_r.close()
        self._wake_w.close()
        self.context.destroy(linger=0)

    def _woken(self) -> None:
        try:
            while self._wake_r.recv(4096):
                pass
        except BlockingIOError:
            pass


# ---- the client's loop: one per process ------------------------------------------------------------------------------


@functools.cache
def _of_process(pid: int) -> IoLoop:
    loop = IoLoop()
    loop.thread = threading.Thread(target=loop.run, name="nbsgl-io", daemon=True)
    loop.thread.start()
    atexit.register(_end, pid, loop)
    return loop


def shared() -> IoLoop:
    """This process's loop, on a thread of its own, ended at exit; a forked child gets another one."""
    loop = _of_process(os.getpid())
    if not loop.is_alive:
        _of_process.cache_clear()
        loop = _of_process(os.getpid())
    return loop


def _end(pid: int, loop: IoLoop) -> None:
    if pid != os.getpid() or loop.thread is None:
        return
    loop.call(loop.stop)
    loop.thread.join(1.0)
    if not loop.thread.is_alive():
        loop.close()
