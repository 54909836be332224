"""run_batch: order, errors, limits, and an interrupt that returns at once."""

from __future__ import annotations

import itertools
import signal
import threading
import time

import pytest

import nbsgl as sgl
from nbsgl.errors import Aborted, OutOfMemory, ParameterError, ProgramError, StateFailed
from tests.unit import programs
from tests.unit.fakes import FakeBackend


@pytest.fixture
def backend():
    fake = FakeBackend(lambda prompt, node: f"[{prompt}]")
    yield fake
    fake.close()


@sgl.function
def echo(s, a, b="B"):
    s += f"{a}{b}" + sgl.gen("x")


@sgl.function
def reading(s, a):
    s += f"{a}" + sgl.gen("x")
    s += s["x"] + sgl.gen("y")


def test_results_are_in_the_order_of_the_inputs(backend) -> None:
    states = reading.run_batch([{"a": i} for i in range(300)], backend=backend)
    assert [s["x"] for s in states] == [f"[{i}]" for i in range(300)]


def test_rows_may_be_tuples_with_defaults_left_out(backend) -> None:
    states = echo.run_batch([("p",), ["q", "r"], {"a": "s"}], backend=backend)
    assert [s["x"] for s in states] == ["[pB]", "[qr]", "[sB]"]
    assert [s["x"] for s in echo.bind(a="z").run_batch([("r",)], backend=backend)] == ["[zr]"]
    with pytest.raises(ProgramError, match="this entry has 3"):
        echo.run_batch([(1, 2, 3)], backend=backend)
    with pytest.raises(ParameterError):
        echo.run_batch(["ab"], backend=backend)


def test_an_empty_batch_is_empty(backend) -> None:
    assert echo.run_batch([], backend=backend) == []
    assert list(echo.run_batch([], backend=backend, generator_style=True)) == []


def test_bodies_run_once_each(backend) -> None:
    seen = []

    @sgl.function
    def program(s, a):
        seen.append(a)

    program.run_batch([{"a": i} for i in range(20)], backend=backend)
    assert sorted(seen) == list(range(20))


def test_the_generator_yields_each_as_soon_as_it_is_its_turn() -> None:
    slow = threading.Event()

    def answer(prompt, node):
        return f"[{prompt}]"

    fake = FakeBackend(answer)

    @sgl.function
    def program(s, a):
        if a == 1:
            slow.wait(10)
        s += f"{a}" + sgl.gen("x")

    states = program.run_batch([{"a": i} for i in range(3)], backend=fake, generator_style=True)
    assert next(states)["x"] == "[0]"
    slow.set()
    assert [s["x"] for s in states] == ["[1]", "[2]"]
    fake.close()


def test_a_generator_that_is_left_ends_the_rest(caplog) -> None:
    fake = FakeBackend(delay_s=0.01)
    states = echo.run_batch([{"a": i} for i in range(50)], backend=fake, generator_style=True)
    first = next(states)
    fake.delay_s = 30
    del states
    end = time.monotonic() + 2
    while fake.alive and time.monotonic() < end:
        time.sleep(0.01)
    assert fake.alive == 0
    assert first["x"] == "[x]"
    assert caplog.records == []
    fake.close()


def test_num_threads_bounds_what_runs_at_a_time() -> None:
    fake = FakeBackend(delay_s=0.02)
    most = []
    program = sgl.function(lambda s: most.append(fake.alive) or s.__iadd__(sgl.gen("x")))
    program.run_batch([{}] * 10, backend=fake, num_threads=2)
    assert max(most) <= 2
    for wrong in (0, "many", True, 1.5):
        with pytest.raises(ParameterError):
            echo.run_batch([("a",)], backend=fake, num_threads=wrong)
    fake.close()


def threads_of(body, rows: int, backend: FakeBackend, **options) -> set[int]:
    """The threads that ran the bodies."""
    found = set()
    program = sgl.function(lambda s: found.add(threading.get_ident()) or body(s))
    program.run_batch([{}] * rows, backend=backend, **options)
    return found


