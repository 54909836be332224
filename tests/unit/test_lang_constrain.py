"""What constrains a gen: one kind, options that mean something, tools, tags, and what stands behind a mark."""

from __future__ import annotations

import datetime
import json
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
import pydantic
import pytest

import nbsgl as sgl
from nbsgl import structural_tags as noun
from nbsgl.errors import BadGrammar, BadRegex, BadValue, IncompleteOutput, ParameterError
from nbsgl.protocol import Finish, Gen, GrammarUse
from nbsgl.reasoning import Markers
from tests.unit.fakes import FakeBackend


def search(query: str, limit: int = 5) -> list[str]:
    """Search the web.

    Longer words about it.
    """
    return [query] * limit


def remind(day: datetime.date, text="walk") -> None:
    """Remind of something on a day."""


def said(text: str, wants: type[FakeBackend] = FakeBackend) -> FakeBackend:
    return wants(lambda prompt, node: text)


def spec_of(**given: Any) -> sgl.GrammarSpec:
    return sgl.gen("x", **given).grammar


# ---- one kind, and options that mean something -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ({"regex": "[ab]"}, "regex", "[ab]"),
        ({"ebnf": 'root ::= "a"'}, "ebnf", 'root ::= "a"'),
        ({"lark": 'start: "a"'}, "lark", 'start: "a"'),
        ({"json_schema": True}, "json", ""),
        ({"json_schema": {"type": "null"}}, "json_schema", '{"type": "null"}'),
        ({"grammar": sgl.GrammarSpec(kind="choices", text='["a"]')}, "choices", '["a"]'),
        ({"json_schema": SimpleNamespace(schema='{"type": "integer"}')}, "json_schema", '{"type": "integer"}'),
        ({"json_schema": SimpleNamespace(to_schema=lambda: {"type": "null"})}, "json_schema", '{"type": "null"}'),
        ({"type": SimpleNamespace(pattern="[0-9]")}, "regex", "[0-9]"),
        ({"type": SimpleNamespace(definition='start: "a"')}, "lark", 'start: "a"'),
    ],
)
def test_every_kind_becomes_a_spec(given, kind, text) -> None:
    spec = spec_of(**given)
    assert (spec.kind, spec.text, spec.engine, spec.jump, spec.on_limit) == (kind, text, "auto", "verify", "keep")


def test_options_reach_the_spec() -> None:
    spec = spec_of(
        json_schema={"type": "object"},
        grammar="fsm",
        after="</think>",
        on_limit="fit",
        on_unsupported="loosen",
        jump="canonical",
        whitespace="compact",
    )
    assert (spec.engine, spec.after, spec.on_limit) == ("fsm", "</think>", "fit")
    assert (spec.on_unsupported, spec.jump, spec.whitespace) == ("loosen", "canonical", "compact")
    assert spec_of(regex="a", after="|", max_think_tokens=7).max_think_tokens == 7
    ready = sgl.GrammarSpec(kind="regex", text="a", jump="off", on_limit="fit")
    assert spec_of(grammar=ready) == ready
    assert spec_of(grammar=ready, jump="verify") == msgspec.structs.replace(ready, jump="verify")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"regex": "a", "ebnf": 'root ::= "a"'}, "regex and ebnf were both given"),
        ({"tools": [search], "lark": 'start: "a"'}, "lark and tools were both given"),
        ({"choices": ["a"], "grammar": sgl.GrammarSpec(kind="regex", text="a")}, "choices and grammar were both"),
        ({"grammar": "best", "regex": "a"}, "grammar='best'"),
        ({"grammar": "fsm"}, "grammar mean.s. nothing to a gen without a constraint"),
        ({"jump": "off"}, "jump mean.s. nothing"),
        ({"after": "</think>"}, "separate_reasoning"),
        ({"grammar": 3}, "grammar=3"),
        ({"regex": "a", "jump": "on"}, "jump='on': allowed is 'off', 'verify', 'canonical'"),
        ({"regex": "a", "whitespace": "compact"}, "whitespace is for JSON"),
        ({"regex": "a", "on_unsupported": "loosen"}, "on_unsupported is for JSON"),
        ({"regex": "a", "max_think_tokens": 3}, "without after="),
        ({"regex": "a", "after": ""}, "after=''"),
        ({"regex": "a", "after": "x" * 129}, "1..128"),
        ({"regex": "a", "after": "|", "max_think_tokens": -1}, "max_think_tokens=-1"),
        ({"regex": "a", "after": "|", "max_think_tokens": 1, "on_limit": "fit"}, "exclude each other"),
        ({"regex": "a", "grammar": "llguidance", "on_limit": "fit"}, "needs tables"),
        ({"regex": "a", "tool_format": "json"}, "without tools="),
        ({"tools": [search], "tool_format": "xml"}, "tool_format='xml'"),
        ({"ebnf": ""}, "ebnf=''"),
        ({"json_schema": False}, "json_schema=False"),
        ({"json_schema": SimpleNamespace(pattern="a")}, "give it as type="),
    ],
)
def test_what_means_nothing_is_refused_at_its_line(given, says) -> None:
    with pytest.raises(ParameterError, match=says):
        sgl.gen("x", **given)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"regex": "a\ud800"}, "regex at regex="),
        ({"ebnf": 'root ::= "\ud800"'}, "ebnf at ebnf="),
        ({"lark": 'start: "\ud800"'}, "lark at lark="),
        ({"type": Literal["\ud800", "b"]}, "regex at type="),
        ({"regex": "a", "after": "\ud800"}, "after at after="),
        ({"grammar": sgl.GrammarSpec(kind="regex", text="a", prefix="\ud800")}, "regex at grammar="),
        ({"grammar": sgl.GrammarSpec(kind="choices", text='["\ud800"]')}, "choices at grammar="),
    ],
)
def test_half_a_character_is_refused_at_its_line(given, place) -> None:
    with pytest.raises(BadGrammar, match=f"{place}: it has half a character"):
        sgl.gen("x", **given)


