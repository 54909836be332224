"""What constrains a gen: the kind of its grammar and how the engine goes about it, checked at the gen's line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from nbsgl import structural_tags as tag_noun
from nbsgl.errors import BadGrammar, ParameterError
from nbsgl.lang.ir import refuse_mark
from nbsgl.lang.tools import FORMATS, calls_reader, tools_spec
from nbsgl.lang.types import JSON_READER, Constraint, check_regex, of_schema, of_type
from nbsgl.protocol import GrammarSpec

KINDS = ("type", "dtype", "choices", "regex", "json_schema", "ebnf", "lark", "tools", "grammar")
ENGINES = ("auto", "fsm", "llguidance", "xgrammar", "outlines")
_WORDS: dict[str, tuple[str, ...]] = {
    "tool_format": FORMATS,
    "on_limit": ("keep", "fit"),
    "on_unsupported": ("error", "loosen"),
    "jump": ("off", "verify", "canonical"),
    "whitespace": ("compact", "spaced", "flexible"),
}
_OF_JSON = ("on_unsupported", "whitespace")
MAX_MARK_CHARS = 128


def one_kind(kinds: Mapping[str, Any]) -> str | None:
    """Which of the kinds was given; `ParameterError` naming two of them.  The name of an engine is no kind."""
    given = [kind for kind in KINDS if kinds.get(kind) is not None and not _is_engine(kind, kinds[kind])]
    if len(given) > 1:
        raise ParameterError(
            f"{' and '.join(given)} were both given; a gen takes one of {', '.join(KINDS)}.", name=given[1]
        )
    return given[0] if given else None


def constraint(kind: str | None, kinds: Mapping[str, Any], options: Mapping[str, Any]) -> Constraint:
    """The constraint of a gen with this kind of grammar, which may be none; every option that is not None counts."""
    given = {name: value for name, value in options.items() if value is not None}
    if kind is None and not given and kinds.get("grammar") is None:
        return Constraint()
    _check_words(given)
    engine = kinds.get("grammar") if kind != "grammar" else None
    _check_needs(kind, engine, given)
    found = _of_kind(kind, kinds, given)
    if found.grammar is None:
        return found
    spec = found.grammar
    for name in _OF_JSON:
        if name in given and not _has_json(spec):
            raise ParameterError(f"{name} is for JSON, and {kind}= writes none.", name=name, value=given[name])
    changes = {name: given[name] for name in ("jump", "on_limit", *_OF_JSON) if name in given}
    changes |= _after(given) | ({} if engine is None else {"engine": engine})
    spec = msgspec.structs.replace(spec, **changes)
    for text in (spec.text, spec.prefix):
        tag_noun.refuse_half(text, spec.kind, f"{kind}=")
    tag_noun.refuse_half(spec.after, "after", "after=")
    _check_fit(spec)
    return replace(found, grammar=spec)


def _is_engine(kind: str, value: Any) -> bool:
    return kind == "grammar" and isinstance(value, str)


def _check_words(given: Mapping[str, Any]) -> None:
    for name, words in _WORDS.items():
        if name in given and given[name] not in words:
            raise ParameterError(name=name, value=given[name], allowed=", ".join(map(repr, words)))


def _check_needs(kind: str | None, engine: Any, given: Mapping[str, Any]) -> None:
    """What means something only together with another parameter."""
    if engine is not None and engine not in ENGINES:
        raise ParameterError(
            name="grammar",
            value=engine,
            allowed=f"a GrammarSpec, or an engine: {', '.join(ENGINES)}",
            hint="EBNF goes with ebnf=, Lark with lark=.",
        )
    if "max_think_tokens" in given and "after" not in given:
        raise ParameterError(
            "max_think_tokens is given without after=, the text that ends the thinking.",
            name="max_think_tokens",
            value=given["max_think_tokens"],
            hint='For example after="</think>".',
        )
    if "tool_format" in given and kind != "tools":
        raise ParameterError("tool_format is given without tools=.", name="tool_format", value=given["tool_format"])
    alone = ["grammar"] if engine is not None else []
    alone += [name for name in given if name != "tool_format"]
    if kind is None and alone:
        raise ParameterError(
            f"{' and '.join(alone)} mean(s) nothing to a gen without a constraint.",
            name=alone[0],
            hint=f"Give one of {', '.join(KINDS)}."
            + (" separate_reasoning(gen(...)) cuts thinking out of free text." if "after" in alone else ""),
        )


def _of_kind(kind: str | None, kinds: Mapping[str, Any], given: Mapping[str, Any]) -> Constraint:
    value = None if kind is None else kinds[kind]
    if kind is None:
        return Constraint()
    if kind in ("type", "dtype"):
        return of_type(value, kind)
    if kind == "json_schema":
        return of_schema(value)
    if kind == "tools":
        return tools_spec(value, given.get("tool_format", FORMATS[0]))
    if kind == "grammar":
        return _of_spec(value)
    return Constraint(GrammarSpec(kind=kind, text=_text(kind, value)))  # type: ignore[arg-type]


def _text(kind: str, value: Any) -> str:
    """The text of a regex, EBNF or Lark grammar."""
    if not isinstance(value, str) or not value:
        hint = "A compiled one goes with type=." if kind == "regex" and isinstance(value, re.Pattern) else ""
        what = "a regular expression as a string" if kind == "regex" else "a grammar as a string that is not empty"
        if not (kind == "regex" and value == ""):
            raise ParameterError(name=kind, value=value, allowed=what, hint=hint)
    refuse_mark(value, f"{kind}=")
    if kind == "regex":
        check_regex(value)
    elif kind == "ebnf" and not re.search(r"(?m)^\s*root\s*::=", value):
        raise BadGrammar(
            kind="ebnf", path="ebnf=", reason="it has no rule `root ::= ...`", hint='For example root ::= "yes" | "no".'
        )
    elif kind == "lark" and not re.search(r"(?m)^\s*start\s*:", value):
        raise BadGrammar(kind="lark", path="lark=", reason="it has no rule `start: ...`", hint='start: "yes" | "no"')
    return str(value)


def _of_spec(value: Any) -> Constraint:
    """A ready spec, with what reads its values."""
    if not isinstance(value, GrammarSpec):
        raise ParameterError(
            name="grammar",
            value=value,
            allowed=f"a GrammarSpec, or an engine: {', '.join(ENGINES)}",
            hint="nbsgl.tags(...) makes one of structural tags.",
        )
    if value.kind in ("json_schema", "json"):
        return Constraint(value, reader=JSON_READER)
    if value.kind == "tags":
        tags = tag_noun.decode(value.text)
        return Constraint(value, reader=calls_reader(tags, {}) if tags.are_tools else None)
    return Constraint(value)


def _has_json(spec: GrammarSpec) -> bool:
    if spec.kind == "tags":
        return any(tag.kind in ("json_schema", "json") for tag in tag_noun.decode(spec.text).tags)
    return spec.kind in ("json_schema", "json")


def _after(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options about the end of thinking, checked."""
    found: dict[str, Any] = {}
    if "after" in given:
        mark = given["after"]
        if not isinstance(mark, str) or not 0 < len(mark) <= MAX_MARK_CHARS:
            raise ParameterError(
                name="after", value=mark, allowed=f"a string of 1..{MAX_MARK_CHARS} characters", hint='"</think>", say.'
            )
        refuse_mark(mark, "after=")
        found["after"] = mark
    if "max_think_tokens" in given:
        most = given["max_think_tokens"]
        if not isinstance(most, int) or isinstance(most, bool) or most < 0:
            raise ParameterError(name="max_think_tokens", value=most, allowed="an int >= 0")
        found["max_think_tokens"] = most
    return found


def _check_fit(spec: GrammarSpec) -> None:
    """on_limit="fit" needs tables that tell how far the end is."""
    if spec.on_limit != "fit":
        return
    if spec.engine not in ("auto", "fsm"):
        raise ParameterError(
            f"on_limit='fit' needs tables, which the engine {spec.engine!r} has not.",
            name="on_limit",
            value="fit",
            hint="Take grammar='fsm', or on_limit='keep'.",
        )
    if spec.max_think_tokens is not None:
        raise ParameterError(
            "on_limit='fit' and max_think_tokens exclude each other: the end of a forced mark is in no table.",
            name="on_limit",
            value="fit",
            hint="Leave max_think_tokens out: with 'fit' the thinking ends in time for the value.",
        )
