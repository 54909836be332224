"""`RemoteBackend`: branches walked as text, over a server made of a function."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import nbsgl as sgl
from nbsgl.errors import Aborted, EngineNotRunning, StateFailed, Unsupported
from nbsgl.lang.backends.remote import Completion, Piece, RemoteBackend, Say, Scores, Scoring
from nbsgl.protocol import Backend, Finish, GenResult, ModelInfo
from tests.unit.fakes import FakeBackend, info


async def _nothing() -> None:
    return


class Told(RemoteBackend):
    """Answers from `answer(request)`: a text, a list of chunks, an exception, or a coroutine of one of these."""

    def __init__(self, answer: Callable[[Completion], Any] = lambda request: f"[{request.node.name}]") -> None:
        super().__init__("told", at_end=_nothing, max_concurrent=8)
        self.answer = answer
        self.requests: list[Completion] = []
        self.scorings: list[Scoring] = []
        self.chosen: int | None = None

    async def describe(self) -> ModelInfo:
        return info()

    async def complete(self, request: Completion, say: Say) -> list[GenResult]:
        self.requests.append(request)
        said = self.answer(request)
        if asyncio.iscoroutine(said):
            said = await said
        if isinstance(said, Exception):
            raise said
        chunks = [said] if isinstance(said, str) else said
        if request.node.stream:
            for chunk in chunks:
                say(Piece(chunk))
                await asyncio.sleep(0)
        text = "".join(chunks)
        one = GenResult(
            text=text, ids=b"", finish=Finish(type="stop"), prompt_tokens=3, cached_tokens=0, completion_tokens=2
        )
        return [one] * request.params.n

    async def score(self, request: Scoring) -> Scores:
        self.scorings.append(request)
        if self.chosen is not None:
            return Scores(index=self.chosen)
        rows: Any = [[(-float(len(choice)), 1, choice)] for choice in request.node.choices]
        return Scores(rows, prompt_tokens=4)


@pytest.fixture
def told():
    made = []

    def make(*args: Any) -> Told:
        made.append(Told(*args))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@sgl.function
def story(s, name):
    s += f"Hello {name}. "
    s += sgl.gen("a", max_tokens=5)
    s += " then " + sgl.gen("b")


def test_it_is_a_backend(told) -> None:
    assert isinstance(told(), Backend)


def test_a_gen_is_asked_with_all_text_before_it(told) -> None:
    backend = told()
    state = story.run("Ann", backend=backend)
    assert state.text() == "Hello Ann. [a] then [b]"
    assert [request.prompt for request in backend.requests] == ["Hello Ann. ", "Hello Ann. [a] then "]
    assert [part.is_sampled for part in backend.requests[1].parts] == [False, True, False]
    assert backend.requests[0].params.max_tokens == 5
    usage = backend.token_usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (6, 4)
    usage.reset()
    assert usage.prompt_tokens == 0


def test_forks_are_copies_and_joins_gather(told) -> None:
    backend = told(lambda request: request.prompt[-1].upper())

    @sgl.function
    def program(s):
        s += "x"
        forks = s.fork(3)
        for i, fork in enumerate(forks):
            fork += "abc"[i] + sgl.gen("v")
        forks.join()
        s += " ".join(s["v"])
        with s.copy() as other:
            other += "!"
        s += "."

    assert program.run(backend=backend).text() == "xA B C."
    assert sorted(request.prompt for request in backend.requests) == ["xa", "xb", "xc"]


def test_concatenating_joins_append_the_texts(told) -> None:
    @sgl.function
    def program(s):
        s += "x"
        forks = s.fork(2)
        forks[0] += "(1" + sgl.gen("a") + ")"
        forks[1] += "(2" + sgl.gen("b") + ")"
        forks.join("concate_and_append")
        s += "end"

    assert program.run(backend=told()).text() == "x(1[a])(2[b])end"


def test_references_are_filled_in(told) -> None:
    @sgl.function
    def program(s):
        fork = s.fork(1)[0]
        fork += "f" + sgl.gen("tip")
        s += "Tip: " + fork.ref("tip") + sgl.gen("end")

    backend = told()
    assert program.run(backend=backend).text() == "Tip: [tip][end]"
    assert backend.requests[-1].prompt == "Tip: [tip]"


def test_select_by_scores_by_the_server_and_by_a_method_of_ones_own(told) -> None:
    class Last(sgl.ChoicesSamplingMethod):
        def __call__(self, *, choices, **scores):
            return sgl.ChoicesDecision(choices[-1])

    @sgl.function
    def program(s, **more):
        s += "pick " + sgl.select("x", ["aaa", "b", "cc"], **more) + "." + sgl.gen("after")

    backend = told()
    state = program.run(backend=backend)
    assert state["x"] == "b"
    assert state.text() == "pick b.[after]"
    assert state.get_meta_info("x")["scores"] == [-3.0, -1.0, -2.0]
    assert backend.scorings[0].prompt == "pick "
    backend.chosen = 2
    assert program.run(backend=backend)["x"] == "cc"
    backend.chosen = None

    @sgl.function
    def own(s):
        s += "pick " + sgl.select("x", ["aaa", "b", "cc"], choices_method=Last()) + "." + sgl.gen("after")

    assert own.run(backend=backend).text() == "pick cc.[after]"


def test_streams(told) -> None:
    backend = told(lambda request: ["one ", "two"])
    state = story.run("Bo", backend=backend, stream=True)
    assert list(state.text_iter("a")) in (["one ", "two"], ["one two"])
    assert "".join(state.text_iter()) == "Hello Bo. one two then one two"


def test_many_branches_at_once_are_bounded(told) -> None:
    running, most = [0], [0]

    async def answer() -> str:
        running[0] += 1
        most[0] = max(most[0], running[0])
        for _ in range(2_000):  # the first ones wait for each other, however slowly they come
            await asyncio.sleep(0.001)
            if most[0] >= 8:
                break
        running[0] -= 1
        return "ok"

    backend = told(lambda request: answer())
    states = story.run_batch([{"name": str(i)} for i in range(100)], backend=backend)
    assert {state["b"] for state in states} == {"ok"}
    assert most[0] == 8


def test_a_failure_ends_its_branch_only(told) -> None:
    def answer(request: Completion) -> Any:
        return Unsupported("no such thing") if "Bad" in request.prompt else "ok"

    backend = told(answer)
    states = story.run_batch([{"name": "Bad"}, {"name": "Good"}], backend=backend)
    with pytest.raises(StateFailed, match="no such thing"):
        states[0]["a"]
    with pytest.raises(StateFailed):
        states[0].text()
    assert states[1].text() == "Hello Good. ok then ok"


def test_a_mistake_in_a_backend_is_an_error_not_a_hang(told) -> None:
    state = story.run("x", backend=told(lambda request: ZeroDivisionError("oops")))
    with pytest.raises(StateFailed, match="oops"):
        state.text()


def test_a_failed_parent_ends_unborn_forks_and_those_who_wait_for_it(told) -> None:
    @sgl.function
    def program(s):
        s += "x" + sgl.gen("bad")
        fork = s.fork(1)[0]
        fork += sgl.gen("child")
        other = s.fork(1)[0]
        other += fork.ref("child")
        return other

    state = program.run(backend=told(lambda request: Unsupported("no")))
    for one in (state, state.ret_value):
        with pytest.raises(StateFailed, match="no"):
            one.text()


def test_abort_cancels_what_is_under_way(told) -> None:
    ended = threading.Event()

    async def never() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return ""

    backend = told(lambda request: never())
    state = story.run("x", backend=backend)
    while not backend.requests:
        time.sleep(0.001)
    began = time.monotonic()
    state.abort()
    with pytest.raises(Aborted):
        state["a"]
    assert ended.wait(2)
    assert time.monotonic() - began < 2
    dropped = story.run("x", backend=backend)
    ended.clear()
    while len(backend.requests) < 2:
        time.sleep(0.001)
    del dropped, state
    gc.collect()
    assert ended.wait(2)


def test_close_ends_everything(told) -> None:
    backend = told(lambda request: asyncio.sleep(60))
    state = story.run("x", backend=backend)
    while not backend.requests:
        time.sleep(0.001)
    backend.close()
    with pytest.raises(StateFailed):
        state["a"]
    with pytest.raises(StateFailed, match="closed"):
        story.run("x", backend=backend).sync()
    with pytest.raises(EngineNotRunning):
        backend.open_run(lambda events: None)
    backend.close()


def test_a_backend_nobody_holds_ends_its_thread() -> None:
    backend = Told()
    assert backend.info.model == "fake"
    thread = backend._loop._thread
    assert thread is not None
    del backend
    gc.collect()
    thread.join(2)
    assert not thread.is_alive()


def grown(s, rng: random.Random, depth: int, made: list[Any]) -> None:
    """Grow a state at random: text, gens, selects, references, forks within forks, both kinds of joins."""
    for _ in range(rng.randrange(1, 5)):
        kind = rng.randrange(6)
        name = f"v{len(made)}"
        if kind == 0:
            s += rng.choice("abc")
        elif kind == 1:
            s += sgl.gen(name)
            made.append((s, name))
        elif kind == 2:
            s += sgl.select(name, ["x", "yy", "zzz"])
            made.append((s, name))
        elif kind == 3 and made:
            owner, known = rng.choice(made)
            s += owner.ref(known)
        elif depth < 3:
            forks = s.fork(rng.randrange(1, 4))
            for fork in forks:
                grown(fork, rng, depth + 1, made)
            if kind == 5:
                forks.join("concate_and_append")
                made[:] = [(owner, known) for owner, known in made if owner not in list(forks)]


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_give_what_they_give_on_an_engine(told, seed) -> None:
    def answer(prompt: str) -> str:
        return f"{sum(map(ord, prompt)) % 97}."

    @sgl.function
    def program(s):
        made: list[Any] = []
        grown(s, random.Random(seed), 0, made)
        return made

    there = program.run(backend=told(lambda request: answer(request.prompt)))
    engine = FakeBackend(lambda prompt, node: answer(prompt))
    here = program.run(backend=engine)
    assert there.text() == here.text()
    values = [[(name, owner[name], owner.text()) for owner, name in state.ret_value] for state in (here, there)]
    assert values[0] == values[1]
    engine.close()


@pytest.mark.parametrize("seed", range(5))
def test_aborts_at_any_time_strand_nobody(told, seed) -> None:
    rng = random.Random(seed)

    async def soon() -> str:
        await asyncio.sleep(rng.random() / 200)
        return "t"

    backend = told(lambda request: soon())

    @sgl.function
    def program(s):
        made: list[Any] = []
        grown(s, rng, 0, made)
        return made

    states = [program.run(backend=backend) for _ in range(40)]
    for state in rng.sample(states, 20):
        time.sleep(rng.random() / 1000)
        rng.choice([state, *[owner for owner, _ in state.ret_value]]).abort()
    for state in states:
        for one in [state, *[owner for owner, _ in state.ret_value]]:
            assert one.error() is None or isinstance(one.error(), (Aborted, StateFailed))
    del state, one, states
    gc.collect()
    end = time.monotonic() + 5
    while backend._runs and time.monotonic() < end:
        time.sleep(0.01)
    assert not backend._runs