@pytest.mark.parametrize("half", [{"const": "\ud800"}, '{"const": "\ud800"}', '{"const": "\\ud800"}'])
def test_half_a_character_in_a_schema_travels_as_an_escape(half) -> None:
    spec = spec_of(json_schema=half)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=sgl.GrammarSpec) == spec
    assert json.loads(spec.text) == {"const": "\ud800"}
    with pytest.raises(BadGrammar, match="no output can satisfy it"):
        sgl.grammar.inspect(grammar=spec)
    assert spec_of(json_schema={"enum": ["\ud800", "ü"]}).text == '{"enum": ["\\ud800", "ü"]}'
    assert sgl.grammar.inspect(json_schema={"enum": ["\ud800", "ü"]}).sample(3) == ['"ü"'] * 3


@pytest.mark.parametrize("given", [{"ebnf": 'top ::= "a"'}, {"lark": 'top: "a"'}])
def test_a_grammar_without_a_start_is_refused(given) -> None:
    with pytest.raises(BadGrammar, match=r"root ::=|start:"):
        sgl.gen("x", **given)


def test_a_pattern_of_another_library_is_checked() -> None:
    with pytest.raises(BadRegex):
        sgl.gen("x", type=SimpleNamespace(pattern="("))


def test_options_mean_nothing_to_choices_and_that_is_said_once(caplog) -> None:
    made = sgl.gen("x", choices=["a", "b"], jump="off", grammar="fsm")
    assert set(made.ignored) == {"jump", "grammar"}
    assert "mean(s) nothing" in caplog.text


# ---- behind a mark ---------------------------------------------------------------------------------------------------


def test_the_variable_is_what_comes_after_the_mark() -> None:
    backend = said("Hm, 4.\n</think>\n\n42")
    with sgl.state(backend) as s:
        s += "x" + sgl.gen("x", type=int, after="</think>")
    assert s["x"] == "42"
    assert s.value("x") == 42
    assert s.text() == "x42"
    info = s.get_meta_info("x")
    assert info["reasoning"] == "Hm, 4."
    assert info["complete"] is True
    [node] = [node for node in backend.nodes if isinstance(node, Gen)]
    assert node.markers == Markers(opening="", closing="</think>", is_open=True, keeps_end=True)
    backend.close()


def test_the_value_keeps_blanks_at_its_end() -> None:
    backend = said("so|  a \n")
    with sgl.state(backend) as s:
        s += "x" + sgl.gen("x", regex=r"a \n", after="|")
    assert s["x"] == "a \n"
    backend.close()


def test_thinking_that_has_ended_in_the_prompt_is_not_waited_for() -> None:
    backend = said("7")
    with sgl.state(backend) as s:
        s += "<think>\n\n</think>\n\n" + sgl.gen("x", type=int, after="</think>", max_think_tokens=5)
    assert s["x"] == "7"
    [node] = [node for node in backend.nodes if isinstance(node, Gen)]
    assert node.markers is None
    assert (node.grammar.after, node.grammar.max_think_tokens) == ("", None)
    backend.close()


