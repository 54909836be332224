"""`Run`: one execution of a `%%sgl` cell, in the foreground or with `--bg`."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from nbsgl.protocol import RunView, Status

STOPS = (KeyboardInterrupt, asyncio.CancelledError)  # what the stop button raises


class Run:
    """A handle on one run.

    `result()` waits and returns the state, or raises what the cell raised; `stop()` aborts what it still does;
    `text()` is the text so far, and waits for nothing.
    """

    def __init__(self, name: str, state: Any) -> None:
        self.name = name
        self._state: Any = state
        self._view = RunView(title=name)
        self._error: BaseException | None = None
        self._stopped = False
        self._ended = threading.Event()

    @property
    def status(self) -> Status:
        return self.view().status

    @property
    def is_running(self) -> bool:
        return not self._ended.is_set()

    def view(self) -> RunView:
        """A picture of the run now; after its end, the last one."""
        state = self._state  # may be let go by `end` on another thread
        if self._ended.is_set() or state is None:
            return self._view
        view: RunView = state.run_view()
        return _titled(view, self.name)

    def result(self, timeout: float | None = None) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ended.wait(0.1):  # in ticks: a wait without end could not be interrupted everywhere
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"run {self.name} is still {self.status} after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._state

    def stop(self) -> None:
        """Abort what the run still does.  Idempotent; a run that has ended stays as it is."""
        state = self._state
        if not self._ended.is_set() and state is not None:
            self._stopped = True
            state.abort()

    def text(self) -> str:
        """The text of the run's first branch so far."""
        from nbsgl.magics.session import branch_text

        return branch_text(self.view())

    def end(self, error: BaseException | None = None, *, has_reader: bool = False) -> None:
        """The run is over: keep its last picture, which no longer needs the engine.

        Without a reader who may call `result()`, state and error are let go, so that the engine can forget them too.
        """
        view = _titled(self._state.run_view(), self.name)
        status: Status = view.status
        if error is not None:
            status = "aborted" if self._stopped or isinstance(error, STOPS) else "failed"
        elif status in ("queued", "running"):
            status = "done"
        shown = None if error is None else f"{type(error).__name__}: {error}".rstrip(": ")
        # that it was aborted says the status
        self._view = _replace(view, status=status, error=None if status == "aborted" else view.error or shown)
        if has_reader:
            self._error = error
        else:
            self._state = None
        self._ended.set()

    def __repr__(self) -> str:
        view = self.view()
        return f"<Run {self.name}: {view.status}, {view.generated} tokens generated, {view.elapsed_s:.1f} s>"


def _replace(view: RunView, **changes: Any) -> RunView:
    import msgspec

    return msgspec.structs.replace(view, **changes)


def _titled(view: RunView, name: str) -> RunView:
    return view if view.title == name else _replace(view, title=name)
