"""Programs run as in SGLang, and what they queue goes out as one submission."""

from __future__ import annotations

import logging
import time

import pytest

import nbsgl as sgl
from nbsgl.errors import HoleError, NoBackend, ParameterError, ProgramError
from nbsgl.protocol import Fork, Gen, Root, Select, Text
from tests.unit import programs
from tests.unit.fakes import FakeBackend


@pytest.fixture
def backend():
    fake = FakeBackend()
    yield fake
    fake.close()


# ---- the four workloads ----------------------------------------------------------------------------------------------


def test_eight_calls_with_text_between_are_one_submission(backend) -> None:
    state = programs.chain.run("Where?", backend=backend)
    assert state["a7"] == "[a7]"
    assert len(backend.submissions) == 1
    assert [type(node) for node in backend.nodes] == [Root, *[Text, Gen] * 16, Text]
    assert state.text().startswith(
        "You are an agent that answers by steps.\nWhere?\nThought 1:[t0]\nAction 1: search[[a0]"
    )


def test_judge_is_two_submissions_because_it_reads_four_values(backend) -> None:
    state = programs.judge.run("words", backend=backend)
    assert state["overall"] == "[overall]"
    assert state["verdict"] == ["[verdict]"] * 4
    assert len(backend.submissions) == 2
    assert [type(node) for node in backend.submissions[0][:6]] == [Root, Text, Fork, Fork, Fork, Fork]


def test_select_takes_the_best_choice(backend) -> None:
    backend.scores = lambda prompt, choice: [-0.1 if choice == " no" else -3.0]
    state = programs.select.run(shots="x", question="y", backend=backend)
    assert state["answer"] == " no"
    assert state.text().endswith("Answer: no")


def test_record_sends_its_regex(backend) -> None:
    assert programs.record.run("Nord", backend=backend)["entry"] == "[entry]"
    (gen,) = [node for node in backend.nodes if isinstance(node, Gen)]
    assert (gen.grammar.kind, gen.grammar.text) == ("regex", programs.RECORD)


# ---- programs of public introductions --------------------------------------------------------------------------------


def test_simple_gen_is_one_submission(backend) -> None:
    assert programs.simple_gen.run("Say: ", backend=backend)["response"] == "[response]"
    assert len(backend.submissions) == 1


def test_an_unnamed_gen_is_the_variable_none(backend) -> None:
    state = programs.chat_dialogue.run("Hi", backend=backend)
    assert state[None] == state.messages()[-1]["content"] == "[None]"


def test_comparing_a_hole_is_an_error_at_its_line(backend) -> None:
    with pytest.raises(HoleError, match="is a hole, not a value") as caught:
        programs.conditional_gen.run(backend=backend)
    assert 's["first_word"]' in str(caught.value)
    assert caught.traceback[-3].path.name == "programs.py"


def test_choices_in_gen_work_and_warn_once_of_what_they_ignore(backend, caplog) -> None:
    with caplog.at_level(logging.WARNING, "nbsgl"):
        for _ in range(2):
            state = programs.conditional_gen_right.run(backend=backend)
            assert state["first_word"] == "No"
    assert sum("max_tokens" in record.message for record in caplog.records) == 1


def test_interleaved_text_and_gens_are_one_submission(backend) -> None:
    state = programs.interleaved.run(backend=backend)
    assert state.text() == '{ "name": "[name]", "age": [age] }'
    assert len(backend.submissions) == 1