# ---- values that broke off -------------------------------------------------------------------------------------------


class Broken(FakeBackend):
    def _result(self, prompt: str, text: str, node: Gen) -> Any:
        use = GrammarUse(engine="fsm", states=9)
        return msgspec.structs.replace(
            super()._result(prompt, text, node),
            finish=Finish(type="length", length=4),
            complete=False,
            needed=11,
            grammar=use,
        )


def test_a_value_that_broke_off_says_how_many_tokens_would_do() -> None:
    backend = said('{"a": ', Broken)
    with sgl.state(backend) as s:
        s += "x" + sgl.gen("x", json_schema={"type": "object"}) + sgl.gen("y", regex="a{9}", n=2)
    assert s["x"] == '{"a": '
    assert s.get_meta_info("x")["complete"] is False
    assert s.get_meta_info("x")["grammar"]["states"] == 9
    with pytest.raises(IncompleteOutput, match="max_tokens=11") as caught:
        s.value("x")
    assert (caught.value.text, caught.value.limit, caught.value.needed) == ('{"a": ', 4, 11)
    with pytest.raises(IncompleteOutput, match="regex"):
        s.value("y")
    backend.close()


# ---- tools -----------------------------------------------------------------------------------------------------------


def tags_of(**given: Any) -> noun.Tags:
    spec = spec_of(**given)
    assert spec.kind == "tags"
    return noun.decode(spec.text)


def test_a_function_gives_name_description_and_schema() -> None:
    [tag, other] = tags_of(tools=[search, remind]).tags
    assert (tag.tool, tag.description) == ("search", "Search the web.")
    assert tag.begin == '<tool_call>\n{"name": "search", "arguments": '
    assert (tag.end, tag.trigger) == ("}\n</tool_call>", "<tool_call>")
    [schema] = json.loads(tag.text)["$defs"].values()
    assert schema["required"] == ["query"]
    assert list(schema["properties"]) == ["query", "limit"]
    assert schema["additionalProperties"] is False
    [schema] = json.loads(other.text)["$defs"].values()
    assert schema["properties"]["text"] == {"type": "string"}


class Move(pydantic.BaseModel):
    """Move a piece."""

    to: str


def test_tools_may_be_classes_and_dicts() -> None:
    plain = {"name": "stop", "description": "Stop.", "parameters": {"type": "object"}}
    openais = {"type": "function", "function": {"name": "go", "parameters": {"type": "object"}}}
    anthropics = {"name": "look", "input_schema": {"type": "object"}}
    found = tags_of(tools=[Move, plain, openais, anthropics], tool_format="function-tag")
    assert [tag.tool for tag in found.tags] == ["Move", "stop", "go", "look"]
    assert [tag.description for tag in found.tags] == ["Move a piece.", "Stop.", "", ""]
    assert [tag.begin for tag in found.tags][1:3] == ["<function=stop>", "<function=go>"]
    assert found.triggers == ["<function="]


@pytest.mark.parametrize(
    ("tool_format", "text"),
    [
        (
            "tool-call",
            'Well: <tool_call>\n{"name": "search", "arguments": {"query": "</x>}"}}\n</tool_call> and '
            '<tool_call>\n{"name": "remind", "arguments": {"day": "2024-02-29"}}\n</tool_call>.',
        ),
        (
            "function-tag",
            'Well: <function=search>{"query": "</x>}"}</function> and '
            '<function=remind> {"day": "2024-02-29"}\n</function>.',
        ),
    ],
)
def test_calls_are_read_back_with_the_types_of_the_function(tool_format, text) -> None:
    backend = said(text)
    with sgl.state(backend) as s:
        s += "x" + sgl.gen("x", tools=[search, remind], tool_format=tool_format)
    first, second = s.value("x")
    assert (first.name, first.arguments) == ("search", {"query": "</x>}"})
    assert (second.name, second.arguments) == ("remind", {"day": datetime.date(2024, 2, 29)})
    assert search(**first.arguments) == ["</x>}"] * 5
    assert (text[: first.span[0]], text[first.span[1] : second.span[0]], text[second.span[1] :]) == (
        "Well: ",
        " and ",
        ".",
    )
    backend.close()


