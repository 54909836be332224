"""A failure ends one branch, is told to whoever asks, and nothing hangs; interrupts leave nothing alive."""

from __future__ import annotations

import asyncio
import linecache
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import nbsgl as sgl
import nbsgl.lang
from nbsgl.errors import Aborted, DeadlineExceeded, EngineDied, OutOfMemory, StateFailed
from tests.unit.fakes import FakeBackend

LANG = str(Path(nbsgl.lang.__file__).parent)


@pytest.fixture
def backend():
    fake = FakeBackend(fails_on("bad"))
    yield fake
    fake.close()


def fails_on(*names: str):
    def answer(prompt, node):
        return OutOfMemory(needs=2, has=1) if node.name in names else f"[{node.name}]"

    return answer


@sgl.function
def program(s):
    s += "a" + sgl.gen("good") + "b" + sgl.gen("bad") + "c" + sgl.gen("later")


def drain(stream) -> None:
    for _ in stream:
        pass


async def adrain(stream) -> None:
    async for _ in stream:
        pass


async def awaited(state) -> None:
    await state


ACCESSES = {
    "failed variable": lambda s: s["bad"],
    "later variable": lambda s: s["later"],
    "unbound variable": lambda s: s["nowhere"],
    "text": lambda s: s.text(),
    "messages": lambda s: s.messages(),
    "sync": lambda s: s.sync(),
    "str": str,
    "meta": lambda s: s.get_meta_info("bad"),
    "add": lambda s: s.__iadd__("x"),
    "fork": lambda s: s.fork(2),
    "scope": lambda s: s.var_scope("v").__enter__(),
    "role": lambda s: s.user("x"),
    "text_iter": lambda s: drain(s.text_iter()),
    "text_iter of it": lambda s: drain(s.text_iter("bad")),
    "async iter": lambda s: asyncio.run(adrain(s.text_async_iter("later"))),
    "await": lambda s: asyncio.run(awaited(s)),
}


@pytest.mark.timeout(20)
def test_every_access_after_a_failure_raises_the_same_error_at_once(backend) -> None:
    state = program.run(backend=backend)
    cause = state.error()
    assert isinstance(cause, OutOfMemory)
    errors = []
    for name, access in ACCESSES.items():
        began = time.monotonic()
        with pytest.raises(StateFailed) as caught:
            access(state)
        assert time.monotonic() - began < 1, name
        errors.append(caught.value)
    assert all(error is errors[0] for error in errors)
    error = errors[0]
    assert (error.program, error.variable, error.partial_text) == ("program", "bad", "par")
    assert error.__cause__ is cause
    assert "test_lang_failures.py:" in error.where
    assert "needs 2 KV slots" in str(error)


def test_what_was_finished_before_stays_readable(backend) -> None:
    state = program.run(backend=backend)
    state.error()
    assert state["good"] == "[good]"
    assert ("good" in state, "bad" in state, "later" in state) == (True, False, False)
    assert "failed" in repr(state)
    view = state.run_view()
    assert (view.status, view.variables) == ("failed", {"good": "[good]"})
    assert "OutOfMemory" in view.error


def test_siblings_and_the_parent_go_on(backend) -> None:
    with sgl.state(backend) as s:
        f = s.fork(3)
        f += lambda i: sgl.gen("bad" if i == 1 else "x")
        s += sgl.gen("y")
        assert isinstance(f[1].error(), OutOfMemory)
        assert (f[0]["x"], f[2]["x"], s["y"]) == ("[x]", "[x]", "[y]")
        f.join()
        assert s["x"] == ["[x]", "[x]"]
        with pytest.raises(StateFailed) as caught:
            s["bad"]
        assert caught.value.__notes__ == ["Failed children of this join: [1]"]


def test_join_can_keep_the_errors(backend) -> None:
    with sgl.state(backend) as s:
        f = s.fork(2)
        f += lambda i: sgl.gen("x") if i else sgl.gen("bad")
        f[0].error()
        f[1]["bad"] = "fine"
        f.join(on_error="keep")
        error, fine = s["bad"]
        assert isinstance(error, StateFailed)
        assert fine == "fine"


def test_children_of_what_failed_fail_with_it(backend) -> None:
    with sgl.state(backend) as s:
        s += sgl.gen("bad")
        f = s.fork(2)
        f += sgl.gen("x")
        with pytest.raises(StateFailed) as caught:
            f[1]["x"]
        assert f[0].error() is caught.value.__cause__


def test_an_engine_that_dies_raises_in_the_caller(backend) -> None:
    backend.delay_s = 30
    state = program.run(backend=backend)
    threading.Timer(0.05, backend.die, [EngineDied(process="worker", phase="decode", lost=1)]).start()
    with pytest.raises(StateFailed, match="EngineDied") as caught:
        state["good"]
    assert isinstance(caught.value.__cause__, EngineDied)
    later = program.run(backend=backend)
    assert isinstance(later.error(), EngineDied)


def test_abort_ends_a_state_and_its_forks_and_no_other(backend) -> None:
    backend.delay_s = 30
    with sgl.state(backend) as s:
        f = s.fork(2)
        f += sgl.gen("x")
        s.executor.flush()
        threading.Timer(0.05, f[0].abort).start()
        with pytest.raises(Aborted, match="Aborted by") as caught:
            f[0]["x"]
        assert caught.value.variable == "x"
        assert backend.alive == 1
        s.abort()
        assert backend.alive == 0
        with pytest.raises(Aborted):
            s += "more"


