"""The JSON schema of a Python type: what msgspec and pydantic say of it, and what else their readers ask.

Of some strings and of the keys of dicts they say nothing: any would be written, and not be read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect as told

# Years 1000..9999; every match is a day of the calendar.
_YEAR = "[1-9][0-9]{3}"
_LEAP_YEAR = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DAY = "(?:0[1-9]|1[0-9]|2[0-8])"
REGEX_DATE = (
    f"(?:{_YEAR}-(?:(?:0[1-9]|1[0-2])-{_DAY}|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)|{_LEAP_YEAR}-02-29)"
)
REGEX_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"

# Numbers are bounded, so that a run ends, and without leading zeros.
INT = "-?(?:0|[1-9][0-9]{0,18})"
_REAL = r"-?(?:0|[1-9][0-9]{0,15})(?:\.[0-9]{1,15})?"
FLOAT = _REAL + "(?:[eE][+-]?[0-9]{1,3})?"

# Strings in JSON, as msgspec reads them.
_KEY_FLOAT = _REAL + "(?:[eE][+-]?[0-9]{1,2})?"  # msgspec refuses what is too large for a float
_DECIMAL = r"-?(?:0|[1-9][0-9]{0,27})(?:\.[0-9]{1,28})?(?:[eE][+-]?[0-9]{1,3})?"
_FRACTION = r"(?:\.[0-9]{1,6})?"  # microseconds: of more digits a reader rounds, in the year 9999 past its end
_ZONE = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_ZONES = {None: f"{_ZONE}?", True: _ZONE, False: ""}  # by `tz` of msgspec's Meta
_AMOUNT = "[0-9]{1,8}"  # of all units together it stays below the most days of a timedelta
_SECONDS = f"{_AMOUNT}{_FRACTION}S"
_CLOCK = f"T(?:{_AMOUNT}H(?:{_AMOUNT}M)?(?:{_SECONDS})?|{_AMOUNT}M(?:{_SECONDS})?|{_SECONDS})"
_DURATION = f"-?P(?:{_AMOUNT}D(?:{_CLOCK})?|{_CLOCK})"
_NO_KEY = "The keys of a dict are strings, numbers, dates, an Enum or a Literal: no other is read from JSON."
_BASE64 = "[A-Za-z0-9+/]"
_Bytes = told.BytesType | told.ByteArrayType | told.MemoryViewType
_MAX_COUNTED_BYTES = 4096  # in a pattern, which has at most 100,000 states
_BASE64_ENDS = ("", f"{_BASE64}{{2}}==", f"{_BASE64}{{3}}=")  # by the number of bytes behind the last whole three


def schema_of(wanted: Any) -> dict[str, Any]:
    """What msgspec says of a type, and besides what its reader asks: strings and keys that it says nothing of.

    `TypeError` for a type that it does not know, or with keys that are read from no string.
    """
    whole = told.type_info(wanted)
    classes = _classes(whole, {})
    (schema, *named), components = msgspec.json.schema_components([wanted, *classes])
    _complete(schema, whole)
    for found, name in zip(classes.values(), named, strict=True):
        _complete_fields(components[name["$ref"].rpartition("/")[2]], found)
    return schema | {"$defs": components} if components else schema


def _classes(found: Any, known: dict[Any, Any]) -> dict[Any, Any]:
    """The classes with fields in a type, each with what msgspec tells of it."""
    if hasattr(found, "fields"):
        if found.cls in known:
            return known
        known[found.cls] = found
    for part in _parts(found):
        _classes(part, known)
    return known


def _parts(found: Any) -> Iterator[Any]:
    match found:
        case told.Metadata():
            yield found.type
        case told.UnionType():
            yield from found.types
        case told.CollectionType():
            yield found.item_type
        case told.TupleType():
            yield from found.item_types
        case told.DictType():
            yield found.value_type
        case _:
            yield from (field.type for field in getattr(found, "fields", ()))


def _complete_fields(schema: dict[str, Any], found: Any) -> None:
    if "properties" in schema:
        for field in found.fields:
            _complete(schema["properties"][field.encode_name], field.type)
    else:  # items by their places, the tag first if there is one
        for inner, field in zip(reversed(schema["prefixItems"]), reversed(found.fields), strict=False):
            _complete(inner, field.type)


def _complete(schema: dict[str, Any], found: Any) -> None:
    """Put in what is left out of the schema of a type; a reference to a class stays what it is.

    Of a union each option is met by each member: no two are written as strings, as lists, or as dicts.
    """
    match found:
        case told.Metadata():
            _complete(schema, found.type)
        case told.UnionType():
            for option in schema.get("anyOf", ()):
                for member in found.types:
                    _complete(option, member)
        case told.CollectionType() if isinstance(schema.get("items"), dict):
            _complete(schema["items"], found.item_type)
        case told.TupleType():
            for inner, item in zip(schema.get("prefixItems", ()), found.item_types, strict=False):
                _complete(inner, item)
        case told.DictType() if schema.get("type") == "object":
            _complete_dict(schema, found)
        case _ if schema.get("type") == "string":
            _complete_string(schema, found)


def _complete_dict(schema: dict[str, Any], found: told.DictType) -> None:
    if isinstance(values := schema.get("additionalProperties"), dict):
        _complete(values, found.value_type)
    if names := _names(found.key_type):
        schema.setdefault("propertyNames", names)


def _complete_string(schema: dict[str, Any], found: told.Type) -> None:
    pattern = _pattern(found)
    if pattern is None or "pattern" in schema or schema.get("format") in ("date-time", "time"):
        return
    schema.update(_whole(pattern))
    if schema.get("format") == "duration":  # years and weeks too, which msgspec does not read
        del schema["format"]
    if isinstance(found, _Bytes) and _are_counted(found):  # without a second count 20 times as fast to compile
        schema.pop("minLength", None)
        schema.pop("maxLength", None)


def _pattern(found: told.Type) -> str | None:
    """What a string must be to be read as this type; None where a format says it, or where any will do."""
    match found:
        case told.DateTimeType():
            return f"{REGEX_DATE}T{REGEX_TIME}{_FRACTION}{_ZONES[found.tz]}"
        case told.TimeType():
            return f"{REGEX_TIME}{_FRACTION}{_ZONES[found.tz]}"
        case told.TimeDeltaType():
            return _DURATION
        case told.DecimalType():
            return _DECIMAL
        case _ if isinstance(found, _Bytes):
            return _base64(found.min_length or 0, found.max_length) if _are_counted(found) else _base64(0, None)
    return None


def _whole(pattern: str) -> dict[str, Any]:
    """What a whole string must match: schemas search."""
    return {"pattern": f"^(?:{pattern})$"}


def _are_counted(found: _Bytes) -> bool:
    """Whether the pattern holds to the bounds of bytes; of more than those the schema counts the characters."""
    return max(found.min_length or 0, found.max_length or 0) <= _MAX_COUNTED_BYTES


def _base64(least: int, most: int | None) -> str:
    """The texts of so many bytes."""
    options = []
    for rest, end in enumerate(_BASE64_ENDS):
        low = max(0, -((rest - least) // 3))
        high = None if most is None else (most - rest) // 3
        if high is None or high >= low:
            options.append(f"(?:{_BASE64}{{4}}){{{low},{'' if high is None else high}}}{end}")
    return "|".join(options)


def _names(key: Any) -> dict[str, Any]:
    """The schema of a dict's keys, which JSON writes as strings; bounds of numbers are left to the reader."""
    match key:
        case told.Metadata():
            return _names(key.type)
        case told.AnyType():
            return {}
        case told.StrType():
            said = {"minLength": key.min_length, "maxLength": key.max_length, "pattern": key.pattern}
            return {keyword: value for keyword, value in said.items() if value is not None}
        case told.UnionType():
            return _names_of_either(key.types)
        case told.EnumType():
            return {"enum": [str(member.value) for member in key.cls]}
        case told.LiteralType() if words := [str(value) for value in key.values if type(value) in (int, str)]:
            return {"enum": words}
        case told.DateType():
            return {"format": "date"}
        case told.UUIDType():
            return {"format": "uuid"}
        case told.IntType():
            return _whole(INT)
        case told.FloatType():
            return _whole(_KEY_FLOAT)
    if (pattern := _pattern(key)) is not None:
        return _whole(pattern)
    raise TypeError(_NO_KEY)