@pytest.mark.parametrize("tool_format", ["tool-call", "function-tag", "json"])
@pytest.mark.parametrize("anything", [True, {}])
def test_a_tool_may_take_any_json(anything, tool_format) -> None:
    given = {"tools": [{"name": "f", "parameters": anything}], "tool_format": tool_format}
    [tag] = tags_of(**given).tags
    found, text = sgl.grammar.inspect(**given), f'{tag.begin}{{"a": [1, null]}}{tag.end}'
    assert found.matches(text)
    assert not found.matches(text.replace("null", "nil"))
    [call] = sgl.gen("x", **given).reader.read("x", text, "")
    assert (call.name, call.arguments) == ("f", {"a": [1, None]})


def test_the_json_format_is_one_call_and_nothing_else() -> None:
    found = tags_of(tools=[search], tool_format="json")
    assert (found.free_text, found.at_least_one, found.stop_after_first) == (False, True, True)
    backend = said('{"name": "search", "arguments": {"query": "a"}}')
    with sgl.state(backend) as s:
        s += "x" + sgl.gen("x", tools=[search], tool_format="json")
    assert s.value("x") == [sgl.ToolCall("search", {"query": "a"}, (0, 47))]
    backend.close()


def test_text_without_calls_has_none_and_a_broken_one_is_no_value() -> None:
    for text, calls in (("No need.", []), ("<function=search>{", None)):
        backend = said(text)
        with sgl.state(backend) as s:
            s += "x" + sgl.gen("x", tools=[search], tool_format="function-tag")
        if calls is None:
            with pytest.raises(BadValue):
                s.value("x")
        else:
            assert s.value("x") == calls
        backend.close()


def positional(query, /) -> None: ...


def many(*queries: str) -> None: ...


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        (search, "It is a list"),
        ([], "It is a list"),
        ([search, search], "Two of them are called 'search'"),
        ([positional], "by name"),
        ([many], "by name"),
        ([{"name": 3}], "For example"),
        ([{"name": "a b"}], "A name has letters"),
        ([3], "functions, classes"),
    ],
)
def test_what_is_no_tool_is_refused(tools, says) -> None:
    with pytest.raises(ParameterError, match=says):
        sgl.gen("x", tools=tools)


# ---- structural tags -------------------------------------------------------------------------------------------------


def test_tags_are_made_of_any_grammar() -> None:
    spec = sgl.tags(
        sgl.tag("<int>", "</int>", type=int),
        sgl.tag("<cite id=", ">", trigger="<cite", regex="[0-9]+"),
        sgl.tag("<row>", "</row>", json_schema={"type": "object"}),
        at_least_one=True,
    )
    found = noun.decode(spec.text)
    assert [tag.kind for tag in found.tags] == ["regex", "regex", "json_schema"]
    assert found.triggers == ["<int>", "<cite", "<row>"]
    assert found.at_least_one
    assert spec_of(grammar=spec) == spec
    assert spec_of(grammar=spec, whitespace="compact").whitespace == "compact"


@pytest.mark.parametrize(
    "make",
    [
        lambda: sgl.tag("<a>"),
        lambda: sgl.tag("<a>", regex="a", ebnf='root ::= "a"'),
        lambda: sgl.tag("", regex="a"),
        lambda: sgl.tag("<a>", trigger="", regex="a"),
        lambda: sgl.tags({"begin": "<a>"}),
    ],
)
def test_tags_are_checked(make) -> None:
    with pytest.raises(ParameterError):
        make()


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: sgl.tags(sgl.tag("\ud800", regex="a")), "begin"),
        (lambda: sgl.tags(sgl.tag("<a>", "\udfff", regex="a")), "end"),
        (lambda: sgl.tags(sgl.tag("<a>", regex="\ud800")), "(text|regex=)"),
        (lambda: sgl.tags(sgl.tag("<a>", type=Literal["\ud800"])), "text"),
        (lambda: sgl.gen("x", tools=[{"name": "f", "description": "\ud800"}]), "description"),
        (lambda: noun.encode(noun.of_sglang(_structure("\ud800", {}))), "begin"),
    ],
)
def test_half_a_character_in_a_tag_is_refused_with_its_place(make, place) -> None:
    with pytest.raises(BadGrammar, match=f"at (#/tags/0/)?{place}: it has half a character"):
        make()


@pytest.mark.parametrize("name", ["stop", "stop_regex"])
def test_half_a_character_in_what_stops_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match=f"{name}.*no half characters"):
        sgl.gen("x", **{name: "\ud800"})


