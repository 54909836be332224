"""Engines begin once, are found, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nbsgl.engine.handle import Engine
from nbsgl.engine.runtime import list_engines
from nbsgl.errors import EngineNotRunning, EngineStartFailed, ModelNotFound, ParameterError, UsageError, WrongProcess
from nbsgl.protocol import GenDone, unpack_ids
from tests.process.tools import FAKE, Program, counted, is_alive, until

pytestmark = pytest.mark.process

Make = Callable[..., Engine]

KERNEL = f"""
import sys, time
from nbsgl.engine.handle import Engine
from tests.process.tools import Program
engine = Engine(keep=30, skip_tokenizer_init=True, _worker_module={FAKE!r})
engine.info
Program(engine).wait()
print(engine.front_pid, engine.worker_pid, flush=True)
if "busy" in sys.argv:
    program = Program(engine, max_tokens=100_000 - 10)
if "fork" in sys.argv:
    import os
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
time.sleep(600)
"""


def kernel(*words: str) -> tuple[subprocess.Popen[str], int, int]:
    """A process that holds an engine, as a notebook's kernel does; with its front's and worker's pids."""
    process = subprocess.Popen(
        [sys.executable, "-c", KERNEL, *words], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    front, worker = map(int, process.stdout.readline().split())
    return process, front, worker


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_start_and_answer(make: Make) -> None:
    engine = make()
    assert engine.info.context_length == 100_000
    assert not engine.was_running
    done = Program(engine, 20, 5).wait()
    assert isinstance(done, GenDone)
    assert unpack_ids(done.results[0].ids) == counted(20, 5)
    assert engine.health
    assert engine.snapshot().slots_total == 100
    assert engine.flush_cache()
    assert "front serves" in engine.log()


def test_close_within_4s_leaves_nothing(home: Path, make: Make) -> None:
    engine = make()
    Program(engine).wait()
    pids = [engine.front_pid, engine.worker_pid]
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 4.5
    until(lambda: not any(is_alive(pid) for pid in pids if pid))
    assert list(home.iterdir()) == []
    with pytest.raises(EngineNotRunning):
        engine.open_run(lambda events: None)


def test_two_handles_one_engine(make: Make) -> None:
    first, second = make(), make()
    assert first.info == second.info
    assert first.front_pid == second.front_pid
    assert len(list_engines()) == 1
    assert first.status()["clients"] == 2
    first.close()
    assert isinstance(Program(second).wait(), GenDone)


def test_two_starts_one_engine(home: Path) -> None:
    one, two = [
        subprocess.Popen([sys.executable, "-c", KERNEL], stdout=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(2)
    ]
    try:
        assert one.stdout is not None
        assert two.stdout is not None
        assert one.stdout.readline().split()[0] == two.stdout.readline().split()[0]
        assert len(list_engines()) == 1
    finally:
        end(one)
        end(two)


def test_other_settings_another_engine(make: Make) -> None:
    first, second = make(), make(random_seed=1)
    assert first.info
    assert second.info
    assert first.front_pid != second.front_pid
    assert len(list_engines()) == 2


def test_kernel_sigkill_starts_linger(make: Make, home: Path) -> None:
    process, front, worker = kernel("busy")
    end(process)
    found = make(keep=30)
    assert found.info
    assert found.was_running
    assert (found.front_pid, found.worker_pid, list_engines()[0].worker) == (front, worker, worker)
    until(lambda: found.status()["clients"] == 1)
    until(lambda: found.snapshot().running == 0, 2.0)  # the dead client's request is gone
    assert isinstance(Program(found).wait(), GenDone)


def test_forked_child_does_not_keep_engine(home: Path, make: Make) -> None:
    process, front, _ = kernel("fork")
    found = make(keep=30)
    assert found.info
    assert found.status()["clients"] == 2
    end(process)
    until(lambda: found.status()["clients"] == 1, 3.0)
    assert found.front_pid == front
    os.killpg(process.pid, signal.SIGKILL)  # the forked copy


def test_lingering_engine_exits(home: Path, make: Make) -> None:
    engine = make(keep=0.5)
    assert engine.info
    front, worker = engine.front_pid, engine.worker_pid
    assert front is not None
    assert worker is not None
    engine.close()
    assert is_alive(front)
    until(lambda: not is_alive(front) and not is_alive(worker), 6.0)
    until(lambda: list(home.iterdir()) == [])


def test_stop_with_other_clients_needs_force(home: Path, make: Make) -> None:
    process, front, worker = kernel()
    try:
        engine = make()
        assert engine.info
        with pytest.raises(UsageError, match="1 other client"):
            engine.stop()
        engine.stop(force=True)
        until(lambda: not is_alive(front) and not is_alive(worker))
        assert list(home.iterdir()) == []
    finally:
        end(process)


def test_stop_button_spares_engine(home: Path) -> None:
    process, front, worker = kernel()
    try:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(10)
        time.sleep(0.2)
        assert is_alive(front)
        assert is_alive(worker)
    finally:
        end(process)


def test_handle_refuses_fork(make: Make) -> None:
    engine = make()
    assert engine.info
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = []
        for call in (lambda: engine.info, lambda: engine.open_run(print), engine.snapshot, engine.flush_cache):
            try:
                call()
            except WrongProcess as error:
                said.append([error.pid, error.here])
        engine.close()
        os.write(into, json.dumps(said).encode())
        os._exit(0)
    os.close(into)
    os.waitpid(pid, 0)
    assert json.loads(os.read(out, 10_000)) == [[os.getpid(), pid]] * 4
    os.close(out)
    assert isinstance(Program(engine).wait(), GenDone)


def test_model_error_reaches_the_caller(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBSGL_FAKE", "fail-at-load")
    engine = make()
    with pytest.raises(ModelNotFound):
        _ = engine.info
    with pytest.raises(ModelNotFound):  # and again: it is tried anew, and is no crash
        _ = engine.info


def test_death_while_loading_is_a_failed_start(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBSGL_FAKE", "abort-at-load")
    with pytest.raises(EngineStartFailed, match="SIGABRT") as caught:
        _ = make().info
    assert caught.value.stage == "load"


def test_interrupted_start_leaves_nothing(make: Make, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("NBSGL_FAKE", "slow-load")
    engine = make()
    with pytest.raises(TimeoutError):
        engine.wait_ready(1.0)
    engine.close()
    until(lambda: list(home.iterdir()) == [])


def test_unknown_setting_names_the_known() -> None:
    with pytest.raises(ParameterError, match="device"):
        Engine("embedded", devise="cpu")


def test_front_knows_no_torch(make: Make) -> None:
    engine = make()
    assert engine.info
    maps = Path(f"/proc/{engine.front_pid}/maps").read_text()
    assert "libtorch" not in maps
    assert "tokenizers" in maps  # so it was the right process


def test_handles_leave_no_descriptors_and_threads(make: Make) -> None:
    keeper = make()
    assert keeper.info
    me = psutil.Process()

    def open_and_close() -> tuple[int, int]:
        engine = make()
        Program(engine).wait()
        engine.close()
        return me.num_fds(), me.num_threads()

    first = [open_and_close() for _ in range(5)][-1]
    last = [open_and_close() for _ in range(30)][-1]
    assert last[0] <= first[0] + 15  # not one per handle: the socket library closes its own a moment later
    until(lambda: me.num_fds() <= first[0] + 1)
    until(lambda: me.num_threads() <= first[1])
    front = psutil.Process(keeper.front_pid)
    until(lambda: keeper.status()["clients"] == 1)
    until(lambda: front.num_fds() < 60)
