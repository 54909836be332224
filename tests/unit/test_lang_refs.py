"""`s.ref`: a variable's text goes into another text without anybody waiting for it; lists that grow; n results."""

from __future__ import annotations

import random
import threading

import pytest

import nbsgl as sgl
from nbsgl.errors import ParameterError, ProgramError, RequestError, StateFailed, UnknownVariable
from nbsgl.protocol import Gen, Ref
from tests.unit.fakes import FakeBackend
from tests.unit.in_process import InProcessEngine
from tests.unit.test_lang_graph import GraphBackend, say


@pytest.fixture(params=["fake", "graph"])
def backend(request):
    made = FakeBackend(lambda prompt, node: "ok") if request.param == "fake" else GraphBackend(say)
    yield made
    made.close()


@sgl.function
def tips(s):
    s += "Tips. "
    forks = s.fork(3)
    for i, f in enumerate(forks):
        f += f"Tip {i}: " + sgl.gen("tip", max_tokens=8)
    for f in forks:
        s += "<" + f.ref("tip") + ">"
    s += " In all: " + sgl.gen("all", max_tokens=8)


def test_refs_go_out_in_one_submission_and_give_what_reading_would() -> None:
    backend = FakeBackend(lambda prompt, node: f"[{prompt[-3:-1]}]" if node.name == "tip" else prompt[-14:])
    state = tips.run(backend=backend)
    assert state.text().startswith("Tips. <[0:]><[1:]><[2:]> In all: ")
    assert state["all"] == "[2:]> In all: "
    assert sum(any(isinstance(node, Gen) for node in nodes) for nodes in backend.submissions) == 1
    assert sum(isinstance(node, Ref) for node in backend.nodes) == 3
    backend.close()


def test_the_front_resolves_refs(backend) -> None:
    state = tips.run(backend=backend)
    assert state.text() == "Tips. <ok><ok><ok> In all: ok"
    assert state.error() is None


def test_a_value_that_is_there_already_is_text(backend) -> None:
    with sgl.state(backend) as s:
        s["n"] = 7
        s += "a" + sgl.gen("x", max_tokens=8)
        s.sync()
        s += sgl.user(s.ref("x") + s.ref("n"))
    assert s.text() == "aok<|user|>ok7<|end|>"


def test_refs_of_scopes_selects_several_results_and_lists(backend) -> None:
    with sgl.state(backend) as s:
        with s.var_scope("scope"):
            s += "(" + sgl.gen("x", max_tokens=8) + ")"
        s += sgl.select("c", ["yes"]) + sgl.gen("many", n=2, max_tokens=8)
        forks = s.fork(2)
        forks += sgl.gen("each", max_tokens=8)
        forks.join()
        s += "|" + s.ref("scope") + s.ref("c") + "|" + s.ref("many", sep="+") + "|" + s.ref("each", sep=", ")
        s += f"|{s.ref('x')}|"
    many = "+".join(s["many"])
    assert s.text().endswith(f"|(ok)yes|{many}|ok, ok|ok|")


def test_a_list_needs_a_separator_and_sep_is_a_string(backend) -> None:
    with sgl.state(backend) as s:
        s += "x" + sgl.gen("many", n=2, max_tokens=8)
        s["given"] = ["a", "b"]
        for name in ("many", "given"):
            with pytest.raises(ParameterError, match="is a list"):
                s.ref(name)
        with pytest.raises(ParameterError, match="sep="):
            s.ref("many", sep=3)
        s += s.ref("given", sep="/")
    assert s.text().endswith("a/b")


def test_what_cannot_be_referred_to_is_an_error_at_its_line(backend) -> None:
    with sgl.state(backend) as s:
        with pytest.raises(UnknownVariable, match="no variable 'nothing'"):
            s.ref("nothing")
        with s.var_scope("v"), pytest.raises(ProgramError, match="part of itself"):
            s += s.ref("v")
        s += "x" + sgl.gen("x", max_tokens=8)
    with sgl.state(backend) as other, pytest.raises(ProgramError, match="another run"):
        other += s.ref("x")


def test_a_failed_value_fails_who_refers_to_it() -> None:
    def answer(prompt: str, node: Gen):
        return RequestError("no") if node.name == "bad" else "ok"

    backend = FakeBackend(answer)
    state = sgl.function(failing).run(backend=backend)
    with pytest.raises(StateFailed, match="bad"):
        state["end"]
    assert state["begin"] == "ok"
    backend.close()


def failing(s):
    s += "x" + sgl.gen("begin")
    (f,) = s.fork(1)
    f += sgl.gen("bad")
    s += f.ref("bad") + sgl.gen("end")


def test_a_ref_whose_source_is_aborted_ends_too() -> None:
    backend = FakeBackend()
    backend.gate = threading.Event()
    with sgl.state(backend) as s:
        (f,) = s.fork(1)
        f += sgl.gen("x")
        s += f.ref("x") + sgl.gen("end")
        s.executor.flush()
        f.abort()
        with pytest.raises(StateFailed):
            s["end"]
        s.branch.is_error_seen = True
    backend.close()


def test_streams_wait_for_refs() -> None:
    backend = FakeBackend(lambda prompt, node: ["a", "b"], delay_s=0.05)
    with sgl.state(backend) as s:
        (f,) = s.fork(1)
        f += sgl.gen("x")
        s += "<" + f.ref("x") + ">" + sgl.gen("y")
        assert "".join(s.text_iter()) == "<ab>ab"
        assert s.run_view().status == "running"
    backend.close()


