"""What `generate` makes of SGLang's arguments, without an engine."""

from __future__ import annotations

import atexit
import json
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest

from nbsgl.engine import io_loop
from nbsgl.engine.generate import Request, requests, sampling
from nbsgl.engine.handle import Engine
from nbsgl.engine.io_loop import IoLoop
from nbsgl.errors import Aborted, ParameterError, Unsupported, encode
from nbsgl.protocol import (
    BranchFailed,
    Chunk,
    Close,
    Finish,
    Gen,
    GenDone,
    GenResult,
    Logprobs,
    Root,
    SamplingParams,
    Text,
    Tokens,
    pack_ids,
)


def made(prompt: object = None, params: object = None, ids: object = None, *, stream: bool = False, **others: object):
    return requests(prompt, params, ids, stream, dict(others))


def test_sglangs_names_become_ours() -> None:
    params, grammar = sampling(
        {"max_new_tokens": 5, "min_new_tokens": 1, "stop": "x", "sampling_seed": 3, "logit_bias": {"7": 1.5}}
    )
    assert params == SamplingParams(max_tokens=5, min_tokens=1, stop=("x",), seed=3, logit_bias={7: 1.5})
    assert grammar is None


TAGS = {
    "type": "structural_tag",
    "structures": [{"begin": "<f>", "schema": {"type": "object"}, "end": "</f>"}],
    "triggers": ["<f"],
}


def test_a_grammar_is_one_of_sglangs_or_a_spec_of_ours() -> None:
    _, grammar = sampling({"json_schema": {"type": "object"}})
    assert grammar is not None
    assert (grammar.kind, grammar.text) == ("json_schema", '{"type": "object"}')
    for params, kind in (
        ({"json_schema": "$$ANY$$"}, "json"),
        ({"json_schema": '{"type": "null"}'}, "json_schema"),
        ({"ebnf": 'root ::= "a"'}, "ebnf"),
        ({"grammar": {"kind": "lark", "text": 'start: "a"', "jump": "off"}}, "lark"),
        ({"structural_tag": TAGS}, "tags"),
        ({"structural_tag": json.dumps(TAGS), "regex": None}, "tags"),
    ):
        assert sampling(params)[1].kind == kind
    assert sampling({"stop_regex": "a+"})[0].stop_regex == ("a+",)
    for bad in ({"regex": 3}, {"ebnf": {}}, {"grammar": {"kind": "x", "text": ""}}, {"structural_tag": 3}):
        with pytest.raises(ParameterError):
            sampling(bad)
    with pytest.raises(ParameterError):
        sampling({"json_schema": "{}", "regex": "a"})


def test_unknown_names_are_refused_with_the_known() -> None:
    with pytest.raises(ParameterError, match="max_new_tokens"):
        sampling({"max_new_token": 5})
    with pytest.raises(ParameterError, match="promt"):
        made("a", promt="b")


def test_what_cannot_be_honoured_is_unsupported() -> None:
    assert sampling({"skip_special_tokens": True, "ebnf": None})[0] == SamplingParams()
    for params in ({"skip_special_tokens": False}, {"custom_params": {"a": 1}}, {"no_stop_trim": True}):
        with pytest.raises(Unsupported):
            sampling(params)
    with pytest.raises(Unsupported):
        made("a", image_data="x")
    with pytest.raises(Unsupported):
        made("a", {"n": 2}, stream=True)


def test_a_prompt_is_a_branch() -> None:
    [request], is_single = made("Hi", {"max_new_tokens": 2})
    assert is_single
    assert request.nodes == [
        Root(branch=0),
        Text(branch=0, text="Hi", parse_special=True),
        Gen(branch=0, slot=0, params=SamplingParams(max_tokens=2)),
        Close(branch=0),
    ]


def test_lists_spread_their_settings() -> None:
    both, is_single = made(ids=[[1, 2], [3]], params=[{"n": 2}, None], return_logprob=[True, False])
    assert not is_single
    assert both[1].nodes[1] == Tokens(branch=1, ids=pack_ids([3]))
    assert [request.params.n for request in both] == [2, 1]
    assert [request.params.return_logprob for request in both] == [True, False]
    with pytest.raises(ParameterError, match="sampling_params"):
        made(["a", "b"], [{}])


def test_one_of_prompt_and_ids() -> None:
    with pytest.raises(ParameterError):
        made()
    with pytest.raises(ParameterError):
        made("a", ids=[1])
    assert made(ids=[1, 2])[1]


def result(text: str = "ab") -> GenResult:
    return GenResult(
        text=text,
        ids=pack_ids([5, 6]),
        finish=Finish(type="stop", matched="x"),
        prompt_tokens=3,
        cached_tokens=1,
        completion_tokens=2,
        e2e_s=0.5,
        output_logprobs=Logprobs(tokens=[(-1.0, 5, "a"), (-2.0, 6, "b")]),
    )


def test_an_answer_has_sglangs_shape() -> None:
    [request], _ = made("Hi", return_logprob=True)
    assert request.take(GenDone(branch=0, slot=0, results=[result()])) is None
    assert request.answers == [
        {
            "text": "ab",
            "output_ids": [5, 6],
            "meta_info": {
                "id": request.id,
                "finish_reason": {"type": "stop", "matched": "x"},
                "prompt_tokens": 3,
                "completion_tokens": 2,
                "cached_tokens": 1,
                "e2e_latency": 0.5,
                "input_token_logprobs": [],
                "output_token_logprobs": [(-1.0, 5, None), (-2.0, 6, None)],
            },
        }
    ]


def test_a_stream_is_cumulative_and_ends_with_the_answer() -> None:
    [request], _ = made("Hi", stream=True)
    assert isinstance(request, Request)
    first = request.take(Chunk(branch=0, slot=0, text="a", ids=pack_ids([5])))
    second = request.take(Chunk(branch=0, slot=0, text="b", ids=pack_ids([6])))
    last = request.take(GenDone(branch=0, slot=0, results=[result()]))
    assert [part["text"] for part in (first, second, last) if part] == ["a", "ab", "ab"]
    assert last is not None
    assert last["meta_info"]["finish_reason"] == {"type": "stop", "matched": "x"}


def test_a_failure_is_raised() -> None:
    [request], _ = made("Hi")
    with pytest.raises(Aborted):
        request.take(BranchFailed(branch=0, slot=0, error=encode(Aborted(by="x"))))


def test_an_answer_that_comes_as_the_wait_ends_is_taken() -> None:
    class Late(Future[str]):
        """Its value arrives just after `result` gave up."""

        num_asked = 0

        def result(self, timeout: float | None = None) -> str:
            self.num_asked += 1
            if self.num_asked == 1:
                self.set_result("here")
                raise TimeoutError
            return super().result(timeout)

    loop = SimpleNamespace(thread=None, is_alive=True)
    engine = SimpleNamespace(_loop=loop, _show_progress=lambda: None)
    assert Engine._wait(engine, Late()) == "here"
    assert Engine._wait(engine, Late(), 0.0) == "here"


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine may have been started from another folder."""
    monkeypatch.setattr(io_loop, "shared", lambda: IoLoop())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jinja").write_text("x")
    engine = Engine(chat_template="mine.jinja", tokenizer_path=tmp_path)
    atexit.unregister(engine._at_exit)
    engine._loop.close()
    assert engine.config.chat_template == str((tmp_path / "mine.jinja").resolve())
    assert engine.config.tokenizer_path == str(tmp_path.resolve())