def test_turns_by_halves_give_the_same_messages(backend) -> None:
    state = programs.turns.run("One?", "Two?", backend=backend)
    assert [m["role"] for m in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
    assert state.messages()[4] == {"role": "assistant", "content": "[answer_1]"}


# ---- function, run, bind ---------------------------------------------------------------------------------------------


def test_function_wants_s_first() -> None:
    with pytest.raises(ProgramError, match="first parameter is the state `s`"):
        sgl.function(lambda x: None)


def test_function_with_arguments_and_its_attributes() -> None:
    @sgl.function(num_api_spec_tokens=64)
    def program(s, a, b=2):
        """Text."""

    assert program.num_api_spec_tokens == 64
    assert (program.arg_names, program.arg_defaults, program.bind_arguments) == (["a", "b"], (2,), {})
    assert program.__doc__ == "Text."
    assert program.func.__name__ == "program"
    assert program.bind(a=1).num_api_spec_tokens == 64


def test_bound_values_win_and_say_so(backend, caplog) -> None:
    seen = []

    @sgl.function
    def program(s, a, b):
        seen.append((a, b))

    bound = program.bind(b=1)
    bound.run(5, backend=backend)
    bound(a=6, backend=backend)
    with caplog.at_level(logging.WARNING, "nbsgl"):
        bound.run(a=7, b=9, backend=backend)
    assert seen == [(5, 1), (6, 1), (7, 1)]
    assert "bound value is used" in caplog.text
    with pytest.raises(ProgramError, match="no argument"):
        program.bind(zzz=1)


def test_run_returns_without_waiting(backend) -> None:
    backend.delay_s = 0.3
    began = time.monotonic()
    state = programs.simple_gen.run("x", backend=backend)
    assert time.monotonic() - began < 0.2
    assert backend.submissions  # but it was sent
    assert state["response"] == "[response]"


def test_without_threads_every_step_waits(backend) -> None:
    programs.chain.run("x", backend=backend, use_thread=False)
    assert len(backend.submissions) > 16


def test_an_exception_of_the_body_leaves_unchanged_and_ends_what_runs(backend) -> None:
    backend.delay_s = 30
    caught = []

    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x")
        caught.append(s)
        s.executor.flush()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        program.run(backend=backend)
    assert backend.alive == 0
    with pytest.raises(KeyError, match="mine"):
        caught[0]["x"]


def test_a_program_parameter_named_like_a_run_parameter(backend) -> None:
    @sgl.function
    def program(s, n):
        s += f"{n}"

    assert program.run(3, backend=backend).text() == "3"
    (state,) = program.run_batch([{"n": 4}], backend=backend)
    assert state.text() == "4"
    with pytest.raises(TypeError, match="missing 1 required") as caught:
        program.run(n=3, backend=backend)
    assert any("parameter of run() too" in note for note in caught.value.__notes__)


def test_run_parameters_are_the_defaults_of_every_gen(backend) -> None:
    @sgl.function
    def program(s):
        s += sgl.gen("a") + sgl.gen("b", max_tokens=3, temperature=0.5, stop="!")

    program.run(backend=backend, max_new_tokens=7, temperature=0, stop=["x"], min_new_tokens=1, repetition_penalty=1.5)
    a, b = (node.params for node in backend.nodes if isinstance(node, Gen))
    assert (a.max_tokens, a.temperature, a.stop, a.min_tokens, a.repetition_penalty) == (7, 0, ("x", "<|end|>"), 1, 1.5)
    assert (b.max_tokens, b.temperature, b.stop, b.min_tokens, b.repetition_penalty) == (
        3,
        0.5,
        ("!", "<|end|>"),
        1,
        1.5,
    )


def test_a_users_stop_list_is_never_altered(backend) -> None:
    stops = ["x"]

    @sgl.function
    def program(s):
        s += sgl.gen("a", stop=stops) + sgl.gen("b", stop=stops)

    program.run(backend=backend)
    assert stops == ["x"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"max_new_tokens": -1},
        {"top_p": 0},
        {"seed": "x"},
        {"deadline_s": 0},
        {"max_tokens": 3, "max_new_tokens": 4},
    ],
)
def test_run_checks_its_parameters(backend, wrong) -> None:
    with pytest.raises(ParameterError):
        programs.simple_gen.run("x", backend=backend, **wrong)
    assert backend.all_runs == []


def test_ret_value_is_what_the_body_returned(backend) -> None:
    @sgl.function
    def program(s):
        s += sgl.gen("a")
        return s["a"] + "!"

    assert program.run(backend=backend).ret_value == "[a]!"
    assert program.run(backend=backend, stream=True).ret_value == "[a]!"


# ---- seeds -----------------------------------------------------------------------------------------------------------


def seeds(backend) -> list[int]:
    return [node.params.seed for node in backend.nodes if isinstance(node, Gen)]


def test_the_same_seed_gives_every_gen_the_same_seed_whatever_the_flushes() -> None:
    @sgl.function
    def program(s, reads):
        s += sgl.gen("a")
        if reads:
            s["a"]
        f = s.fork(2)
        f += sgl.gen("b")
        g = s.fork(1)
        g += sgl.gen("b")
        s += sgl.gen("c") + sgl.gen("d", seed=5)

    found = []
    for reads in (False, True):
        fake = FakeBackend()
        program.run(reads, backend=fake, seed=1)
        found.append(seeds(fake))
        fake.close()
    assert found[0] == found[1]
    assert found[0][-1] == 5
    assert len(set(found[0])) == 6
    assert all(0 <= seed < 2**63 for seed in found[0])


def test_seeds_differ_by_instance_and_by_run_and_can_be_replayed(backend) -> None:
    first = programs.simple_gen.run_batch([{"prompt": "x"}] * 3, backend=backend, seed=9)
    again = programs.simple_gen.run_batch([{"prompt": "x"}] * 3, backend=backend, seed=9)
    free = [programs.simple_gen.run("x", backend=backend) for _ in range(2)]
    meta = [state.get_meta_info("response") for state in (*first, *again, *free)]
    assert [m["seed"] for m in meta[:3]] == [m["seed"] for m in meta[3:6]]
    assert len({m["seed"] for m in meta}) == 5
    replay = programs.simple_gen.run("x", backend=backend, seed=meta[-1]["run_seed"])
    assert replay.get_meta_info("response")["seed"] == meta[-1]["seed"]


