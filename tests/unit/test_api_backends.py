"""Programs on API services, each over a real HTTP server in this process."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import types
from dataclasses import dataclass
from typing import Any, Literal

import pytest

import nbsgl as sgl
from nbsgl.errors import Aborted, ApiError, ParameterError, ProgramError, SpeculationMissed, StateFailed, Unsupported
from nbsgl.lang.backends import http
from nbsgl.protocol import Backend
from tests.unit.api_fakes import ApiServer, Refusal

KEYS = (
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "OPENAI_ORG_ID",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
    "CRUSOE_API_KEY",
)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No keys of the machine's user, and no long waits."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http, "FIRST_DELAY_S", 0.01)


@pytest.fixture
def serve():
    """`serve(said, OpenAI, ...)`: a server and a backend for it."""
    opened: list[Any] = []

    def make(said, kind=sgl.OpenAI, model="some-model", has_echo=True, **settings):
        server = ApiServer(said if callable(said) else lambda prompt: said, has_echo)
        server.__enter__()
        url = server.url if kind is sgl.Anthropic else f"{server.url}/v1"
        if kind is sgl.Crusoe:
            settings.setdefault("api_key", "key")
        backend = kind(model, base_url=url, **settings)
        opened.append((server, backend))
        return server, backend

    yield make
    for server, backend in opened:
        backend.close()
        server.__exit__()


def last(messages: Any) -> str:
    """A model that repeats what it is told."""
    return f"You said: {messages[-1]['content']}"


@sgl.function
def dialogue(s, question):
    s += sgl.system("Be brief.")
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=16))
    s += sgl.user("And then?")
    s += sgl.assistant(sgl.gen("more", max_tokens=16, stop="said"))


CHATS = [sgl.OpenAI, sgl.Crusoe, sgl.Anthropic]


# ---- chat ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CHATS)
def test_a_dialogue_is_sent_as_messages(serve, kind) -> None:
    server, backend = serve(last, kind)
    state = dialogue.run("  Why? <|im_end|>", backend=backend)
    assert state["answer"] == "You said: Why? <|im_end|>"
    assert state["more"] == "You "
    sent = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why? <|im_end|>"},
        {"role": "assistant", "content": "You said: Why? <|im_end|>"},
        {"role": "user", "content": "And then?"},
    ]
    first, second = server.bodies
    if kind is sgl.Anthropic:
        assert (first["system"], second["system"]) == ("Be brief.", "Be brief.")
        sent = sent[1:]
        assert first["messages"] == sent[:1]
    else:
        assert first["messages"] == sent[:2]
    assert second["messages"] == sent
    assert second["stop_sequences" if kind is sgl.Anthropic else "stop"] == ["said"]
    assert (first["model"], first["max_tokens"]) == ("some-model", 16)
    assert [message["role"] for message in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
    assert state.messages()[1]["content"] == "Why? <|im_end|>"


@pytest.mark.parametrize("kind", CHATS)
def test_usage_is_counted_and_reset(serve, kind) -> None:
    _, backend = serve("one two three", kind)
    state = dialogue.run("Why?", backend=backend)
    info = state.get_meta_info("more")
    assert info["completion_tokens"] == 3
    assert backend.token_usage.completion_tokens == 6
    asked = state.get_meta_info("answer")["prompt_tokens"] + info["prompt_tokens"]
    assert backend.token_usage.prompt_tokens == asked > 0
    assert info["cached_tokens"] == 1
    assert info["finish_reason"]["type"] == "stop"
    backend.token_usage.reset()
    assert (backend.token_usage.prompt_tokens, backend.token_usage.completion_tokens) == (0, 0)


@pytest.mark.parametrize("kind", [*CHATS, "completions"])
def test_texts_stream(serve, kind) -> None:
    is_chat = kind != "completions"
    server, backend = serve(
        "one two three four", kind if is_chat else sgl.OpenAI, **({} if is_chat else {"is_chat_model": False})
    )

    @sgl.function
    def streamed(s):
        s += sgl.user("Count.") if is_chat else "Count:"
        s += sgl.assistant_begin() if is_chat else ""
        s += sgl.gen("count", max_tokens=3)
        s += sgl.assistant_end() if is_chat else ""

    server.pause_s = 0.05
    state = streamed.run(stream=True, backend=backend)
    pieces = list(state.text_iter("count"))
    assert "".join(pieces) == "one two three"
    assert len(pieces) > 1
    assert state["count"] == "one two three"
    assert state.get_meta_info("count")["finish_reason"] == {"type": "length", "length": 3}
    assert backend.token_usage.completion_tokens == 3

    async def read() -> list[str]:
        again = streamed.run(stream=True, backend=backend)
        return [text async for text in again.text_async_iter("count")]

    assert "".join(asyncio.run(read())) == "one two three"


def test_forks_ask_at_the_same_time(serve) -> None:
    server, backend = serve(lambda messages: messages[-1]["content"].upper())

    @sgl.function
    def judge(s):
        s += sgl.system("Judge.")
        forks = s.fork(3)
        forks += lambda i: sgl.user(f"essay {i}") + sgl.assistant(sgl.gen("score"))
        forks.join()
        s += sgl.user("All: " + ", ".join(s["score"])) + sgl.assistant(sgl.gen("sum"))

    state = judge.run(backend=backend)
    assert state["score"] == ["ESSAY 0", "ESSAY 1", "ESSAY 2"]
    assert state["sum"] == "ALL: ESSAY 0, ESSAY 1, ESSAY 2"
    assert all(body["messages"][0] == {"role": "system", "content": "Judge."} for body in server.bodies)
    states = judge.run_batch([{}] * 20, backend=backend)
    assert [s["sum"] for s in states] == [state["sum"]] * 20


@pytest.mark.parametrize("kind", [sgl.OpenAI, sgl.Anthropic])
def test_text_goes_on_after_a_gen_and_values_can_be_referred_to(serve, kind) -> None:
    server, backend = serve("forty", kind)
    with sgl.state(backend) as s:
        s += sgl.user("How many?") + sgl.assistant(sgl.gen("n") + " apples")
        s += sgl.user("Is " + s.ref("n") + " much?") + sgl.assistant(sgl.gen("x", n=2))
    assert server.bodies[1]["messages"][1:] == [
        {"role": "assistant", "content": "forty apples"},
        {"role": "user", "content": "Is forty much?"},
    ]
    assert s["x"] == ["forty", "forty"]
    assert len(server.requests) == (3 if kind is sgl.Anthropic else 2)


def test_a_gen_must_stand_right_after_assistant_begins(serve) -> None:
    server, backend = serve("x")

    @sgl.function
    def late(s):
        s += sgl.user("Hello") + sgl.assistant("Well, " + sgl.gen("a"))

    with pytest.raises(StateFailed, match="right after assistant begins") as caught:
        late.run(backend=backend)["a"]
    assert isinstance(caught.value.__cause__, Unsupported)
    assert "after 'Well, '" in str(caught.value)
    assert "test_api_backends.py" in caught.value.where
    with pytest.raises(StateFailed, match="stands in none"), sgl.state(backend) as s:
        s += "Text. " + sgl.user("Hello") + sgl.assistant(sgl.gen("a"))
    assert server.requests == []


def test_anthropic_takes_text_without_roles_and_blank_stops(serve) -> None:
    server, backend = serve("one\ntwo three", sgl.Anthropic)
    with sgl.state(backend) as s:
        s += "Count: " + sgl.gen("n", stop=["\n", "three"])
    assert s["n"] == "one"
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Count: "}]
    assert server.bodies[0]["stop_sequences"] == ["three"]
    assert s.get_meta_info("n")["finish_reason"] == {"type": "stop", "matched": "\n"}
    streamed = sgl.function(lambda s: s.__iadd__("Count: " + sgl.gen("n", stop="\n"))).run(stream=True, backend=backend)
    assert "".join(streamed.text_iter("n")) == streamed["n"] == "one"


def test_a_late_system_message_is_refused_by_anthropic(serve) -> None:
    _, backend = serve("x", sgl.Anthropic)
    with pytest.raises(StateFailed, match="system messages at the beginning only"), sgl.state(backend) as s:
        s += sgl.user("Hi") + sgl.system("Be brief.") + sgl.assistant(sgl.gen("a"))


# ---- completions -----------------------------------------------------------------------------------------------------


def test_completions_get_the_whole_text(serve) -> None:
    server, backend = serve(lambda prompt: f" {len(prompt)} and so on", is_chat_model=False)
    with sgl.state(backend, temperature=0.5, stream=False) as s:
        s += "Length:" + sgl.gen("a", max_tokens=1) + "; again:" + sgl.gen("b", stop=" on", seed=7)
    assert s.text() == "Length: 7; again: 17 and so"
    assert [body["prompt"] for body in server.bodies] == ["Length:", "Length: 7; again:"]
    assert server.bodies[1] == {
        "model": "some-model",
        "prompt": "Length: 7; again:",
        "max_tokens": 128,
        "temperature": 0.5,
        "stop": [" on"],
        "seed": 7,
    }


def test_log_probabilities_come_back(serve) -> None:
    for is_chat in (True, False):
        server, backend = serve("one two", is_chat_model=is_chat)
        with sgl.state(backend, stream=False) as s:
            gen = sgl.gen("a", return_logprob=True, top_logprobs_num=1, return_text_in_logprobs=True)
            s += sgl.user("Hi") + sgl.assistant(gen) if is_chat else "Hi" + gen
        info = s.get_meta_info("a")
        assert info["output_token_logprobs"] == [(-0.3, -1, "one"), (-0.4, -1, " two")]
        assert server.bodies[0]["logprobs"] == (True if is_chat else 1)


def test_select_scores_the_choices_where_they_are_echoed(serve) -> None:
    server, backend = serve("x", is_chat_model=False)
    with sgl.state(backend) as s:
        s += "Sky is" + sgl.select("color", [" green-ish", " blue", " red and blue"])
        s += "; or" + sgl.select("other", [" a b", " cc"], choices_method=sgl.unconditional_likelihood_normalized)
        s += "."
    assert s.text().startswith("Sky is red and blue; or")
    info = s.get_meta_info("color")
    assert info["normalized_prompt_logprobs"] == pytest.approx([-1.0, -0.5, -1.3 / 3])
    assert server.bodies[0]["prompt"] == ["Sky is green-ish", "Sky is blue", "Sky is red and blue"]
    other = s.get_meta_info("other")
    assert [row[0][0] for row in other["unconditional_token_logprobs"]] == [None, None]
    assert backend.token_usage.prompt_tokens > 0


def test_a_methods_own_decision_works_on_scores(serve) -> None:
    class Last(sgl.ChoicesSamplingMethod):
        def __call__(self, *, choices, **scores):
            return sgl.ChoicesDecision(choices[-1])

    _, backend = serve("x", is_chat_model=False)
    with sgl.state(backend) as s:
        s += "One of" + sgl.select("which", [" a", " b"], choices_method=Last())
    assert s["which"] == " b"


def test_select_draws_among_the_choices_tokens_without_echo(serve, monkeypatch) -> None:
    server, backend = serve("yea", is_chat_model=False, has_echo=False)
    coder = types.SimpleNamespace(encode=lambda text: [ord(c) for c in text], eot_token=0)
    fake = types.ModuleType("tiktoken")
    fake.encoding_for_model = lambda model: coder
    monkeypatch.setitem(sys.modules, "tiktoken", fake)
    with sgl.state(backend) as s:
        s += "Sure? " + sgl.select("sure", ["yes", "yeah", "yea", "no"])
    assert s["sure"] == "yea"
    assert s.get_meta_info("sure")["scores"] == [0, 0, 1, 0]
    assert [set(body["logit_bias"]) for body in server.bodies[1:3]] == [{"121", "110"}, {"101"}]
    assert set(server.bodies[-1]["logit_bias"]) == {"104", "0"}
    with pytest.raises(StateFailed, match="echoes no log-probabilities"), sgl.state(backend) as s:
        s += "Sure? " + sgl.select("x", ["a", "b"], choices_method=sgl.unconditional_likelihood_normalized)
    assert sum("echo" in body for body in server.bodies) == 1


def test_select_without_echo_and_tokenizer_says_what_to_install(serve, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    _, backend = serve("yes", is_chat_model=False, has_echo=False)
    with pytest.raises(StateFailed, match="pip install tiktoken"), sgl.state(backend) as s:
        s += "Sure? " + sgl.select("sure", ["yes", "no"])


# ---- chat: select and schemas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CHATS)
def test_select_on_a_chat_model_is_constrained_by_the_service(serve, kind) -> None:
    server, backend = serve('{"choice": "tea"}' if kind is not sgl.Anthropic else "tea", kind)
    with sgl.state(backend) as s:
        s += sgl.user("Drink?") + sgl.assistant(sgl.select("drink", ["coffee", "tea"]))
    assert s["drink"] == "tea"
    assert s.messages()[-1] == {"role": "assistant", "content": "tea"}
    body = server.bodies[0]
    schema = body["tools"][0]["input_schema"] if "tools" in body else body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["choice"]["enum"] == ["coffee", "tea"]
    assert backend.token_usage.completion_tokens > 0


def test_a_model_that_chooses_something_else_fails_the_state(serve) -> None:
    _, backend = serve('{"choice": "beer"}')
    with pytest.raises(StateFailed, match="said {'choice': 'beer'}"), sgl.state(backend) as s:
        s += sgl.user("Drink?") + sgl.assistant(sgl.select("drink", ["coffee", "tea"]))


def test_a_schema_becomes_a_response_format(serve) -> None:
    @dataclass
    class Place:
        name: str
        size: Literal["small", "large"]

    server, backend = serve('{"name": "Oslo", "size": "large"}')
    with sgl.state(backend) as s:
        s += sgl.user("Where?") + sgl.assistant(sgl.gen("place", json_schema=Place))
    assert s.value("place") == Place("Oslo", "large")
    asked = server.bodies[0]["response_format"]["json_schema"]
    assert asked["strict"] is True
    assert '"name"' in str(asked["schema"]).replace("'", '"')


def look(place: str, times: int = 1) -> None:
    """Look at a place."""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", CHATS)
def test_tools_are_the_services_own_and_calls_come_as_text(serve, kind, stream) -> None:
    server, backend = serve("Well. ", kind)
    server.calls = [("look", {"place": "sea"}), ("look", {"place": "sky", "times": 2})]

    @sgl.function
    def program(s):
        s += sgl.user("Where?") + sgl.assistant(sgl.gen("x", tools=[look]))

    state = program.run(backend=backend, stream=stream)
    assert "".join(state.text_iter("x")) == state["x"]
    assert [(one.name, one.arguments) for one in state.value("x")] == server.calls
    assert state["x"].startswith("Well. <tool_call>\n{")
    [tool] = server.bodies[0]["tools"]
    told = tool.get("function", tool)
    assert (told["name"], told["description"]) == ("look", "Look at a place.")
    schema = told["parameters" if "parameters" in told else "input_schema"]
    assert (schema["type"], schema["required"]) == ("object", ["place"])
    assert "tool_choice" not in server.bodies[0]


@pytest.mark.parametrize("kind", CHATS)
def test_a_format_of_calls_alone_requires_one(serve, kind) -> None:
    server, backend = serve("", kind)
    server.calls = [("look", {"place": "sea"})]
    with sgl.state(backend) as s:
        s += sgl.user("Where?") + sgl.assistant(sgl.gen("x", tools=[look], tool_format="json"))
    assert server.bodies[0]["tool_choice"] in ("required", {"type": "any", "disable_parallel_tool_use": True})
    assert s["x"] == '{"name": "look", "arguments": {"place": "sea"}}'
    assert len(s.value("x")) == 1


def test_a_call_of_what_was_not_offered_fails_the_state(serve) -> None:
    server, backend = serve("x")
    server.calls = [("jump", {})]
    with pytest.raises(StateFailed, match="'jump'; the tools are look"), sgl.state(backend) as s:
        s += sgl.user("Where?") + sgl.assistant(sgl.gen("x", tools=[look]))


def test_json_mode(serve) -> None:
    server, backend = serve('{"a": [1]}')
    with sgl.state(backend) as s:
        s += sgl.user("JSON!") + sgl.assistant(sgl.gen("x", json_schema=True))
    assert server.bodies[0]["response_format"] == {"type": "json_object"}
    assert s.value("x") == {"a": [1]}


REFUSED = {
    "ebnf": ({"ebnf": 'root ::= "a"'}, "ebnf=", [*CHATS, "completions"]),
    "tags": ({"grammar": sgl.tags(sgl.tag("<a>", regex="a"))}, "tags=", [*CHATS, "completions"]),
    "tools": ({"tools": [look]}, "take tools", ["completions"]),
    "json": ({"json_schema": True}, "without a schema", [sgl.Anthropic, "completions"]),
    "after": ({"json_schema": {}, "after": "</think>"}, "after='</think>'", [sgl.OpenAI]),
    "on_limit": ({"json_schema": {}, "on_limit": "fit"}, "on_limit='fit'", [sgl.OpenAI]),
    "stop_regex": ({"stop_regex": "a"}, "stop_regex=", [*CHATS, "completions"]),
    "regex": ({"regex": "a+"}, "regex='a+'", [*CHATS, "completions"]),
    "dtype": ({"dtype": int}, "regex", [*CHATS, "completions"]),
    "json_schema": ({"json_schema": {}}, "OpenAI's chat models", [sgl.Anthropic, "completions"]),
    "top_k": ({"top_k": 5}, "top_k=5", [sgl.OpenAI, "completions"]),
    "min_p": ({"min_p": 0.1}, "min_p=0.1", [*CHATS, "completions"]),
    "min_tokens": ({"min_tokens": 2}, "min_tokens=2", [*CHATS]),
    "penalty": ({"repetition_penalty": 1.1}, "repetition_penalty", [*CHATS]),
    "ignore_eos": ({"ignore_eos": True}, "ignore_eos", [*CHATS]),
    "prompt logprobs": ({"logprob_start_len": 0}, "logprob_start_len=0", [*CHATS]),
    "seed": ({"seed": 1}, "seed=1", [sgl.Anthropic]),
    "logprobs": ({"return_logprob": True}, "return_logprob", [sgl.Anthropic]),
    "fit": ({"max_tokens": "fit"}, "max_tokens='fit'", [*CHATS, "completions"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_service_cannot_keep_is_refused_at_the_line(serve, case) -> None:
    given, told, kinds = REFUSED[case]
    for kind in kinds:
        is_chat = kind != "completions"
        server, backend = serve("x", kind if is_chat else sgl.OpenAI, **({} if is_chat else {"is_chat_model": False}))
        reached = []

        @sgl.function
        def program(s, given=given, reached=reached):
            s += sgl.user("Hi") + sgl.assistant_begin()
            s += sgl.gen("a", **given)
            reached.append(1)

        with pytest.raises(Unsupported, match="Engine") as caught:
            program.run(backend=backend)
        assert told in str(caught.value)
        assert (reached, server.requests) == ([], [])


def test_a_run_wide_parameter_and_a_scoring_method_are_refused_too(serve) -> None:
    _, backend = serve("x")
    with pytest.raises(Unsupported, match="top_k=3"):
        dialogue.run("Why?", top_k=3, backend=backend)
    with pytest.raises(Unsupported, match="choices_method"), sgl.state(backend) as s:
        s += sgl.assistant(sgl.select("x", ["a", "b"], choices_method=sgl.unconditional_likelihood_normalized))


# ---- HTTP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CHATS)
def test_a_busy_service_is_asked_again(serve, kind) -> None:
    server, backend = serve("fine", kind)
    server.refusals = [Refusal(503), Refusal(429, None, {"retry-after": "0.2"})]
    began = time.monotonic()
    with sgl.state(backend) as s:
        s += sgl.user("Hi") + sgl.assistant(sgl.gen("a"))
    assert s["a"] == "fine"
    assert time.monotonic() - began > 0.2
    assert len(server.requests) == 3


def test_retries_end(serve) -> None:
    server, backend = serve("fine", max_retries=1)
    server.refusals = [Refusal(500, {"error": {"message": "out of order"}})] * 2
    with pytest.raises(StateFailed, match="answered 500: out of order") as caught, sgl.state(backend) as s:
        s += sgl.user("Hi") + sgl.assistant(sgl.gen("a"))
    assert isinstance(caught.value.__cause__, ApiError)
    assert caught.value.__cause__.status == 500
    server.refusals = [Refusal(429, None, {"retry-after": "3600"})]
    with pytest.raises(StateFailed, match="429"), sgl.state(backend) as s:
        s += sgl.user("Hi") + sgl.assistant(sgl.gen("a"))
    assert len(server.requests) == 3


@pytest.mark.parametrize("kind", CHATS)
def test_a_refused_key_says_what_to_set(serve, kind) -> None:
    server, backend = serve("fine", kind)
    server.refusals = [Refusal(401, {"error": {"message": "Incorrect API key"}}, {"request-id": "r7"})]
    with (
        pytest.raises(StateFailed, match="answered 401: Incorrect API key.*API_KEY") as caught,
        sgl.state(backend) as s,
    ):
        s += sgl.user("Hi") + sgl.assistant(sgl.gen("a"))
    assert caught.value.__cause__.request_id == "r7"
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_told_as_that() -> None:
    backend = sgl.OpenAI("m", base_url="http://127.0.0.1:9/v1", max_retries=1)
    with pytest.raises(StateFailed, match="no answer from http://127.0.0.1:9/v1"), sgl.state(backend) as s:
        s += sgl.user("Hi") + sgl.assistant(sgl.gen("a"))
    backend.close()


def test_a_stream_that_breaks_off_keeps_what_came(serve) -> None:
    server, backend = serve("one two")
    server.cut_streams = True
    with pytest.raises(StateFailed, match="broke off") as caught, sgl.state(backend) as s:
        s += sgl.user("Hi") + sgl.assistant(sgl.gen("a"))
    assert caught.value.partial_text == "one two"


def test_a_slow_server_is_given_up_and_an_abort_ends_at_once(serve) -> None:
    server, backend = serve("fine", timeout=0.2, max_retries=0)
    import threading

    server.gate = threading.Event()
    with pytest.raises(StateFailed, match="ReadTimeout"), sgl.state(backend) as s:
        s += sgl.user("Hi") + sgl.assistant(sgl.gen("a"))
    slow = sgl.OpenAI("m", base_url=f"{server.url}/v1")
    state = dialogue.run("Why?", backend=slow)
    began = time.monotonic()
    state.abort()
    with pytest.raises(Aborted):
        state["answer"]
    slow.close()
    assert time.monotonic() - began < 2
    server.gate.set()


# ---- keys and places -------------------------------------------------------------------------------------------------


def test_keys_are_asked_for_when_a_backend_is_made(monkeypatch) -> None:
    for kind, variable in ((sgl.OpenAI, "OPENAI"), (sgl.Anthropic, "ANTHROPIC"), (sgl.Crusoe, "CRUSOE")):
        with pytest.raises(ParameterError, match=f"Set {variable}_API_KEY"):
            kind("some-model")
        monkeypatch.setenv(f"{variable}_API_KEY", "from-env")
        kind("some-model").close()


def test_keys_and_headers_are_sent(serve, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-env")
    server, backend = serve("x", organization="org", default_headers={"x-mine": "1"})
    dialogue.run("Why?", backend=backend).sync()
    headers = server.requests[0][2]
    assert headers["authorization"] == "Bearer from-env"
    assert (headers["openai-organization"], headers["x-mine"]) == ("org", "1")
    server, backend = serve("x", sgl.Anthropic, api_key="mine")
    dialogue.run("Why?", backend=backend).sync()
    assert server.requests[0][0] == "/v1/messages"
    assert server.requests[0][2]["x-api-key"] == "mine"
    assert server.requests[0][2]["anthropic-version"]


def test_azure_has_its_own_places(serve) -> None:
    with pytest.raises(ParameterError, match="AZURE_OPENAI_ENDPOINT"):
        sgl.OpenAI("gpt", is_azure=True)
    with pytest.raises(ParameterError, match="only with is_azure"):
        sgl.OpenAI("gpt", api_version="1", api_key="k")
    server, _ = serve("x")
    backend = sgl.OpenAI("gpt", is_azure=True, azure_endpoint=server.url, api_version="2024-10-21", api_key="k")
    dialogue.run("Why?", backend=backend).sync()
    backend.close()
    path, _, headers = server.requests[0]
    assert path == "/openai/deployments/gpt/chat/completions?api-version=2024-10-21"
    assert headers["api-key"] == "k"


def test_models_that_think_first_get_their_own_limit(serve) -> None:
    server, backend = serve("x", model="o3-mini")
    dialogue.run("Why?", backend=backend).sync()
    assert server.bodies[0]["max_completion_tokens"] == 16
    assert "max_tokens" not in server.bodies[0]
    assert "temperature" not in server.bodies[0]


def test_a_models_name_tells_chat_from_completion() -> None:
    for name, kind in (("gpt-4o", "chat"), ("gpt-3.5-turbo-instruct", "completions"), ("davinci-002", "completions")):
        backend = sgl.OpenAI(name, api_key="k")
        assert backend.info.service == kind
        assert isinstance(backend, Backend)
        assert backend.flush_cache() is False
        with pytest.raises(Unsupported):
            backend.snapshot()
        backend.close()


# ---- asking ahead ----------------------------------------------------------------------------------------------------

CARD = "Name: Ada\nJob: mathematician\nBorn: 1815.\n"


@sgl.function(num_api_spec_tokens=32)
def card(s):
    s += "Ada Lovelace. "
    s += "Name:" + sgl.gen("name", stop="\n") + "\nJob:" + sgl.gen("job", stop="\n", max_tokens=8)
    s += "\nBorn:" + sgl.gen("born", stop=".") + "."


def test_a_completion_model_is_asked_once_when_its_surplus_fits(serve) -> None:
    server, backend = serve(CARD.removeprefix("Name:"), is_chat_model=False)
    state = card.run(backend=backend, temperature=0)
    assert [state[name] for name in ("name", "job", "born")] == [" Ada", " mathematician", " 1815"]
    assert state.text() == "Ada Lovelace. " + CARD.rstrip("\n")
    [body] = server.bodies
    assert body["max_tokens"] == 128
    assert "stop" not in body
    assert backend.token_usage.completion_tokens == 6
    assert state.get_meta_info("job")["completion_tokens"] == 0


def test_a_surplus_that_does_not_fit_is_asked_for_anew(serve) -> None:
    texts = iter([" Ada\nHobby: maths\n", " poet\n Born", " 1815. She"])
    server, backend = serve(lambda prompt: next(texts), is_chat_model=False)
    state = card.run(backend=backend)
    assert [state[name] for name in ("name", "job", "born")] == [" Ada", " poet", " 1815"]
    assert [body["prompt"].rpartition("\n")[2] for body in server.bodies] == ["Ada Lovelace. Name:", "Job:", "Born:"]


def test_limits_and_ends_hold_within_a_surplus(serve) -> None:
    server, backend = serve("one two three four five", is_chat_model=False)

    @sgl.function(num_api_spec_tokens=16)
    def counted(s):
        s += "Count: " + sgl.gen("a", max_tokens=2) + " three" + sgl.gen("b", max_tokens=9, stop="six")
        s += sgl.gen("hot", temperature=0.1, max_tokens=1)
        f = s.fork(1)
        f += sgl.gen("c", max_tokens=1)
        s["fork"] = f[0]["c"]

    state = counted.run(backend=backend)
    assert (state["a"], state["b"]) == ("one two", " four five")
    assert state.get_meta_info("a")["finish_reason"] == {"type": "length", "length": 2}
    assert state.get_meta_info("b")["finish_reason"]["type"] == "stop"
    assert (state["hot"], state["fork"]) == ("one", "one")
    assert len(server.requests) == 3


@sgl.function(num_api_spec_tokens=64)
def chat_card(s):
    s += sgl.system("Answer as: Name: ...\nJob: ...\nBorn: ...")
    s += sgl.user("Ada Lovelace")
    with s.assistant():
        s += "Name:" + sgl.gen("name", stop="\n")
        s += "\nJob:" + sgl.gen("job")
        s += "\nBorn:" + sgl.gen("born", stop=".") + "."
    s += sgl.user("Thanks.") + sgl.assistant(sgl.gen("bye"))


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_model_is_asked_for_a_whole_message(serve, kind, stream) -> None:
    server, backend = serve(lambda messages: "Bye." if len(messages) > 2 else f"\n{CARD}", kind)
    state = chat_card.run(backend=backend, stream=stream)
    if stream:
        assert "".join(state.text_iter("job")) == " mathematician"
    assert [state[name] for name in ("name", "job", "born", "bye")] == [" Ada", " mathematician", " 1815", "Bye."]
    assert state.messages()[2]["content"] == CARD.rstrip("\n")
    assert len(server.requests) == 2
    assert server.bodies[0]["max_tokens"] == 64
    assert server.bodies[1]["messages"][-2] == {"role": "assistant", "content": CARD.rstrip("\n")}


def test_an_answer_that_misses_the_form_is_asked_for_three_times(serve) -> None:
    answers = iter(["I will not.", "Name: Ada\nAge: 9", f"{CARD}", "Bye."])
    server, backend = serve(lambda messages: next(answers))
    assert chat_card.run(backend=backend)["bye"] == "Bye."
    assert len(server.requests) == 4
    assert len({body["seed"] for body in server.bodies[:3]}) == 3
    assert backend.token_usage.completion_tokens == 3 + 4 + 7 + 1
    _, backend = serve("I will not.")
    state = chat_card.run(backend=backend)
    with pytest.raises(SpeculationMissed, match="3 answers did not follow the message") as caught:
        state["job"]
    assert caught.value.answer == "I will not."
    assert caught.value.program == "chat_card"
    assert isinstance(state.error(), SpeculationMissed)


def test_nothing_in_an_open_message_can_be_waited_for(serve) -> None:
    _, backend = serve("Name: Ada\n")

    @sgl.function(num_api_spec_tokens=8)
    def impatient(s):
        s += sgl.user("Who?") + sgl.assistant_begin() + "Name:" + sgl.gen("name", stop="\n")
        s["name"]

    with pytest.raises(ProgramError, match="has not ended yet.*assistant_end"):
        impatient.run(backend=backend)


def test_gens_of_one_message_are_drawn_alike(serve) -> None:
    _, backend = serve("a b")

    @sgl.function(num_api_spec_tokens=8)
    def mixed(s):
        s += sgl.assistant(sgl.gen("a", stop=" ", temperature=0) + " " + sgl.gen("b", temperature=1.0))

    with pytest.raises(StateFailed, match="only stop and max_tokens may differ"):
        mixed.run(backend=backend)["a"]

    @sgl.function(num_api_spec_tokens=8)
    def choosy(s):
        s += sgl.assistant(sgl.gen("a", stop=" ") + sgl.select("b", ["x", "y"]))

    with pytest.raises(StateFailed, match="only text and gens"):
        choosy.run(backend=backend)["a"]
    with pytest.raises(ParameterError, match="num_api_spec_tokens=0"):
        sgl.function(lambda s: None, num_api_spec_tokens=0)


@pytest.mark.parametrize("ending", ["raises", "is dropped"])
def test_a_message_that_never_ends_leaves_nothing_behind(serve, ending) -> None:
    server, backend = serve("Name: Ada\n")

    @sgl.function(num_api_spec_tokens=8)
    def broken(s):
        s += sgl.user("Who?")
        f = s.fork(1)
        s += sgl.assistant_begin() + "Name:" + sgl.gen("name", stop="\n")
        f += sgl.assistant(sgl.gen("other"))
        f[0]["other"]
        if ending == "raises":
            raise ZeroDivisionError

    if ending == "raises":
        with pytest.raises(ZeroDivisionError):
            broken.run(backend=backend)
    else:
        state = broken.run(backend=backend)
        with pytest.raises(ProgramError, match="has not ended yet"):
            state.sync()
        del state
    assert len(server.requests) == 1
    began = time.monotonic()
    while backend._runs and time.monotonic() - began < 5:
        gc.collect()
        time.sleep(0.01)
    assert not backend._runs


def test_thinking_is_cut_out_and_not_asked_ahead(serve) -> None:
    server, backend = serve("<think>hm</think>yes or no")

    @sgl.function(num_api_spec_tokens=8)
    def thoughtful(s):
        s += sgl.user("Sure?")
        s += sgl.assistant(sgl.separate_reasoning(sgl.gen("a", max_tokens=16), model_type="qwen3"))

    state = thoughtful.run(backend=backend)
    assert (state["a"], state["a_reasoning_content"]) == ("yes or no", "hm")
    assert server.bodies[0]["max_tokens"] == 16


# ---- optional packages -----------------------------------------------------------------------------------------------


def test_backends_of_optional_packages_say_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "litellm", None)
    monkeypatch.setitem(sys.modules, "vertexai", None)
    with pytest.raises(Unsupported, match="pip install litellm"):
        sgl.LiteLLM("anthropic/some")
    with pytest.raises(Unsupported, match="pip install google-cloud-aiplatform"):
        sgl.VertexAI("gemini")


@pytest.fixture
def litellm(monkeypatch):
    """A package that answers as litellm does."""
    fake = types.ModuleType("litellm")
    fake.asked = []

    class Answer:
        def __init__(self, data: Any) -> None:
            self.model_dump = lambda: data

    async def events():
        for text, reason in (("a ", None), ("b", None), ("", "stop")):
            await asyncio.sleep(0.05)
            yield Answer({"choices": [{"delta": {"content": text}, "finish_reason": reason}]})

    async def acompletion(**body):
        fake.asked.append(body)
        if body["messages"][-1]["content"] == "fail":
            error = RuntimeError("quota")
            error.status_code = 402
            raise error
        if body.get("stream"):
            return events()
        choice = {"index": 0, "message": {"content": "a b"}, "finish_reason": "stop"}
        return Answer({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})

    fake.acompletion = acompletion
    monkeypatch.setitem(sys.modules, "litellm", fake)
    return fake


def test_litellm_gets_messages_and_settings(litellm) -> None:
    backend = sgl.LiteLLM("bedrock/x", api_key="k", default_headers={"h": "1"})
    state = dialogue.run("Why?", backend=backend)
    assert state["answer"] == "a b"
    asked = litellm.asked[0]
    assert (asked["model"], asked["api_key"], asked["extra_headers"]) == ("bedrock/x", "k", {"h": "1"})
    assert "seed" not in asked
    assert asked["messages"][-1] == {"role": "user", "content": "Why?"}
    assert backend.token_usage.completion_tokens >= 2
    streamed = dialogue.run("Why?", stream=True, backend=backend)
    assert list(streamed.text_iter("answer")) == ["a ", "b"]
    with pytest.raises(StateFailed, match="answered 402: RuntimeError: quota"):
        dialogue.run("fail", backend=backend)["answer"]
    backend.close()


@pytest.fixture
def vertexai(monkeypatch):
    """A package that answers as vertexai does."""
    fake, models = types.ModuleType("vertexai"), types.ModuleType("vertexai.generative_models")
    fake.asked, fake.generative_models = [], models
    fake.init = lambda **settings: fake.asked.append(settings)
    models.Content = lambda role, parts: (role, parts)
    models.Part = types.SimpleNamespace(from_text=lambda text: text)
    models.GenerationConfig = lambda **settings: settings

    def answer(text: str, reason: str) -> Any:
        candidate = types.SimpleNamespace(
            content=types.SimpleNamespace(parts=[types.SimpleNamespace(text=text)]),
            finish_reason=types.SimpleNamespace(name=reason),
        )
        usage = types.SimpleNamespace(prompt_token_count=4, candidates_token_count=2)
        return types.SimpleNamespace(candidates=[candidate], usage_metadata=usage)

    async def events():
        yield answer("tea ", "FINISH_REASON_UNSPECIFIED")
        await asyncio.sleep(0.05)
        yield answer("time", "STOP")

    class Model:
        def __init__(self, name: str, system_instruction: str | None = None) -> None:
            self.system = system_instruction

        async def generate_content_async(self, contents, generation_config, safety_settings, stream=False):
            fake.asked.append((self.system, contents, generation_config))
            return events() if stream else answer("tea", "MAX_TOKENS")

    models.GenerativeModel = Model
    monkeypatch.setitem(sys.modules, "vertexai", fake)
    monkeypatch.setitem(sys.modules, "vertexai.generative_models", models)
    monkeypatch.setenv("GCP_PROJECT_ID", "mine")
    return fake


def test_vertexai_gets_messages_and_settings(vertexai) -> None:
    backend = sgl.VertexAI("gemini")
    state = dialogue.run("Why?", top_k=7, backend=backend)
    assert state["answer"] == "tea"
    assert state.get_meta_info("answer")["finish_reason"] == {"type": "length", "length": 16}
    system, contents, settings = vertexai.asked[1]
    assert (system, contents) == ("Be brief.", [("user", ["Why?"])])
    assert (settings["max_output_tokens"], settings["top_k"]) == (16, 7)
    streamed = dialogue.run("Why?", stream=True, backend=backend)
    assert list(streamed.text_iter("answer")) == ["tea ", "time"]
    streamed.sync()
    with sgl.state(backend) as s:
        s += "Drink? " + sgl.select("drink", ["tea", "ink"])
    assert s["drink"] == "tea"
    assert vertexai.asked[-1][2]["response_schema"]["enum"] == ["tea", "ink"]
    assert (backend.token_usage.prompt_tokens, backend.token_usage.completion_tokens) == (20, 10)
    backend.close()


def test_vertexai_needs_a_project(vertexai, monkeypatch) -> None:
    monkeypatch.delenv("GCP_PROJECT_ID")
    with pytest.raises(ValueError, match="Set GCP_PROJECT_ID"):
        sgl.VertexAI("gemini")
