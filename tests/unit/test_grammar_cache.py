"""Grammars compiled beside the loop: one flight per language, stand-ins with the same masks, helpers that may die."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from nbsgl.engine import grammar
from nbsgl.engine.grammar import TokenVocab, compiler, helper
from nbsgl.engine.grammar.cache import GrammarCache, Pending
from nbsgl.engine.grammar.host import LlguidanceEngine
from nbsgl.errors import BadGrammar, BadRegex, GrammarError, GrammarTooExpensive, ParameterError
from nbsgl.protocol import GrammarSpec

BYTES = [bytes([byte]) for byte in range(256)]
WORDS = ["ab", "abc", "aa", '"a', '": ', "12", "é", "the ", " quick", "yes", "no", "\r\n", "🙂", "{", '{"']
VOCAB = TokenVocab([*BYTES, *(word.encode() for word in WORDS), None, None], eos_ids=[271, 272])
WAIT_S = 20.0


@pytest.fixture(scope="module")
def shared() -> Iterator[GrammarCache]:
    cache = GrammarCache(VOCAB)
    yield cache
    cache.close()


@pytest.fixture
def cache() -> Iterator[GrammarCache]:
    cache = GrammarCache(VOCAB)
    yield cache
    cache.close()


def regex(text: str, **options: object) -> GrammarSpec:
    return GrammarSpec(kind="regex", text=text, **options)  # type: ignore[arg-type]


def until(condition: object, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def error_of(pending: Pending) -> Exception:
    with pytest.raises(GrammarError) as caught:
        pending.wait(WAIT_S)
    return caught.value


# ---- the cache -----------------------------------------------------------------------------------------------------


def test_specs_of_one_language_compile_once(cache: GrammarCache) -> None:
    """However a run goes on, and whoever asks while it is on its way."""
    specs = [regex("[ab]{3}"), regex("[ab]{3}", jump="off"), regex("[ab]{3}", on_limit="fit"), regex("[ab]{3}")]
    pending = [cache.request(spec) for spec in specs for _ in range(8)]
    found = {id(one.wait(WAIT_S)) for one in pending}
    assert len(found) == 1
    assert (cache.misses, cache.hits) == (1, 31)
    assert pending[0].compile_ms > 0
    late = cache.request(specs[0])
    assert late.cached
    assert late.compile_ms == 0.0
    assert late.ready() is pending[0].ready()


def test_asking_for_what_is_there_takes_less_than_100_us(shared: GrammarCache) -> None:
    spec = regex("ab*")
    shared.request(spec).wait(WAIT_S)
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        assert shared.request(spec).ready() is not None
        times.append(time.perf_counter() - begin)
    assert sorted(times)[25] < 100e-6


def test_grammar_cache_is_bounded() -> None:
    cache = GrammarCache(VOCAB, max_grammars=3)
    first = cache.get(regex("a0"))
    for i in range(1, 3):
        cache.get(regex(f"a{i}"))
    assert cache.get(regex("a0")) is first
    cache.get(regex("a3"))
    assert cache.get(regex("a0")) is first
    assert len(cache) == 3
    assert (cache.hits, cache.misses) == (2, 4)
    assert cache.num_bytes == sum(cache.get(regex(f"a{i}")).table_bytes + 2 for i in (0, 2, 3))


def test_tables_are_kept_up_to_a_number_of_bytes() -> None:
    one = GrammarCache(VOCAB).get(regex("a0")).table_bytes
    cache = GrammarCache(VOCAB, max_bytes=3 * one)
    for i in range(6):
        cache.get(regex(f"a{i}"))
    assert len(cache) == 2
    assert cache.num_bytes <= 3 * one
    alone = GrammarCache(VOCAB, max_bytes=1)
    assert alone.get(regex("a")) is alone.get(regex("a"))  # the one in use stays, whatever its size


def test_refusals_are_remembered_and_raised_again(shared: GrammarCache) -> None:
    before = shared.misses
    for _ in range(3):
        assert isinstance(error_of(shared.request(regex("("))), BadRegex)
    assert shared.misses == before + 1
    with pytest.raises(BadGrammar):
        shared.get(regex("("))


def test_notify_tells_of_stand_ins_and_of_results() -> None:
    told = threading.Semaphore(0)
    cache = GrammarCache(VOCAB, notify=told.release)
    try:
        pending = cache.request(regex("(ab)*"))
        while pending.ready() is None:
            assert told.acquire(timeout=WAIT_S)
    finally:
        cache.close()


# ---- which engine --------------------------------------------------------------------------------------------------

RECURSIVE = 'root ::= "(" root ")" | "a"'


@pytest.mark.parametrize(
    ("spec", "engine"),
    [
        (regex("a{1,20}"), "fsm"),
        (regex("a{1,20}", engine="llguidance"), "llguidance"),
        (regex("[ab]*a[ab]{14}"), "llguidance"),  # 2 ** 15 states
        (regex("x", prefix="ab", after="</think>"), "fsm"),
        (regex("x", after="</think>", max_think_tokens=9), "fsm"),
        (GrammarSpec(kind="choices", text='["yes", "no", "é"]'), "fsm"),
        (GrammarSpec(kind="ebnf", text='root ::= "a" [0-9]+'), "fsm"),
        (GrammarSpec(kind="ebnf", text=RECURSIVE), "llguidance"),
        (GrammarSpec(kind="ebnf", text=RECURSIVE, prefix="ab", after="yes"), "llguidance"),
        (GrammarSpec(kind="lark", text='start: "a" x+\nx: /[0-9]/'), "llguidance"),
        (GrammarSpec(kind="json", text=""), "llguidance"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.kind} {value.text[:12]}",
)
def test_engine_is_chosen_by_class_and_can_be_named(shared: GrammarCache, spec: GrammarSpec, engine: str) -> None:
    assert shared.request(spec).wait(WAIT_S).engine == engine
    assert grammar.compile(spec, VOCAB).engine == engine


def test_tables_asked_for_by_name_are_an_error_where_there_are_none(shared: GrammarCache) -> None:
    with pytest.raises(BadGrammar, match="holds regular languages only"):
        grammar.check(GrammarSpec(kind="ebnf", text=RECURSIVE, engine="fsm"))
    error = error_of(shared.request(regex("[ab]*a[ab]{17}", engine="fsm")))
    assert isinstance(error, GrammarTooExpensive)
    assert "32,768 states" in str(error)


def test_an_unknown_engine_is_named_with_those_there_are() -> None:
    with pytest.raises(ParameterError, match="'fsm' | 'llguidance'"):
        grammar.engine_class("ours")


def test_special_tokens_in_marks_are_refused() -> None:
    vocab = TokenVocab([*BYTES, None, None], [256], {257: "</think>"})
    with pytest.raises(BadGrammar, match="special token"):
        grammar.compile(regex("a", after="</think>"), vocab)


# ---- one language, whatever the engine -----------------------------------------------------------------------------

HOST_SPECS = [
    (GrammarSpec(kind="ebnf", text=RECURSIVE), ["a", "((a))"], ["", "(a", "a)", "()"]),
    (GrammarSpec(kind="ebnf", text=RECURSIVE, prefix="no"), ["noa", "no(a)"], ["a", "n(a)"]),
    (GrammarSpec(kind="ebnf", text=RECURSIVE, after="b."), ["b.a", "xb. \n(a)", "bb.a"], ["a", "b.b.a", "b. b"]),
    (GrammarSpec(kind="lark", text='start: "a" x+\nx: /[0-9]/ | "(" x ")"'), ["a1", "a(2)3"], ["a", "1"]),
    (GrammarSpec(kind="lark", text='start: "a" x\nx: /[0-9]/', prefix=">", after="."), [">x. a1"], ["a1", ">a1"]),
    (GrammarSpec(kind="json", text=""), ['{"a": [1, null]}', "[]", "1.5"], ["{'a': 1}", "[1,2]", "nul"]),
    (GrammarSpec(kind="json", text="", whitespace="compact"), ['{"a":[1,2]}'], ['{"a": 1}']),
    (GrammarSpec(kind="json", text="", whitespace="flexible"), ['{"a":[1,  2]}', '{"a": 1}'], ["{a: 1}"]),
    (GrammarSpec(kind="json", text="", after="</t>"), ["x</t>\n[1, 2]"], ["[1, 2]"]),
]


def takes(spec: GrammarSpec, text: str) -> bool:
    return matched(grammar.compile(spec, VOCAB), text)


def matched(compiled: Any, text: str) -> bool:
    matcher = compiled.matcher()
    return all(matcher.advance(byte) for byte in text.encode()) and matcher.is_accepting()


@pytest.mark.parametrize(("spec", "good", "bad"), HOST_SPECS, ids=lambda value: getattr(value, "kind", None))
def test_languages_of_llguidance_s_own(spec: GrammarSpec, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not takes(spec, text)] == []
    assert [text for text in bad if takes(spec, text)] == []


def tags(inner_kind: str, inner: str, **options: bool) -> GrammarSpec:
    tag = {"begin": "<f=g>", "kind": inner_kind, "text": inner, "end": "</f>", "trigger": "<f="}
    other = {"begin": "<f=h>", "kind": "regex", "text": "[0-9]*", "end": "</f>", "trigger": "<f="}
    return GrammarSpec(kind="tags", text=json.dumps({"tags": [tag, other], **options}))


@pytest.mark.parametrize("options", [{}, {"at_least_one": True}, {"stop_after_first": True}, {"free_text": False}])
def test_tags_by_llguidance_are_the_language_of_the_tree(options: dict[str, bool]) -> None:
    """The same texts with a recursive inner grammar, which no tree has, and with one that a tree has."""
    regular = tags("regex", "a|\\(a\\)", **options)
    recursive = tags("ebnf", RECURSIVE, **options)
    assert grammar.compile(regular, VOCAB).engine == "fsm"
    assert grammar.compile(recursive, VOCAB).engine == "llguidance"
    texts = ["", "x", "<f=g>a</f>", "x<f=g>(a)</f>y", "<f=h>12</f>", "<f=g>a</f><f=h></f>", "<f=x", "<f", "x<f=g>a"]
    texts += ["<<f=h>1</f>", "<f=g>b</f>", "x<f=h>1</f><f=g>a</f> z", "<f=h>1</f><"]
    assert [takes(recursive, text) for text in texts] == [takes(regular, text) for text in texts]


CLOSED, OPEN = '{"type": "object", "additionalProperties": false}', '{"type": "object"}'


def tagged(*inner: tuple[str, str, str], last: str = CLOSED, **options: Any) -> GrammarSpec:
    """Tags <x0>, <x1>, ... of (kind, text, end), and one of JSON, which makes rules of the whole."""
    found = [{"begin": f"<x{i}>", "kind": kind, "text": text, "end": end} for i, (kind, text, end) in enumerate(inner)]
    found.append({"begin": "<j>", "kind": "json_schema", "text": last, "end": "</j>"})
    after = options.pop("after", "")
    return GrammarSpec(kind="tags", text=json.dumps({"tags": found, **options}), after=after)


# What goes on where it may end: (kind, text, end), inner texts with their end, and others.
GOING_ON = [
    (("regex", ".*", "</x>"), ["hi</x>", "</x>", "</x></x>"], ["hi", "</x"]),
    (("regex", r"\w+( \w+)*", " end"), ["a end", "a b end", "a end end"], [" end", "a en"]),
    (("regex", r"\d+", "0"), ["10", "00", "100"], ["0", "1", "a0"]),
    (("regex", "b*", "b"), ["b", "bbb"], ["", "a"]),
    (("regex", "(ab)+", ""), ["ab", "aba", "abab"], ["", "a", "b"]),
    (("choices", '["a", "ab"]', "b"), ["ab", "abb"], ["a", "b"]),
    (("ebnf", 'root ::= "1" root2\nroot2 ::= [0-9]*', "9"), ["19", "1999"], ["1", "18"]),
    (("json_schema", '{"type": "integer"}', "0"), ["10", "-500", "00"], ["0", "1", "-0"]),
    (("json_schema", '{"type": "number"}', "."), ["1.", "1.5.", "0."], ["1", "."]),
    (("json_schema", '{"type": "number"}', ""), ["1", "1. So", "2e", "-3"], ["-", "x"]),
    (("json_schema", '{"enum": [1, 12]}', "2"), ["12", "122"], ["1", "2"]),
]


@pytest.mark.parametrize("options", [{}, {"free_text": False, "stop_after_first": True}, {"after": "b>"}], ids=str)
@pytest.mark.parametrize(("inner", "good", "bad"), GOING_ON, ids=lambda value: str(value) if value[0] else "")
def test_a_tag_ends_wherever_the_tree_lets_it(
    inner: tuple[str, str, str], good: list[str], bad: list[str], options: dict[str, Any]
) -> None:
    """A greedy lexer would take the end for more of the text before it."""
    spec = tagged(inner, **options)
    tables, general = (msgspec.structs.replace(spec, engine=engine) for engine in ("fsm", "llguidance"))
    head = f"{spec.after}<x0>"
    texts = [head + text + behind for text in (*good, *bad) for behind in ("", " b", "<j>{}</j>")]
    assert [takes(general, text) for text in texts] == [takes(tables, text) for text in texts]
    if options.get("free_text", True):
        assert all(takes(general, head + text) for text in good)
    assert not any(takes(general, head + text) for text in bad)


TOLD_APART = [
    [("<f", "regex", "bz", ""), ("<fb", "json", "", "")],
    [("<f", "json_schema", CLOSED, "."), ("<fb", "regex", "z", "."), ("<f{", "regex", "{?", ".")],
    [("<f", "json_schema", '{"enum": [1]}', "."), ("<f", "json_schema", '{"enum": [12]}', ".")],
    [("\n<f", "json_schema", '{"enum": [1]}', "."), ("\n<g", "regex", "a", ".")],
]


@pytest.mark.parametrize("found", TOLD_APART, ids=str)
def test_begins_that_begin_each_other_are_the_tree_s(found: list[tuple[str, str, str, str]]) -> None:
    """All pieces of three in a row, before and behind them nothing or a line's end."""
    closed = [("json_schema", '{"enum": [1, 10]}') if kind == "json" else (kind, text) for _, kind, text, _ in found]
    inner = [
        {"begin": begin, "kind": kind, "text": text, "end": end, "trigger": begin[:2]}
        for (begin, _, _, end), (kind, text) in zip(found, closed, strict=True)
    ]
    text = json.dumps({"tags": inner, "at_least_one": True})
    spec = GrammarSpec(kind="tags", text=text, after="b>")
    tables, general = (msgspec.structs.replace(spec, engine=engine) for engine in ("fsm", "llguidance"))
    one, other = grammar.compile(tables, VOCAB), grammar.compile(general, VOCAB)
    pieces = [*(begin for begin, *_ in found), "bz", "z", "1", "10", "12", "{}", "{", "a", "."]
    texts = ["b>" + blank + "".join(row) for blank in ("", "\n") for row in itertools.product(pieces, repeat=3)]
    accepted = [text for text in texts if matched(one, text)]
    assert accepted
    assert [text for text in texts if matched(other, text)] == accepted


