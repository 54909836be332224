"""A grammar as people see it: chains as one edge, labels as regexes, at most 200 nodes, a text's place; inspection."""

from __future__ import annotations

import datetime
import json
import random
import re
import time
from typing import Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbsgl
from nbsgl.automaton import MAX_NODES, Automaton, GrammarPicture, Place
from nbsgl.engine.grammar.charset import category, charset, complement
from nbsgl.engine.grammar.dfa import build
from nbsgl.engine.grammar.folding import folded
from nbsgl.engine.grammar.labels import class_label, literal_label
from nbsgl.engine.grammar.regex import parse
from nbsgl.engine.grammar.view import Graph, allowed_tokens, spans
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.errors import BadRegex, ParameterError, Unsupported
from nbsgl.grammar import inspect, picture
from nbsgl.lang.meta import GrammarInfo
from nbsgl.protocol import BranchView, Finish, GenResult, GrammarSpec, Logprobs, RunView, SegmentView
from nbsgl.widgets import grammar_html, run_html
from nbsgl.widgets.layered import BAND_WIDTH, RADIUS, draw, label_width
from nbsgl.widgets.run import lean
from nbsgl.widgets.watched import Watched
from tests.unit.byte_machines import machine, words

PERSON = r'\{"name": "[^"\\\x00-\x1f]{1,20}", "born": "[0-9]{4}-(0[1-9]|1[0-2])", "role": "(admin|author|reader)"\}'
TEXT = '{"name": "Ada", "born": "1815-12", "role": "author"}'


def edges(automaton: Automaton) -> list[tuple[int, str, int]]:
    return [(edge.source, edge.label, edge.target) for edge in automaton.edges]


# ---- chains and labels -----------------------------------------------------------------------------------------------


def test_a_chain_without_a_choice_is_one_edge_with_its_text() -> None:
    shown = Graph(words("Paris", "Prague", "Zürich", "東京")).shown()
    assert [edge.label for edge in shown.edges] == ["P", "Zürich", "東京", "aris", "rague"]
    assert len(shown.nodes) == 3
    assert not any(edge.forced for edge in shown.edges)
    only = Graph(words("abc")).shown()
    assert [(edge.label, edge.forced, edge.literal) for edge in only.edges] == [("abc", True, True)]


def test_a_state_where_a_text_may_end_is_a_node() -> None:
    shown = Graph(words("Rom", "Romania")).shown()
    assert [edge.label for edge in shown.edges] == ["Rom", "ania"]
    assert [edge.forced for edge in shown.edges] == [True, False]
    assert sum(node.accepting for node in shown.nodes) == 2


def test_classes_of_several_bytes_are_one_edge() -> None:
    assert [edge.label for edge in inspect(regex=r"\w+").automaton.edges] == [r"\w", r"\w"]
    assert [edge.label for edge in inspect(regex=r"[^\n]\d{3}").automaton.edges] == [".", r"\d{3}"]


@pytest.mark.parametrize(
    ("chars", "label"),
    [
        (charset([(48, 57)]), "[0-9]"),
        (charset([(65, 66)]), "[AB]"),
        (charset([(65, 65)]), "A"),
        (complement(charset([(0, 31), (34, 34), (92, 92)])), r'[^\x00-\x1f"\\]'),
        (complement(charset([(10, 10)])), "."),
        (complement(()), r"[\s\S]"),
        (category("word"), r"\w"),
        (complement(category("space")), r"\S"),
        (charset([*category("word"), (45, 46)]), r"[\w\-.]"),
        (charset([(93, 94)]), r"[\]\^]"),
    ],
)
def test_a_class_is_labelled_by_a_regex_for_it(chars, label) -> None:
    assert class_label(chars) == label
    for code in (0, 10, 34, 45, 48, 65, 66, 93, 0xE9, 0x4E00, 0x1F600):
        inside = any(low <= code <= high for low, high in chars)
        assert bool(re.fullmatch(label, chr(code))) == inside


def test_literals_from_40_bytes_on_lose_their_middle() -> None:
    assert literal_label("x" * 39) == "x" * 39
    assert literal_label("a" * 24 + "b" * 10 + "c" * 10) == "a" * 24 + "..." + "c" * 10
    assert [edge.label for edge in inspect(choices=["a" * 24 + "b" * 9 + "c" * 10]).automaton.edges] == [
        "a" * 24 + "..." + "c" * 10
    ]


# ---- size ------------------------------------------------------------------------------------------------------------