def _structure(begin: str, schema: Any) -> dict[str, Any]:
    structures = [{"begin": begin, "schema": schema, "end": ">"}]
    return {"type": "structural_tag", "structures": structures, "triggers": [begin]}


@pytest.mark.parametrize("schema", [{"enum": ["\ud800", "b"]}, '{"enum": ["\ud800", "b"]}'])
def test_half_a_character_in_the_schema_of_a_tag_travels_as_an_escape(schema) -> None:
    for text in (
        noun.encode(noun.of_sglang(_structure("<a", schema))),
        sgl.tags(sgl.tag("<a", ">", json_schema=schema)).text,
        spec_of(tools=[{"name": "f", "parameters": schema}]).text,
    ):
        [tag] = noun.decode(text).tags
        assert json.loads(tag.text) == {"enum": ["\ud800", "b"]}


def test_a_trigger_is_how_its_tag_begins() -> None:
    with pytest.raises(BadGrammar, match="not how '<a>' begins"):
        sgl.tags(sgl.tag("<a>", trigger="b", regex="a"))
    with pytest.raises(BadGrammar, match="1..1,024"):
        sgl.tags()


def test_sglangs_structural_tags_are_ours_and_back() -> None:
    older = {
        "type": "structural_tag",
        "structures": [{"begin": "<function=f>", "schema": {"type": "object"}, "end": "</function>"}],
        "triggers": ["<function="],
    }
    found = noun.of_sglang(json.dumps(older))
    assert noun.to_sglang(found) == older
    assert noun.decode(noun.encode(found)) == found
    newer = {
        "type": "structural_tag",
        "format": {
            "type": "triggered_tags",
            "triggers": ["<f"],
            "tags": [{"begin": "<f>", "content": {"type": "regex", "pattern": "a+"}, "end": "</f>"}],
            "at_least_one": True,
        },
    }
    found = noun.of_sglang(newer)
    assert (found.tags[0].kind, found.tags[0].trigger, found.at_least_one) == ("regex", "<f", True)
    assert noun.to_sglang(found) is None


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        {"type": "x"},
        {"type": "structural_tag", "format": {"type": "or"}},
        {"type": "structural_tag", "structures": [{"begin": "<a>", "end": ""}], "triggers": ["b"]},
        {"type": "structural_tag", "structures": [{"begin": 3, "end": ""}], "triggers": ["b"]},
        {"type": "structural_tag", "structures": [], "triggers": ["b"]},
    ],
)
def test_what_is_no_structural_tag_names_the_place(bad) -> None:
    with pytest.raises(BadGrammar, match="tags at #"):
        noun.of_sglang(bad)


@pytest.mark.parametrize("text", ["{", "{}", '{"tags": []}', '{"tags": [{"begin": "", "kind": "regex", "text": "a"}]}'])
def test_tags_from_elsewhere_are_checked(text) -> None:
    with pytest.raises(BadGrammar):
        sgl.gen("x", grammar=sgl.GrammarSpec(kind="tags", text=text))


# ---- seen without being run ------------------------------------------------------------------------------------------


@sgl.function
def constrained(s, topic):
    s += "About " + topic + sgl.gen("call", tools=[search])
    s += sgl.gen("answer", type=int, after="</think>", max_think_tokens=9)
    s += sgl.gen("rest", ebnf='root ::= "a" | "b"', stop_regex="b", on_limit="fit", jump="off")


def test_traces_explanations_and_compiled_programs_keep_constraints() -> None:
    backend = FakeBackend(lambda prompt, node: "<t>7" if node.grammar.kind == "tags" else "x</think>5")
    trace = constrained.trace(backend=backend)
    assert list(trace.variables) == ["call", "answer", "rest"]
    assert "gen('answer')" in str(constrained.explain(backend=backend, topic="tea"))
    plain = constrained.run("tea", backend=backend)
    plain.sync()
    asked = [(node.grammar, node.params.stop_regex, node.markers) for node in backend.nodes if isinstance(node, Gen)]
    compiled = constrained.compile(backend=backend).run(topic="tea", backend=backend)
    assert compiled.value("answer") == plain.value("answer") == 5
    assert compiled.get_meta_info("answer")["reasoning"] == "x"
    assert compiled.value("call") == []
    again = [(node.grammar, node.params.stop_regex, node.markers) for node in backend.nodes if isinstance(node, Gen)]
    assert again[len(asked) :] == asked
    assert "gen('call')" in str(plain.explain())
    backend.close()