@pytest.mark.parametrize("char", list('\x7f#/\\"&\n\u2028'), ids=ascii)
def test_an_end_may_hold_any_character(char: str) -> None:
    """Also those that mean something to what reads our print, or may not stand in its strings."""
    spec = tags("ebnf", RECURSIVE)
    spec = msgspec.structs.replace(spec, text=spec.text.replace("</f>", json.dumps(f"<{char}>")[1:-1]))
    assert takes(spec, f"<f=g>((a))<{char}> x")
    assert not takes(spec, "<f=g>((a))<.> x")


def test_tags_that_no_rules_can_say_are_refused_by_name_without_tables() -> None:
    """With an open object there are no tables, and a lexer does not know where such a text ends."""
    for inner in (("regex", ".*", "</x>"), ("json_schema", '{"type": ["integer", "object"]}', "0")):
        with pytest.raises(BadGrammar, match="tags/1 .*<x1>.*may go on"):
            grammar.compile(tagged(("regex", "a", "."), inner, last=OPEN), VOCAB)
    twice = {"begin": "<j>1", "kind": "regex", "text": "a", "end": ".", "trigger": "<j>"}
    other = {"begin": "<j>", "kind": "json", "text": "", "end": ">"}
    with pytest.raises(BadGrammar, match="like the tag '<j>1'"):
        grammar.compile(GrammarSpec(kind="tags", text=json.dumps({"tags": [twice, other]})), VOCAB)


