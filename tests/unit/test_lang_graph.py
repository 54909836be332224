"""The language over the front's real graph: programs come out as with the fake backend."""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time

import pytest

import nbsgl as sgl
from nbsgl.engine.graph import GraphRunner
from tests.unit import programs
from tests.unit.fakes import FakeBackend
from tests.unit.graph_fakes import EOS, TOKENS, ByteCodec, FakeWorker


class GraphRun:
    def __init__(self, backend: GraphBackend, number: int) -> None:
        self.backend, self.number = backend, number

    def submit(self, nodes) -> None:
        self.backend.calls.put(lambda: self.backend.graph.submit("c", self.number, nodes))

    def abort(self, branches=None, by="the caller") -> None:
        self.backend.calls.put(lambda: self.backend.graph.abort("c", self.number, branches, by))

    def close(self) -> None:
        self.backend.calls.put(lambda: self.backend.graph.close_run("c", self.number))


class GraphBackend:
    """The graph and a fake worker on one thread."""

    def __init__(self, draw) -> None:
        self.worker = FakeWorker(draw)
        self.listeners: dict[int, object] = {}
        self.graph = GraphRunner(
            ByteCodec(),  # type: ignore[arg-type]
            send=self.worker.send,
            emit=lambda client, run, events: self.listeners[run](events),  # type: ignore[operator]
            context_length=4000,
            vocab_size=len(TOKENS),
            rng=random.Random(0),
        )
        self.worker.on_updates = self.graph.on_updates
        self.info = FakeBackend(stop=()).info
        self.calls: queue.SimpleQueue = queue.SimpleQueue()
        self.numbers = itertools.count()
        self.errors: list[BaseException] = []
        self.is_closed = False
        threading.Thread(target=self._work, daemon=True).start()

    def open_run(self, listener) -> GraphRun:
        number = next(self.numbers)
        self.listeners[number] = listener
        return GraphRun(self, number)

    def close(self) -> None:
        self.is_closed = True

    def _work(self) -> None:
        while not self.is_closed:
            try:
                while not self.calls.empty():
                    self.calls.get()()
                if not self.worker.step():
                    time.sleep(0.001)
            except Exception as error:
                self.errors.append(error)
                return


def say(tokens: list[int], idx: int, seed: int) -> int:
    return [*b"ok", EOS][idx]


@pytest.fixture
def backend():
    made = GraphBackend(say)
    yield made
    made.close()
    assert made.errors == []


def test_the_workloads_run(backend) -> None:
    assert programs.chain.run("q", backend=backend)["a7"] == "ok"
    state = programs.judge.run("words", backend=backend)
    assert (state["overall"], state["verdict"]) == ("ok", ["ok"] * 4)
    assert programs.select.run(shots="x", question="y", backend=backend)["answer"] in (
        " yes",
        " no",
        " maybe",
        " unknown",
    )
    assert programs.turns.run("1", "2", backend=backend).messages()[-1]["content"] == "ok"


def test_forks_joins_and_streams(backend) -> None:
    with sgl.state(backend) as s:
        s += "a" + sgl.gen("x")
        f = s.fork(2)
        f += lambda i: f"<{i}>" + sgl.gen("y", n=2)
        f.join("concate_and_append")
        s += sgl.gen("z", return_logprob=True, top_logprobs_num=2)
    assert s.text() == "aok<0>ok<1>okok"
    assert "".join(s.text_iter()) == s.text()
    assert f[0]["y"] == ["ok", "ok"]
    assert s.get_meta_info("z")["completion_tokens"] == 2


def test_a_users_choices_method_is_asked(backend) -> None:
    class Last(sgl.ChoicesSamplingMethod):
        def __call__(self, *, choices, **scores):
            return sgl.ChoicesDecision(choices[-1], {})

    with sgl.state(backend) as s:
        s += "a" + sgl.select("c", ["p", "q"], choices_method=Last()) + sgl.gen("x")
    assert s.text() == "aqok"


def test_too_long_is_a_failure_that_names_the_variable(backend) -> None:
    state = programs.simple_gen.run("x" * 5000, backend=backend)
    with pytest.raises(sgl.StateFailed, match="response") as caught:
        state["response"]
    assert isinstance(caught.value.__cause__, sgl.RequestTooLong)


def test_dropped_states_free_the_graph(backend) -> None:
    def run() -> None:
        with sgl.state(backend) as s:
            f = s.fork(3)
            f += "b" + sgl.gen("x")

    run()
    end = time.monotonic() + 5
    while backend.graph._runs and time.monotonic() < end:
        time.sleep(0.01)
    assert backend.graph._runs == {}
