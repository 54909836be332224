"""Engines in a private runtime folder, and the promise that nothing of them is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from nbsgl.engine.handle import Engine
from nbsgl.engine.runtime import list_engines
from tests.process.tools import FAKE


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short private runtime folder; every process of an engine in it is ended afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="nb", dir="/tmp"))
    monkeypatch.setenv("NBSGL_RUNTIME_DIR", str(folder))
    yield folder
    for record in list_engines():
        for pid in filter(None, (record.worker, record.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make(home: Path) -> Iterator[Callable[..., Engine]]:
    """Engines with the fake worker, closed at the end."""
    made: list[Engine] = []

    def engine(**settings: object) -> Engine:
        settings = {"skip_tokenizer_init": True, "_worker_module": FAKE, "keep": 0, **settings}
        made.append(Engine("embedded", **settings))
        return made[-1]

    yield engine
    for one in made:
        with contextlib.suppress(Exception):
            one.stop(force=True)
        one.close()
    deadline = time.monotonic() + 5
    mine = [record.pid for record in list_engines()]
    while any(psutil.pid_exists(pid) for pid in mine) and time.monotonic() < deadline:
        time.sleep(0.02)
