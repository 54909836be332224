"""Children: started by one thread that never ends, each in a session of its own, reaped by that same thread.

The kernel sends a child its parent-death signal when the forking *thread* ends, hence the thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

REAP_POLL_S = 0.05  # where there is no pidfd
PARENT_POLL_S = 0.5  # where there is no parent-death signal
ORPHANED = 3  # exit code of a child whose parent is gone
PR_SET_PDEATHSIG = 1


class Child:
    """A process we started, and the group it leads.  Signals reach nobody else: none is sent once it is reaped."""

    def __init__(self, popen: subprocess.Popen[bytes], on_exit: Callable[[int], None]) -> None:
        self._popen, self._on_exit = popen, on_exit
        self._lock = threading.Lock()
        self.pid = popen.pid
        self.stdin = popen.stdin
        self.returncode: int | None = None

    def signal(self, number: int, *, group: bool = False) -> None:
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if self.returncode is None:
                (os.killpg if group else os.kill)(self.pid, number)

    def close_stdin(self) -> None:
        """Ends the child if it watches its standard input."""
        if self.stdin is not None:
            with contextlib.suppress(OSError):
                self.stdin.close()

    def _reap(self) -> bool:
        with self._lock:
            self.returncode = self._popen.poll()
        if self.returncode is None:
            return False
        self.close_stdin()
        self._on_exit(self.returncode)
        return True


class Spawner:
    """The thread.  `on_exit(returncode)` is called on it; a negative code is a signal, as in `subprocess`."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._children: dict[int, Child] = {}
        self.thread = threading.Thread(target=self._run, name="nbsgl-spawn", daemon=True)
        self.thread.start()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        first_line: bytes = b"",
        stdin: int = subprocess.PIPE,
        on_exit: Callable[[int], None] = lambda code: None,
    ) -> Child:
        """Start a program with output and errors in `log`.

        Its standard input is the descriptor `stdin`, else a pipe with `first_line` in it that stays open.
        """
        answer: Future[Child] = Future()
        self._orders.put(lambda: self._start(answer, argv, log, first_line, stdin, on_exit))
        self._wake_w.send(b"\0")
        return answer.result()

    def _start(
        self,
        answer: Future[Child],
        argv: Sequence[str],
        log: Path,
        first_line: bytes,
        stdin: int,
        on_exit: Callable[[int], None],
    ) -> None:
        try:
            output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                popen = subprocess.Popen(
                    argv,
                    stdin=stdin,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    close_fds=True,
                    env=_environment(),
                )
            finally:
                os.close(output)
            child = Child(popen, on_exit)
            if popen.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    popen.stdin.write(first_line + b"\n")
                    popen.stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: a NUL in a path
            answer.set_exception(error)
            return
        try:
            fd = os.pidfd_open(child.pid)
        except (AttributeError, OSError):
            fd = -child.pid  # a key that is no descriptor: polled
        self._children[fd] = child
        answer.set_result(child)

    def _run(self) -> None:
        while True:
            poll = select.poll()
            poll.register(self._wake_r, select.POLLIN)
            for fd in self._children:
                if fd >= 0:
                    poll.register(fd, select.POLLIN)
            must_poll = any(fd < 0 for fd in self._children)
            poll.poll(REAP_POLL_S * 1000 if must_poll else None)
            with contextlib.suppress(BlockingIOError):
                while self._wake_r.recv(4096):
                    pass
            while not self._orders.empty():
                self._orders.get()()
            for fd, child in list(self._children.items()):
                if child._reap():
                    del self._children[fd]
                    if fd >= 0:
                        os.close(fd)


def python(module: str, *args: str) -> list[str]:
    """A program of this package: the user's folder is not searched for modules, so no file there can shadow one."""
    return [sys.executable, "-P", "-m", module, *args]


def _environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@functools.cache
def _of_process(pid: int) -> Spawner:
    return Spawner()


def spawner() -> Spawner:
    """This process's spawner; a forked child gets another one."""
    return _of_process(os.getpid())


# ---- in the child ----------------------------------------------------------------------------------------------------


def tie_to_parent(parent: int) -> None:
    """Die with `parent`: by the kernel's signal where there is one, else by looking.  The child's first act."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_look_after, args=(parent,), name="nbsgl-parent", daemon=True).start()
    if os.getppid() != parent:
        os._exit(ORPHANED)


def _look_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(ORPHANED)


def die_at_eof(fd: int = 0) -> None:
    """End this process when the other end of its standard input is closed, however that happens."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(fd, 4096):
                pass
        os._exit(ORPHANED)

    threading.Thread(target=wait, name="nbsgl-stdin", daemon=True).start()


def read_line(fd: int = 0) -> bytes:
    """The first line of standard input, unbuffered: what follows is left for `die_at_eof`."""
    line = bytearray()
    while (byte := os.read(fd, 1)) not in (b"", b"\n"):
        line += byte
    return bytes(line)