def test_what_is_wrong_in_a_tag_is_told_with_the_tag() -> None:
    schema = '{"type": "object", "additionalProperties": {"typ": "string"}}'
    with pytest.raises(BadGrammar, match=r"tag 1 \('<x1>'\), #/additionalProperties/typ: .*'typ'"):
        grammar.compile(tagged(("regex", "a", "."), ("json_schema", schema, ".")), VOCAB)


def test_tags_beside_an_open_object_end_where_they_should() -> None:
    spec = tagged(("regex", "[^<]*", "</x>"), ("choices", '["a", "ab"]', "b"), ("json", "", "</x>"), last=OPEN)
    assert grammar.compile(spec, VOCAB).engine == "llguidance"
    for text in ("<x0>hi</x> b", "<x1>ab", "x<x1>abb<x1>ab", "<x2>12</x>1", '<x2>{"a": [1]}</x>', '<j>{"a": 1.5}</j>'):
        assert takes(spec, text), text
    for text in ("<x0>hi", "<x1>a", "<x2>12", "<x2>1</y>", "<j>1</j>"):
        assert not takes(spec, text), text


def test_a_user_s_lark_keeps_its_names_and_forces_nothing() -> None:
    spec = GrammarSpec(kind="lark", text='start: value\nvalue: "abc" head\nhead: /[0-9]/', prefix="the ")
    matcher = grammar.compile(spec, VOCAB).matcher()
    assert all(matcher.advance(byte) for byte in b"the ")
    words = mask(matcher)
    assert {VOCAB.tokens[token] for token in words} == {b"a", b"ab", b"abc"}