def test_at_most_200_nodes_are_shown_those_nearest_to_the_place() -> None:
    rng = random.Random(3)
    texts = ["".join(rng.choices("abcd", k=9)) for _ in range(400)]
    found = inspect(choices=texts)
    start = found.automaton
    assert len(start.nodes) == MAX_NODES
    assert start.hidden_nodes > 0
    assert any(node.hidden for node in start.nodes)
    for text in texts[:20]:
        seen = found.picture(text[:6])
        known = {node.id for node in seen.automaton.nodes}
        assert len(known) <= MAX_NODES
        assert seen.place.node in known
        assert {edge for edge, _ in seen.place.path} <= {edge.id for edge in seen.automaton.edges}


def test_a_count_is_drawn_as_one_node_and_its_last_steps() -> None:
    shown = inspect(regex=PERSON).automaton
    assert len(shown.nodes) < 25
    (counted,) = [node for node in shown.nodes if node.times > 1]
    assert counted.times == 17
    loops = [edge for edge in shown.edges if edge.source == edge.target == counted.id]
    assert [edge.label for edge in loops] == [r'[^\x00-\x1f"\\]']
    for length in range(1, 21):
        at = inspect(regex=PERSON).picture('{"name": "' + "x" * length).place
        assert at.node in {node.id for node in shown.nodes}


def test_small_automata_are_drawn_exactly() -> None:
    shown = inspect(regex="[ab]{1,20}").automaton
    assert len(shown.nodes) == 21
    assert all(node.times == 1 for node in shown.nodes)


# ---- a text's place --------------------------------------------------------------------------------------------------


def test_the_path_the_place_and_the_forced_stretches_of_a_text() -> None:
    seen = picture(GrammarSpec(kind="regex", text=PERSON), TEXT)
    place = seen.place
    assert place.accepting
    assert place.matched == len(TEXT)
    forced = [TEXT[a:b] for a, b in place.forced]
    assert forced == ['{"name": "', ', "born": "', "-", '", "role": "', 'thor"}']
    labels = {edge.id: edge for edge in seen.automaton.edges}
    way = [labels[edge] for edge, _ in place.path]
    assert way[0].source == 1
    for one, after in zip(way, way[1:], strict=False):
        assert one.target == after.source
    assert way[-1].target == place.node


def test_inside_an_edge_the_place_counts_bytes() -> None:
    graph = Graph(words("Zürich", "東京"))
    place = graph.place("Zü")
    assert (place.edge, place.inside, place.matched) == (0, 3, 2)
    assert place.forced == [(1, 2)]
    half = graph.place("Z\u00fc".encode()[:2])
    assert (half.inside, half.matched) == (2, 1)


def test_a_text_outside_the_language_stops_where_it_leaves_it() -> None:
    place = inspect(regex="[0-9]+").picture("12x4").place
    assert place.matched == 2
    assert place.accepting
    assert inspect(regex="[0-9]+").picture("").place.path == []


def test_repeats_of_an_edge_are_counted() -> None:
    place = inspect(regex="[0-9]+").picture("12345").place
    assert [times for _, times in place.path] == [1, 4]


def test_spans_join_neighbours_and_need_every_byte() -> None:
    data = "aéb".encode()
    assert spans(data, [1, 1, 1, 0]) == [(0, 2)]
    assert spans(data, [0, 1, 0, 1]) == [(2, 3)]
    assert spans(b"", []) == []


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_the_place_follows_the_automaton_character_by_character(data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from([PERSON, r"(ab|a)*c?", r"\d{2,5}-\w+", "é[à-ü]{1,9}|x"]))
    graph = Graph(build(parse(pattern)))
    (text,) = inspect(regex=pattern).sample(1, seed=data.draw(st.integers(0, 99)))
    cut = data.draw(st.integers(0, len(text)))
    place = graph.place(text[:cut])
    assert place.matched == cut
    assert place.accepting == (re.fullmatch(pattern, text[:cut]) is not None)
    known = {edge.id: edge for edge in graph.shown(graph.around(place)).edges}
    at = 1
    for edge, _ in place.path:
        assert known[edge].source == at
        at = known[edge].target
    assert place.node == at if place.edge < 0 else place.edge == place.path[-1][0]
    for i in range(cut):
        is_forced = any(begin <= i < end for begin, end in place.forced)
        others = [char for char in 'ab0-é"}x,ü' if char != text[i] and graph.place(text[:i] + char).matched > i]
        assert not (is_forced and others)


# ---- tokens ----------------------------------------------------------------------------------------------------------


