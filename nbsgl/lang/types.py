"""Types of a gen: how a value of one is written as text (a regular expression or a JSON schema), and read back.

Numbers, words and dates stand bare in the text; whatever has parts (lists, dicts, classes with fields) is JSON.
"""

from __future__ import annotations

import datetime
import enum
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from nbsgl import structural_tags
from nbsgl.errors import BadGrammar, BadRegex, BadValue, ParameterError
from nbsgl.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR, refuse_mark
from nbsgl.lang.type_schemas import FLOAT, INT, REGEX_DATE, REGEX_TIME, pydantics_maker, schema_of
from nbsgl.protocol import GrammarSpec

ALLOWED = (
    "int, float, bool, str, Literal[...], an Enum, date, time, datetime, a union of these, a compiled regex, list[T], "
    "dict, tuple, a TypedDict, dataclass, pydantic model or msgspec Struct"
)

_NUMBER_ENDS = (" ", "\n")
_NAMED = {"int": int, "float": float, "bool": bool, "str": str}
_FLAGS = {re.IGNORECASE: "i", re.DOTALL: "s", re.MULTILINE: "m", re.VERBOSE: "x", re.ASCII: "a"}
_PROPERTY_CLASS = re.compile(r"\\[pP](\{[^}]*\}|\w)")
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMAS = ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties")


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """Makes a value of a gen's text; `shown` is the type for messages."""

    shown: str
    make: Callable[[str], Any]

    def read(self, name: str | None, text: str, hint: str) -> Any:
        """The value; `BadValue` if the text is none, with the cause."""
        try:
            return self.make(text)
        except Exception as error:  # a class's own checks may raise anything
            raise BadValue(
                variable=name, text=text, expected=self.shown, reason=str(error) or type(error).__name__, hint=hint
            ) from error


@dataclass(frozen=True, slots=True, eq=False)
class Constraint:
    """What a gen's text may be, the stop strings that go with it, and what `s.value` makes of it."""

    grammar: GrammarSpec | None = None
    stop: tuple[str, ...] = ()
    reader: Reader | None = None


@dataclass(frozen=True, slots=True)
class Plain:
    """A type whose values stand bare in the text."""

    regex: str
    make: Callable[[str], Any]
    stop: tuple[str, ...] = ()


# ---- types -----------------------------------------------------------------------------------------------------------


def of_type(wanted: object, parameter: str) -> Constraint:
    """The constraint of a type; `ParameterError` for one that has no text.

    `parameter` is "dtype" for SGLang's languages of int and float, "type" for ours.
    """
    if isinstance(wanted, str):
        wanted = _NAMED.get(wanted, wanted)
    try:
        return _known(_spelt(wanted), parameter)
    except TypeError:  # not hashable: an Annotated with a list in it, say
        return _of_type(wanted, parameter)


class _Spelt(NamedTuple):
    """A type and its arguments in order: `int | float` equals `float | int`, and is read in another way."""

    wanted: object
    arguments: tuple[_Spelt, ...]


def _spelt(wanted: object) -> _Spelt:
    return _Spelt(wanted, tuple(map(_spelt, typing.get_args(wanted))))


@lru_cache(maxsize=256)
def _known(spelt: _Spelt, parameter: str) -> Constraint:
    return _of_type(spelt.wanted, parameter)


def _of_type(wanted: object, parameter: str) -> Constraint:
    if isinstance(wanted, str):
        raise _refused(parameter, wanted)
    if isinstance(wanted, re.Pattern):
        return _of_pattern(wanted, parameter)
    if (given := _duck(wanted)) is not None:
        return given
    shown = shown_type(wanted)
    forms = _plain(wanted, parameter)
    if forms is None:
        schema, make = schema_and_reader(wanted, parameter)
        return Constraint(GrammarSpec(kind="json_schema", text=json.dumps(schema)), reader=Reader(shown, make))
    stop = tuple(dict.fromkeys(text for form in forms for text in form.stop))
    form = forms[0] if len(forms) == 1 else _either(forms)
    return Constraint(GrammarSpec(kind="regex", text=form.regex), stop, Reader(shown, form.make))


def _either(forms: list[Plain]) -> Plain:
    """A union: the first member whose language the text is in decides."""

    def make(text: str) -> Any:
        for form in forms:
            if re.fullmatch(form.regex, text):
                return form.make(text)
        raise ValueError("it is none of its types")

    return Plain("|".join(f"(?:{form.regex})" for form in forms), make)


def shown_type(wanted: object) -> str:
    return wanted.__name__ if isinstance(wanted, type) and not typing.get_args(wanted) else str(wanted)


def _refused(parameter: str, value: object, hint: str = "") -> ParameterError:
    return ParameterError(name=parameter, value=value, allowed=ALLOWED, hint=hint)