def test_a_block_raises_only_failures_that_nobody_saw_or_asked_for(backend) -> None:
    with sgl.state(backend) as s:
        f = s.fork(3)
        f += lambda i: sgl.gen("bad" if i == 0 else "x")
        f[1].abort()
        with pytest.raises(StateFailed):
            f[0]["bad"]
        s += sgl.gen("y")
    assert (s["y"], f[2]["x"]) == ("[y]", "[x]")

    def unseen() -> None:
        with sgl.state(backend) as s:
            f = s.fork(1)
            f += sgl.gen("bad")

    with pytest.raises(StateFailed, match="'bad'"):
        unseen()


def test_abort_of_what_is_finished_changes_nothing(backend) -> None:
    with sgl.state(backend) as s:
        s += sgl.gen("x")
    s.abort()
    assert s["x"] == "[x]"
    s += "!"
    assert s.text() == "[x]!"


def test_a_deadline_ends_what_is_unfinished(backend) -> None:
    backend.delay_s = 30
    began = time.monotonic()
    state = program.run(backend=backend, deadline_s=0.1)
    with pytest.raises(DeadlineExceeded, match=r"0\.1 s"):
        state["good"]
    assert time.monotonic() - began < 2
    assert backend.alive == 0
    with pytest.raises(TimeoutError), sgl.state(backend, deadline_s=0.1) as s:
        s += sgl.gen("x")


def test_a_stream_bodys_exception_is_raised_in_who_reads(backend) -> None:
    @sgl.function
    def broken(s):
        s += "a" + sgl.gen("x")
        s["x"]
        raise KeyError("mine")

    state = broken.run(backend=backend, stream=True)
    with pytest.raises(KeyError, match="mine"):
        drain(state.text_iter())
    with pytest.raises(KeyError, match="mine"):
        state.text()
    with pytest.raises(KeyError, match="mine"):
        state["later"]
    assert state["x"] == "[x]"
    assert isinstance(state.error(), KeyError)


# ---- interrupts ------------------------------------------------------------------------------------------------------


@sgl.function
def long_program(s):
    s += "a" + sgl.gen("x")
    f = s.fork(2)
    f += sgl.gen("y")
    f.join()
    s += sgl.user("b" + sgl.gen("z"))
    s["y"]
    s += sgl.select("c", ["p", "q"])
    s.text()


def interrupt_after(seconds: float) -> None:
    main = threading.main_thread().ident
    threading.Timer(seconds, signal.pthread_kill, [main, signal.SIGINT]).start()


def test_an_interrupted_wait_aborts_and_returns_within_50_ms() -> None:
    fake = FakeBackend(delay_s=30)
    state = program.run(backend=fake)
    interrupt_after(0.1)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        state["good"]
    assert time.monotonic() - began < 0.1 + 0.1 + 0.05  # asked after 0.1, a tick at most, our part
    assert fake.alive == 0
    with pytest.raises(Aborted, match="interrupt"):
        state["good"]
    fake.close()


class Interruptor:
    """Raises KeyboardInterrupt at the n-th line of the language that this thread carries out.

    Not at `with ...lock:` itself: a tracer sees that line again before the release, where CPython looks for no signal.
    Nor in `__del__`, where CPython reports what is raised and goes on.
    """

    def __init__(self, n: int) -> None:
        self.left, self.fired = n, False

    def __call__(self, frame, event, arg):
        code = frame.f_code
        return self.line if code.co_filename.startswith(LANG) and code.co_name != "__del__" else None

    def line(self, frame, event, arg):
        if event == "line" and not self.fired:
            self.left -= 1
            if self.left <= 0 and not is_lock_line(frame):
                self.fired = True
                raise KeyboardInterrupt
        return self.line


def is_lock_line(frame) -> bool:
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return text.startswith("with ") and ("lock" in text or "_sending" in text)


def cell(backend) -> None:
    with sgl.state(backend) as s:
        s += "a" + sgl.gen("x")
        f = s.fork(2)
        f += sgl.gen("y")
        f.join()
        s["y"]
        s += sgl.assistant(sgl.gen("z"))


def count_lines(call) -> int:
    counter = Interruptor(10**9)
    before = sys.gettrace()
    sys.settrace(counter)
    try:
        call()
    finally:
        sys.settrace(before)
    return 10**9 - counter.left


@pytest.mark.timeout(100)
@pytest.mark.parametrize(
    "call",
    [
        lambda backend: long_program.run(backend=backend),
        cell,
        lambda backend: long_program.run_batch([{}, {}], backend=backend),
        lambda backend: drain(long_program.run(backend=backend).text_iter()),
    ],
    ids=["run", "cell", "run_batch", "stream"],
)
def test_interrupt_at_every_line(call) -> None:
    """After each: nothing alive, and the next program works.  A sample of the lines, the first and last among them."""
    fake = FakeBackend(delay_s=0.001)
    call(fake)
    total = count_lines(lambda: call(fake))
    rng = random.Random(total)
    sample = {1, 2, 3, total - 1, total, *rng.sample(range(1, total + 1), min(total, 60))}
    for n in sorted(sample):
        fake.delay_s = 0.001
        interruptor = Interruptor(n)
        before = sys.gettrace()
        sys.settrace(interruptor)
        try:
            call(fake)
        except KeyboardInterrupt as interrupt:
            interrupt.__traceback__ = None
        finally:
            sys.settrace(before)
        fake.delay_s = 30  # what is alive now would stay so
        end = time.monotonic() + 0.5
        while fake.alive and time.monotonic() < end:
            time.sleep(0.002)
        assert fake.alive == 0, f"alive after an interrupt at line {n} of {total}"
        fake.delay_s = 0.0
        assert program.run(backend=fake)["good"] == "[good]"
    fake.close()
