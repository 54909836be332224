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
from typing import Any

import msgspec

from nbsgl.errors import BadGrammar, BadRegex, BadValue, ParameterError
from nbsgl.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR, refuse_mark
from nbsgl.protocol import GrammarSpec

ALLOWED = (
    "int, float, bool, str, Literal[...], an Enum, date, time, datetime, a union of these, a compiled regex, list[T], "
    "dict, tuple, a TypedDict, dataclass, pydantic model or msgspec Struct"
)

# Years 1000..9999; every match is a day of the calendar.
_YEAR = "[1-9][0-9]{3}"
_LEAP_YEAR = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DAY = "(?:0[1-9]|1[0-9]|2[0-8])"
REGEX_DATE = (
    f"(?:{_YEAR}-(?:(?:0[1-9]|1[0-2])-{_DAY}|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)|{_LEAP_YEAR}-02-29)"
)
REGEX_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"

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


def constraint(regex: object, json_schema: object, wanted: object, parameter: str = "dtype") -> Constraint:
    """The constraint of a gen, which may be none; at most one is given, `wanted` under the name `parameter`."""
    if wanted is not None:
        return of_type(wanted, parameter)
    if regex is not None:
        if not isinstance(regex, str):
            raise ParameterError(
                name="regex",
                value=regex,
                allowed="a regular expression as a string",
                hint="A compiled one goes with type=." if isinstance(regex, re.Pattern) else "",
            )
        refuse_mark(regex, "regex=")
        check_regex(regex)
        return Constraint(GrammarSpec(kind="regex", text=regex))
    if json_schema is not None:
        return _of_schema(json_schema)
    return Constraint()


# ---- types -----------------------------------------------------------------------------------------------------------


def of_type(wanted: object, parameter: str) -> Constraint:
    """The constraint of a type; `ParameterError` for one that has no text."""
    if isinstance(wanted, str):
        wanted = _NAMED.get(wanted, wanted)
    try:
        return _of_type(wanted, parameter)
    except TypeError:  # not hashable: an Annotated with a list in it, say
        return _of_type.__wrapped__(wanted, parameter)


@lru_cache(maxsize=256)
def _of_type(wanted: object, parameter: str) -> Constraint:
    if isinstance(wanted, str):
        raise _refused(parameter, wanted)
    if isinstance(wanted, re.Pattern):
        return _of_pattern(wanted, parameter)
    shown = shown_type(wanted)
    forms = _plain(wanted, parameter)
    if forms is None:
        schema, make = _json(wanted, parameter)
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
    simple = _SIMPLE.get(wanted) if isinstance(wanted, type) else None
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


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _json(wanted: Any, parameter: str) -> tuple[dict[str, Any], Callable[[str], Any]]:
    """The schema of a type and what reads its JSON: msgspec, or pydantic for what only pydantic knows."""
    if isinstance(wanted, type) or typing.get_origin(wanted) is not None or wanted is Any:
        try:
            if not _is_pydantics(wanted):
                return _closed(msgspec.json.schema(wanted)), msgspec.json.Decoder(wanted).decode
        except (TypeError, RecursionError) as error:
            if "pydantic" not in sys.modules:
                raise _refused(parameter, wanted, str(error).splitlines()[0]) from error
        try:
            adapter = sys.modules["pydantic"].TypeAdapter(wanted)
            return _closed(adapter.json_schema()), adapter.validate_json
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


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A class has the fields it names and no others; a set's items need not differ (reading makes them)."""
    for inner in _inner(schema):
        _closed(inner)
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    schema.pop("uniqueItems", None)
    return schema


def _inner(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for keyword in _SCHEMAS_BY_NAME:
        yield from (inner for inner in schema.get(keyword, {}).values() if isinstance(inner, dict))
    for keyword in _SCHEMAS:
        found = schema.get(keyword)
        yield from (inner for inner in (found if isinstance(found, list) else [found]) if isinstance(inner, dict))


def _of_schema(schema: object) -> Constraint:
    """A schema as a dict or JSON string, which is kept as it is, or a type whose values are written as JSON."""
    if isinstance(schema, (str, Mapping)):
        return Constraint(GrammarSpec(kind="json_schema", text=_schema_text(schema)), reader=Reader("JSON", json.loads))
    found, make = _json(schema, "json_schema")
    return Constraint(GrammarSpec(kind="json_schema", text=json.dumps(found)), reader=Reader(shown_type(schema), make))


def _schema_text(schema: str | Mapping[str, Any]) -> str:
    if isinstance(schema, str):
        try:
            json.loads(schema)
        except ValueError as error:
            raise BadGrammar(
                kind="json_schema", path="json_schema=", reason=str(error), hint="Pass a dict: json_schema={...}."
            ) from error
        return schema
    try:
        return json.dumps(schema, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise BadGrammar(kind="json_schema", path="json_schema=", reason=str(error)) from error


# ---- regular expressions ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def check_regex(pattern: str) -> None:
    """`BadRegex` if the pattern is no regular expression.  Classes like `\\p{L}`, which `re` lacks, are let through."""
    try:
        re.compile(_PROPERTY_CLASS.sub(r"\\w", pattern))
    except (re.error, OverflowError, RecursionError) as error:
        at = getattr(error, "pos", None)
        raise BadRegex(
            f"regex={pattern!r} is not valid: {error}.",
            kind="regex",
            path=f"position {at}" if at is not None else "the pattern",
            reason=str(error),
            hint="Try it with re.compile(...).",
            pattern_text=pattern,
        ) from error
