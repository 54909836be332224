"""What the process tests share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil

from nbsgl.engine.handle import Engine
from nbsgl.protocol import AnyEvent, BranchFailed, Chunk, Close, Gen, GenDone, Root, SamplingParams, Tokens, pack_ids

FAKE = "tests.process.fake_worker"
SOON_S = 0.5 + 2.0  # the promise, and slack for a machine that is shared


def counted(start: int, count: int) -> list[int]:
    """What the fake worker draws after `start`."""
    ids = []
    for _ in range(count):
        start = (start + 1) % 200 + 10
        ids.append(start)
    return ids


class Program:
    """One branch with one gen, on its own run."""

    def __init__(self, engine: Engine, first: int = 20, max_tokens: int = 5, *, stream: bool = False) -> None:
        self.events: list[AnyEvent] = []
        self.ended_at = 0.0
        self._is_done = threading.Event()
        self.run = engine.open_run(self._hear)
        self.run.submit(
            [
                Root(branch=0),
                Tokens(branch=0, ids=pack_ids([first])),
                Gen(branch=0, slot=0, params=SamplingParams(max_tokens=max_tokens, ignore_eos=True), stream=stream),
                Close(branch=0),
            ]
        )

    def _hear(self, events: list[AnyEvent]) -> None:
        self.events += events
        if any(isinstance(event, GenDone | BranchFailed) for event in events):
            self.ended_at = time.monotonic()
            self._is_done.set()

    def wait(self, timeout: float = 30.0) -> AnyEvent:
        """The last event."""
        assert self._is_done.wait(timeout), "the program did not end"
        return self.events[-1]

    @property
    def chunks(self) -> list[Chunk]:
        return [event for event in self.events if isinstance(event, Chunk)]


def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait for it, or fail."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