class Fixed:
    """A mask of these ids."""

    def __init__(self, *ids: int) -> None:
        self.ids = ids

    def fill_mask(self, row) -> None:
        for token in self.ids:
            row[token // 32] |= 1 << token % 32


def test_the_likeliest_allowed_tokens_or_the_lowest_ids() -> None:
    vocab = TokenVocab([bytes([97 + i % 26]) * (1 + i // 26) for i in range(60)], [59])
    none = allowed_tokens(Fixed(3, 7, 40), vocab)
    assert (none.count, none.of) == (3, 60)
    assert none.top == [("d", 3, None), ("h", 7, None), ("oo", 40, None)]
    some = allowed_tokens(Fixed(3, 7, 40), vocab, [(-0.1, 5), (-2.0, 40), (-1.0, 3), (None, 7)])
    assert [(text, token) for text, token, _ in some.top] == [("d", 3), ("oo", 40)]
    assert some.top[0][2] == pytest.approx(0.3679, abs=1e-4)


def test_allowed_tokens_of_a_vocabulary_by_name() -> None:
    found = inspect(choices=["yes", "no"], vocab="embedded").allowed("y")
    assert 0 < found.count < 5
    assert all("yes"[1:].startswith(text) for text, _, _ in found.top)
    with pytest.raises(ParameterError, match="vocab"):
        inspect(regex="a").allowed()


# ---- inspection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        {"regex": r"[a-z]{2,5}@\w+\.(com|org)"},
        {"regex": r"(?i:yes|no)!*"},
        {"choices": ["Paris", "Rome", "São Paulo"]},
        {"type": datetime.date},
        {"type": Literal["a", "b.c"]},
        {"type": int},
    ],
)
def test_samples_match_and_the_regex_says_the_same(kind) -> None:
    found = inspect(**kind)
    texts = found.sample(60, seed=1)
    assert texts == found.sample(60, seed=1)
    assert len(set(texts)) > 1
    assert found.regex is not None
    for text in texts:
        assert found.matches(text)
        assert re.fullmatch(found.regex, text)
        assert not found.matches(text + "\x00")


def test_an_inspection_shows_itself_as_html_text_and_dot() -> None:
    found = inspect(regex=PERSON)
    made = found._repr_mimebundle_()
    assert set(made) == {"text/html", "text/plain"}
    assert '<img alt="automaton of 218 byte states' in made["text/html"]
    assert "<script" not in made["text/html"]
    assert '1 -!"{\\"name\\": \\""-> ' in made["text/plain"]
    assert found.dot.startswith("digraph grammar {")
    assert found.states == 218
    assert "forced" in repr(found.walk('{"name": "A'))


def test_errors_name_what_is_wrong_and_where() -> None:
    with pytest.raises(BadRegex, match="position 3"):
        inspect(regex="abc(")
    with pytest.raises(ParameterError, match="both given"):
        inspect(regex="a", choices=["b"])
    with pytest.raises(ParameterError, match="one of"):
        inspect()
    with pytest.raises(TypeError, match="tempo"):
        inspect(regex="a", tempo=1)
    with pytest.raises(ParameterError, match="vocab"):
        inspect(regex="a", vocab="nobody/knows-this").allowed()
    with pytest.raises(ParameterError, match="n="):
        inspect(regex="a").sample(-1)


def test_a_grammar_without_an_automaton_says_why_and_what_may_follow() -> None:
    found = inspect(ebnf='root ::= "(" root ")" | "x"')
    assert not found.is_regular
    assert found.states is None
    seen = found.picture("((")
    assert seen.automaton.nodes == []
    assert seen.place.expected == ["(", "x"]
    assert "refers to itself" in seen.note
    assert found.matches("((x))")
    assert not found.matches("((x)")
    with pytest.raises(Unsupported, match="refers to itself"):
        found.sample()


def test_the_public_module_is_there_without_an_import() -> None:
    assert nbsgl.grammar.inspect is inspect


def test_a_picture_can_be_saved_and_read_back() -> None:
    seen = picture(GrammarSpec(kind="regex", text=PERSON), TEXT[:20])
    assert msgspec.json.decode(msgspec.json.encode(seen), type=GrammarPicture) == seen
    assert json.loads(msgspec.json.encode(Place()))["node"] == -1


def test_hand_made_machines_with_loops_are_followed() -> None:
    graph = Graph(machine({1: {"a": 2}, 2: {"b": 1, "c": 3}}, {3}))
    assert edges(graph.shown()) == [(1, "a", 2), (2, "b", 1), (2, "c", 3)]
    assert graph.place("ababac").path[-1][0] == 2


# ---- where things lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [PERSON, r"(ab|a)*c?", "a|bc|(d|e)+f", r'"([^"\\]|\\.)*"', "[0-9]{1,30}", "x?"])
def test_a_drawing_keeps_its_laws(pattern) -> None:
    shown = inspect(regex=pattern).automaton
    drawing = draw(shown)
    assert [at.id for at in drawing.nodes] == [node.id for node in shown.nodes]
    assert {edge.id for edge in drawing.edges} == {edge.id for edge in shown.edges}
    for i, one in enumerate(drawing.nodes):
        assert RADIUS <= one.x <= drawing.width - RADIUS
        assert RADIUS <= one.y <= drawing.height - RADIUS
        for other in drawing.nodes[:i]:
            assert abs(one.x - other.x) + abs(one.y - other.y) > 2 * RADIUS
    known = {edge.id: edge for edge in shown.edges}
    for edge in drawing.edges:
        half = label_width(edge.label) / 2
        assert edge.x - half >= -1
        assert edge.x + half <= drawing.width + 1
        assert bool(edge.head) != edge.jump
        assert edge.label.endswith(f"▸{known[edge.id].target}") == edge.jump
    for i, one in enumerate(drawing.edges):
        for other in drawing.edges[:i]:
            apart = abs(one.x - other.x) - (label_width(one.label) + label_width(other.label)) / 2
            assert apart > -1 or abs(one.y - other.y) >= 10, (one.label, other.label)


def test_a_drawing_of_200_nodes_takes_less_than_a_second() -> None:
    rng = random.Random(5)
    shown = inspect(choices=["".join(rng.choices("abcd", k=9)) for _ in range(400)]).automaton
    began = time.perf_counter()
    drawing = draw(shown)
    assert time.perf_counter() - began < 1
    assert drawing.width < 2 * BAND_WIDTH


def test_nothing_to_draw_is_an_empty_drawing() -> None:
    assert draw(Automaton()).nodes == []


def test_a_picture_stays_below_64_kb_and_is_inert() -> None:
    evil = "<img src=x onerror=alert(1)>\u202e\x1b[31m"
    seen = picture(GrammarSpec(kind="choices", text=json.dumps([evil + "a", evil + "b"])), evil)
    page = grammar_html(seen)
    assert "<img src=x" not in page
    assert "\u202e" not in page
    rng = random.Random(5)
    many = ["".join(rng.choices("abcd", k=9)) for _ in range(900)]
    large = grammar_html(picture(GrammarSpec(kind="choices", text=json.dumps(many)), many[3] * 9000))
    assert len(large.encode()) <= 64_000


# ---- the live view's source ------------------------------------------------------------------------------------------


def run_of(text: str, status: str = "running") -> RunView:
    spec = GrammarSpec(kind="regex", text=PERSON)
    segment = SegmentView(kind="gen", name="person", status=status, text=text, grammar=spec)
    return RunView(status=status, branches=[BranchView(id=7, status=status, segments=[segment])])


def test_a_watched_segment_tells_the_automaton_once_and_then_only_its_place() -> None:
    watched = Watched(picture, 7, 0)
    watched.look(run_of(TEXT[:5]), 10.0, is_last=True)
    first = watched.news()
    assert first is not None
    assert first["automaton"].nodes
    assert (first["branch"], first["segment"], first["edge"]) == (7, 0, first["path"][0][0])
    assert watched.news() is None
    watched.look(run_of(TEXT[:5]), 20.0, is_last=True)
    assert watched.news() is None
    watched.look(run_of(TEXT), 30.0, is_last=True)
    second = watched.news()
    assert second is not None
    assert "automaton" not in second
    assert second["accepting"]


def test_a_watched_segment_is_drawn_at_most_ten_times_a_second() -> None:
    drawn: list[str] = []
    watched = Watched(lambda spec, text: drawn.append(text) or picture(spec, text), 7, 0)
    for tick in range(100):
        watched.look(run_of(TEXT[: tick // 2]), 100 + tick / 100)
        if watched._thread is not None:
            watched._thread.join(5)
    assert len(drawn) <= 11


def test_a_grammar_that_cannot_be_drawn_says_so_in_its_panel() -> None:
    watched = Watched(lambda spec, text: 1 / 0, 7, 0)
    watched.look(run_of(TEXT), 1.0, is_last=True)
    assert watched.news() == {"branch": 7, "segment": 0, "error": "ZeroDivisionError: division by zero"}
    Watched(picture, 8, 0).look(run_of(TEXT), 1.0, is_last=True)


def test_a_long_schema_goes_to_the_page_by_its_head() -> None:
    long = SegmentView(kind="gen", grammar=GrammarSpec(kind="json_schema", text="x" * 5000))
    assert len(lean(long).grammar.text) == 201
    short = run_of("").branches[0].segments[0]
    assert lean(short) is short


def test_a_frozen_run_has_the_drawing_and_tints_what_was_forced() -> None:
    page = run_html(run_of(TEXT, "done"), picture)
    assert page.count("<img ") == 1
    assert page.count("border-bottom:1px dotted") == 5
    assert "may end here" in page
    plain = run_html(run_of(TEXT, "done"))
    assert "<img" not in plain


# ---- meta info -------------------------------------------------------------------------------------------------------


def result_of(text: str, **more) -> GenResult:
    finish = more.pop("finish", Finish(type="length", length=9))
    counts = {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 3}
    return GenResult(text=text, ids=b"", finish=finish, **counts, **more)


def test_meta_info_draws_the_automaton_only_when_asked() -> None:
    spec = GrammarSpec(kind="regex", text=PERSON)
    info = GrammarInfo({"engine": "fsm", "proposed": 3}, spec, result_of(TEXT[:27]), None)
    assert json.loads(json.dumps(info)) == {"engine": "fsm", "proposed": 3}
    assert len(info["automaton"]["nodes"]) > 10
    assert info["place"]["edge"] == info["place"]["path"][-1][0]
    assert info["place"]["allowed"] is None
    assert set(info) == {"engine", "proposed", "automaton", "place"}
    with pytest.raises(KeyError):
        info["nothing"]


def test_meta_info_names_the_likeliest_tokens_of_the_last_step() -> None:
    spec = GrammarSpec(kind="regex", text="[a-c]+")
    found = inspect(grammar=spec, vocab="embedded")
    letters = [token for text, token, _ in found.allowed().top if text in ("a", "b")]
    top = [(-0.5, letters[1], "b"), (-0.2, letters[0], "a"), (-9.0, 4000, "?")]
    stopped = Finish(type="stop", matched=2)
    known = result_of("ab", finish=stopped, output_logprobs=Logprobs(tokens=[], top=[None, top]))
    allowed = GrammarInfo({}, spec, known, "embedded")["place"]["allowed"]
    assert [text for text, _, _ in allowed["top"]][:2] == ["a", "b"]
    assert allowed["top"][0][2] == pytest.approx(0.8187, abs=1e-4)
    unknown = GrammarInfo({}, spec, result_of("ab"), "embedded")["place"]["allowed"]
    assert all(p is None for _, _, p in unknown["top"])
    assert unknown["count"] == allowed["count"]


# ---- escapes and counts ----------------------------------------------------------------------------------------------

STRING = r'"([^"\\\x00-\x1f]|\\(["\\/bfnrt]|u[0-9a-c][0-9a-f]{3}|ud[89]{2}\\u[0-9]{4}|ue[0-9]{3})){0,30}"'


def test_what_a_backslash_begins_is_one_edge_in_a_large_automaton() -> None:
    found = inspect(regex=STRING)
    assert len(found.automaton.nodes) < 12
    assert [edge.label for edge in found.automaton.edges if edge.label.startswith("\\")][0] == "\\…"
    inside = found.picture('"ab\\u0')
    edge = next(edge for edge in inside.automaton.edges if edge.id == inside.place.edge)
    assert (edge.label, inside.place.inside, edge.literal) == ("\\…", 3, False)
    after = found.picture('"ab\\u00e9')
    assert (after.place.edge, after.place.node) == (-1, edge.target)
    assert [times for _, times in after.place.path] == [1, 2, 1]


def test_an_escape_with_two_ends_stays_as_it_is() -> None:
    wide = "|".join(f"{a}{b}" for a in "abcdef" for b in "ghijk") + r"|\\(x|y!z*)"
    labels = [edge.label for edge in inspect(regex=f"({wide}){{3}}").automaton.edges]
    assert "\\…" not in labels


def test_only_neighbours_are_drawn_as_one() -> None:
    links = [(i, i + 1, "x") for i in range(9)] + [(9, 20, "-")] + [(20 + i, 21 + i, "x") for i in range(9)]
    kinds = dict.fromkeys([*range(10), *range(20, 30)], 0) | {9: 1, 29: 1}
    kin = folded(kinds, links)
    assert [kin[node] for node in range(10)] == [0, 0, 0, 0, 0, 0, 6, 7, 8, 9]
    assert [kin[node] for node in range(20, 30)] == [20] * 6 + [26, 27, 28, 29]


def test_a_schema_is_drawn_too() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    schema |= {"additionalProperties": False}
    found = inspect(json_schema=schema)
    assert found.automaton.edges[0].label == '{"name": "'
    assert all(json.loads(text).keys() == {"name"} for text in found.sample(50))
    assert found.picture('{"name": "A"}').place.accepting
    recursive = {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}
    assert not inspect(json_schema=recursive).is_regular
