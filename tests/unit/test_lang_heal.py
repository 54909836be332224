"""Token healing, holes that are dropped, pictures for a model without eyes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import nbsgl as sgl
from nbsgl.engine import grammar
from nbsgl.errors import ParameterError, Unsupported
from nbsgl.protocol import Gen, GrammarSpec
from tests.unit.fakes import FakeBackend
from tests.unit.in_process import InProcessEngine

# ---- heal ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine():
    made = InProcessEngine()
    yield made
    made.close()


def test_heal_is_off_by_default_and_refuses_what_it_cannot_keep() -> None:
    backend = FakeBackend()
    with sgl.state(backend, ignore_eos=True) as s:
        s += "x" + sgl.gen("x")
        with pytest.raises(ParameterError, match="ignore_eos"):
            s += sgl.gen("y", heal=True)
    assert [node.heal for node in backend.nodes if isinstance(node, Gen)] == [False]
    with pytest.raises(ParameterError, match="heal="):
        sgl.gen("x", heal="yes")
    backend.close()


@pytest.mark.parametrize("prefix", [" Par", "\n", "/a(b", '"', "é"])
@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (GrammarSpec(kind="regex", text="(?s:.*)"), "x\ny", None),
        (GrammarSpec(kind="regex", text="a|b"), "b", "c"),
        (GrammarSpec(kind="json_schema", text='{"type": "string", "maxLength": 2}'), '"ab"', "ab"),
    ],
)
def test_a_grammars_prefix_stands_before_its_language(prefix, spec, good, bad) -> None:
    vocab = grammar.TokenVocab([*(bytes([byte]) for byte in range(256)), None], eos_ids=[256])
    with_prefix = GrammarSpec(kind=spec.kind, text=spec.text, prefix=prefix)

    def accepts(text: str) -> bool:
        matcher = grammar.compile(with_prefix, vocab).matcher()
        return all(matcher.advance(byte) for byte in text.encode()) and matcher.is_accepting()

    assert accepts(prefix + good)
    assert not accepts(good)
    assert bad is None or not accepts(prefix + bad)


def test_a_word_goes_on_over_the_line_between_prompt_and_gen(engine) -> None:
    texts = {}
    for heal in (False, True):
        with sgl.state(engine, temperature=0, max_tokens=6) as s:
            s += "The capital of France is Par" + sgl.gen("x", heal=heal) + "|" + sgl.gen("y", max_tokens=3)
        assert s.text() == f"The capital of France is Par{s['x']}|{s['y']}"
        texts[heal] = s["x"]
    assert texts[True].startswith("is")
    with sgl.state(engine, temperature=0) as s:
        s += "The capital of France is" + sgl.gen("x", max_tokens=6)
    assert s["x"].startswith(" Paris")
    assert (" Par" + texts[True]).startswith(s["x"])


def test_a_healed_gen_with_type_samples_stop_stream_and_forks(engine) -> None:
    with sgl.state(engine, max_tokens=4, seed=3) as s:
        s += "1 + 1 = 2\n2 + 2 = " + sgl.gen("n", type=int, heal=True, temperature=0)
        s += "\nParis is in Fra" + sgl.gen("many", heal=True, n=3) + ".\n"
        s += sgl.gen("line", heal=True, stop="\n") + "\n"
        (f,) = s.fork(1)
        f += "The end of th" + sgl.gen("e", heal=True)
        s.fork(1).join()
        s += sgl.gen("one", heal=True, max_tokens=1) + "!"
        streamed = "".join(s.text_iter("one"))
    assert isinstance(s.value("n"), int)
    assert len(s["many"]) == 3
    assert "\n" not in s["line"]
    assert streamed == s["one"]
    assert f.text().endswith("The end of th" + f["e"])
    assert s.text().endswith(s["one"] + "!")


def test_a_healed_child_is_appended_with_its_text(engine) -> None:
    with sgl.state(engine, max_tokens=4, temperature=0) as s:
        s += "The capital of France"
        forks = s.fork(2)
        forks += " is Par" + sgl.gen("x", heal=True)
        forks.join("concate_and_append")
        s += "." + sgl.gen("y")
    assert s.text() == f"The capital of France is Par{forks[0]['x']} is Par{forks[1]['x']}.{s['y']}"
    ids = engine.codec.encode(s.text()[: -len(s["y"])])
    assert np.isclose(s.get_meta_info("y")["prompt_tokens"], len(ids), atol=3)


def test_the_first_token_of_all_is_not_taken_back(engine) -> None:
    with sgl.state(engine, max_tokens=2, temperature=0) as s:
        s += "A" + sgl.gen("x", heal=True)
        (f,) = s.fork(1)
        f += sgl.gen("y", heal=True)
    assert s.text() == "A" + s["x"]
    assert f.text() == "A" + s["x"] + f["y"]


# ---- dropped holes ---------------------------------------------------------------------------------------------------


def warned(program) -> list[warnings.WarningMessage]:
    backend = FakeBackend()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program.run(backend=backend)
    backend.close()
    return [one for one in caught if one.category is sgl.HoleWarning]


def test_a_hole_that_is_dropped_in_a_body_is_warned_of_with_its_line() -> None:
    @sgl.function
    def forgets(s):
        s += "x"
        sgl.gen("lost")
        sgl.user("a" + sgl.select("c", ["a", "b"]))
        s += "y" + sgl.gen("kept")

    found = warned(forgets)
    line = forgets.func.__code__.co_firstlineno + 3
    assert [(one.filename, one.lineno) for one in found] == [
        ("test_lang_heal.py", line),
        ("test_lang_heal.py", line + 1),
    ]
    assert "gen('lost')" in str(found[0].message)


def test_holes_that_are_taken_refused_or_made_elsewhere_are_not_warned_of() -> None:
    outside = sgl.gen("outside")

    @sgl.function
    def careful(s):
        one = sgl.gen("one")
        forks = s.fork(2)
        forks += one + "x"
        s += sgl.user(sgl.gen("two"))
        s += sgl.separate_reasoning(sgl.gen("three"), model_type="qwen3")
        try:
            assert sgl.gen("four") == "x"
        except sgl.HoleError:
            s += "?"

    assert warned(careful) == []
    del outside
    sgl.gen("five")


def test_a_body_that_raises_is_not_warned_of() -> None:
    @sgl.function
    def raises(s):
        sgl.gen("lost")
        raise KeyError("x")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError):
            raises.run(backend=FakeBackend())


def test_one_line_is_warned_of_once() -> None:
    @sgl.function
    def forgets(s, i):
        sgl.gen("lost")

    backend = FakeBackend()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        forgets.run_batch([{"i": i} for i in range(5)], backend=backend)
    assert len(caught) == 1
    backend.close()


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hole", [sgl.image("a.png"), sgl.image(b"\x89"), sgl.video("a.mp4", 3)])
def test_a_picture_is_a_hole_and_a_text_model_says_so_at_the_line(hole) -> None:
    backend = FakeBackend()
    with sgl.state(backend) as s:
        s += "before "
        with pytest.raises(Unsupported, match="fake reads text only"):
            s += sgl.user(hole + "What is this?")
    assert s.text().startswith("before ")
    backend.close()


@pytest.mark.parametrize("wrong", [lambda: sgl.image(None), lambda: sgl.video("a", 0), lambda: sgl.video("a", "b")])
def test_a_picture_that_is_none_is_refused(wrong) -> None:
    with pytest.raises(ParameterError):
        wrong()
