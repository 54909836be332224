"""What goes wrong around an engine: ends among starts, a folder that vanishes, no descriptors, deaf clients."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nbsgl import errors
from nbsgl.engine import link
from nbsgl.engine.handle import Engine
from nbsgl.engine.runtime import RuntimeFolder, list_engines
from nbsgl.errors import EngineDied, EngineError, EngineNotRunning, UsageError
from nbsgl.protocol import AnyEvent, BranchFailed, GenDone
from tests.process.quick_front import TIMEOUT_S
from tests.process.tools import FAKE, Program, is_alive, until

pytestmark = pytest.mark.process

Make = Callable[..., Engine]

CLIENT = f"""
import ctypes, sys
from nbsgl.engine.handle import Engine
from tests.process.tools import Program
engine = Engine(keep=0, skip_tokenizer_init=True, _worker_module={FAKE!r})
program = Program(engine, max_tokens=100, stream=True)
print(engine.info.device, flush=True)
if "hog" in sys.argv:
    ctypes.PyDLL(None).sleep(4)  # a PyDLL does not let go of the GIL
print(type(program.wait()).__name__, engine.front_pid, flush=True)
sys.stdin.read()
"""


def client(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def failure(event: AnyEvent) -> errors.NbsglError:
    assert isinstance(event, BranchFailed)
    return errors.decode(event.error)


# ---- ends and starts -------------------------------------------------------------------------------------------------


def test_sigterm_of_the_front_ends_all(make: Make, home: Path) -> None:
    engine = make(keep=60)
    assert engine.info
    pids = [engine.front_pid or 0, engine.worker_pid or 0]
    program = Program(engine, 20, 90_000)
    os.kill(pids[0], signal.SIGTERM)
    assert isinstance(failure(program.wait(10)), EngineNotRunning)
    until(lambda: not any(map(is_alive, pids)))
    until(lambda: list(home.iterdir()) == [])


def test_start_while_another_ends(make: Make) -> None:
    """The owner that ends removes the folder in which the new one begins."""
    old = make()
    assert old.info
    for _ in range(6):
        ending = threading.Thread(target=old.close)
        ending.start()
        new = make()
        assert isinstance(Program(new).wait(), GenDone)
        ending.join()
        old = new
    assert len(list_engines()) == 1


@pytest.mark.parametrize("when", ["before the log is opened", "before the front has begun"])
def test_folder_removed_while_a_front_starts(make: Make, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    start, removed = link.Link._start_front, []

    def racing(self: link.Link, folder: RuntimeFolder) -> None:
        if when == "before the front has begun":
            start(self, folder)
        if not removed:
            shutil.rmtree(folder.path)
            removed.append(folder.path)
        if when == "before the log is opened":
            start(self, folder)

    monkeypatch.setattr(link.Link, "_start_front", racing)
    assert isinstance(Program(make()).wait(), GenDone)
    assert removed


def test_both_of_two_restarts_are_answered(make: Make) -> None:
    first, second = make(), make()
    assert first.info == second.info
    began = time.monotonic()
    other = threading.Thread(target=second.restart)
    other.start()
    first.restart()
    other.join(30)
    assert not other.is_alive()
    assert time.monotonic() - began < 10.0  # a lost answer would cost 15 s
    assert isinstance(Program(first).wait(), GenDone)


def test_worker_deaths_among_submissions_spare_the_front(make: Make) -> None:
    engine = make()
    assert engine.info
    front = engine.front_pid
    for _ in range(5):
        programs = [Program(engine, 20, 90_000, stream=True) for _ in range(3)]
        until(lambda programs=programs: all(program.chunks for program in programs))
        os.kill(engine.worker_pid or 0, signal.SIGKILL)
        programs += [Program(engine, 20, 90_000) for _ in range(200)]
        for program in programs[:3]:
            assert isinstance(failure(program.wait()), EngineDied)
        engine.restart()
        for program in programs:
            assert isinstance(failure(program.wait()), EngineDied)
            assert sum(isinstance(event, BranchFailed | GenDone) for event in program.events) == 1
    assert engine.front_pid == front


def test_a_restart_that_was_interrupted_leaves_nobody_waiting(make: Make) -> None:
    engine = make()
    assert engine.info
    engine._is_serving = False  # what `restart` does first
    assert engine.wait_ready(10).device == "cpu"


# ---- the I/O thread --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_an_io_thread_that_has_ended(make: Make, home: Path) -> None:
    engine = make()
    assert engine.info
    front = engine.front_pid or 0
    program = Program(engine, 20, 90_000)
    engine._loop.call(lambda: 1 / 0)
    assert isinstance(failure(program.wait(5)), EngineError)
    until(lambda: not engine._loop.is_alive)
    with pytest.raises(EngineError, match="I/O thread"):
        _ = engine.info
    with pytest.raises(EngineError, match="I/O thread"):
        engine.generate(input_ids=[20])
    engine.close()
    until(lambda: not is_alive(front))
    assert isinstance(Program(make()).wait(), GenDone)


def test_a_listener_that_waits_is_told_not_to(make: Make) -> None:
    engine = make()
    assert engine.info
    caught: list[Exception] = []
    done = threading.Event()

    def listener(events: list[AnyEvent]) -> None:
        try:
            engine.snapshot()
        except UsageError as error:
            caught.append(error)
        done.set()

    program = Program(engine, 20, 5)
    program.run._listener = listener
    assert done.wait(10)
    assert len(caught) == 1


def test_interrupted_close_lets_go(make: Make, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    assert engine.info
    front = engine.front_pid or 0

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_wait_quietly", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.close()
    until(lambda: not is_alive(front))
    until(lambda: list(home.iterdir()) == [])


@pytest.mark.parametrize("max_tokens", [3, 90_000])
def test_interrupt_at_sampled_lines(make: Make, monkeypatch: pytest.MonkeyPatch, max_tokens: int) -> None:
    """Whatever line of the handle it lands on: nothing runs on, and the next call works."""
    monkeypatch.setenv("NBSGL_FAKE", "fast")
    engine = make()
    assert engine.info
    counts = [0, 0]  # lines so far, the one that raises

    def trace(frame: object, event: str, arg: object) -> object:
        if not frame.f_code.co_filename.endswith(("engine/handle.py", "engine/generate.py")):
            return None
        if event == "line":
            counts[0] += 1
            if counts[0] == counts[1]:
                raise KeyboardInterrupt
        return trace

    num_interrupted = 0
    before = sys.gettrace()
    for line in range(1, 400, 7) if max_tokens == 3 else range(1, 220, 9):
        counts[:] = [0, line]
        sys.settrace(trace)
        try:
            engine.generate(input_ids=[20], sampling_params={"max_new_tokens": max_tokens, "ignore_eos": True})
        except KeyboardInterrupt:
            num_interrupted += 1
        else:
            break
        finally:
            sys.settrace(before)
        until(lambda: engine.snapshot().running == 0, 3.0)
    assert num_interrupted > 10
    assert engine.generate(input_ids=[20], sampling_params={"max_new_tokens": 2})["output_ids"]


# ---- clients that do not answer --------------------------------------------------------------------------------------


@pytest.fixture
def quick(make: Make, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine whose front gives up on a deaf client after a second."""
    monkeypatch.setattr(
        link, "python", lambda module, *args: [sys.executable, "-m", "tests.process.quick_front", *args]
    )
    engine = make()
    assert engine.info
    return engine


