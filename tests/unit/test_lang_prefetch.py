"""prefetch: a prompt is computed before it is needed, and gives way under pressure."""

from __future__ import annotations

import threading

import msgspec
import pytest

import nbsgl as sgl
from nbsgl.errors import HoleError, OutOfMemory, ParameterError, ProgramError, StateFailed
from nbsgl.protocol import Gen, Text
from tests.unit.fakes import FakeBackend
from tests.unit.in_process import InProcessEngine


@pytest.fixture
def backend():
    fake = FakeBackend(lambda prompt, node: "" if node.params.max_tokens == 0 else "x")
    yield fake
    fake.close()


@sgl.function
def answers(s, shots, question):
    s += sgl.system("Be brief.") + shots
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("a", max_tokens=4))


def test_a_text_is_sent_with_no_token_to_draw(backend) -> None:
    handle = sgl.prefetch("A long prompt.", backend=backend)
    assert handle.wait(5) == len("A long prompt.")
    assert handle.is_done
    text, gen = [node for node in backend.nodes if isinstance(node, Text | Gen)]
    assert (text.text, text.parse_special, gen.params.max_tokens) == ("A long prompt.", True, 0)


def test_of_a_program_what_is_known_before_its_first_gen_or_unknown_value(backend) -> None:
    sgl.prefetch(answers, backend=backend, shots="Q A ").wait(5)
    assert "".join(node.text for node in backend.nodes if isinstance(node, Text)) == (
        "<|system|>Be brief.<|end|>Q A <|user|>"
    )


def test_a_later_run_finds_it_in_the_cache() -> None:
    engine = InProcessEngine()
    shots = "The station on the hill was open in winter, and closed in summer. " * 8
    num_tokens = sgl.prefetch(answers, backend=engine, shots=shots).wait(30)
    assert num_tokens > 50
    state = answers.run(shots, "Is it open?", backend=engine, temperature=0)
    assert state.get_meta_info("a")["cached_tokens"] >= num_tokens - 2
    engine.close()


def test_the_caller_waits_for_nothing_and_a_dropped_handle_goes_on(backend) -> None:
    backend.gate = threading.Event()
    handle = sgl.prefetch("abc", backend=backend)
    assert "under way" in repr(handle)
    with pytest.raises(TimeoutError):
        handle.wait(0.05)
    backend.gate.set()
    assert handle.wait(5) == 3
    assert "3 tokens" in repr(handle)


def test_cancel_ends_it(backend) -> None:
    backend.gate = threading.Event()
    handle = sgl.prefetch("abc", backend=backend)
    handle.cancel()
    assert handle.wait(5) == 0
    assert backend.alive == 0


def test_it_gives_way_when_memory_gets_short(backend) -> None:
    backend.gate = threading.Event()
    now = msgspec.structs.replace(backend.snapshot(), slots_total=100, slots_free=50)
    backend.snapshot = lambda *, tree=False: now
    handle = sgl.prefetch("abc", backend=backend)
    with pytest.raises(TimeoutError):
        handle.wait(0.15)
    now = msgspec.structs.replace(now, slots_free=5)
    assert handle.wait(5) == 0
    assert sgl.prefetch("abc", backend=backend).wait(5) == 0  # not even begun
    assert sum(isinstance(node, Gen) for node in backend.nodes) == 1


def test_what_fails_raises_in_who_waits(backend) -> None:
    backend.answer = lambda prompt, node: OutOfMemory(needs=2, has=1)
    with pytest.raises(StateFailed):
        sgl.prefetch("abc", backend=backend).wait(5)


def test_bad_input_meets_an_error_at_the_line(backend) -> None:
    with pytest.raises(ParameterError, match="arguments are for programs"):
        sgl.prefetch("abc", backend=backend, shots="x")
    with pytest.raises(ParameterError, match="a string or a program"):
        sgl.prefetch(3, backend=backend)
    with pytest.raises(ProgramError, match="nothing to prefetch"):
        sgl.prefetch(sgl.function(lambda s: s.__iadd__(sgl.gen("x"))), backend=backend)
    with pytest.raises(HoleError):
        sgl.prefetch(f"abc {sgl.gen('x')}", backend=backend)