def mask(matcher: grammar.Matcher) -> set[int]:
    row = np.zeros((len(VOCAB) + 31) // 32, np.uint32)
    matcher.fill_mask(row)
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


REGULAR = [
    regex(r"(ab|a)*c?"),
    regex(r'"[^"\\]{0,6}": \d+(\.\d+)?'),
    regex(r"[\w ]{2,5}", prefix="the "),
    regex("yes|no", after="</t>"),
    regex("", prefix="é"),
    GrammarSpec(kind="choices", text='["yes", "no", "no quick", ""]'),
    GrammarSpec(kind="ebnf", text='root ::= "aa" ("b" | [^x\\n])* "12"'),
    tags("regex", "a+"),
    *(tagged(inner) for inner, _, _ in GOING_ON),
    tagged(("regex", "[^<]*", "</x>"), ("json_schema", '{"type": "integer"}', "</x>")),
]


@pytest.mark.parametrize("spec", REGULAR, ids=lambda spec: f"{spec.kind} {spec.text[:12]}")
def test_stand_ins_have_the_tables_masks_bit_for_bit(cache: GrammarCache, spec: GrammarSpec) -> None:
    pending = cache.request(spec)
    until(lambda: pending.standin() is not None)
    tables, standin, rng = pending.wait(WAIT_S), pending.standin(), np.random.default_rng(7)
    assert (tables.engine, standin.engine) == ("fsm", "llguidance")
    for _ in range(6):
        one, other = tables.matcher(), standin.matcher()
        for _ in range(14):
            tokens = mask(one)
            assert tokens == mask(other)
            assert (one.is_accepting(), one.is_finished()) == (other.is_accepting(), other.is_finished())
            token = int(rng.choice(sorted(tokens)))
            if token in VOCAB.eos_ids:
                break
            assert one.advance(token)
            assert other.advance(token)


def test_no_stand_in_where_the_vocabulary_cannot_spell_every_byte() -> None:
    """Tables know by tokens where a text cannot be ended; llguidance finds out on the way."""
    cache = GrammarCache(TokenVocab([b"a", b"b", None], eos_ids=[2]))
    try:
        pending = cache.request(regex("a|bx"))
        assert pending.wait(WAIT_S).engine == "fsm"
        assert pending.standin() is None
    finally:
        cache.close()


@pytest.mark.parametrize("ending", [None, RuntimeError("not foreseen")], ids=str)
def test_tables_come_whatever_becomes_of_their_stand_in(
    cache: GrammarCache, monkeypatch: pytest.MonkeyPatch, ending: Exception | None
) -> None:
    """One that takes long is not waited for, and one that fails leaves its thread to the others."""
    begun, may_end, compile_it = threading.Event(), threading.Event(), LlguidanceEngine.compile

    def late(self: LlguidanceEngine, *args: Any) -> Any:
        begun.set()
        assert may_end.wait(WAIT_S)
        if ending is not None:
            raise ending
        return compile_it(self, *args)

    monkeypatch.setattr(LlguidanceEngine, "compile", late)
    specs = [regex(f"a{{{n}}}") for n in range(1, 2 + compiler.NUM_HOSTS)]
    pending = [cache.request(spec) for spec in specs]
    assert [one.wait(WAIT_S).engine for one in pending] == ["fsm"] * len(specs)
    assert begun.is_set()
    assert all(one.standin() is None for one in pending)
    may_end.set()
    monkeypatch.undo()
    another = cache.request(regex("b+"))
    until(lambda: another.standin() is not None)


# ---- helpers -------------------------------------------------------------------------------------------------------

STUCK = """
import sys
from nbsgl.engine.grammar import compile_helper, fsm_engine
def tables(self, spec):
    {act}
    return found(self, spec)
found, fsm_engine.FsmEngine.tables = fsm_engine.FsmEngine.tables, tables
sys.exit(compile_helper.main())
"""


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> object:
    """Helpers that do something before they make tables."""

    def set_up(act: str) -> None:
        code = STUCK.format(act=act)
        monkeypatch.setattr(
            helper.spawn, "python", lambda module, *args: [helper.spawn.sys.executable, "-c", code, *args]
        )

    return set_up


def test_helper_that_dies_is_replaced_and_the_job_done(cache: GrammarCache) -> None:
    assert cache.request(regex("a")).wait(WAIT_S).engine == "fsm"
    pid = cache.compiler.tables.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid))  # reaped
    assert cache.request(regex("b")).wait(WAIT_S).engine == "fsm"
    assert cache.compiler.tables.pid not in (None, pid)
    assert cache.compiler.num_accidents == 0