# ---- lists ---------------------------------------------------------------------------------------------------------


def test_list_append_makes_a_list_across_a_loop(backend) -> None:
    with sgl.state(backend) as s:
        s += "Tips:"
        for i in range(3):
            s += f" {i}: " + sgl.gen("tips", list_append=True, max_tokens=8)
        s += sgl.gen("tips", choices=["end"], list_append=True)
        (f,) = s.fork(1)
        f += sgl.gen("tips", list_append=True, type="str", max_tokens=8)
    assert s["tips"] == ["ok", "ok", "ok", "end"]
    assert f["tips"][:4] == s["tips"]
    assert len(f["tips"]) == 5
    assert [info["finish_reason"]["type"] for info in s.get_meta_info("tips")[:3]] == ["stop"] * 3


def test_list_append_goes_on_with_a_given_list_and_refuses_what_is_none(backend) -> None:
    with sgl.state(backend) as s:
        s["tips"], s["text"] = ["a"], "b"
        s += "x" + sgl.gen("tips", list_append=True, max_tokens=8)
        with pytest.raises(ProgramError, match="is no list"):
            s += sgl.gen("text", list_append=True)
    assert s["tips"] == ["a", "ok"]
    for wrong in ({"list_append": True}, {"name": "x", "list_append": 1}):
        with pytest.raises(ParameterError):
            sgl.gen(**wrong)
    with sgl.state(backend, n=2) as s, pytest.raises(ParameterError, match="n=2"):
        s += sgl.gen("x", list_append=True)


# ---- trace and compile -----------------------------------------------------------------------------------------------


@sgl.function
def written_down(s, topic):
    s += topic + ": "
    for _ in range(2):
        s += sgl.gen("tips", list_append=True) + ", "
    forks = s.fork(2)
    forks += sgl.separate_reasoning(sgl.gen("each"), model_type="qwen3")
    forks.join()
    s += s.ref("tips", sep="+") + " and " + s.ref("each", sep="-") + sgl.gen("end")
    return s["tips"], s["each_reasoning_content"]


def test_a_compiled_program_gives_what_the_program_gives() -> None:
    backend = FakeBackend(lambda prompt, node: f"<think>hm</think>{len(prompt)}" if node.name == "each" else "ok")
    plain, compiled = written_down.run("tea", backend=backend), written_down.compile().run("tea", backend=backend)
    assert compiled.text() == plain.text() == "tea: ok, ok, ok+ok and 13-13ok"
    assert compiled.ret_value == plain.ret_value == (["ok", "ok"], ["hm", "hm"])
    with pytest.raises(ParameterError, match="is a list"):
        sgl.function(lacking_sep).trace()
    backend.close()


def lacking_sep(s):
    s += "x" + sgl.gen("tips", list_append=True)
    s += s.ref("tips")


# ---- the engine ------------------------------------------------------------------------------------------------------


def test_refs_and_several_results_on_the_embedded_model() -> None:
    engine = InProcessEngine()

    @sgl.function
    def by_ref(s):
        s += "Paris lies in France. "
        forks = s.fork(2)
        forks += lambda i: ["The river", "The tower"][i] + sgl.gen("x", max_tokens=6)
        s += forks[0].ref("x") + " and" + forks[1].ref("x") + ":" + sgl.gen("all", max_tokens=6)

    @sgl.function
    def by_value(s):
        s += "Paris lies in France. "
        forks = s.fork(2)
        forks += lambda i: ["The river", "The tower"][i] + sgl.gen("x", max_tokens=6)
        s += forks[0]["x"] + " and" + forks[1]["x"] + ":" + sgl.gen("all", max_tokens=6)

    one = by_ref.run(backend=engine, temperature=0)
    assert one.text() == by_value.run(backend=engine, temperature=0).text()
    with sgl.state(engine, temperature=1.0, seed=5) as s:
        s += "The capital of France is" + sgl.gen("x", n=3, max_tokens=5, ignore_eos=True) + "."
    assert len(s["x"]) == 3
    assert len(set(s["x"])) > 1
    assert s.text() == f"The capital of France is{s['x'][0]}."
    prompts = [info["prompt_tokens"] for info in s.get_meta_info("x")]
    assert len(set(prompts)) == 1
    engine.close()


def grown(seed: int, by_ref: bool) -> sgl.SglFunction:
    """A program of forks, gens that are cut and healed, and values put in by reference or by reading them."""

    @sgl.function
    def program(s):
        rng, states, made = random.Random(seed), [s], []
        s += "The river and the tower of "
        for i in range(8):
            state, kind = rng.choice(states), rng.randrange(5)
            if kind == 0 and len(states) < 4:
                states += state.fork(1)
            elif kind == 1 and made:
                owner, name = rng.choice(made)
                state += "<" + (owner.ref(name) if by_ref else owner[name]) + ">"
            else:
                limits = {"max_tokens": rng.choice([1, 4]), "stop": rng.choice([None, "a", "\n"])}
                state += rng.choice([" is", " town Par", "\n1 + 2 = "])
                state += sgl.gen(f"v{i}", heal=rng.random() < 0.4, **limits)
                made.append((state, f"v{i}"))
        return states

    return program


def test_random_programs_give_the_same_by_reference_and_by_value() -> None:
    engine = InProcessEngine()
    for seed in range(8):
        runs = [grown(seed, by_ref).run(backend=engine, temperature=0, seed=1) for by_ref in (True, False)]
        by_ref, by_value = ([state.text() for state in run.ret_value] for run in runs)
        assert by_ref == by_value, seed
    engine.close()