def _of_pattern(pattern: re.Pattern[Any], parameter: str) -> Constraint:
    if isinstance(pattern.pattern, bytes):
        raise _refused(parameter, pattern, "A pattern of bytes is none of text.")
    flags = "".join(letter for flag, letter in _FLAGS.items() if pattern.flags & flag)
    text = f"(?{flags}){pattern.pattern}" if flags else pattern.pattern
    return Constraint(GrammarSpec(kind="regex", text=text))


def _plain(wanted: Any, parameter: str) -> list[Plain] | None:
    """How a value may stand bare in the text, in the order of the union's members; None: only as JSON."""
    simple = (_OWN if parameter == "type" else _SIMPLE).get(wanted) if isinstance(wanted, type) else None
    if simple is not None:
        return [simple]
    if wanted is None or wanted is type(None):
        return [_words({"None": None})]
    if isinstance(wanted, enum.EnumType):
        return [_words({_word(member, parameter): member for member in _members(wanted, parameter)})]
    origin = typing.get_origin(wanted)
    if origin is typing.Literal:
        values = typing.get_args(wanted)
        words = {_word(value, parameter): value for value in values}
        if len(words) < len(values):
            raise _refused(parameter, wanted, "Two of its values are the same text.")
        return [_words(words)]
    if origin is typing.Union or origin is types.UnionType:
        found = [_plain(member, parameter) for member in typing.get_args(wanted)]
        return None if None in found else [form for forms in found for form in forms or ()]
    return None


def _members(wanted: Any, parameter: str) -> list[Any]:
    if not list(wanted):
        raise _refused(parameter, wanted, "It has no members.")
    return list(wanted)


def _word(value: Any, parameter: str) -> str:
    """The text that stands for a value of a Literal, or for a member of an Enum."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str):
        refuse_mark(value, f"{parameter}=")
        return str(value)
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    raise _refused(parameter, value, "The values of a Literal or Enum are strings and numbers.")


def _words(values: Mapping[str, Any]) -> Plain:
    def make(text: str) -> Any:
        if text not in values:
            raise ValueError(f"it is none of {', '.join(map(repr, values))}")
        return values[text]

    return Plain("|".join(map(re.escape, values)), make)


def _unquoted(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise ValueError("it does not stand in quotes")
    return text[1:-1]


_SIMPLE: dict[type, Plain] = {
    int: Plain(REGEX_INT, int, _NUMBER_ENDS),
    float: Plain(REGEX_FLOAT, float, _NUMBER_ENDS),
    bool: Plain(REGEX_BOOL, _words({"True": True, "False": False}).make),
    str: Plain(REGEX_STR, _unquoted),
    datetime.date: Plain(REGEX_DATE, datetime.date.fromisoformat),
    datetime.time: Plain(REGEX_TIME, datetime.time.fromisoformat),
    datetime.datetime: Plain(f"{REGEX_DATE}[ T]{REGEX_TIME}", datetime.datetime.fromisoformat),
}


# Of type=.  A blank that a model writes next is a stop string.
_OWN: dict[type, Plain] = _SIMPLE | {
    int: Plain(rf"{INT}[ \n]?", int, _NUMBER_ENDS),
    float: Plain(rf"{FLOAT}[ \n]?", float, _NUMBER_ENDS),
}


# ---- JSON ------------------------------------------------------------------------------------------------------------


def schema_and_reader(wanted: Any, parameter: str) -> tuple[dict[str, Any], Callable[[str], Any]]:
    """The closed schema of a type and what reads its JSON: msgspec, or pydantic for what only pydantic knows."""
    if isinstance(wanted, type) or typing.get_origin(wanted) is not None or wanted is Any:
        try:
            if not _is_pydantics(wanted):
                schema = _in_order(schema_of(wanted), wanted)
                return _closed(schema), msgspec.json.Decoder(wanted).decode
        except (TypeError, RecursionError) as error:
            if "pydantic" not in sys.modules:
                raise _refused(parameter, wanted, str(error).splitlines()[0]) from error
        try:
            adapter = sys.modules["pydantic"].TypeAdapter(wanted)
            schema = adapter.json_schema(schema_generator=pydantics_maker())
            return _closed(schema), adapter.validate_json
        except Exception as error:  # pydantic's own classes of errors, which are not imported here
            raise _refused(parameter, wanted, str(error).splitlines()[0]) from error
    raise _refused(parameter, wanted)


def _is_pydantics(wanted: Any) -> bool:
    """A model or dataclass of pydantic, or an Annotated with its constraints, anywhere in the type."""
    if hasattr(wanted, "__pydantic_validator__"):
        return True
    notes = getattr(wanted, "__metadata__", ())
    if any(type(note).__module__.partition(".")[0] in ("pydantic", "annotated_types") for note in notes):
        return "pydantic" in sys.modules
    return any(_is_pydantics(part) for part in typing.get_args(wanted))


def _in_order(schema: dict[str, Any], wanted: Any) -> dict[str, Any]:
    """The fields of TypedDicts in the order in which they are written: msgspec tells them by the alphabet."""
    orders = {found.__name__: list(typing.get_type_hints(found)) for found in _typed_dicts(wanted, set())}
    for inner in schema.get("$defs", {}).values():
        fields, order = inner.get("properties", {}), orders.get(inner.get("title"), [])
        if fields.keys() == set(order):
            inner["properties"] = {name: fields[name] for name in order}
            if "required" in inner:
                inner["required"].sort(key=order.index)
    return schema


def _typed_dicts(wanted: Any, seen: set[int]) -> Iterator[Any]:
    """Those in a type, in its arguments and in the fields of its classes."""
    if id(wanted) in seen:
        return
    seen.add(id(wanted))
    if typing.is_typeddict(wanted):
        yield wanted
    for part in typing.get_args(wanted):
        yield from _typed_dicts(part, seen)
    if isinstance(wanted, type) and wanted.__dict__.get("__annotations__"):
        for part in typing.get_type_hints(wanted).values():
            yield from _typed_dicts(part, seen)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A class has the fields, a dict the keys it names and no others; a set's items need not differ."""
    for inner in _inner(schema):
        _closed(inner)
    if "properties" in schema or "patternProperties" in schema:
        schema.setdefault("additionalProperties", False)
    schema.pop("uniqueItems", None)
    return schema


