"""Every row of the language's specification (F01-F82: SGLang's names; D01-D20: what is not inherited), one test each.

The rows' semantics are tested in full where each thing lives (`test_lang_*`, `test_chat_templates`, ...); here is what
a program written for SGLang notices first.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import nbsgl as sgl
from nbsgl import errors
from nbsgl.lang.default import default
from nbsgl.protocol import Append, Backend, Gen, Select, Text
from tests.unit import tiny_tokenizers
from tests.unit.fakes import FakeBackend

ROWS = [f"F{i:02}" for i in (*range(1, 12), *range(20, 32), *range(40, 61), *range(70, 83))]
ROWS += [f"D{i:02}" for i in range(1, 21)]


@pytest.fixture
def backend():
    fake = FakeBackend()
    yield fake
    fake.close()


@pytest.fixture
def s(backend):
    block = sgl.state(backend)
    state = block.__enter__()
    yield state
    state.abort()


@pytest.fixture
def no_default(monkeypatch):
    monkeypatch.setattr(default, "_backend", None)
    monkeypatch.setattr(default, "_settings", None)
    monkeypatch.setattr(default, "_was_set", False)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("NBSGL_RUNTIME_DIR", str(tmp_path))
    made = sgl.Engine("embedded", skip_tokenizer_init=True, keep=0, _worker_module="tests.process.fake_worker")
    _ = made.info
    yield made
    made.stop(force=True)


@sgl.function
def qa(s, question, mark="?"):
    s += "Q: " + question + mark + "\nA:"
    s += sgl.gen("a", max_tokens=8)
    return "returned"


def gens(backend) -> list[Gen]:
    return [node for node in backend.nodes if isinstance(node, Gen)]


def sent(backend) -> str:
    return "".join(node.text for node in backend.nodes if isinstance(node, Text))


def test_every_row_has_a_test() -> None:
    tested = {match[1] for name in globals() if (match := re.match(r"test_([FD]\d\d)", name))}
    assert tested == set(ROWS)


# ---- 1.1 programs ----------------------------------------------------------------------------------------------------


def test_F01_function_wraps_a_function_of_s() -> None:
    assert sgl.function(num_api_spec_tokens=64)(lambda s: None).num_api_spec_tokens == 64
    with pytest.raises(errors.ProgramError, match="first parameter"):
        sgl.function(lambda state: None)


def test_F01_async_programs(backend) -> None:
    async def body(s):
        s += "x" + sgl.gen("a")

    assert sgl.function(body).run(backend=backend)["a"] == "[a]"


def test_F02_run_takes_the_defaults_of_every_gen_and_does_not_wait(backend) -> None:
    backend.gate = threading.Event()
    state = qa.run("why", max_new_tokens=9, temperature=0.5, top_k=3, stop="x", seed=1, backend=backend)
    assert state.ret_value == "returned"
    backend.gate.set()
    assert state["a"] == "[a]"
    params = gens(backend)[0].params
    assert (params.max_tokens, params.temperature, params.top_k) == (8, 0.5, 3)  # the gen's own value wins


def test_F02_a_streaming_bodys_exception_is_raised_in_who_reads(backend) -> None:
    state = sgl.function(lambda s: 1 / 0).run(stream=True, backend=backend)
    with pytest.raises(ZeroDivisionError):
        state.text()


def test_F03_an_argument_named_like_a_run_parameter(backend) -> None:
    @sgl.function
    def program(s, n):
        s += f"{n}" + sgl.gen("a")

    assert program.run(3, backend=backend).text() == "3[a]"
    assert program.run_batch([{"n": 3}], backend=backend)[0].text() == "3[a]"
    with pytest.raises(TypeError) as caught:
        program.run(n=3, backend=backend)
    assert "n is a parameter of run()" in caught.value.__notes__[0]


def test_F04_run_batch_keeps_the_order_and_waits(backend) -> None:
    states = qa.run_batch([{"question": "a"}, ("b",), ["c", "!"]], backend=backend, num_threads=2)
    assert [state.text() for state in states] == ["Q: a?\nA:[a]", "Q: b?\nA:[a]", "Q: c!\nA:[a]"]
    assert qa.run_batch([], backend=backend) == []
    assert next(qa.run_batch([("x",)], backend=backend, generator_style=True))["a"] == "[a]"


def test_F05_no_body_is_run_with_dummies(backend) -> None:
    seen = []
    sgl.function(lambda s, q: seen.append(q)).run_batch([("a",), ("b",)], backend=backend)
    assert sorted(seen) == ["a", "b"]


def test_F06_bind_fixes_arguments_and_keeps_settings(backend, caplog) -> None:
    bound = sgl.function(qa.func, num_api_spec_tokens=3).bind(mark="!")
    assert bound.num_api_spec_tokens == 3
    assert bound.run("x", backend=backend).text() == "Q: x!\nA:[a]"
    assert bound.run("x", mark="?", backend=backend).text() == "Q: x!\nA:[a]"
    assert "bound value is used" in caplog.text
    with pytest.raises(errors.ProgramError):
        qa.bind(nothing=1)


def test_F07_calling_runs_and_traces_inside_a_trace(backend) -> None:
    assert qa("x", backend=backend)["a"] == "[a]"

    @sgl.function
    def outer(s):
        s += qa("x", backend=backend).ret_value

    assert outer.trace().graph.num_submissions_before == 1


def test_F08_trace_gives_a_graph() -> None:
    trace = qa.trace()
    assert [node.node.op.value for node in trace.nodes] == ["root", "const", "ref", "const", "const", "gen"]
    assert trace.last_node.print_graph_dfs()
    assert set(trace.variables) == {"a"}
    assert len(trace.flatten_nodes()) == 6

    @sgl.function
    def branching(s, a):
        if a == "x":
            s += "y"

    with pytest.raises(errors.TraceError):
        branching.trace()


def test_F09_cache_warms_the_constant_prefix(backend) -> None:
    assert qa.cache(backend) == len("Q: ")


def test_F10_compile_gives_a_program(backend) -> None:
    compiled = qa.compile(backend=backend)
    assert compiled.run("x").text() == qa.run("x", backend=backend).text()
    assert compiled.run_batch([("y",)])[0]["a"] == "[a]"


def test_F10_compiled_programs_explain_themselves(backend) -> None:
    assert "gen" in str(qa.compile(backend=backend).explain(question="x"))


def test_F11_attributes_of_a_program() -> None:
    assert (qa.arg_names, qa.arg_defaults, qa.bind_arguments) == (["question", "mark"], ("?",), {})
    assert qa.func.__name__ == "qa"


# ---- 1.2 holes -------------------------------------------------------------------------------------------------------


def test_F20_gen_has_sglangs_positions_and_checks_at_its_line() -> None:
    sgl.gen("x", 4, 0, 1, "s", [2], None, 0.5, 0.9, 3, 0.1, 0.2, 0.3, False, True, 0, 1, True, None, None, None, "a+")
    with pytest.raises(re.error):
        sgl.gen("x", regex="(")
    with pytest.raises(errors.ParameterError):
        sgl.gen("x", temperature=-1)
    assert {"seed", "type", "repetition_penalty", "logit_bias"} <= set(inspect.signature(sgl.gen).parameters)


def test_F20_every_constraint_is_a_parameter_and_one_is_enough(s, backend) -> None:
    backend.answer = lambda prompt, node: "so</t>7" if node.grammar and node.grammar.after else "7"
    s += "x" + sgl.gen("a", ebnf='root ::= "7"', jump="off") + sgl.gen("b", lark='start: "7"', grammar="llguidance")
    s += sgl.gen("c", json_schema=True, whitespace="compact", on_unsupported="loosen", on_limit="fit")
    s += sgl.gen("d", type=int, after="</t>", max_think_tokens=3)
    s += sgl.gen("e", tools=[{"name": "f", "parameters": {}}], tool_format="function-tag")
    s += sgl.gen("f", grammar=sgl.GrammarSpec(kind="choices", text='["7"]'))
    assert s.text() == "x" + "7" * 6
    assert s.get_meta_info("d")["reasoning"] == "so"
    kinds = [(gen.grammar.kind, gen.grammar.engine) for gen in gens(backend)]
    assert kinds == [
        ("ebnf", "auto"),
        ("lark", "llguidance"),
        ("json", "auto"),
        ("regex", "auto"),
        ("tags", "auto"),
        ("choices", "auto"),
    ]
    with pytest.raises(errors.ParameterError, match="regex and ebnf were both given"):
        sgl.gen("x", regex="a", ebnf='root ::= "a"')


def test_F20_stop_regex_is_checked_and_sent(s, backend) -> None:
    s += "x" + sgl.gen("a", stop_regex=[r"[0-9]\.", "END"])
    s.sync()
    assert gens(backend)[0].params.stop_regex == (r"[0-9]\.", "END")
    with pytest.raises(re.error):
        sgl.gen("x", stop_regex="(")


def test_F20_list_append_and_heal(s) -> None:
    for _ in range(2):
        s += "x" + sgl.gen("a", list_append=True, heal=True)
    assert s["a"] == ["[a]", "[a]"]


def test_F21_gen_int_and_gen_string(s, backend) -> None:
    s += sgl.gen_int("n", max_tokens=4) + sgl.gen_string("t")
    s.sync()
    assert [gen.grammar.text for gen in gens(backend)] == [r"[-+]?[0-9]+[ \n]*", r"\"[\w\d\s]*\""]


def test_F22_dtypes_are_regexes_and_the_variable_is_text(s, backend) -> None:
    backend.answer = lambda prompt, node: "12"
    s += sgl.gen("n", dtype=int)
    assert s["n"] == "12"
    assert s.value("n") == 12
    assert {" ", "\n"} <= set(gens(backend)[0].params.stop)
    with pytest.raises(errors.ParameterError, match="both given"):
        sgl.gen("x", dtype=int, regex="a")


def test_F23_select_appends_the_best_choice(s) -> None:
    s += "x" + sgl.select("c", ["long one", "no"])
    assert (s["c"], s.text()) == ("no", "xno")
    assert "normalized_prompt_logprobs" in s.get_meta_info("c")
    for wrong in (None, [], [3], ["a", "a"]):
        with pytest.raises(errors.ParameterError):
            sgl.select("c", wrong)


@pytest.mark.parametrize(
    ("method", "chosen"),
    [
        (sgl.token_length_normalized, "b"),  # means: -1.5, -1, -1.25
        (sgl.greedy_token_selection, "c"),  # first tokens: -2, -1, -0.5
        (sgl.unconditional_likelihood_normalized, "b"),  # means, each minus -1
    ],
)
def test_F24_choices_methods_are_the_formulas(method, chosen) -> None:
    rows = {"a": [-2.0, -1.0], "b": [-1.0], "c": [-0.5, -2.0]}
    fake = FakeBackend(scores=lambda prompt, choice: rows[choice])
    with sgl.state(fake) as s:
        s += "x" + sgl.select("c", list(rows), choices_method=method)
    assert s["c"] == chosen
    fake.close()


@pytest.mark.parametrize("make", [lambda: sgl.image("x.png"), lambda: sgl.video("x.mp4", 4)], ids=["image", "video"])
def test_F25_a_text_model_refuses_media_at_the_line(s, make) -> None:
    with pytest.raises(errors.Unsupported):
        s += make()


def test_F26_roles_are_messages(s) -> None:
    s += sgl.system("a") + sgl.user("b") + sgl.assistant(sgl.gen("x")) + sgl.user()
    assert s.text() == "<|system|>a<|end|><|user|>b<|end|><|assistant|>[x]<|end|><|user|><|end|>"


def test_F27_halves_of_roles(s) -> None:
    s += sgl.user_begin() + "b" + sgl.user_end() + sgl.assistant_begin()
    assert s.text() == "<|user|>b<|end|><|assistant|>"
    with pytest.raises(errors.RoleError):
        s += sgl.user_end()


def test_F28_separate_reasoning(backend) -> None:
    backend.answer = lambda prompt, node: "<think>hm</think>yes"
    with sgl.state(backend) as s:
        s += sgl.assistant(sgl.separate_reasoning("I say: " + sgl.gen("x"), model_type="qwen3"))
    assert (s["x"].strip(), s["x_reasoning_content"].strip()) == ("yes", "hm")
    assert "I say: " in s.text()


def test_F29_concatenation_left_to_right(s) -> None:
    s += "a" + sgl.gen("x") + "b" + sgl.gen("y")
    assert s.text() == "a[x]b[y]"
    with pytest.raises(errors.HoleError):
        "a" + sgl.gen("x") + 3


def test_F30_holes_in_f_strings(s) -> None:
    s += f"Name: {sgl.gen('n')}."
    assert s.text() == "Name: [n]."


@pytest.mark.parametrize(
    "use", [lambda h: h == "Yes", bool, lambda h: "a" in h, len, int, list], ids="== bool in len int list".split()
)
def test_F31_a_hole_is_no_value(use) -> None:
    with pytest.raises(errors.HoleError, match="hole"):
        use(sgl.gen("x"))


# ---- 1.3 the state ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, 3, ["a"]])
def test_F40_adding_queues_and_refuses_other_types(s, backend, wrong) -> None:
    s += "x"
    with pytest.raises(errors.HoleError):
        s += wrong
    assert backend.submissions == []


def test_F41_reading_waits_and_unknown_names_are_told(s) -> None:
    s += sgl.gen("a")
    assert s["a"] == s.get_var("a") == "[a]"
    with pytest.raises(KeyError, match="it has 'a'"):
        s["b"]


def test_F42_setting_any_object(s) -> None:
    s["a"] = [1]
    s.set_var("b", None)
    assert (s["a"], s["b"]) == ([1], None)


def test_F43_in_does_not_depend_on_timing(s, backend) -> None:
    s += sgl.gen("a")
    assert "a" in s
    assert "b" not in s
    assert backend.submissions == []


def test_F44_text_messages_sync(s) -> None:
    s += sgl.user("  a") + sgl.assistant(sgl.gen("x")) + sgl.user_begin() + "open"
    s.sync()
    assert s.messages() == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "[x]"}]


def test_F45_error_is_the_cause_or_none(s, backend) -> None:
    assert s.error() is None
    backend.answer = lambda prompt, node: errors.OutOfMemory(needs=2, has=1)
    s += sgl.gen("x")
    assert isinstance(s.error(), errors.OutOfMemory)


def test_F46_meta_info_has_sglangs_keys(s) -> None:
    s += "p" + sgl.gen("x", return_logprob=True, top_logprobs_num=1)
    meta = s.get_meta_info("x")
    keys = "id finish_reason prompt_tokens completion_tokens cached_tokens e2e_latency output_token_logprobs"
    assert {*keys.split(), "output_token_logprobs_length", "output_top_logprobs", "seed", "ttft_s"} <= meta.keys()
    assert s.get_meta_info("nothing") is None


def test_F47_text_iter_replays_and_does_not_steal(backend) -> None:
    backend.answer = lambda prompt, node: ["a", "b"]
    state = sgl.function(lambda s: s.__iadd__("p" + sgl.gen("x"))).run(stream=True, backend=backend)
    assert "".join(state.text_iter()) == "".join(state.text_iter()) == "pab"
    assert "".join(state.text_iter("x")) == "ab"
    with pytest.raises(errors.UnknownVariable):
        list(state.text_iter("y"))


def test_F48_text_async_iter_with_meta_data(backend) -> None:
    backend.answer = lambda prompt, node: ["a", "b"]
    program = sgl.function(lambda s: s.__iadd__("p" + sgl.gen("x", return_logprob=True)))
    state = program.run(stream=True, backend=backend)

    async def collect():
        return [item async for item in state.text_async_iter("x", return_meta_data=True)]

    found = asyncio.run(collect())
    assert "".join(text for text, _ in found) == "ab"
    assert found[-1][1]["completion_tokens"] == 2


def test_F49_fork_copies_without_waiting(s, backend) -> None:
    s += "p" + sgl.gen("x")
    forks = s.fork(2)
    assert backend.submissions == []
    forks[0] += "0"
    assert [f.text() for f in forks] == ["p[x]0", "p[x]"]
    assert forks[1].get_meta_info("x") == s.get_meta_info("x")
    assert len(s.fork(0)) == 0
    with pytest.raises(errors.Unsupported):
        s.fork(2, position_ids_offset=[1, 2])


def test_F50_copy_joins_when_left(s) -> None:
    with s.copy() as c:
        c += "x" + sgl.gen("y")
    assert s["y"] == ["[y]"]


def test_F51_roles_as_calls_and_blocks(s) -> None:
    s.user("a")
    s += s.user("b")
    with pytest.raises(ZeroDivisionError), s.assistant():
        1 / 0
    assert [m["role"] for m in s.messages()] == ["user", "user", "assistant"]


def test_F52_nested_roles(s) -> None:
    s += sgl.user_begin()
    with pytest.raises(errors.RoleError, match="nested"):
        s += sgl.system("x")


def test_F53_var_scope(s) -> None:
    with s.var_scope("v"):
        s += "a" + sgl.gen("x")
        with pytest.raises(errors.UnknownVariable):
            s["v"]
    assert s["v"] == "a[x]"


def test_F54_ret_value(backend) -> None:
    assert qa.run("x", backend=backend).ret_value == "returned"


def test_F55_str_waits_and_repr_does_not(s, backend) -> None:
    s += "p" + sgl.gen("x")
    assert "running" in repr(s)
    assert backend.submissions == []
    assert str(s) == "ProgramState(p[x])"


def test_F56_internals_name_their_replacement(s) -> None:
    with pytest.raises(AttributeError, match=r"s\.text"):
        s.stream_executor.text_


def test_F57_what_nobody_can_read_is_cancelled(backend) -> None:
    backend.gate = threading.Event()
    state = qa.run("x", backend=backend)
    assert backend.alive == 1
    del state
    end = time.monotonic() + 5
    while backend.runs and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert backend.runs == []


def test_F58_groups(s) -> None:
    g = s.fork(3)
    g += "all "
    g += ["a", "b", "c"]
    g += lambda i: f"{i}"
    assert [f.text() for f in g] == ["all a0", "all b1", "all c2"]
    assert (len(g), len(g[1:])) == (3, 2)
    with pytest.raises(IndexError):
        g += ["a"]


def test_F59_join_gathers_new_variables_lazily(s, backend) -> None:
    s["old"] = 1
    g = s.fork(2)
    g[0] += sgl.gen("x") + sgl.gen("only")
    g[1] += sgl.gen("x")
    g.join()
    assert backend.submissions == []
    assert (s["x"], s["only"], s["old"]) == (["[x]", "[x]"], ["[only]"], 1)
    assert g[0].text() == "[x][only]"


def test_F60_join_appends_tokens_in_order(s, backend) -> None:
    s += "p"
    g = s.fork(2)
    g += lambda i: f"{i}" + sgl.gen(f"x{i}")
    g.join("concate_and_append")
    assert s.text() == "p0[x0]1[x1]"
    assert sum(isinstance(node, Append) for node in backend.nodes) == 2
    with pytest.raises(ValueError):
        s.fork(1).join("other")


# ---- 1.4 backends, configuration, chat templates ---------------------------------------------------------------------


@pytest.mark.usefixtures("no_default")
def test_F70_the_default_backend(backend) -> None:
    class Runtime:
        endpoint = backend

    assert (sgl.flush_cache(), sgl.get_server_info()) == (False, None)
    sgl.set_default_backend(Runtime())
    assert qa.run("x")["a"] == "[a]"
    assert sgl.flush_cache() is True
    assert isinstance(sgl.get_server_info(), dict)
    sgl.set_default_backend(None)
    with pytest.raises(errors.NoBackend):
        qa.run("x")


@pytest.mark.usefixtures("no_default")
def test_F71_global_config(backend) -> None:
    sgl.global_config.default_backend = backend
    assert sgl.get_default_backend() is backend
    with pytest.raises(errors.Unsupported):
        sgl.global_config.skip_special_tokens_in_output = False


def test_F72_a_remote_sglang_style_server() -> None:
    parameters = inspect.signature(sgl.RuntimeEndpoint).parameters
    assert list(parameters)[:4] == ["base_url", "api_key", "verify", "chat_template_name"]


def test_F73_a_runtime_with_its_http_door_open() -> None:
    assert {"generate", "async_generate", "encode", "get_tokenizer", "cache_prefix", "shutdown"} <= set(
        dir(sgl.Runtime)
    )


def test_F74_an_engine_is_a_backend(engine) -> None:
    assert isinstance(engine, Backend)
    answers = engine.generate(input_ids=[[5, 6], [7]], sampling_params={"max_new_tokens": 2})
    assert [set(answer) for answer in answers] == [{"text", "output_ids", "meta_info"}] * 2
    assert isinstance(engine.generate(input_ids=[5, 6], sampling_params={"max_new_tokens": 2}), dict)
    assert next(iter(inspect.signature(sgl.Engine).parameters)) == "model_path"


def test_F75_backends_of_services_are_always_importable() -> None:
    assert all(callable(getattr(sgl, name)) for name in ("OpenAI", "Anthropic", "LiteLLM", "VertexAI", "Crusoe"))


def test_F76_api_speculation_is_accepted_and_not_needed_here(backend) -> None:
    @sgl.function(num_api_spec_tokens=64)
    def program(s):
        s += "Name: " + sgl.gen("name", stop="\n") + "\nJob: " + sgl.gen("job", stop="\n")

    assert program.run(backend=backend).text() == "Name: [name]\nJob: [job]"
    assert len(backend.submissions) == 1


def test_F77_server_args_and_version() -> None:
    assert sgl.ServerArgs(model_path="embedded").model_path == "embedded"
    with pytest.raises(TypeError):
        sgl.ServerArgs(nothing=1)
    assert sgl.__version__


def test_F78_chat_templates_by_name() -> None:
    from nbsgl.lang.chat_template import ChatTemplate, get_chat_template, register_chat_template

    assert get_chat_template("chatml").get_prompt([{"role": "user", "content": "a"}]) == (
        "<|im_start|>user\na<|im_end|>\n"
    )
    assert callable(register_chat_template)
    assert list(inspect.signature(ChatTemplate).parameters) == (
        "name default_system_prompt role_prefix_and_suffix stop_str image_token audio_token style".split()
    )
    with pytest.raises(KeyError, match="vicuna"):
        get_chat_template("nothing")


def test_F79_the_models_own_template_unless_one_is_named(tmp_path: Path) -> None:
    from nbsgl import chat_templates
    from nbsgl.engine.templates import role_formats

    folder = tiny_tokenizers.byte_level(tmp_path / "llama31")
    assert role_formats(folder).source == "model"
    assert role_formats(folder, chat_templates.setting("vicuna_v1.1")).source == "vicuna_v1.1"


def test_F80_default_system_and_stops_of_the_template() -> None:
    fake = FakeBackend(default_system="Be kind.")
    mine = ["x"]
    with sgl.state(fake) as s:
        s += sgl.user("a") + sgl.assistant(sgl.gen("b", stop=mine))
    assert s.messages()[0] == {"role": "system", "content": "Be kind."}
    assert gens(fake)[0].params.stop == ("x", "<|end|>")
    assert mine == ["x"]
    fake.close()


def test_F81_deep_imports() -> None:
    from nbsgl.lang.chat_template import get_chat_template_by_model_path
    from nbsgl.lang.choices import token_length_normalized
    from nbsgl.lang.interpreter import ProgramState
    from nbsgl.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR
    from nbsgl.utils import (
        dump_state_text,
        http_request,
        launch_server_cmd,
        print_highlight,
        terminate_process,
        wait_for_server,
    )

    tools = [dump_state_text, http_request, launch_server_cmd, print_highlight, terminate_process, wait_for_server]
    assert all(map(callable, [*tools, get_chat_template_by_model_path]))
    assert (token_length_normalized, ProgramState) == (sgl.token_length_normalized, sgl.ProgramState)
    assert all(re.compile(pattern) for pattern in (REGEX_INT, REGEX_FLOAT, REGEX_BOOL, REGEX_STR))


def test_F82_a_program_in_place(backend) -> None:
    with sgl.state(backend, temperature=0) as s:
        s += "p" + sgl.gen("x")
    assert s.text() == "p[x]"
    assert gens(backend)[0].params.temperature == 0


# ---- 2 what is not inherited -----------------------------------------------------------------------------------------


def test_D01_a_graph_compiler(backend) -> None:
    assert qa.compile(backend=backend, outputs=["a"]).graph.num_submissions == 1


def test_D02_what_a_grammar_leaves_no_choice_about_is_not_drawn_one_by_one() -> None:
    from tests.unit.in_process import InProcessEngine

    engine = InProcessEngine()
    with sgl.state(engine) as s:
        s += "x" + sgl.gen("x", regex=r"The station is open in winter and closed in summer, (yes|no)\.", temperature=0)
    try:
        assert s.get_meta_info("x")["grammar_forced_tokens"] > 0
    finally:
        engine.close()


def test_D03_a_join_that_appends_is_served(s) -> None:
    g = s.fork(2)
    g += "a" + sgl.gen("x")
    g.join(mode="concate_and_append")
    s += "b"
    assert s.text() == "a[x]a[x]b"


@pytest.mark.timeout(20)
def test_D04_a_failed_state_answers_every_access_at_once(s, backend) -> None:
    backend.answer = lambda prompt, node: errors.OutOfMemory(needs=2, has=1)
    s += sgl.gen("a") + sgl.gen("b")
    began = time.monotonic()
    for access in (s.text, s.messages, s.sync, lambda: s["a"], lambda: s["b"], lambda: s.__iadd__("x"), s.fork):
        with pytest.raises(errors.StateFailed):
            access()
    assert s.error() is not None
    assert time.monotonic() - began < 5


def test_D05_the_cause_is_kept(s, backend) -> None:
    backend.answer = lambda prompt, node: errors.OutOfMemory(needs=2, has=1)
    s += sgl.gen("a")
    with pytest.raises(errors.StateFailed, match=r"'a'.*test_conformance\.py") as caught:
        list(s.text_iter())
    assert isinstance(caught.value.__cause__, errors.OutOfMemory)


def test_D06_a_body_of_a_batch_runs_once_per_row(backend) -> None:
    count = []
    sgl.function(lambda s, a: count.append(a)).run_batch([(i,) for i in range(5)], backend=backend)
    assert len(count) == 5


def test_D07_no_template_is_guessed_from_a_path(tmp_path: Path) -> None:
    from nbsgl.engine.templates import role_formats

    for name in ("gemma-3-1b-pt", "llama31"):
        assert role_formats(tiny_tokenizers.byte_level(tmp_path / name)).roles["user"].prefix == "<|im_start|>user\n"


def test_D08_an_engine_backs_programs(engine) -> None:
    from nbsgl.lang.default import unwrapped

    assert unwrapped(engine) is engine
    with pytest.raises(errors.ParameterError, match=r"nbsgl\.Engine"):
        unwrapped(object())


def test_D09_shutdown_ends_no_child_of_somebody_else(engine) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        engine.shutdown()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_D10_an_interrupt_of_the_notebook_does_not_reach_the_engine(engine) -> None:
    for pid in (engine.front_pid, engine.worker_pid):
        assert os.getsid(pid) != os.getsid(0)
        assert os.getpgid(pid) != os.getpgid(0)


def test_D11_gen_has_what_servers_know(s, backend) -> None:
    s += sgl.gen("a", seed=3, n=2, json_schema={"type": "object"}, repetition_penalty=1.1)
    assert s["a"] == ["[a]0", "[a]1"]
    params, grammar = gens(backend)[0].params, gens(backend)[0].grammar
    assert (params.seed, params.n, params.repetition_penalty) == (3, 2, 1.1)
    assert grammar.kind == "json_schema"


def test_D12_a_log_probability_of_zero_counts() -> None:
    fake = FakeBackend(scores=lambda prompt, choice: {"sure": [0.0], "half": [-1.0, 0.0]}[choice])
    with sgl.state(fake) as s:
        s += "x" + sgl.select("c", ["half", "sure"])
    assert s["c"] == "sure"
    assert s.get_meta_info("c")["normalized_prompt_logprobs"] == [-0.5, 0.0]
    fake.close()


def test_D13_text_is_sent_once_and_gens_go_out_together(s, backend) -> None:
    for i in range(8):
        s += f"part {i} " + sgl.gen(f"x{i}")
    s.sync()
    assert len(backend.submissions) == 1
    assert sent(backend).count("part 3") == 1


def test_D14_everything_traces() -> None:
    @sgl.function
    def program(s, a):
        with s.user():
            s += a
        with s.var_scope("v"):
            s += sgl.gen("x")
        g = s.fork(2)
        g += sgl.gen("y")
        g.join()
        s += s["y"][0]

    assert program.trace().complete


def test_D15_a_users_stop_list_stays_as_it_is(backend) -> None:
    stops = ["\n"]
    program = sgl.function(lambda s: s.__iadd__(sgl.gen("x", stop=stops) + sgl.gen("y", stop=stops)))
    program.run(backend=backend, stop=stops).sync()
    assert stops == ["\n"]


def test_D16_silent_wrong_programs_are_errors_or_right(s) -> None:
    with pytest.raises(errors.HoleError):
        _ = sgl.gen("x", choices=["Yes", "No"]) == "Yes"
    s += f"{sgl.gen('y')}"
    assert "y" in s
    assert s.text() == "[y]"


def test_D17_bind_and_gens_forget_nothing(backend) -> None:
    program = sgl.function(lambda s, a: s.__iadd__(a + sgl.gen("x", dtype=int)), num_api_spec_tokens=5)
    assert program.bind(a="p").num_api_spec_tokens == 5
    program.bind(a="p").run(backend=backend, temperature=0.5).sync()
    assert gens(backend)[0].grammar is not None
    assert gens(backend)[0].params.temperature == 0.5


def test_D18_a_state_costs_no_thread(backend) -> None:
    qa.run("x", backend=backend).sync()
    before = threading.active_count()
    states = [qa.run(f"{i}", backend=backend) for i in range(50)]
    assert threading.active_count() <= before
    assert len({state["a"] for state in states}) == 1


def test_D19_a_variables_stream_is_whole_when_the_state_has_ended(backend) -> None:
    state = qa.run("x", backend=backend)
    state.sync()
    assert list(state.text_iter("a")) == ["[a]"]


def test_D20_separate_reasoning_keeps_constants_and_takes_two_gens(backend) -> None:
    backend.answer = lambda prompt, node: f"<think>h</think>{node.name}"
    with sgl.state(backend) as s:
        s += sgl.assistant(sgl.separate_reasoning("A " + sgl.gen("x") + " B " + sgl.gen("y"), model_type="qwen3"))
    assert s.messages()[-1]["content"] == "A x B y"


# ---- 7 small programs from introductions -----------------------------------------------------------------------------


def test_small_program_simple_gen(backend) -> None:
    @sgl.function
    def simple_gen(s, prompt):
        s += prompt
        s += sgl.gen("response", max_tokens=100)

    assert simple_gen.run("Hi", backend=backend)["response"] == "[response]"
    assert len(backend.submissions) == 1


def test_small_program_chat_dialogue(backend) -> None:
    @sgl.function
    def chat_dialogue(s, user_input):
        s += sgl.system("You are a helpful assistant.")
        s += sgl.user(user_input)
        s += sgl.assistant(sgl.gen(max_tokens=128))

    state = chat_dialogue.run("Hi", backend=backend)
    assert state[None] == state.messages()[-1]["content"] == "[None]"


def test_small_program_conditional_gen_wrong_and_right(backend, caplog) -> None:
    @sgl.function
    def wrong(s):
        first_word = sgl.gen(max_tokens=1, choices=["Yes", "No"])
        if first_word == "Yes":
            s += sgl.gen("more")

    @sgl.function
    def right(s):
        s += sgl.gen("first_word", max_tokens=1, choices=["Yes", "No"])
        if s["first_word"] == "No":
            s += sgl.gen("more")

    with pytest.raises(errors.HoleError):
        wrong.run(backend=backend)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert right.run(backend=backend)["more"] == "[more]"
        right.run(backend=backend)
    assert sum("max_tokens" in record.message for record in caplog.records) == 1


def test_small_program_with_a_regex_or_interleaved(backend) -> None:
    @sgl.function
    def record(s):
        s += sgl.gen("entry", regex=r'"name":\s*"[^"]*"')
        s += '{ "name": "' + sgl.gen("name", stop='"') + '", "age": ' + sgl.gen("age", dtype=int) + " }"

    assert record.run(backend=backend).text() == '[entry]{ "name": "[name]", "age": [age] }'
    assert len(backend.submissions) == 1
    assert [node.kind for node in (gen.grammar for gen in gens(backend)) if node] == ["regex", "regex"]


def test_selects_are_one_node_each(s, backend) -> None:
    s += "x" + sgl.select("c", ["a", "bb"])
    s.sync()
    assert sum(isinstance(node, Select) for node in backend.nodes) == 1
