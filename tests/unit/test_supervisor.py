"""The worker's life as the front sees it, with a process that is no process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbsgl.engine.config import EngineConfig
from nbsgl.engine.io_loop import IoLoop
from nbsgl.engine.runtime import RuntimeFolder
from nbsgl.engine.supervisor import Reports, Supervisor
from nbsgl.errors import EngineCrashLoop, EngineDied, EngineError, EngineStartFailed, NbsglError
from tests.unit.ready import READY

WHY = EngineError("asked for")


class Process:
    pid = 1

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self.on_exit = on_exit

    def signal(self, number: int, *, group: bool = False) -> None: ...


class Spawner:
    def __init__(self) -> None:
        self.children: list[Process] = []

    def spawn(self, argv: object, *, log: object, first_line: bytes, on_exit: Callable[[int], None]) -> Process:
        self.children.append(Process(on_exit))
        return self.children[-1]


class Watched:
    """A supervisor whose worker never connects; `exit` ends it."""

    def __init__(self, folder: RuntimeFolder) -> None:
        self.loop, self.spawner, self.folder = IoLoop(), Spawner(), folder
        self.died: list[NbsglError] = []
        reports = Reports(
            phase=lambda *args: None,
            ready=lambda *args: None,
            updates=lambda *args: None,
            died=lambda epoch, error: self.died.append(error),
        )
        self.supervisor = Supervisor(self.loop, folder, EngineConfig(), self.spawner, "no.module", reports)

    def serve(self) -> None:
        assert self.supervisor.ensure() is None
        self.supervisor._take(READY)
        self.supervisor.serve()

    def exit(self, code: int) -> None:
        self.spawner.children[-1].on_exit(code)
        self.loop.tick()


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("NBSGL_RUNTIME_DIR", str(tmp_path))
    made = Watched(RuntimeFolder.open("k"))
    yield made
    made.loop.close()


def test_a_worker_that_has_just_died_takes_messages(watched: Watched) -> None:
    """Between the death and its notice: whoever asks hears of the death, and nothing raises on the front's thread."""
    watched.serve()
    answers: list[NbsglError | None] = []
    watched.supervisor.send(1, [b"x"])
    watched.supervisor.ask("flush", {}, lambda value, error: answers.append(error))
    watched.exit(-9)
    assert [type(error) for error in watched.died] == [EngineDied]
    assert [type(error) for error in answers] == [EngineDied]


def test_all_who_end_a_worker_are_answered(watched: Watched) -> None:
    watched.serve()
    ended: list[str] = []
    watched.supervisor.end(WHY, lambda: ended.append("first"))
    watched.supervisor.end(WHY, lambda: ended.append("second"))
    assert ended == []
    watched.exit(0)
    assert ended == ["first", "second"]
    assert watched.died == [WHY]
    watched.supervisor.end(WHY, lambda: ended.append("third"))  # there is none to end
    assert ended[-1] == "third"


def test_crash_loop_stops(watched: Watched) -> None:
    """Three restarts; then the same error each time, and not one that quotes itself."""
    for _ in range(4):
        watched.serve()
        watched.exit(-11)
    said = []
    for _ in range(5):
        error = watched.supervisor.ensure()
        assert isinstance(error, EngineCrashLoop)
        watched.supervisor.fail_waiting(error)
        said.append(error.message)
    assert len(set(said)) == 1
    assert error.deaths == 4
    assert len(watched.spawner.children) == 4
    watched.supervisor.forgive()
    watched.serve()


def test_a_worker_without_a_folder_is_a_failed_start(watched: Watched) -> None:
    watched.folder.path.rmdir()
    error = watched.supervisor.ensure()
    assert isinstance(error, EngineStartFailed)
    assert "No such file" in error.reason
    assert watched.supervisor.child is None
