from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from nbsgl.engine.spawn import ORPHANED, Child, Spawner, python, spawner

CHILD = """
import sys, time
from nbsgl.engine import spawn
spawn.tie_to_parent(int(sys.argv[1]))
line = spawn.read_line()
if sys.argv[2] == "eof":
    spawn.die_at_eof()
print("up", line.decode(), flush=True)
time.sleep(60)
"""

PARENT = """
import os, sys, time
from pathlib import Path
from nbsgl.engine.spawn import Spawner
child = Spawner().spawn([sys.executable, "-c", sys.argv[1], str(os.getpid()), "signal"], log=Path(sys.argv[2]),
                        first_line=b"x")
print(child.pid, flush=True)
time.sleep(60)
"""


def started(log: Path) -> str:
    deadline = time.monotonic() + 20
    while not (text := log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return text


def spawn(tmp_path: Path, mode: str) -> tuple[Child, list[int], threading.Event]:
    codes: list[int] = []
    ended = threading.Event()

    def on_exit(code: int) -> None:
        codes.append(code)
        ended.set()

    argv = [sys.executable, "-c", CHILD, str(os.getpid()), mode]
    child = spawner().spawn(argv, log=tmp_path / "log", first_line=b"hello", on_exit=on_exit)
    return child, codes, ended


def test_a_child_has_its_own_session_and_log(tmp_path: Path) -> None:
    child, codes, ended = spawn(tmp_path, "signal")
    assert started(tmp_path / "log") == "up hello\n"
    assert os.getsid(child.pid) == child.pid
    child.signal(signal.SIGKILL, group=True)
    assert ended.wait(10)
    assert codes == [-9]
    child.signal(signal.SIGKILL)  # reaped: reaches nobody
    assert child.returncode == -9


def test_a_child_ends_when_its_pipe_closes(tmp_path: Path) -> None:
    child, codes, ended = spawn(tmp_path, "eof")
    started(tmp_path / "log")
    child.close_stdin()
    assert ended.wait(10)
    assert codes == [ORPHANED]


def test_children_die_with_front(tmp_path: Path) -> None:
    """By the signal alone, without looking at the pipe."""
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(log)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    started(log)
    fd = os.pidfd_open(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    import select

    assert select.select([fd], [], [], 5.0)[0]
    os.close(fd)


def test_a_child_of_another_parent_ends_at_once(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", CHILD, "1", "signal"]
    ended = threading.Event()
    child = spawner().spawn(argv, log=tmp_path / "log", first_line=b"", on_exit=lambda code: ended.set())
    assert ended.wait(10)
    assert child.returncode == ORPHANED


def test_spawner_thread_never_ends(tmp_path: Path) -> None:
    """The death signal fires when the forking thread ends: a child outlives the thread that asked for it."""
    made: list[Child] = []
    asker = threading.Thread(target=lambda: made.append(spawn(tmp_path, "signal")[0]))
    asker.start()
    asker.join()
    started(tmp_path / "log")
    time.sleep(0.1)
    assert made[0].returncode is None
    assert spawner().thread.is_alive()
    assert spawner() is spawner()
    made[0].signal(signal.SIGKILL)


def test_programs_do_not_see_the_users_folder() -> None:
    assert python("nbsgl.engine.front", "x")[1:] == ["-P", "-m", "nbsgl.engine.front", "x"]


def test_a_program_that_is_not_there_raises(tmp_path: Path) -> None:
    import pytest

    with pytest.raises(FileNotFoundError):
        Spawner().spawn(["/does/not/exist"], log=tmp_path / "log", first_line=b"")
