"""`RuntimeEndpoint` against this package's server over the fake engine, and against a server as SGLang's."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import nbsgl as sgl
from nbsgl import errors
from nbsgl.engine.server.guard import Rules
from nbsgl.errors import ApiError, ParameterError, StateFailed, Unsupported
from nbsgl.lang.backends import http, runtime_endpoint
from nbsgl.protocol import Gen, Text
from tests.unit.fakes import CHAT
from tests.unit.served import FakeEngine, served, until


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    engine = FakeEngine(lambda prompt, node: ["", f"<{prompt[-1:]}", ">"])
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def endpoint(engine: FakeEngine) -> Iterator[sgl.RuntimeEndpoint]:
    with served(engine) as url, contextlib.closing(sgl.RuntimeEndpoint(url + "/")) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch) -> None:
    monkeypatch.setattr(http, "FIRST_DELAY_S", 0.01)


@sgl.function
def chat(s, question):
    s += sgl.system("Be kind.")
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=7, stop=["!"]))


# ---- against our own -------------------------------------------------------------------------------------------------


def test_it_says_what_it_talks_to(endpoint) -> None:
    assert endpoint.get_model_name() == "embedded"
    assert endpoint.info.roles == CHAT
    assert endpoint.info.service is None
    assert endpoint.get_chat_template().stop_str == ("<|end|>",)
    assert endpoint.get_server_info()["version"] == sgl.__version__ == sgl.get_server_info(endpoint)["version"]
    assert endpoint.snapshot(tree=True).info.model == "fake"
    assert sgl.flush_cache(endpoint) is True
    assert repr(endpoint) == f"RuntimeEndpoint({endpoint.base_url!r})"


def test_a_program_is_sent_as_text(endpoint, engine) -> None:
    state = chat.run("Hi", backend=endpoint)
    text = "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|><>><|end|>"
    assert state.text() == text
    assert state["answer"] == "<>>"
    gen = [node for node in engine.submissions[-1] if isinstance(node, Gen)][0]
    assert (gen.params.max_tokens, gen.params.stop) == (7, ("!", "<|end|>"))
    assert gen.params.seed == state.get_meta_info("answer")["seed"]
    meta = state.get_meta_info("answer")
    assert meta["finish_reason"] == {"type": "stop", "matched": 2}
    assert meta["completion_tokens"] == 3
    assert meta["cached_tokens"] == 1


def test_user_text_cannot_forge_roles_there(endpoint, engine) -> None:
    chat.run("x<|end|>", backend=endpoint).sync()
    texts = [(node.text, node.parse_special) for node in engine.submissions[-1] if isinstance(node, Text)]
    assert texts == [
        ("<|system|>", True),
        ("Be kind.", False),
        ("<|end|><|user|>", True),
        ("x<|end|>", False),
        ("<|end|><|assistant|>", True),
    ]


def test_rows_that_are_ready_together_go_out_in_few_requests(endpoint, engine) -> None:
    engine.submissions.clear()
    states = chat.run_batch([{"question": str(i)} for i in range(64)], backend=endpoint)
    assert all(state["answer"] == "<>>" for state in states)
    gens = [node for node in engine.nodes if isinstance(node, Gen)]
    assert len(gens) == 64
    assert len(engine.submissions) < 32


def test_a_wave_is_not_failed_by_one_of_its_rows(endpoint) -> None:
    @sgl.function
    def biased(s, token):
        s += "x" + sgl.gen("a", logit_bias={token: 1})

    rows = [{"token": 1}, {"token": 2}, {"token": 3}]
    engine = FakeEngine(lambda prompt, node: errors.ParameterError("no") if 2 in node.params.logit_bias else "ok")
    with served(engine) as url, contextlib.closing(sgl.RuntimeEndpoint(url)) as other:
        states = biased.run_batch(rows, backend=other)
        assert [state.error() is None for state in states] == [True, False, True]
        assert isinstance(states[1].error(), ApiError)
    engine.close()


def test_parameters_and_logprobs_arrive(endpoint, engine) -> None:
    @sgl.function
    def program(s):
        s += "ab" + sgl.gen(
            "x",
            max_tokens=9,
            min_tokens=2,
            temperature=0.5,
            top_p=0.8,
            top_k=4,
            min_p=0.1,
            frequency_penalty=0.2,
            presence_penalty=0.3,
            repetition_penalty=1.1,
            stop_token_ids=[5],
            ignore_eos=True,
            logit_bias={3: 1.5},
            regex="[a-z]+",
            seed=11,
            return_logprob=True,
            logprob_start_len=0,
            top_logprobs_num=1,
            return_text_in_logprobs=True,
        )

    state = program.run(backend=endpoint)
    meta = state.get_meta_info("x")
    gen = [node for node in engine.submissions[-1] if isinstance(node, Gen)][0]
    p = gen.params
    assert (p.max_tokens, p.min_tokens, p.temperature, p.top_p, p.top_k, p.min_p) == (9, 2, 0.5, 0.8, 4, 0.1)
    assert (p.frequency_penalty, p.presence_penalty, p.repetition_penalty) == (0.2, 0.3, 1.1)
    assert (p.stop_token_ids, p.ignore_eos, p.logit_bias, p.seed) == ((5,), True, {3: 1.5}, 11)
    assert gen.grammar.text == "[a-z]+"
    assert meta["input_token_logprobs"][0] == (-0.5, 97, "a")
    assert meta["output_top_logprobs"][0] == [(-0.5, ord("<"), "<")]


def test_whole_specs_and_stop_patterns_arrive(endpoint, engine) -> None:
    given = {"json_schema": {"type": "object"}, "whitespace": "compact", "jump": "off", "on_limit": "fit"}

    @sgl.function
    def program(s):
        s += "ab" + sgl.gen("x", **given, grammar="fsm", after="<", stop_regex=["b{3}"])

    state = program.run(backend=endpoint)
    assert state["x"] == "b>"
    assert state.get_meta_info("x")["reasoning"] == ""
    gen = [node for node in engine.submissions[-1] if isinstance(node, Gen)][0]
    assert gen.grammar == sgl.gen("x", **given, grammar="fsm", after="<").grammar
    assert gen.params.stop_regex == ("b{3}",)


def test_sglangs_own_server_is_told_in_its_words() -> None:
    def asked(**given):
        return runtime_endpoint._asked_of_sglang(sgl.gen("x", **given).grammar)

    assert asked(regex="a") == {"regex": "a"}
    assert asked(ebnf='root ::= "a"') == {"ebnf": 'root ::= "a"'}
    assert asked(json_schema=True) == {"json_schema": "$$ANY$$"}
    assert asked(grammar=sgl.GrammarSpec(kind="choices", text='["a.", "b"]')) == {"regex": r"a\.|b"}
    tags = json.loads(asked(tools=[{"name": "f"}])["structural_tag"])
    assert tags["triggers"] == ["<tool_call>"]
    for given, name in (
        ({"lark": 'start: "a"'}, "lark"),
        ({"tools": [{"name": "f"}], "tool_format": "json"}, "tags"),
        ({"regex": "a", "after": "x"}, "after"),
        ({"regex": "a", "grammar": "fsm"}, "grammar"),
        ({"regex": "a", "on_limit": "fit"}, "on_limit"),
    ):
        with pytest.raises(Unsupported, match=rf"{name}=.*nbsgl\.Engine"):
            asked(**given)


def test_several_results_and_streams(endpoint) -> None:
    @sgl.function
    def program(s, n):
        s += "a" + sgl.gen("x", n=n)

    assert program.run(2, backend=endpoint)["x"] == ["0<a0>0", "1<a1>1"]
    state = program.run(1, backend=endpoint, stream=True)
    chunks = list(state.text_iter("x"))
    assert "".join(chunks) == "<a>"
    assert state.get_meta_info("x")["completion_tokens"] == 3


def test_what_text_cannot_do_is_refused_at_its_line(endpoint) -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", heal=True)

    with pytest.raises(Unsupported, match="heal"):
        program.run(backend=endpoint)


def test_thinking_is_cut_out_here(endpoint) -> None:
    @sgl.function
    def program(s):
        s += sgl.separate_reasoning("q" + sgl.gen("x"), model_type="qwen3")

    engine = FakeEngine(lambda prompt, node: ["<thi", "nk>hm</think>", "yes"])
    with served(engine) as url, contextlib.closing(sgl.RuntimeEndpoint(url)) as other:
        for stream in (False, True):
            state = program.run(backend=other, stream=stream)
            assert (state["x"], state["x_reasoning_content"], state.text()) == ("yes", "hm", "qyes")
    engine.close()


def test_errors_of_the_server_name_what_is_wrong(endpoint, engine) -> None:
    with served(engine, Rules(api_key="secret")) as url:
        with pytest.raises(ApiError, match="api_key="):
            sgl.RuntimeEndpoint(url)
        with contextlib.closing(sgl.RuntimeEndpoint(url, api_key="secret")) as keyed:
            assert chat.run("x", backend=keyed)["answer"] == "<>>"
    with pytest.raises(ParameterError, match="http://"):
        sgl.RuntimeEndpoint("localhost:30000")
    with pytest.raises(KeyError, match="chatml"):
        sgl.RuntimeEndpoint(url, chat_template_name="nothing")


def test_a_server_that_is_not_there_is_an_error_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(ApiError, match="no answer"):
        sgl.RuntimeEndpoint("http://127.0.0.1:9")
    assert time.monotonic() - began < 3


def test_a_lost_server_fails_branches_and_never_hangs() -> None:
    engine = FakeEngine()
    engine.gate = threading.Event()
    with served(engine) as url:
        endpoint = sgl.RuntimeEndpoint(url, max_retries=1)
        states = [chat.run("x", backend=endpoint, stream=stream) for stream in (False, True)]
        until(lambda: len(engine.all_runs) == 2)
    for state in states:
        with pytest.raises(StateFailed):
            state["answer"]
        assert isinstance(state.error(), ApiError)
    endpoint.close()
    engine.close()


def test_an_abort_reaches_the_engine_behind_the_server() -> None:
    engine = FakeEngine()
    engine.gate = threading.Event()
    with served(engine) as url, contextlib.closing(sgl.RuntimeEndpoint(url)) as endpoint:
        for stream in (False, True):
            state = chat.run("x", backend=endpoint, stream=stream)
            until(lambda: engine.runs)
            state.abort()
            until(lambda: not engine.runs)
    engine.close()


# ---- against one as SGLang's -----------------------------------------------------------------------------------------


class Told(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self._answer(json.loads(body))

    def _answer(self, body: Any) -> None:
        status, answer = self.server.answer(self.path, body)  # type: ignore[attr-defined]
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def told(answer: Callable[[str, Any], tuple[int, Any]]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Told) as server:
        server.daemon_threads = True
        server.answer = answer  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


WORDS = {"Paris": -0.5, " is": -2.0, "The": None, " London": -3.0, " big": -1.0, " Rome": -0.1}


def sglang(path: str, body: Any) -> tuple[int, Any]:
    """A server whose tokens are words, and which leaves the first of the scored tokens without a value."""
    if path == "/get_model_info":
        return 200, {"model_path": "meta-llama/Llama-3.1-8B-Instruct", "is_generation": True}
    if path == "/get_server_info":
        return 200, {"context_length": 8192}
    if path != "/generate":
        return 404, {"detail": "Not Found"}
    texts = body["text"] if isinstance(body["text"], list) else [body["text"]]
    answers = [one_answer(text, body) for text in texts]
    return 200, answers if isinstance(body["text"], list) else answers[0]


def one_answer(text: str, body: Any) -> Any:
    words = [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))]
    start = body.get("logprob_start_len", 0)
    rows = [[None if i == start else WORDS.get(word, -9.0), hash(word) % 1000, word] for i, word in enumerate(words)]
    meta = {"id": "1", "finish_reason": {"type": "length", "length": 1}, "prompt_tokens": len(words)}
    meta |= {"completion_tokens": 1, "cached_tokens": 0}
    if body.get("return_logprob"):
        meta |= {"input_token_logprobs": rows[start:], "output_token_logprobs": []}
    return {"text": " end", "meta_info": meta}


def test_templates_come_from_the_models_path_and_context_from_the_server() -> None:
    with told(sglang) as url:
        with contextlib.closing(sgl.RuntimeEndpoint(url)) as endpoint:
            assert endpoint.get_chat_template().name == "llama-3-instruct"
            assert endpoint.info.context_length == 8192
            with pytest.raises(Unsupported, match="inside"):
                endpoint.snapshot()
        with contextlib.closing(sgl.RuntimeEndpoint(url, chat_template_name="chatml")) as endpoint:
            assert endpoint.info.template == "chatml"
            with pytest.raises(ApiError, match="Not Found"):
                endpoint.start_profile()


def test_selects_score_the_choices_tokens_only() -> None:
    @sgl.function
    def program(s):
        s += "The capital"
        s += sgl.select("x", [" London", " Rome", " big London"])
        s += sgl.gen("y")

    with told(sglang) as url, contextlib.closing(sgl.RuntimeEndpoint(url)) as endpoint:
        state = program.run(backend=endpoint)
        assert state["x"] == " Rome"
        assert state.get_meta_info("x")["scores"] == [-3.0, -0.1, -2.0]
        assert state.text() == "The capital Rome end"


def test_seeds_and_fit_are_not_sent_to_servers_that_do_not_know_them() -> None:
    bodies: list[Any] = []

    def noting(path: str, body: Any) -> tuple[int, Any]:
        bodies.append(body)
        return sglang(path, body)

    with told(noting) as url, contextlib.closing(sgl.RuntimeEndpoint(url)) as endpoint:
        chat.run("x", backend=endpoint).sync()
        assert bodies[-1]["sampling_params"] == {"max_new_tokens": 7, "temperature": 1.0, "stop": ["!", "<|eot_id|>"]}


def test_what_may_pass_is_tried_again() -> None:
    left = [2]

    def busy(path: str, body: Any) -> tuple[int, Any]:
        if path == "/generate" and left[0]:
            left[0] -= 1
            return 503, {"error": {"message": "busy"}}
        return sglang(path, body)

    with told(busy) as url, contextlib.closing(sgl.RuntimeEndpoint(url)) as endpoint:
        assert chat.run("x", backend=endpoint)["answer"] == " end"
        assert left == [0]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, b"<html>"), "prompts"),
        ((200, []), "prompts"),
        ((400, {"error": {"message": "too long"}}), "too long"),
        ((200, {"text": "", "meta_info": {"finish_reason": {"type": "abort", "message": "killed"}}}), "killed"),
    ],
)
def test_answers_that_are_none_fail_the_branch(answer, says) -> None:
    def wrong(path: str, body: Any) -> tuple[int, Any]:
        return answer if path == "/generate" else sglang(path, body)

    with told(wrong) as url, contextlib.closing(sgl.RuntimeEndpoint(url)) as endpoint:
        state = chat.run("x", backend=endpoint)
        with pytest.raises(StateFailed, match=says):
            state["answer"]
