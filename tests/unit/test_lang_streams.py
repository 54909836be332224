"""Streams: every iterator has its own cursor, its chunks make up the whole, and a finished state replays."""

from __future__ import annotations

import asyncio
import threading

import pytest

import nbsgl as sgl
from nbsgl.errors import ParameterError, UnknownVariable
from nbsgl.protocol import Gen
from tests.unit.fakes import FakeBackend


@pytest.fixture
def backend():
    fake = FakeBackend(lambda prompt, node: ["one", "", " two", " three"] if node.name != "empty" else [""])
    yield fake
    fake.close()


@sgl.function
def program(s):
    s += sgl.user("hi") + "A: " + sgl.gen("x", return_logprob=True) + " B: " + sgl.gen("y")


WHOLE = "<|user|>hi<|end|>A: one two three B: one two three"


async def collect(stream) -> list:
    return [piece async for piece in stream]


def test_chunks_make_up_the_text_and_the_variable(backend) -> None:
    state = program.run(backend=backend, stream=True)
    assert "".join(state.text_iter()) == WHOLE
    assert "".join(state.text_iter("x")) == state["x"] == "one two three"
    assert all(node.stream for node in backend.nodes if isinstance(node, Gen))


def test_chunks_come_as_they_are_generated() -> None:
    gate, fake = threading.Event(), FakeBackend()
    fake.gate = gate
    state = program.run(backend=fake, stream=True)
    stream = state.text_iter()
    assert next(stream) == "<|user|>hi<|end|>A: "
    gate.set()
    assert "".join(stream) == "[x] B: [y]"
    fake.close()


def test_two_iterators_do_not_steal_from_each_other(backend) -> None:
    state = program.run(backend=backend, stream=True)
    first, second = state.text_iter(), state.text_iter()
    a = next(first)
    b = "".join(second)
    assert a + "".join(first) == b == WHOLE


def test_a_finished_state_replays(backend) -> None:
    state = program.run(backend=backend)
    state.sync()
    for _ in range(2):
        assert list(state.text_iter()) == [WHOLE]
        assert list(state.text_iter("y")) == ["one two three"]


def test_an_empty_variable_has_no_chunk_and_an_unknown_one_raises(backend) -> None:
    with sgl.state(backend) as s:
        s += sgl.gen("empty")
        s["set"] = "value"
    assert list(s.text_iter("empty")) == []
    assert list(s.text_iter("set")) == ["value"]
    with pytest.raises(UnknownVariable):
        list(s.text_iter("zzz"))


def test_a_variable_that_the_body_has_not_made_yet_is_awaited(backend) -> None:
    go = threading.Event()

    @sgl.function
    def slow(s):
        go.wait(5)
        s += sgl.gen("x")

    state = slow.run(backend=backend, stream=True)
    threading.Timer(0.05, go.set).start()
    assert "".join(state.text_iter("x")) == "one two three"
    late = slow.run(backend=backend, stream=True)
    with pytest.raises(UnknownVariable):
        list(late.text_iter("zzz"))
    assert late["x"] == "one two three"


def test_joined_scoped_and_selected_values_stream_whole(backend) -> None:
    with sgl.state(backend) as s:
        with s.var_scope("v"):
            s += "a" + sgl.select("c", ["p", "qq"])
        f = s.fork(2)
        f += sgl.gen("x")
        f.join()
    assert list(s.text_iter("v")) == ["ap"]
    assert list(s.text_iter("c")) == ["p"]
    assert list(s.text_iter("x")) == [str(["one two three"] * 2)]


def test_async_streams_and_await(backend) -> None:
    async def main():
        state = program.run(backend=backend, stream=True)
        whole, part = await asyncio.gather(collect(state.text_async_iter()), collect(state.text_async_iter("x")))
        assert await state is state
        return "".join(whole), "".join(part)

    assert asyncio.run(main()) == (WHOLE, "one two three")


def test_async_meta_data_counts_up_and_gives_each_logprob_once(backend) -> None:
    async def main():
        state = program.run(backend=backend, stream=True)
        return await collect(state.text_async_iter("x", return_meta_data=True))

    pieces = asyncio.run(main())
    assert "".join(text for text, _ in pieces) == "one two three"
    assert pieces[-1][1]["completion_tokens"] == 13
    logprobs = [triple for _, meta in pieces for triple in meta["output_token_logprobs"]]
    assert [chr(token) for _, token, _ in logprobs] == list("one two three")


def test_meta_data_needs_a_variable(backend) -> None:
    state = program.run(backend=backend)
    with pytest.raises(ParameterError):
        asyncio.run(collect(state.text_async_iter(return_meta_data=True)))


def test_cancelling_an_await_cancels_the_wait_only(backend) -> None:
    backend.gate = threading.Event()
    state = program.run(backend=backend)

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(awaited(state), 0.05)

    asyncio.run(main())
    backend.gate.set()
    assert state["y"] == "one two three"


async def awaited(state) -> None:
    await state