def _names_of_either(members: tuple[Any, ...]) -> dict[str, Any]:
    """Of a union's members: a str takes every key before another sees it; None and bools are never read."""
    for member in members:
        if isinstance(member.type if isinstance(member, told.Metadata) else member, told.StrType):
            return _names(member)
    return {"anyOf": [_names(one) for one in members if not isinstance(one, (told.NoneType, told.BoolType))]}


@lru_cache(maxsize=1)
def pydantics_maker() -> Any:
    """Pydantic's maker of schemas, which by itself says nothing of keys that are numbers."""
    numbers = {"int": INT, "float": _KEY_FLOAT, "decimal": _DECIMAL, "bool": "true|false"}

    class Maker(sys.modules["pydantic"].json_schema.GenerateJsonSchema):  # type: ignore[misc]  # a class of Any
        def dict_schema(self, schema: Any) -> Any:
            found, key = super().dict_schema(schema), schema.get("keys_schema", {})
            if key.get("type") == "enum":
                found["propertyNames"] = {"enum": [str(member.value) for member in key["members"]]}
            elif key.get("type") in ("none", "tuple", "list", "set", "frozenset"):
                raise TypeError(_NO_KEY)
            elif (pattern := numbers.get(key.get("type"))) is not None:
                found["propertyNames"] = _whole(pattern)
            return found

    return Maker
