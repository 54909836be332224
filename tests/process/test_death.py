"""Nobody waits for the dead, and the next call works."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nbsgl import errors
from nbsgl.engine.handle import Engine
from nbsgl.errors import EngineCrashLoop, EngineDied, EngineHung, NbsglError
from nbsgl.protocol import AnyEvent, BranchFailed, GenDone, unpack_ids
from tests.process.fake_worker import CRASH, HANG
from tests.process.tools import SOON_S, Program, counted, is_alive, until

pytestmark = pytest.mark.process

Make = Callable[..., Engine]


def failure(event: AnyEvent) -> NbsglError:
    assert isinstance(event, BranchFailed)
    return errors.decode(event.error)


def test_sigkill_worker_raises_everywhere(make: Make) -> None:
    engine = make()
    assert engine.info
    programs = [Program(engine, first, 90_000, stream=True) for first in (20, 30, 40)]
    until(lambda: all(program.chunks for program in programs))
    killed = time.monotonic()
    os.kill(engine.worker_pid or 0, signal.SIGKILL)
    for program in programs:
        error = failure(program.wait())
        assert isinstance(error, EngineDied)
        assert (error.process, error.signal, error.lost) == ("worker", 9, 3)
        assert program.ended_at - killed < SOON_S
    front = engine.front_pid
    assert isinstance(Program(engine).wait(), GenDone)
    assert engine.front_pid == front
    assert engine.status()["counters"]["restarts"] == 1


def test_next_call_after_idle_death_works(make: Make) -> None:
    engine = make()
    assert engine.info
    os.kill(engine.worker_pid or 0, signal.SIGKILL)
    until(lambda: not engine.is_ready)
    assert not engine.health
    assert engine.info
    assert isinstance(Program(engine).wait(), GenDone)


def test_sigkill_front_raises_everywhere(make: Make) -> None:
    engine = make()
    assert engine.info
    front, worker = engine.front_pid or 0, engine.worker_pid or 0
    program = Program(engine, 20, 90_000, stream=True)
    until(lambda: program.chunks)
    killed = time.monotonic()
    os.kill(front, signal.SIGKILL)
    error = failure(program.wait())
    assert isinstance(error, EngineDied)
    assert error.process == "front"
    assert program.ended_at - killed < SOON_S
    until(lambda: not is_alive(worker), 3.0)  # it dies with its front
    assert isinstance(Program(engine).wait(), GenDone)  # which finds the leftovers, and starts anew
    assert engine.front_pid != front


def test_crash_ends_in_a_loop_error(make: Make) -> None:
    engine = make()
    assert engine.info
    for _ in range(4):
        error = failure(Program(engine, CRASH).wait())
        assert isinstance(error, EngineDied)
        assert error.signal == signal.SIGSEGV
    assert isinstance(failure(Program(engine).wait()), EngineCrashLoop)
    with pytest.raises(EngineCrashLoop):
        _ = engine.info
    engine.restart()
    assert isinstance(Program(engine).wait(), GenDone)


def test_watchdog_kills_hung_worker(make: Make) -> None:
    engine = make(step_timeout_s=1.0)
    assert engine.info
    program = Program(engine, HANG)
    error = failure(program.wait())
    assert isinstance(error, EngineHung)
    log = Path(str(error.log_path)).read_text()
    assert "most recent call first" in log  # the stacks
    assert "fake_worker.py" in log
    assert isinstance(Program(engine).wait(), GenDone)


def test_health_is_false_when_worker_stopped(make: Make) -> None:
    engine = make(step_timeout_s=3.0)
    assert engine.info
    until(lambda: engine.health)
    worker = engine.worker_pid or 0
    program = Program(engine, 20, 300)
    os.kill(worker, signal.SIGSTOP)
    try:
        until(lambda: not engine.health, 5.0)
        time.sleep(3.0)  # longer than the step timeout: a stopped process pauses, it does not hang
    finally:
        os.kill(worker, signal.SIGCONT)
    assert isinstance(program.wait(60), GenDone)
    assert engine.worker_pid == worker


def test_restart_ends_what_runs(make: Make) -> None:
    engine = make()
    assert engine.info
    worker = engine.worker_pid
    program = Program(engine, 20, 90_000)
    engine.restart()
    assert isinstance(failure(program.wait()), EngineDied)
    assert engine.worker_pid != worker
    assert engine.status()["counters"]["deaths"] == 0
    assert isinstance(Program(engine).wait(), GenDone)


def test_chatty_worker_does_not_block(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBSGL_FAKE", "chatty")
    engine = make()
    assert isinstance(Program(engine, 20, 50).wait(), GenDone)  # 5 MB of output that nobody reads


def test_slow_client_gets_everything(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBSGL_FAKE", "fast")
    slow, quick = make(), make()
    assert slow.info
    count = 3_000
    program = Program(slow, 20, count, stream=True)
    slow._loop.call(time.sleep, 0.0)
    hear = program._hear
    naps = [3.0]

    def sleepy(events: list[AnyEvent]) -> None:
        if naps:
            time.sleep(naps.pop())
        hear(events)

    program.run._listener = sleepy
    assert isinstance(Program(quick).wait(), GenDone)
    done = program.wait(60)
    assert isinstance(done, GenDone)
    assert unpack_ids(done.results[0].ids) == counted(20, count)
    assert [t for chunk in program.chunks for t in unpack_ids(chunk.ids)] == counted(20, count)
    assert quick.status()["counters"]["wire.merged"] > 0


def test_abort_ends_a_run(make: Make) -> None:
    engine = make()
    program = Program(engine, 20, 90_000, stream=True)
    until(lambda: program.chunks)
    program.run.abort(by="the test")
    error = failure(program.wait())
    assert isinstance(error, errors.Aborted)
    until(lambda: engine.snapshot().running == 0)