def test_bodies_that_only_queue_run_in_one_thread(backend) -> None:
    assert len(threads_of(lambda s: s.__iadd__(sgl.gen("x")), 50, backend)) == 1


def test_bodies_that_wait_run_beside_one_another() -> None:
    fake = FakeBackend(delay_s=0.2)
    together = threading.Barrier(8, timeout=20)
    of_engine = threads_of(lambda s: s.__iadd__(sgl.gen("x")) and s["x"], 8, fake)
    elsewhere = threads_of(lambda s: together.wait(), 8, fake)
    assert len(of_engine) == len(elsewhere) == 8
    assert len(threads_of(lambda s: s.__iadd__(sgl.gen("x")) and s["x"], 9, fake, num_threads=3)) == 3
    fake.close()


def test_a_progress_bar_counts_the_rows(backend, capsys) -> None:
    echo.run_batch([("a",)] * 3, backend=backend, progress_bar=True)
    assert "3/3" in capsys.readouterr().err


@sgl.function
def some_raise(s, a):
    s += f"{a}" + sgl.gen("x")
    if a % 3 == 1:
        raise KeyError(a)


def test_the_first_error_of_a_body_is_raised_after_all_have_finished(backend) -> None:
    with pytest.raises(KeyError) as caught:
        some_raise.run_batch([{"a": i} for i in range(6)], backend=backend)
    assert caught.value.args == (1,)
    assert "[1, 4]" in caught.value.__notes__[0]
    assert [s["x"] for i, s in enumerate(caught.value.states) if i % 3 != 1] == ["[0]", "[2]", "[3]", "[5]"]


def test_errors_can_be_kept(backend) -> None:
    states = some_raise.run_batch([{"a": i} for i in range(6)], backend=backend, on_error="keep")
    assert [type(s.error()) for s in states] == [type(None), KeyError, type(None)] * 2
    with pytest.raises(ParameterError):
        echo.run_batch([("a",)], backend=backend, on_error="ignore")


def test_a_failed_gen_that_no_body_read_does_not_raise(backend) -> None:
    backend.answer = lambda prompt, node: OutOfMemory(needs=2, has=1) if prompt == "1B" else "fine"
    states = echo.run_batch([{"a": i} for i in range(3)], backend=backend)
    assert states[0]["x"] == "fine"
    with pytest.raises(StateFailed):
        states[1]["x"]


def test_unknown_parameters_are_named(backend) -> None:
    with pytest.raises(ProgramError, match="num_thread"):
        echo.run_batch([("a",)], backend=backend, num_thread=2)


@pytest.mark.parametrize("program", [programs.simple_gen, programs.judge], ids=["one wave", "with demands"])
def test_interrupt_run_batch_1000(program) -> None:
    """Back within 0.5 s, nothing alive 0.5 s later, what was finished is readable, the next run works."""
    asked: list[float] = []
    said = itertools.count(1)

    def answer(prompt, node):
        if next(said) == 100:
            fake.delay_s = 30
            asked.append(time.monotonic())
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return f"[{node.name}]"

    fake = FakeBackend(answer, delay_s=0.05)
    rows = [{program.arg_names[0]: f"{i}"} for i in range(1000)]
    with pytest.raises(KeyboardInterrupt) as caught:
        program.run_batch(rows, backend=fake)
    assert time.monotonic() - asked[0] < 0.5
    end = time.monotonic() + 0.5
    while fake.alive and time.monotonic() < end:
        time.sleep(0.01)
    assert fake.alive == 0
    states = caught.value.states
    begun = [state for state in states if state is not None]
    assert len(states) == 1000
    assert begun
    last = "response" if program is programs.simple_gen else "overall"
    for state in begun:
        if state.error() is None:
            assert state[last] == f"[{last}]"
        else:
            assert isinstance(state.error(), Aborted)
    fake.delay_s = 0.0
    assert program.run("x", backend=fake)[last] == f"[{last}]"
    fake.close()
