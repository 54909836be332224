"""`explain` says what is sent and computed before it happens; what it predicts is what is measured."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import pytest

import nbsgl as sgl
from nbsgl.errors import ProgramError
from nbsgl.lang.default import default
from nbsgl.lang.predict import Prediction
from nbsgl.protocol import CacheProbe, Gen, Peek, Prompt, pack_ids
from tests.unit import programs
from tests.unit.fakes import FakeBackend
from tests.unit.in_process import InProcessEngine


class ProbedEngine(InProcessEngine):
    def peek(self, prompts):
        ids = [self.codec.encode_run(prompt.pieces, is_first=prompt.is_first) for prompt in prompts]
        tree = self.scheduler.tree
        cached = [tree.peek(each, len(each))[1] if prompt.is_first else 0 for each, prompt in zip(ids, prompts)]
        return [Peek(ids=pack_ids(each), cached=count) for each, count in zip(ids, cached)]


@pytest.fixture(scope="module")
def loaded():
    engine = ProbedEngine()
    yield engine
    engine.close()


@pytest.fixture
def engine(loaded):
    loaded.flush_cache()
    return loaded


@pytest.fixture
def backend():
    fake = FakeBackend()
    yield fake
    fake.close()


@pytest.fixture(autouse=True)
def no_default(monkeypatch):
    monkeypatch.setattr(default, "_backend", None)


@sgl.function
def tea(s):
    s += "Do you like tea? " + sgl.gen("first_word", max_tokens=1, choices=["Yes", "No"])
    if s["first_word"] == "Yes":
        s += sgl.gen("more")


def facts(shown, word):
    return next(fact for fact in shown.facts() if word in fact)


# ---- before a run ----------------------------------------------------------------------------------------------------


def test_nothing_runs_and_nothing_is_sent(backend) -> None:
    shown = programs.turns.explain(first="a", second="b", backend=backend)
    assert backend.submissions == []
    assert "unknown: this backend does not show its tokenizer and cache" in str(shown)
    assert "unknown: no engine is running" in str(programs.turns.explain(first="a", second="b"))


def test_each_node_has_a_line_with_what_it_follows() -> None:
    shown = programs.select.explain(shots="x")
    assert shown.columns() == ("node", "op", "branch", "wave", "after", "tokens", "line", "source")
    assert [row[:2] for row in shown.rows()] == [
        ("%0", "root"),
        ("%2", "const"),
        ("%3", "ref"),
        ("%4", "const"),
        ("%5", "select"),
    ]
    assert shown.rows()[2] == ("%3", "ref", "0", "1", "%2", "", shown.rows()[2][6], "argument question")
    assert re.fullmatch(r"programs\.py:\d+", shown.rows()[2][6])
    assert str(shown).startswith("select(question): 5 nodes, 1 sampled, 1 branches")


def test_submissions_before_and_after() -> None:
    select, chain = programs.select.explain(), programs.chain.explain()
    assert (select.before, select.plain, select.after) == (5, 1, 1)
    assert (chain.before, chain.plain, chain.after) == (16, 1, 1)
    assert "5 by SGLang's frontend (one per gen, k + 1 per select of k choices), 1 as written" in str(select)


@sgl.function
def two_reads(s, x):
    f, g = s.fork(2)
    f += "f" + sgl.gen("a")
    s += f["a"]
    g += "g" + x + sgl.gen("b")
    s += g["b"] + sgl.gen("c")


def test_demands_are_listed_and_counted_as_a_plain_run_meets_them(backend) -> None:
    shown = two_reads.explain()
    assert (shown.before, shown.plain, shown.after) == (3, 3, 1)
    assert facts(shown, "'a'").startswith("test_lang_explain.py:")
    assert "cuts the graph" in facts(shown, "'b'")
    state = two_reads.run("x", backend=backend)
    state.sync()
    assert state.executor.num_submissions == shown.plain
    compiled = two_reads.compile().run("x", backend=backend)
    compiled.sync()
    assert compiled.executor.num_submissions == shown.after


def test_a_program_that_needs_a_value_is_shown_as_far_as_it_goes() -> None:
    shown = tea.explain()
    assert shown.after is None
    assert "the rest depends on a value" in facts(shown, "test_lang_explain.py:")
    assert [row[1] for row in shown.rows()] == ["root", "const", "select"]


def test_warnings_name_ignored_parameters_and_constants_that_could_be_shared() -> None:
    shown = tea.explain()
    assert "max_tokens mean(s) nothing to a select" in str(shown)

    @sgl.function
    def behind(s, question):
        s += "Q: " + question + "\n" + "Answer in the style of a lighthouse keeper who has seen many storms. " * 2
        s += sgl.gen("a")

    assert "stand behind the argument 'question'" in str(behind.explain())
    assert "stand behind" not in str(behind.explain(question="x"))


# ---- against the real engine's tree ----------------------------------------------------------------------------------

CASES = {
    "select": (programs.select, {"shots": "Is it so? " * 9, "question": "Is it?"}),
    "turns": (programs.turns, {"first": "a b c", "second": "what?"}),
    "record": (programs.record, {"name": "Nord"}),
}


@pytest.mark.parametrize(("program", "args"), CASES.values(), ids=CASES.keys())
def test_the_prediction_is_what_is_measured_cold_and_warm(engine, program, args) -> None:
    assert isinstance(engine, CacheProbe)
    for _ in range(2):
        shown = program.explain(analyze=True, backend=engine, **args)
        found = shown.measured.values()
        assert isinstance(shown.prediction, Prediction)
        assert shown.prediction.cached == sum(each.cached for each in found)
        assert shown.prediction.computed == sum(each.computed for each in found)
        assert shown.sent == shown.plain == 1


@sgl.function
def branching(s, topic):
    s += "Here is a text about " + topic + ".\n"
    forks = s.fork(3)
    for f, word in zip(forks, ["clear", "new", "short"]):
        f += f"Is it {word}? " + sgl.gen("verdict", max_tokens=5, temperature=0, ignore_eos=True)
    forks.join()
    s += "In all: " + sgl.gen("all", max_tokens=3, temperature=0)


@pytest.mark.parametrize("topic", ["ships", "lighthouses " * 12])
def test_forks_compute_what_they_share_once_as_predicted(engine, topic) -> None:
    shown = branching.explain(analyze=True, backend=engine, topic=topic)
    found = shown.measured.values()
    assert shown.prediction.computed == sum(each.computed for each in found)
    assert shown.prediction.cached == sum(each.cached for each in found)
    assert "all up to %1 is the same for 3 branches" in str(shown)


def test_a_compiled_program_explains_what_it_runs(engine) -> None:
    compiled = branching.compile(engine, passes="default+share", outputs=["all"])
    shown = compiled.explain(topic="ships")
    assert shown.prediction.unknown == 0
    done = compiled.explain(analyze=True, topic="ships")
    assert done.measured.keys() == {node.id for node in compiled.graph.nodes if node.is_sampled}
    assert done.sent == shown.after == 1


def test_a_program_that_cannot_be_traced_shows_its_run(engine) -> None:
    shown = programs.judge.explain(analyze=True, backend=engine, essay="words " * 20)
    assert len(shown.measured) == 5
    assert shown.sent == 2
    assert "the rest depends on a value" in str(shown)


# ---- after a run -----------------------------------------------------------------------------------------------------


def test_a_state_explains_what_it_took(engine) -> None:
    state = branching.run("lamps", backend=engine)
    assert len(state["verdict"]) == 3
    state.sync()
    shown = state.explain()
    assert [row[1] for row in shown.rows()].count("gen") == 4
    assert shown.sent == 1
    assert "prefill expected, from an empty cache" in str(shown)
    found = shown.measured.values()
    assert shown.prediction.computed == sum(each.computed for each in found)


def test_a_state_of_a_fake_backend_explains_itself_too(backend) -> None:
    state = programs.chat_dialogue.run("hi", backend=backend)
    state.sync()
    shown = state.explain()
    assert "measured: 1 tokens cached, 2 computed, 6 generated" in str(shown)
    assert shown.columns()[-4:] == ("cached", "computed", "generated", "seconds")


# ---- the drawing -----------------------------------------------------------------------------------------------------


def test_a_notebook_draws_the_graph_without_styles_or_scripts() -> None:
    page = branching.explain(topic="<b>&")._repr_html_()
    assert "<style" not in page
    assert "<script" not in page
    assert "<b>" not in page
    picture = base64.b64decode(re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', page)[1]).decode()
    assert "prefers-color-scheme:dark" in picture
    tree = ElementTree.fromstring(picture)
    boxes = tree.findall(".//{http://www.w3.org/2000/svg}rect")
    assert len(boxes) == len(branching.explain(topic="x").graph.nodes)
    ElementTree.fromstring(page)
    assert branching.trace()._repr_html_().startswith("<div")


def test_a_large_graph_is_a_table_only() -> None:
    @sgl.function
    def many(s):
        for i in range(500):
            s += f"{i}" + sgl.gen("x")

    shown = many.explain()
    assert "<img" not in shown._repr_html_()
    assert "more nodes" in str(shown)
    assert len(shown._repr_html_()) < 64_000


# ---- cache -----------------------------------------------------------------------------------------------------------


def test_cache_computes_the_constant_prefix_and_says_how_many_tokens(engine) -> None:
    @sgl.function
    def fixed(s, question):
        s += "You are an agent that answers by steps.\nHere is what is asked: "
        s += question + sgl.gen("a", max_tokens=1)

    count = fixed.cache(engine)
    (before,) = engine.peek(
        [Prompt(pieces=[("You are an agent that answers by steps.\nHere is what is asked: ", True)])]
    )
    assert count == before.cached == len(before.ids) // 4 > 5
    assert fixed.compile(engine).cache() == count
    assert fixed.explain(backend=engine, question="Who?").prediction.cached >= count - 1


def test_cache_of_a_program_without_a_constant_prefix_is_nothing(backend) -> None:
    assert programs.simple_gen.cache(backend) == 0
    assert backend.submissions == []


def test_cache_sends_roles_too(backend) -> None:
    programs.turns.cache(backend)
    (sent,) = backend.submissions
    assert "<|system|>Be brief.<|end|><|user|>" in "".join(getattr(node, "text", "") for node in sent)
    assert [node.params.max_tokens for node in sent if isinstance(node, Gen)] == [0]


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(ProgramError, match="no argument"):
        programs.turns.explain(nothing=1)
