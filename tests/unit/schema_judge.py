"""Judges engines on JSON schemas: right (all tests), refused, or wrong.

A text is tried in every order of members (up to a limit), since engines fix one.  Some spellings are never written,
whatever the engine: `excused` says which valid instances are skipped for that when they are rejected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import islice, permutations, product
from pathlib import Path
from typing import Any

from nbsgl.engine.grammar import dfa, json_syntax
from nbsgl.engine.grammar.dfa_algebra import matches
from nbsgl.errors import GrammarError
from tests.unit import schema_bundle

SUITE = Path(__file__).parents[1] / "data" / "json_schema_suite.json"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
MAX_ORDERS = 200
RIGHT, REFUSED, WRONG = "right", "refused", "wrong"

Accepts = Callable[[str], bool]


class Refused(Exception):
    """An engine does not take a schema."""


class Crashed(Exception):
    """An engine failed while it matched."""


# ---- engines: schema -> what tells whether a text is in its language -------------------------------------------------


def ours(schema: Any) -> Accepts:
    """A tree's automaton, else our rules in llguidance."""
    try:
        grammar = json_syntax.read(json.dumps(schema))
    except GrammarError as error:
        return _nothing_or_refused(str(error))
    try:
        automaton = dfa.build(grammar.tree)
        return lambda text: matches(automaton, text.encode("utf-8", "surrogatepass"))
    except (json_syntax.NotRegular, dfa.TooManyStates):
        return by_lark("\n".join(grammar.lark()))


def by_rules(schema: Any) -> Accepts:
    """Our rules in llguidance, also where there is a tree."""
    try:
        return by_lark("\n".join(json_syntax.read(json.dumps(schema)).lark()))
    except GrammarError as error:
        return _nothing_or_refused(str(error))


def llguidance_alone(schema: Any) -> Accepts:
    form = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    if schema is True:
        schema = {}
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": form}
    return by_lark("start: %json " + json.dumps(schema))


def xgrammar_alone(schema: Any) -> Accepts:
    import xgrammar

    compiler = _xgrammar_compiler()
    try:
        compiled = compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(", ", ": "), strict_mode=False
        )
    except Exception as error:
        return _nothing_or_refused(str(error))

    def accepts(text: str) -> bool:
        matcher = xgrammar.GrammarMatcher(compiled)
        return matcher.accept_string(text.encode("utf-8", "surrogatepass")) and matcher.accept_token(256)

    return accepts


def _nothing_or_refused(message: str) -> Accepts:
    if re.search(r"no output can satisfy|nsatisfiable", message):
        return lambda text: False
    raise Refused(message)


def by_lark(lark: str) -> Accepts:
    import llguidance

    text = '%llguidance {"no_forcing": true}\n' + lark
    source = json.dumps({"grammars": [{"lark_grammar": text}]})
    start = llguidance.LLMatcher(_byte_tokenizer(), source, log_level=0)
    if start.is_error():
        return _nothing_or_refused(start.get_error())

    def accepts(text: str) -> bool:
        matcher, data = start.deep_copy(), list(text.encode("utf-8", "surrogatepass"))
        taken = matcher.try_consume_tokens(data)
        return taken == len(data) and matcher.is_accepting()

    return accepts


_cache: dict[str, Any] = {}


def _byte_tokenizer() -> Any:
    import llguidance

    if "llguidance" not in _cache:
        _cache["llguidance"] = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))
    return _cache["llguidance"]


class _Bytes:
    """A token for each byte, and EOS."""

    tokens = [*(bytes([byte]) for byte in range(256)), b"\xff<eos>"]
    eos_token_id, bos_token_id, special_token_ids = 256, None, [256]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _xgrammar_compiler() -> Any:
    import xgrammar

    if "xgrammar" not in _cache:
        vocab = [f"<0x{byte:02X}>" for byte in range(256)] + ["</s>"]
        kind = xgrammar.VocabType.BYTE_FALLBACK
        info = xgrammar.TokenizerInfo(vocab, vocab_type=kind, vocab_size=257, stop_token_ids=[256])
        _cache["xgrammar"] = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    return _cache["xgrammar"]