def test_gil_hog_is_not_dead(quick: Engine) -> None:
    """Long C code that holds the GIL: the socket library answers for it, and its requests go on."""
    hog = client("hog")
    assert hog.stdout is not None
    assert hog.stdout.readline() == "cpu\n"
    until_s = time.monotonic() + 2.5 * TIMEOUT_S
    while time.monotonic() < until_s:
        assert quick.status()["clients"] == 2
        time.sleep(0.05)
    assert hog.stdout.readline().split() == ["GenDone", str(quick.front_pid)]
    hog.communicate()


def test_stopped_client_is_dropped(quick: Engine) -> None:
    """One that answers no heartbeat at all is gone: what it asked for ends, the others notice nothing."""
    process = client()
    assert process.stdout is not None
    assert process.stdout.readline() == "cpu\n"
    until(lambda: quick.status()["clients"] == 2)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        until(lambda: quick.status()["clients"] == 1, 20 * TIMEOUT_S)
        assert isinstance(Program(quick).wait(), GenDone)
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.communicate()


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_runtime_folder_vanishes(make: Make, home: Path) -> None:
    old = make()
    program = Program(old, 20, 300, stream=True)
    until(lambda: program.chunks)
    shutil.rmtree(home)
    assert isinstance(program.wait(), GenDone)
    assert isinstance(Program(old).wait(), GenDone)  # the engine goes on
    assert old.health

    new = make()  # and a new client starts anew
    assert isinstance(Program(new).wait(), GenDone)
    assert new.front_pid != old.front_pid
    front = old.front_pid or 0
    old.close()
    until(lambda: not is_alive(front))
    assert [record.pid for record in list_engines()] == [new.front_pid]  # the old one's end spared its folder
    third = make()
    assert third.info
    assert third.front_pid == new.front_pid


