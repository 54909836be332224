from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nbsgl.engine.runtime import EngineRecord, RuntimeFolder, list_engines, my_start_time, root
from nbsgl.engine.watch import is_same, is_stopped, start_time
from nbsgl.errors import RuntimeFolderError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("NBSGL_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def record(pid: int, started: float) -> EngineRecord:
    return EngineRecord(
        pid=pid, started=started, protocol=1, version="0", state="serving", key="k", model="m", device="cpu", keep=0.0
    )


def test_folder_is_private(home: Path) -> None:
    folder = RuntimeFolder.open("k")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.new_token()
    assert folder.token_path.stat().st_mode & 0o777 == 0o600
    assert len(folder.read_token()) == 32


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_runtime_folder_must_be_private(home: Path, mode: int) -> None:
    (home / "k").mkdir()
    (home / "k").chmod(mode)
    with pytest.raises(RuntimeFolderError, match="chmod 700"):
        RuntimeFolder.open("k")


def test_a_symlink_is_refused(home: Path) -> None:
    (home / "real").mkdir(mode=0o700)
    (home / "k").symlink_to(home / "real")
    with pytest.raises(RuntimeFolderError, match="symbolic link"):
        RuntimeFolder.open("k")


def test_long_paths_say_what_to_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBSGL_RUNTIME_DIR", str(home / ("x" * 100)))
    with pytest.raises(RuntimeFolderError, match="NBSGL_RUNTIME_DIR"):
        RuntimeFolder.open("k")


def test_root_follows_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert root() == home
    monkeypatch.delenv("NBSGL_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    assert root() == home / "nbsgl"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "none"))
    assert root() == Path(f"/tmp/nbsgl-{os.getuid()}")


def test_one_owner() -> None:
    folder = RuntimeFolder.open("k")
    lock = folder.try_lock()
    assert lock is not None
    assert folder.try_lock() is None
    os.close(lock)
    again = folder.try_lock()
    assert again is not None
    os.close(again)


def test_lock_of_a_removed_folder_is_not_taken_for_the_new_one() -> None:
    folder = RuntimeFolder.open("k")
    first = folder.try_lock()
    assert first is not None
    folder.lock_path.unlink()
    second = folder.try_lock()
    assert second is not None
    assert os.path.samestat(os.fstat(second), folder.lock_path.stat())
    os.close(first)
    os.close(second)


def test_stale_runtime_folder_is_reused() -> None:
    """A SIGKILLed owner leaves its files and frees its lock."""
    code = """
import os, signal
from nbsgl.engine.runtime import *
folder = RuntimeFolder.open("k")
folder.try_lock(); folder.new_token()
folder.write(EngineRecord(pid=os.getpid(), started=my_start_time(), protocol=1, version="0", state="serving", key="k",
                          model="m", device="cpu", keep=0.0))
(folder.path / "front.sock").touch()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    folder = RuntimeFolder.open("k")
    assert folder.record_path.exists()
    assert folder.read() is None
    assert list_engines() == []
    lock = folder.try_lock()
    assert lock is not None
    folder.clear()
    assert [path.name for path in folder.path.iterdir()] == ["lock"]
    folder.remove(lock, keep_logs=False)
    assert not folder.path.exists()


def test_pid_reuse_not_killed() -> None:
    """A record with the number of a stranger is nobody's: it is not connected to, and nobody is signalled."""
    folder = RuntimeFolder.open("k")
    folder.write(record(os.getpid(), my_start_time() - 1))
    assert folder.read() is None
    folder.write(record(os.getpid(), my_start_time()))
    assert folder.read() is not None
    assert [found.pid for found in list_engines()] == [os.getpid()]


def test_logs_outlive_an_engine_that_failed() -> None:
    folder = RuntimeFolder.open("k")
    lock = folder.try_lock()
    assert lock is not None
    folder.worker_log.write_text("why")
    folder.new_token()
    folder.remove(lock, keep_logs=True)
    assert [path.name for path in folder.path.iterdir()] == ["worker.log"]


def test_a_broken_record_is_none() -> None:
    folder = RuntimeFolder.open("k")
    folder.record_path.write_text("{")
    assert folder.read() is None


def test_start_times_tell_processes_apart() -> None:
    mine = start_time(os.getpid())
    assert mine is not None
    assert is_same(os.getpid(), mine)
    assert start_time(2**22 + 5) is None
    assert not is_stopped(os.getpid())


def test_an_end_spares_the_folder_of_a_successor() -> None:
    """Somebody removed the folder, and a new engine began in its place."""
    folder = RuntimeFolder.open("k")
    old = folder.try_lock()
    assert old is not None
    shutil.rmtree(folder.path)
    assert not folder.is_owner(old)
    new = RuntimeFolder.open("k").try_lock()
    assert new is not None
    folder.write(record(os.getpid(), my_start_time()))
    folder.remove(old, keep_logs=False)
    assert folder.read() is not None
    assert folder.is_owner(new)
    folder.remove(new, keep_logs=False)
    assert not folder.path.exists()


def test_a_lock_makes_the_folder_anew() -> None:
    folder = RuntimeFolder.open("k")
    folder.path.rmdir()  # an owner that ended
    lock = folder.try_lock()
    assert lock is not None
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.remove(lock, keep_logs=False)