# ---- texts of an instance --------------------------------------------------------------------------------------------


def texts(instance: Any, order: dict[str, int]) -> Iterator[str]:
    """The instance in its orders of members, `order`'s first."""
    return islice(_texts(instance, order), MAX_ORDERS)


def _texts(value: Any, order: dict[str, int]) -> Iterator[str]:
    if isinstance(value, list):
        for items in product(*(list(islice(_texts(item, order), 24)) for item in value)):
            yield f"[{', '.join(items)}]"
    elif isinstance(value, dict):
        first = sorted(value, key=lambda name: order.get(name, len(order)))
        for names in permutations(first):
            inner = (list(islice(_texts(value[name], order), 24)) for name in names)
            for values in product(*inner):
                members = (f"{json.dumps(n, ensure_ascii=False)}: {v}" for n, v in zip(names, values))
                yield f"{{{', '.join(members)}}}"
    else:
        yield json.dumps(value, ensure_ascii=False)


def order_of(schema: Any) -> dict[str, int]:
    """Names in the order in which the schema's text has them."""
    found: dict[str, int] = {}

    def walk(value: Any) -> None:
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                found.setdefault(name, len(found))
            if isinstance(inner, (dict, list)):
                walk(inner)
            elif isinstance(inner, str):
                found.setdefault(inner, len(found))

    walk(schema if isinstance(schema, (dict, list)) else [])
    return found


def excused(instance: Any, group: str) -> bool:
    """Valid, but spelt as is never written: integers as decimals, exponents, -0; leap seconds, labels with `--`;
    and whatever draft 2020-12's own `format` group wants to be annotations, for formats are held to here."""
    if group in ("format", "optional/format-assertion"):
        return True
    if isinstance(instance, float):
        return instance.is_integer() or "e" in repr(instance)
    if isinstance(instance, dict):
        return any(excused(value, group) for value in instance.values())
    if isinstance(instance, list):
        return any(excused(value, group) for value in instance)
    if isinstance(instance, str) and group.startswith("optional/format/"):
        return bool(re.search(r":60(?:\.[0-9]+)?[Zz+-]", instance)) or "--" in instance
    return False


# ---- verdicts --------------------------------------------------------------------------------------------------------


def judge(
    engine: Callable[[Any], Accepts], schema: Any, tests: list[tuple[Any, bool]], group: str = ""
) -> tuple[str, str]:
    """The verdict, and the reason of a refusal or the instance that shows the fault."""
    try:
        accepts = engine(schema)
    except Refused as error:
        return REFUSED, str(error)
    order = order_of(schema)
    for instance, is_valid in tests:
        accepted = any(map(accepts, texts(instance, order)))
        if accepted and not is_valid:
            return WRONG, f"accepts {json.dumps(instance)}"
        if is_valid and not accepted and not excused(instance, group):
            return WRONG, f"rejects {json.dumps(instance)}"
    return RIGHT, ""


def rank(verdict: tuple[str, str]) -> int:
    """The smaller the better."""
    return (RIGHT, REFUSED, WRONG).index(verdict[0])


def suite(is_bundled: bool = True) -> Iterator[tuple[str, str, str, Any, list[tuple[Any, bool]]]]:
    """(draft, group, description, schema, tests) of the JSON-Schema-Test-Suite.

    Documents that the suite has its runners hold ready are put into the schemas that refer to them, unless told not to.
    Without draft 7's optional group on the content of strings, which later drafts made an annotation.
    """
    data = json.loads(SUITE.read_text())
    for draft in ("draft2020-12", "draft7"):
        for group, cases in data[draft].items():
            if group == "optional/content":
                continue
            for case in cases:
                schema = case["schema"]
                if draft == "draft7" and isinstance(schema, dict) and "$schema" not in schema:
                    schema = {"$schema": DRAFT_7, **schema}
                if is_bundled and isinstance(schema, dict):
                    keyword = "definitions" if draft == "draft7" else "$defs"
                    schema = schema_bundle.bundled(schema, data["remotes"], keyword)
                tests = [(test["data"], test["valid"]) for test in case["tests"]]
                yield draft, group, case["description"], schema, tests