def test_no_new_worker_without_a_folder(make: Make, home: Path) -> None:
    engine = make()
    assert engine.info
    front = engine.front_pid or 0
    shutil.rmtree(home)
    os.kill(engine.worker_pid or 0, signal.SIGKILL)
    until(lambda: not engine.is_ready)
    first = Program(engine).wait(10)  # the front may have ended already: then a new one has answered
    assert isinstance(first, GenDone) or isinstance(failure(first), EngineError)
    until(lambda: not is_alive(front))
    until(lambda: engine.front_pid != front)
    assert isinstance(Program(engine).wait(), GenDone)


# ---- descriptors -----------------------------------------------------------------------------------------------------

FILES = """
import os, resource, sys, time
from nbsgl.engine.handle import Engine
from nbsgl.errors import EngineStartFailed
from tests.process.tools import FAKE, Program
soft, hard, is_full = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "full"
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
held = []
while is_full:
    try:
        held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        break
began, cpu = time.monotonic(), time.process_time()
try:
    engine = Engine(keep=0, skip_tokenizer_init=True, _worker_module=FAKE)
    Program(engine).wait()
    engine.info
    said = f"works {engine.front_pid}"
except EngineStartFailed as error:
    said = f"{error.message} {error.hint}"
print(said, "|", time.monotonic() - began, "|", time.process_time() - cpu, flush=True)
for fd in held:
    os.close(fd)
sys.stdin.read()
"""


def with_files(soft: int, hard: int, *, is_full: bool = False) -> tuple[subprocess.Popen[str], str, float, float]:
    process = subprocess.Popen(
        [sys.executable, "-c", FILES, str(soft), str(hard), "full" if is_full else "empty"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said, wall_s, cpu_s = process.stdout.readline().split("|")
    return process, said.strip(), float(wall_s), float(cpu_s)


def test_fd_limit(home: Path) -> None:
    process, said, wall_s, cpu_s = with_files(64, 64)
    process.communicate()
    assert "64 files" in said
    assert "ulimit" in said
    assert wall_s < 5.0
    assert cpu_s < 2.0


def test_no_descriptor_left_is_a_failed_start(home: Path) -> None:
    process, said, wall_s, cpu_s = with_files(300, 300, is_full=True)
    process.communicate()
    assert "Too many open files" in said
    assert wall_s < 5.0
    assert cpu_s < 2.0


def test_front_raises_a_low_soft_limit(home: Path) -> None:
    """Each client takes two; a listening socket that cannot accept would spin."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    process, said, _, _ = with_files(64, hard)
    try:
        assert said.startswith("works")
        soft = psutil.Process(int(said.split()[1])).rlimit(psutil.RLIMIT_NOFILE)[0]
        assert soft >= 256
    finally:
        process.communicate()