def test_helper_killed_at_work_is_tried_once_more_then_llguidance_serves(cache: GrammarCache, acts: object) -> None:
    acts("import os; os.kill(os.getpid(), 9)")  # type: ignore[operator]
    assert cache.request(regex("a+")).wait(WAIT_S).engine == "llguidance"
    assert cache.compiler.num_accidents == 1
    error = error_of(cache.request(regex("a+", engine="fsm")))
    assert isinstance(error, GrammarTooExpensive)
    assert "signal 9" in str(error)


def test_helper_out_of_time_is_killed(cache: GrammarCache, acts: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "COMPILE_S", 0.3)
    acts("while True: pass")  # type: ignore[operator]
    begin = time.monotonic()
    pending = cache.request(regex("a+"))
    until(lambda: cache.compiler.tables.pid is not None)
    pid = cache.compiler.tables.pid
    assert pending.wait(WAIT_S).engine == "llguidance"
    error = error_of(cache.request(regex("a+", engine="fsm")))
    assert isinstance(error, GrammarTooExpensive)
    assert "0.3 s of compiling" in str(error)
    until(lambda: not psutil.pid_exists(pid))
    assert time.monotonic() - begin < 10


def test_helper_out_of_memory_says_so_and_goes_on(cache: GrammarCache, acts: object) -> None:
    acts("len(spec.text) > 3 and bytearray(2 << 30)")  # type: ignore[operator]
    error = error_of(cache.request(regex("a{1,9}", engine="fsm")))
    assert isinstance(error, GrammarTooExpensive)
    assert "1 GiB of memory" in str(error)
    pid = cache.compiler.tables.pid
    assert cache.request(regex("a+")).wait(WAIT_S).engine == "fsm"
    assert cache.compiler.tables.pid == pid