# ---- state() ---------------------------------------------------------------------------------------------------------


def test_state_block_sends_and_waits(backend) -> None:
    with sgl.state(backend, temperature=0, max_tokens=5) as s:
        s += "a" + sgl.gen("x")
        f = s.fork(2)
        f += sgl.gen("y")
        assert backend.submissions == []
    assert len(backend.submissions) == 1
    assert (s["x"], f[1]["y"]) == ("[x]", "[y]")
    assert all(node.params.max_tokens == 5 and node.stream for node in backend.nodes if isinstance(node, Gen))


def test_state_block_raises_a_failure_nobody_saw(backend) -> None:
    backend.answer = lambda prompt, node: sgl.OutOfMemory(needs=2, has=1)
    with pytest.raises(sgl.StateFailed, match="OutOfMemory"), sgl.state(backend) as s:
        s += sgl.gen("x")
    with sgl.state(backend) as s:
        s += sgl.gen("x")
        assert s.error().needs == 2


def test_state_block_aborts_after_an_exception(backend) -> None:
    backend.delay_s = 30

    def cell():
        with sgl.state(backend) as s:
            s += sgl.gen("x")
            s.executor.flush()
            1 / 0

    with pytest.raises(ZeroDivisionError):
        cell()
    assert backend.alive == 0


def test_state_on_another_begins_from_its_copy(backend) -> None:
    with sgl.state(backend, temperature=0.25) as s:
        s += "a" + sgl.gen("x")
    for _ in range(2):
        with sgl.state(on=s, seed=3, top_p=0.5) as t:
            t += "b" + sgl.gen("y")
        assert t.text() == "a[x]b[y]"
    assert s.text() == "a[x]"
    first, second = [n.params for n in backend.nodes if isinstance(n, Gen) and n.name == "y"]
    assert first == second
    assert (first.temperature, first.top_p) == (0.25, 0.5)
    view = t.run_view()
    assert [segment.text for segment in view.branches[0].segments] == ["a", "[x]", "b", "[y]"]
    assert (view.branches[0].parent, view.generated) == (None, 3)


def test_state_names_what_it_does_not_know(backend) -> None:
    with pytest.raises(ParameterError, match="temprature"):
        sgl.state(backend, temprature=0)


# ---- the default backend ---------------------------------------------------------------------------------------------


@pytest.fixture
def default(monkeypatch):
    from nbsgl.lang import default as module

    fresh = module.Default()
    monkeypatch.setattr(sgl, "_default", fresh)
    monkeypatch.setattr("nbsgl.lang.program.default", fresh)
    return fresh


def test_the_first_program_starts_the_embedded_engine_and_says_so_once(default, caplog) -> None:
    made = []

    def make_engine(model_path, **settings):
        made.append((model_path, settings))
        return FakeBackend()

    default.make_engine = make_engine
    assert sgl.get_default_backend() is None
    with caplog.at_level(logging.WARNING, "nbsgl"):
        for _ in range(2):
            assert programs.simple_gen.run("x")["response"] == "[response]"
    assert made == [("embedded", {})]
    assert len(caplog.records) == 1
    assert sgl.start() is sgl.get_default_backend()
    with pytest.raises(sgl.EngineMismatch, match="cpu"):
        sgl.start(device="cpu")
    sgl.get_default_backend().close()
    sgl.start(device="cpu")
    assert made[1:] == [("embedded", {"device": "cpu"})]


def test_no_backend_after_none_was_set(default) -> None:
    sgl.set_default_backend(None)
    with pytest.raises(NoBackend, match="nbsgl.start"):
        programs.simple_gen.run("x")
    assert (sgl.flush_cache(), sgl.get_server_info(), sgl.get_status()) == (False, None, None)


def test_set_default_backend_unwraps_and_serves_the_helpers(default, backend) -> None:
    class Runtime:
        endpoint = backend

    sgl.set_default_backend(Runtime())
    assert sgl.get_default_backend() is backend
    assert sgl.flush_cache()
    assert sgl.get_server_info()["info"]["model"] == "fake"
    assert sgl.get_status().policy == "fcfs"
    with pytest.raises(ParameterError, match="backend"):
        sgl.set_default_backend("http://localhost")


def test_select_nodes_carry_method_and_temperature(backend) -> None:
    with sgl.state(backend, seed=1) as s:
        s += sgl.select("a", choices=["x", "y"], temperature=0.7, choices_method=sgl.greedy_token_selection)
    (node,) = [node for node in backend.nodes if isinstance(node, Select)]
    assert (node.method, node.temperature, node.choices) == ("greedy_token_selection", 0.7, ("x", "y"))
    assert node.seed is not None