def _inner(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for keyword in _SCHEMAS_BY_NAME:
        yield from (inner for inner in schema.get(keyword, {}).values() if isinstance(inner, dict))
    for keyword in _SCHEMAS:
        found = schema.get(keyword)
        yield from (inner for inner in (found if isinstance(found, list) else [found]) if isinstance(inner, dict))


JSON_READER = Reader("JSON", json.loads)


def of_schema(schema: object, parameter: str = "json_schema") -> Constraint:
    """A schema as a dict or JSON string, which is kept as it is, or a type whose values are written as JSON.

    True, the schema that all JSON fits, is JSON without a schema.
    """
    if schema is True:
        return Constraint(GrammarSpec(kind="json", text=""), reader=JSON_READER)
    if isinstance(schema, (str, Mapping)):
        text = _schema_text(schema, parameter)
        return Constraint(GrammarSpec(kind="json_schema", text=text), reader=JSON_READER)
    if (given := _duck(schema)) is not None:
        if given.grammar is not None and given.grammar.kind != "json_schema":
            raise _refused(parameter, schema, "It is no schema: give it as type=.")
        return given
    found, make = schema_and_reader(schema, parameter)
    return Constraint(GrammarSpec(kind="json_schema", text=json.dumps(found)), reader=Reader(shown_type(schema), make))


def _duck(value: Any) -> Constraint | None:
    """An object of another library's that tells its language as a schema, a pattern or Lark, as outlines' types do."""
    if isinstance(value, (type, str, re.Pattern, Mapping)) or typing.get_origin(value) is not None:
        return None
    maker = getattr(value, "to_schema", None)
    schema = maker() if callable(maker) else getattr(value, "schema", None)
    if isinstance(schema, (str, Mapping)):
        return of_schema(schema)
    if isinstance(pattern := getattr(value, "pattern", None), str):
        check_regex(pattern)
        return Constraint(GrammarSpec(kind="regex", text=pattern))
    if isinstance(grammar := getattr(value, "definition", None), str):
        return Constraint(GrammarSpec(kind="lark", text=grammar))
    to_regex = getattr(sys.modules.get("outlines.types.dsl"), "to_regex", None)
    if to_regex is not None and type(value).__module__.partition(".")[0] == "outlines":
        return Constraint(GrammarSpec(kind="regex", text=str(to_regex(value))))
    return None


def _schema_text(schema: str | Mapping[str, Any], parameter: str) -> str:
    if isinstance(schema, str):
        try:
            json.loads(schema)
        except ValueError as error:
            raise BadGrammar(
                kind="json_schema", path=f"{parameter}=", reason=str(error), hint=f"Pass a dict: {parameter}={{...}}."
            ) from error
        return structural_tags.escape_halves(schema)
    try:
        return structural_tags.escape_halves(json.dumps(schema, ensure_ascii=False))
    except (TypeError, ValueError) as error:
        raise BadGrammar(kind="json_schema", path=f"{parameter}=", reason=str(error)) from error


# ---- regular expressions ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def check_regex(pattern: str, parameter: str = "regex") -> None:
    """`BadRegex` if the pattern is no regular expression.  Classes like `\\p{L}`, which `re` lacks, are let through."""
    try:
        re.compile(_PROPERTY_CLASS.sub(r"\\w", pattern))
    except (re.error, OverflowError, RecursionError) as error:
        at = getattr(error, "pos", None)
        raise BadRegex(
            f"{parameter}={pattern!r} is not valid: {error}.",
            kind="regex",
            path=f"position {at}" if at is not None else "the pattern",
            reason=str(error),
            hint="Try it with re.compile(...).",
            pattern_text=pattern,
        ) from error
