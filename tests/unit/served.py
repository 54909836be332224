"""A server of this process over the fake backend, on a real socket."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from nbsgl.engine.config import EngineConfig
from nbsgl.engine.generate import Generation
from nbsgl.engine.server import serving
from nbsgl.engine.server.app import make_app
from nbsgl.engine.server.guard import Rules
from tests.unit.fakes import FakeBackend


class FakeEngine(FakeBackend, Generation):
    """`FakeBackend` with `generate` and what else the server asks of an engine."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.config = EngineConfig()
        self.is_ready = True


@contextlib.contextmanager
def served(engine: Any, rules: Rules | None = None) -> Iterator[str]:
    """The URL of a server over that engine."""
    listener = serving.listen("127.0.0.1", 0)
    listener.listen(64)
    server = serving.make_server(make_app(engine, rules or Rules()))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), name="served")
    thread.start()
    try:
        yield serving.address(listener)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def until(is_true: Any, timeout: float = 5.0) -> None:
    end = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)
