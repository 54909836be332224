"""`async def` programs: they run in the loop there is, wait without blocking it, and end as others do."""

from __future__ import annotations

import asyncio
import threading

import pytest

import nbsgl as sgl
from nbsgl.errors import Aborted, ParameterError, ProgramError, RequestError, StateFailed, UnknownVariable, Unsupported
from tests.unit.fakes import FakeBackend


@pytest.fixture
def backend():
    fake = FakeBackend(delay_s=0.01)
    yield fake
    fake.close()


@sgl.function
async def steps(s, topic="tea"):
    s += f"On {topic}: " + sgl.gen("a")
    first = await s.ready("a")
    s += " then " + sgl.gen("b")
    return first


def test_in_a_loop_run_returns_at_once_and_the_state_can_be_awaited(backend) -> None:
    async def main():
        state = steps.run("ink", backend=backend)
        assert not state.branch.scope.is_over
        assert await state is state
        assert (await state.ready("b"), state["a"], state.ret_value) == ("[b]", "[a]", "[a]")
        return state.text()

    assert asyncio.run(main()) == "On ink: [a] then [b]"


def test_without_a_loop_run_returns_when_the_body_has_ended(backend) -> None:
    state = steps.run(backend=backend)
    assert state.branch.scope.is_over
    assert state.text() == "On tea: [a] then [b]"
    assert state.ret_value == "[a]"


def test_many_bodies_share_one_loop(backend) -> None:
    async def main():
        states = [steps.run(str(i), backend=backend) for i in range(50)]
        return [state.text() for state in await asyncio.gather(*map(awaited, states))]

    async def awaited(state):
        return await state

    before = threading.active_count()
    assert asyncio.run(main()) == [f"On {i}: [a] then [b]" for i in range(50)]
    assert threading.active_count() <= before + 2


def test_what_would_block_the_loop_is_an_error_at_its_line_and_what_is_there_is_not(backend) -> None:
    seen = []

    @sgl.function
    async def blocking(s):
        s += "x" + sgl.gen("a")
        for wait in (
            lambda: s["a"],
            s.text,
            s.sync,
            s.error,
            lambda: s.get_meta_info("a"),
            lambda: list(s.text_iter()),
        ):
            with pytest.raises(ProgramError, match=r"await s\.ready"):
                wait()
        await s
        seen.append((s["a"], s.text()))
        with pytest.raises(UnknownVariable):
            await s.ready("nothing")

    async def main():
        state = blocking.run(backend=backend)
        with pytest.raises(ProgramError, match="async def"):
            state.text()
        with pytest.raises(ProgramError, match="async def"):
            state.ret_value
        await state

    asyncio.run(main())
    blocking.run(backend=backend)
    assert seen == [("[a]", "x[a]")] * 2


def test_a_body_that_raises_ends_what_it_began(backend) -> None:
    backend.gate = threading.Event()

    @sgl.function
    async def raises(s):
        s += "x" + sgl.gen("a")
        s.executor.flush()
        await asyncio.sleep(0)
        raise KeyError("mine")

    async def main():
        state = raises.run(backend=backend)
        with pytest.raises(KeyError, match="mine"):
            await state
        with pytest.raises(KeyError, match="mine"):
            await state.ready("a")

    asyncio.run(main())
    with pytest.raises(KeyError, match="mine"):
        raises.run(backend=backend)
    assert backend.alive == 0


def test_a_failed_gen_raises_where_it_is_awaited() -> None:
    backend = FakeBackend(lambda prompt, node: RequestError("no"))

    async def main():
        with pytest.raises(StateFailed, match="no"):
            await steps.run(backend=backend)

    asyncio.run(main())
    backend.close()


def test_a_loop_that_ends_early_ends_the_body(backend) -> None:
    backend.gate = threading.Event()
    kept = []

    async def main():
        kept.append(steps.run(backend=backend))
        await asyncio.sleep(0.05)

    asyncio.run(main())
    with pytest.raises(Aborted):
        kept[0].text()
    assert backend.alive == 0


def test_cancelling_a_wait_cancels_the_wait_only(backend) -> None:
    backend.gate = threading.Event()

    async def main():
        state = steps.run(backend=backend)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(state.ready("a"), 0.05)
        backend.gate.set()
        return await state.ready("a")

    assert asyncio.run(main()) == "[a]"


def test_wrong_arguments_raise_at_the_call(backend) -> None:
    async def main():
        with pytest.raises(TypeError, match="unexpected"):
            steps.run(backend=backend, subject="x")

    asyncio.run(main())
    with pytest.raises(TypeError):
        steps.run(backend=backend, subject="x")


def test_a_batch_takes_async_programs(backend) -> None:
    states = steps.run_batch([{"topic": str(i)} for i in range(20)], backend=backend)
    assert [state.text() for state in states] == [f"On {i}: [a] then [b]" for i in range(20)]


def test_streams_of_an_async_program(backend) -> None:
    async def main():
        state = steps.run(backend=backend, stream=True)
        whole = [text async for text in state.text_async_iter()]
        one = [text async for text in state.text_async_iter("b")]
        return "".join(whole), "".join(one)

    assert asyncio.run(main()) == ("On tea: [a] then [b]", "[b]")
    state = steps.run(backend=backend, stream=True)
    assert "".join(state.text_iter()) == "On tea: [a] then [b]"


def test_a_program_that_awaits_another(backend) -> None:
    @sgl.function
    async def outer(s):
        inner = await steps.run("ink", backend=backend)
        s += inner["b"] + sgl.gen("c")
        forks = s.fork(2)
        forks += sgl.gen("d")
        forks.join()
        return await s.ready("d")

    async def main():
        return (await outer.run(backend=backend)).ret_value

    assert asyncio.run(main()) == ["[d]", "[d]"]


def test_ready_serves_plain_programs_too(backend) -> None:
    @sgl.function
    def plain(s):
        s += "x" + sgl.gen("a")

    async def main():
        return await plain.run(backend=backend, stream=True).ready("a")

    assert asyncio.run(main()) == "[a]"


def test_what_async_programs_cannot_do_says_so(backend) -> None:
    with pytest.raises(Unsupported, match="cannot be traced"):
        steps.trace()
    with pytest.raises(ParameterError, match="use_thread"):
        steps.run(backend=backend, use_thread=False)
    with pytest.raises(ProgramError, match="cannot yield"):

        @sgl.function
        async def yields(s):
            yield 1
