"""`LoopThread`: an event loop in a thread of its own, for as long as its owner lives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from nbsgl.errors import EngineError, UsageError, WrongProcess

T = TypeVar("T")

JOIN_S = 5.0
TICK_S = 0.1  # waits are timed waits in the calling thread, so an interrupt ends them at once


class LoopThread:
    """Carries out calls on its event loop.  The thread starts with the first call.

    When it is closed, or nobody holds it any more, what still runs is cancelled, `at_end` is awaited, and the thread
    ends.
    """

    def __init__(self, name: str, at_end: Callable[[], Awaitable[None]]) -> None:
        self._name, self._at_end = name, at_end
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._is_closed = False

    def call(self, func: Callable[..., Any], *args: Any) -> None:
        """Call it soon, in order.  `EngineError` after `close`, `WrongProcess` in a forked child."""
        if self._pid != os.getpid():
            raise WrongProcess(pid=self._pid, here=os.getpid(), hint="Make the backend in the process that uses it.")
        with self._lock:
            if self._is_closed:
                raise EngineError(f"{self._name}: this backend was closed.", hint="Make a new one.")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                work = (self._loop, self._at_end)
                self._thread = threading.Thread(target=_run, args=work, name=self._name, daemon=True)
                self._thread.start()
                weakref.finalize(self, _stop, self._loop).atexit = False
            self._loop.call_soon_threadsafe(func, *args)

    def wait(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work()` on the loop and wait for its result; an interrupt cancels it.  Not for the loop's own thread."""
        if threading.current_thread() is self._thread:
            raise UsageError("This would wait, and the thread of the event loop may not.", hint="Use another thread.")
        future: Future[T] = Future()
        tasks: list[asyncio.Task[None]] = []
        self.call(lambda: tasks.append(asyncio.get_running_loop().create_task(_settle(work(), future))))
        try:
            while True:
                try:
                    return future.result(TICK_S)
                except TimeoutError:
                    if future.done():
                        return future.result()  # its own TimeoutError, or an answer just now
                    if self._thread is not None and not self._thread.is_alive():
                        raise EngineError(f"{self._name}: this backend was closed.", hint="Make a new one.") from None
        except BaseException:
            with contextlib.suppress(EngineError):
                self.call(lambda: [task.cancel() for task in tasks])
            raise

    def close(self) -> None:
        """End everything; waits for the thread, unless it is this one.  Idempotent."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if self._loop is None or was_closed or self._pid != os.getpid():
            return
        _stop(self._loop)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)


async def _settle(work: Coroutine[Any, Any, T], future: Future[T]) -> None:
    try:
        future.set_result(await work)
    except asyncio.CancelledError:
        future.set_exception(EngineError("The backend was closed meanwhile.", hint="Make a new one."))
        raise
    except BaseException as error:
        future.set_exception(error)


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)


def _run(loop: asyncio.AbstractEventLoop, at_end: Callable[[], Awaitable[None]]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_end(at_end))
        loop.close()


async def _end(at_end: Callable[[], Awaitable[None]]) -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await at_end()
    await asyncio.get_running_loop().shutdown_asyncgens()
