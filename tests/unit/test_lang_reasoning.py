"""`separate_reasoning`: thinking and answer apart, in the variables, the text, the prompt that goes on, the streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbsgl as sgl
from nbsgl.errors import ParameterError
from nbsgl.reasoning import MODEL_TYPES, Markers, Splitter
from tests.unit.fakes import FakeBackend
from tests.unit.graph_fakes import EOS
from tests.unit.test_lang_graph import GraphBackend

SAID = "<think>\nhm, 2\n</think>\n\nfour "


@pytest.fixture
def backend():
    fake = FakeBackend(lambda prompt, node: SAID, thinking=("<think>", "</think>"))
    yield fake
    fake.close()


def cut(text: str, markers: Markers, size: int = 1) -> tuple[str, str]:
    splitter = Splitter(markers)
    pieces = [splitter.push(text[i : i + size]) for i in range(0, len(text), size)] + [splitter.finish()]
    return "".join(thought for thought, _ in pieces), "".join(answer for _, answer in pieces)


@pytest.mark.parametrize(
    ("text", "kind", "thought", "answer"),
    [
        (SAID, "qwen3", "hm, 2", "four"),
        (SAID, "deepseek-r1", "hm, 2", "four"),
        ("hm\n</think> four", "deepseek-r1", "hm", "four"),
        (" four ", "qwen3", "", " four "),
        ("hm", "deepseek-r1", "hm", ""),
        ("<think>hm", "qwen3", "hm", ""),
        ("a <think", "qwen3", "", "a <think"),
        ("<think>a</think><think>b</think>", "qwen3", "a", "<think>b</think>"),
        ("◁think▷a◁/think▷b", "kimi", "a", "b"),
    ],
)
def test_the_cut_is_the_same_however_the_text_comes(text, kind, thought, answer) -> None:
    for size in (1, 2, 3, 100):
        assert cut(text, MODEL_TYPES[kind], size) == (thought, answer)


@given(st.text(alphabet="<think>/ \n", max_size=40), st.integers(1, 5))
def test_the_cut_does_not_depend_on_the_pieces(text, size) -> None:
    assert cut(text, MODEL_TYPES["qwen3"], size) == cut(text, MODEL_TYPES["qwen3"], 100)


def test_variables_text_and_constants(backend) -> None:
    with sgl.state(backend) as s:
        s += sgl.user("2+2?")
        s += sgl.assistant(sgl.separate_reasoning("It is " + sgl.gen("a") + ", or " + sgl.gen("b") + "."))
    assert s["a"] == s["b"] == "four"
    assert s["a_reasoning_content"] == s["b_reasoning_content"] == "hm, 2"
    assert s.text() == "<|user|>2+2?<|end|><|assistant|>It is four, or four.<|end|>"
    assert s.messages()[-1] == {"role": "assistant", "content": "It is four, or four."}
    assert s.get_meta_info("a_reasoning_content") == s.get_meta_info("a")


def test_streams_of_the_answer_and_of_the_thinking() -> None:
    backend = FakeBackend(lambda prompt, node: list(SAID), thinking=("<think>", "</think>"))
    with sgl.state(backend) as s:
        s += "x" + sgl.separate_reasoning(sgl.gen("a"))
        assert "".join(s.text_iter()) == "xfour"
        assert "".join(s.text_iter("a")) == "four"
        assert "".join(s.text_iter("a_reasoning_content")) == "hm, 2"
    backend.close()


def test_several_results_each_have_their_thinking(backend) -> None:
    with sgl.state(backend) as s:
        s += "x" + sgl.separate_reasoning(sgl.gen("a", n=2), model_type="qwen3")
    assert s["a"] == ["four 0", "four 1"]
    assert s["a_reasoning_content"] == ["hm, 2", "hm, 2"]


def test_after_an_opening_mark_the_gen_begins_inside() -> None:
    backend = FakeBackend(lambda prompt, node: "hm</think>four", thinking=("<think>", "</think>"))
    with sgl.state(backend) as s:
        s += "x<think>\n" + sgl.separate_reasoning(sgl.gen("a"))
    assert (s["a"], s["a_reasoning_content"]) == ("four", "hm")
    backend.close()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: sgl.separate_reasoning(),
        lambda: sgl.separate_reasoning("text"),
        lambda: sgl.separate_reasoning(sgl.gen()),
        lambda: sgl.separate_reasoning(sgl.gen("x"), model_type="nothing"),
        lambda: sgl.separate_reasoning(sgl.gen("x", regex="a")),
    ],
)
def test_what_cannot_be_separated_is_an_error_at_its_line(wrong) -> None:
    with pytest.raises(ParameterError):
        wrong()


def test_a_model_without_marks_needs_a_model_type() -> None:
    backend = FakeBackend()
    with sgl.state(backend) as s, pytest.raises(ParameterError, match="model_type"):
        s += sgl.separate_reasoning(sgl.gen("x"))
    backend.close()


# ---- the front -------------------------------------------------------------------------------------------------------

FIRST, SECOND = [*b"<think>hm</think>ok", EOS], [*b"so", EOS]


def test_what_follows_stands_after_the_answer_alone() -> None:
    def draw(tokens: list[int], idx: int, seed: int) -> int:
        return (SECOND if b"then" in bytes(t for t in tokens if t < 256) else FIRST)[idx]

    backend = GraphBackend(draw)
    with sgl.state(backend) as s:
        s += "ask: " + sgl.separate_reasoning(sgl.gen("a", max_tokens=32), model_type="qwen3") + ", then "
        (f,) = s.fork(1)
        f += sgl.select("c", ["yes"]) + sgl.gen("b", max_tokens=8)
        s += sgl.gen("b", max_tokens=8)
    assert (s["a"], s["a_reasoning_content"], s["b"]) == ("ok", "hm", "so")
    assert s.text() == "ask: ok, then so"
    assert f.text() == "ask: ok, then yesso"
    assert s.get_meta_info("b")["prompt_tokens"] == len("ask: ok, then ")
    assert not backend.errors
    backend.close()


def test_a_stop_string_inside_a_token_and_a_thinking_go_together() -> None:
    def draw(tokens: list[int], idx: int, seed: int) -> int:
        return (SECOND if b"then" in bytes(t for t in tokens if t < 256) else [*b"<think>hm</think>ok!x", EOS])[idx]

    backend = GraphBackend(draw)
    with sgl.state(backend) as s:
        s += "ask: " + sgl.separate_reasoning(sgl.gen("a", max_tokens=32, stop="!"), model_type="qwen3") + " then "
        (f,) = s.fork(1)
        s += sgl.gen("b", max_tokens=8)
        s2 = s.fork(1)
        s2 += sgl.separate_reasoning(sgl.gen("c", max_tokens=32), model_type="qwen3")
        s2.join("concate_and_append")
    assert s.text() == "ask: ok then soso"
    assert f.text() == "ask: ok then "
    assert not backend.errors
    backend.close()