def test_outlines_compiles_under_the_helper_s_clock(cache: GrammarCache, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("outlines_core")
    assert cache.request(regex("ab{2,3}", engine="outlines")).wait(WAIT_S).engine == "outlines"
    monkeypatch.setattr(compiler, "COMPILE_S", 0.5)
    error = error_of(cache.request(regex(r"\w{1,500}\W{1,500}", engine="outlines")))
    assert isinstance(error, GrammarTooExpensive)
    assert "0.5 s of compiling" in str(error)


def test_helpers_end_with_their_cache(cache: GrammarCache) -> None:
    cache.request(regex("a")).wait(WAIT_S)
    cache.request(GrammarSpec(kind="json", text="")).wait(WAIT_S)
    pids = [cache.compiler.tables.pid, cache.compiler.planner.pid]
    assert None not in pids
    cache.close()
    until(lambda: not any(map(psutil.pid_exists, pids)))


# ---- hostile specs -------------------------------------------------------------------------------------------------


def schema(value: Any) -> GrammarSpec:
    return GrammarSpec(kind="json_schema", text=value if isinstance(value, str) else json.dumps(value))


def ebnf(text: str) -> GrammarSpec:
    return GrammarSpec(kind="ebnf", text=text)


def lark(text: str) -> GrammarSpec:
    return GrammarSpec(kind="lark", text=text)


def choices(texts: list[str]) -> GrammarSpec:
    return GrammarSpec(kind="choices", text=json.dumps(texts))


def inside(value: Any, times: int, wrap: Callable[[Any], Any]) -> Any:
    for _ in range(times):
        value = wrap(value)
    return value


WIDE = {f"property {i}": {"type": "string", "maxLength": i} for i in range(9000)}
STRINGS = {f"p{i}": {"type": "string"} for i in range(400)}
CHAIN = {f"n{i}": {"$ref": f"#/$defs/n{i + 1}"} for i in range(900)} | {"n900": {"type": "null"}}
FAN = {f"n{i}": {"anyOf": [{"$ref": f"#/$defs/n{i + 1}"}] * 4} for i in range(30)} | {"n30": {"type": "null"}}
TWICE = {
    f"n{i}": {"items": {"$ref": f"#/$defs/n{i + 1}"}, "contains": {"$ref": f"#/$defs/n{i + 1}"}} for i in range(40)
}
LATE = "(a|b)*a(a|b){%d}"
HOSTILE = {
    "nested counts": regex("(a{1,1000}){1,1000}"),
    "nested counts thrice": regex("((a{1,99}){1,99}){1,99}"),
    "subset explosion": regex("(a|b)*a(a|b){30}"),
    "many subset explosions": regex("|".join(LATE % n for n in range(10, 60))),
    "overlapping counts": regex("([ab]{1,90}a){9}"),
    "gaps": regex("(.*a){60}.*"),
    "gaps of words": regex(r"(\w*x){40}"),
    "counted words": regex(r"(\w+\s*)*\w{99}"),
    "stars in stars": regex("(" * 60 + "a" + "*)" * 60 + "*"),
    "options in options": regex("(" * 60 + "a" + "?)" * 60 + "b"),
    "a large count": regex(r"[^\n]{0,10000}"),
    "too large a count": regex("a{100000}"),
    "a huge number": regex("a{1,99999999999999999999}"),
    "every case of every letter": regex("(?i:" + "".join(map(chr, range(0x400, 0x1400))) + ")"),
    "a thousand classes": regex("|".join(rf"[\w{chr(0x4E00 + i)}]\W" for i in range(1000))),
    "4,000 words": regex("|".join(f"w{i * 7919}" for i in range(2200))),
    "deep parentheses": regex("(" * 500 + "a" + ")" * 500),
    "a long pattern": regex("a" * (1 << 20)),
    "an open class": regex("[" * 9999),
    "unbalanced": regex("(" * 9999),
    "catastrophe of backtracking": regex("(a+)+$"),
    "10,000 choices": choices([f"choice {i * 7919}" for i in range(10_000)]),
    "too many choices": choices([str(i) for i in range(10_001)]),
    "a long choice": choices(["x" * 900_000]),
    "half a character": choices(["\ud800"]),
    "1 MB schema": schema({"properties": WIDE}),
    "more than 1 MB": schema({"title": "x" * (1 << 20)}),
    "500 deep": schema(inside({"type": "integer"}, 500, lambda one: {"type": "array", "items": one})),
    "120 deep": schema(inside({"type": "integer"}, 60, lambda one: {"type": "array", "items": one})),
    "2,000 objects": schema(inside({}, 11, lambda one: {"properties": {"a": one, "b": one}})),
    "brackets": schema("[" * 100_000),
    "400 strings": schema({"properties": STRINGS, "required": [*STRINGS]}),
    "400 optional strings, closed": schema({"properties": STRINGS, "additionalProperties": False}),
    "a chain of references": schema({"$ref": "#/$defs/n0", "$defs": CHAIN}),
    "a fan of references": schema({"$ref": "#/$defs/n0", "$defs": FAN}),
    "references twice each": schema({"$ref": "#/$defs/n0", "$defs": TWICE | {"n40": {"type": "null"}}}),
    "a reference to itself": schema({"$ref": "#"}),
    "not of not of itself": schema({"not": {"not": {"$ref": "#"}}}),
    "all of many patterns": schema({"allOf": [{"type": "string", "pattern": LATE % n} for n in range(9, 40)]}),
    "not a pattern": schema({"type": "string", "not": {"pattern": LATE % 25}}),
    "one of many": schema({"oneOf": [{"properties": {f"p{i}": {"const": i}}} for i in range(40)]}),
    "any of any of": schema(inside({"type": "null"}, 10, lambda one: {"anyOf": [one, {"items": one}]})),
    "if in if": schema(inside(True, 6, lambda one: {"if": {"properties": {"a": one}}, "then": one, "else": one})),
    "100,000 items": schema({"type": "array", "minItems": 100_000, "items": {"type": "integer"}}),
    "a long string": schema({"type": "string", "minLength": 1_000_000}),
    "a large multiple": schema({"type": "integer", "multipleOf": 999_999_937}),
    "a fine multiple": schema({"type": "number", "multipleOf": 1e-300}),
    "unique items": schema({"type": "array", "uniqueItems": True, "items": {"enum": [*range(10)]}}),
    "pattern properties": schema({"patternProperties": {f"{LATE % n}": {"type": "null"} for n in range(5, 25)}}),
    "deep ebnf": ebnf("root ::= " + "(" * 500 + '"a"' + ")" * 500),
    "ebnf that doubles": ebnf(
        "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(90)) + '\nr90 ::= "a"'
    ),
    "ebnf that calls itself first": ebnf('root ::= root root | root "a" | "a"'),
    "ebnf without an end": ebnf("root ::= root"),
    "a long chain of ebnf": ebnf(
        "root ::= r0\n" + "\n".join(f"r{i} ::= [a-z] r{i + 1}?" for i in range(5000)) + "\nr5000 ::= root?"
    ),
    "empty rules": ebnf('root ::= ("" | root)* "a"'),
    "deep lark": lark("start: " + "(" * 5000 + '"a"' + ")" * 5000),
    "long lark": lark("start: " + " | ".join(f'"a{i}" start' for i in range(9000))),
    "a long chain of lark": lark(
        "start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1}' for i in range(6000)) + '\nr6000: "b"'
    ),
    "lark with a pattern": lark(r"start: /(a|b)*a(a|b){30}/ start | /(.*a){60}/"),
    "lark that includes": lark('%import common.INT\n%json {"type": "integer"}\nstart: INT'),
    "no lark": lark("%" * 4000),
    "no tags": GrammarSpec(kind="tags", text="[" * 99_999),
    "1,000 tags": GrammarSpec(
        kind="tags",
        text=json.dumps(
            {"tags": [{"begin": f"<f{i}>", "kind": "json", "text": "", "end": "</f>"} for i in range(1000)]}
        ),
    ),
    "a long mark": regex("a", after="x" * 100_000),
    "a long prefix": regex("a", prefix="x" * 100_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars(shared: GrammarCache, name: str) -> None:
    """An answer or an error in six seconds, of which five are the helper's; and the next grammar is served."""
    begin = time.monotonic()
    try:
        matcher = shared.request(HOSTILE[name]).wait(WAIT_S).matcher()
        assert mask(matcher)
    except GrammarError:
        pass
    assert time.monotonic() - begin < 6
    assert shared.request(regex("after " + name)).wait(WAIT_S).engine == "fsm"


def test_door_refuses_in_milliseconds_what_needs_no_vocabulary() -> None:
    for name in (
        "nested counts",
        "500 deep",
        "deep parentheses",
        "deep ebnf",
        "deep lark",
        "no lark",
        "no tags",
        "a long mark",
    ):
        begin = time.monotonic()
        with pytest.raises(GrammarError):
            grammar.check(HOSTILE[name])
        assert time.monotonic() - begin < 0.5
    grammar.check(msgspec.structs.replace(regex("a"), engine="llguidance"))
