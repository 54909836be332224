"""Typed gens: the language a type is written in, and the value that is read back."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import re
import uuid
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbsgl as sgl
from nbsgl.engine import grammar
from nbsgl.errors import BadValue, IncompleteOutput, ParameterError
from nbsgl.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR
from nbsgl.lang.type_schemas import REGEX_DATE, REGEX_TIME
from nbsgl.lang.types import of_type
from nbsgl.protocol import Finish, Gen
from tests.unit.fakes import FakeBackend
from tests.unit.in_process import InProcessEngine


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 10


@dataclasses.dataclass
class Person:
    name: str
    born: datetime.date
    age: int | None = None


class Row(TypedDict):
    id: int
    note: NotRequired[str]


class Point(msgspec.Struct):
    x: float
    y: float


class Answer(pydantic.BaseModel):
    verdict: Literal["yes", "no"]
    reasons: list[str] = pydantic.Field(max_length=3)


# type, a text of its language, the value of that text
CASES: dict[str, tuple[Any, str, Any]] = {
    "int": (int, "-12", -12),
    "int by name": ("int", "7", 7),
    "float": (float, "2.5", 2.5),
    "bool": (bool, "False", False),
    "str": (str, '"a b"', "a b"),
    "Literal": (Literal["left", "right"], "right", "right"),
    "Literal of kinds": (Literal["left", 3, None, True], "3", 3),
    "Enum": (Colour, "green", Colour.GREEN),
    "IntEnum": (Size, "10", Size.LARGE),
    "date": (datetime.date, "2024-02-29", datetime.date(2024, 2, 29)),
    "time": (datetime.time, "23:59:01", datetime.time(23, 59, 1)),
    "datetime": (datetime.datetime, "2024-01-02T03:04:05", datetime.datetime(2024, 1, 2, 3, 4, 5)),
    "Optional": (int | None, "None", None),
    "union": (int | float, "2.5", 2.5),
    "union, the first that fits": (int | float, "2", 2),
    "union of kinds": (bool | Colour | datetime.date, "red", Colour.RED),
    "pattern": (re.compile("[a-c]+"), "abc", "abc"),
    "list": (list[int], "[1, 2]", [1, 2]),
    "bare list": (list, '[1, "a"]', [1, "a"]),
    "dict": (dict[str, int], '{"a": 1}', {"a": 1}),
    "tuple": (tuple[int, str], '[1, "a"]', (1, "a")),
    "set": (set[int], "[1, 2]", {1, 2}),
    "Annotated": (Annotated[int, msgspec.Meta(ge=3)], "5", 5),
    "union with parts": (int | list[int], "[5]", [5]),
    "TypedDict": (Row, '{"id": 3}', {"id": 3}),
    "dataclass": (Person, '{"name": "A", "born": "1999-01-02"}', Person("A", datetime.date(1999, 1, 2))),
    "list of dataclasses": (
        list[Person],
        '[{"name": "A", "born": "1999-01-02", "age": 3}]',
        [Person("A", datetime.date(1999, 1, 2), 3)],
    ),
    "Struct": (Point, '{"x": 1.5, "y": 2.0}', Point(1.5, 2.0)),
    "pydantic": (Answer, '{"verdict": "no", "reasons": ["a"]}', Answer(verdict="no", reasons=["a"])),
    "list of pydantic": (list[Answer], '[{"verdict": "no", "reasons": []}]', [Answer(verdict="no", reasons=[])]),
    "pydantic's constraints": (Annotated[int, pydantic.Field(ge=3)], "5", 5),
}
cases = pytest.mark.parametrize(("wanted", "text", "value"), CASES.values(), ids=CASES)


def answering(text: str) -> FakeBackend:
    return FakeBackend(lambda prompt, node: text)


@cases
def test_the_text_stays_text_and_the_value_has_the_type(wanted, text, value) -> None:
    backend = answering(text)
    with sgl.state(backend) as s:
        s += "x" + sgl.gen("x", type=wanted)
    assert s["x"] == text
    assert s.value("x") == value
    assert type(s.value("x")) is type(value)
    backend.close()


@cases
def test_the_engine_takes_the_language_of_every_type_and_it_has_the_text(wanted, text, value, spelling) -> None:
    matcher = grammar.compile(of_type(wanted, "type").grammar, spelling).matcher()
    assert all(matcher.advance(byte) for byte in text.encode())
    assert matcher.is_accepting()


@pytest.fixture(scope="session")
def spelling():
    return grammar.TokenVocab([*(bytes([byte]) for byte in range(256)), None], eos_ids=[256])


@pytest.mark.parametrize(
    ("dtype", "regex", "stop"),
    [(int, REGEX_INT, (" ", "\n")), (float, REGEX_FLOAT, (" ", "\n")), (bool, REGEX_BOOL, ()), (str, REGEX_STR, ())],
)
def test_dtype_has_sglangs_languages_for_its_four_types(dtype, regex, stop) -> None:
    for made in (sgl.gen("x", dtype=dtype), sgl.gen("x", dtype=dtype.__name__)):
        assert (made.grammar.kind, made.grammar.text, made.more_stop) == ("regex", regex, stop)


@pytest.mark.parametrize(
    ("wanted", "good", "bad"),
    [
        (int, ["0", "-7", "9" * 19], ["+3", "007", "", "-", "9" * 20, "1.0"]),
        (float, ["0", "-2.5", "1e-9", "12.125E+3"], ["+3", "00.5", ".5", "2.", "1e", "1" * 17]),
        (bool, ["True", "False"], ["true", ""]),
    ],
)
def test_type_has_numbers_that_end_and_no_leading_zeros(wanted, good, bad) -> None:
    made = sgl.gen("x", type=wanted)
    assert made.more_stop == ((" ", "\n") if wanted is not bool else ())
    assert all(re.fullmatch(made.grammar.text, text) for text in good)
    assert not any(re.fullmatch(made.grammar.text, text) for text in bad)


def test_a_class_names_all_its_fields() -> None:
    schema = json.loads(of_type(Person, "type").grammar.text)
    assert schema["$defs"]["Person"]["additionalProperties"] is False
    assert list(schema["$defs"]["Person"]["properties"]) == ["name", "born", "age"]
    open_one = msgspec.defstruct("Open", [("properties", dict[str, int])])
    inner = json.loads(of_type(open_one, "type").grammar.text)["$defs"]["Open"]["properties"]
    assert inner == {"properties": {"type": "object", "additionalProperties": {"type": "integer"}}}


class Zoo(TypedDict):
    zebra: int
    ape: NotRequired[Row]
    lion: str


def test_the_fields_of_a_typed_dict_keep_their_order() -> None:
    schema = json.loads(of_type(dict[str, list[Zoo]], "type").grammar.text)
    assert list(schema["$defs"]["Zoo"]["properties"]) == ["zebra", "ape", "lion"]
    assert schema["$defs"]["Zoo"]["required"] == ["zebra", "lion"]
    assert list(schema["$defs"]["Row"]["properties"]) == ["id", "note"]


@pytest.mark.parametrize(("one", "other"), [(float | int, int | float), (float | int | None, None | int | float)])
def test_the_first_member_of_a_union_decides_whichever_order_came_before(one, other) -> None:
    for wanted, kind in ((one, float), (other, int), (one, float)):
        assert type(of_type(wanted, "type").reader.read("x", "1", "")) is kind


def test_unions_inside_of_types_keep_their_order_too() -> None:
    texts = [of_type(wanted, "type").grammar.text for wanted in (list[int | str], list[str | int], list[int | str])]
    assert texts[0] == texts[2]
    assert [[one["type"] for one in json.loads(text)["items"]["anyOf"]] for text in texts[:2]] == [
        ["integer", "string"],
        ["string", "integer"],
    ]


# ---- what msgspec's schemas leave out --------------------------------------------------------------------------------

UTC = datetime.UTC
MOMENT = datetime.datetime(2024, 2, 29, 3, 4, 5)
T = TypeVar("T")


@dataclasses.dataclass
class Visit:
    at: datetime.datetime
    opens: datetime.time | None = None


class Stay(TypedDict):
    since: datetime.datetime
    nights: NotRequired[dict[datetime.date, bytes]]


class Price(NamedTuple):
    amount: decimal.Decimal
    until: datetime.time


class Came(msgspec.Struct, tag="came"):
    when: datetime.datetime


class Said(msgspec.Struct, tag="said"):
    when: str


class Pair(msgspec.Struct, Generic[T], array_like=True, forbid_unknown_fields=True, tag=True):
    one: T
    other: datetime.timedelta


class Tree(msgspec.Struct):
    grown: datetime.datetime
    twigs: list[Tree] = []


def booked(at: datetime.datetime, days: dict[int, datetime.time]) -> None: ...


# type, a value of it
NARROWED: dict[str, tuple[Any, Any]] = {
    "datetimes": (list[datetime.datetime], [MOMENT, MOMENT.replace(tzinfo=UTC, microsecond=120)]),
    "datetimes with a zone": (list[Annotated[datetime.datetime, msgspec.Meta(tz=True)]], [MOMENT.replace(tzinfo=UTC)]),
    "datetimes without": (list[Annotated[datetime.datetime, msgspec.Meta(tz=False)]], [MOMENT]),
    "times": (list[datetime.time], [datetime.time(23, 59, 1), datetime.time(1, tzinfo=UTC)]),
    "times without a zone": (list[Annotated[datetime.time, msgspec.Meta(tz=False)]], [datetime.time(1)]),
    "timedeltas": (list[datetime.timedelta], [datetime.timedelta(-3, 7, 5), datetime.timedelta(0)]),
    "bytes": (list[bytes], [b"", b"a", b"ab", b"abc"]),
    "counted bytes": (list[Annotated[bytes, msgspec.Meta(min_length=2, max_length=7)]], [b"ab", b"abcdefg"]),
    "more bytes": (list[Annotated[bytes, msgspec.Meta(min_length=2)]], [b"ab", b"abcde"]),
    "decimals": (list[decimal.Decimal], [decimal.Decimal("-1.50"), decimal.Decimal("1E+3")]),
    "dataclass": (Visit, Visit(MOMENT, datetime.time(8))),
    "TypedDict": (list[Stay], [{"since": MOMENT, "nights": {datetime.date(2024, 1, 2): b"a"}}]),
    "NamedTuple": (Price, Price(decimal.Decimal(1), datetime.time(1))),
    "tagged union": (list[Came | Said | None], [Came(MOMENT), Said("x"), None]),
    "class of a type": (Pair[datetime.time], Pair(datetime.time(1), datetime.timedelta(1))),
    "tuple": (tuple[datetime.time, ...] | int, (datetime.time(1),)),
    "union": (list[datetime.datetime | int | list[bytes] | None], [MOMENT, 3, [b"a"], None]),
    "keys: int": (dict[int, bool], {-3: True}),
    "keys: float": (dict[float, bool], {2.5: True}),
    "keys: date": (dict[datetime.date, bool], {datetime.date(2024, 2, 29): True}),
    "keys: datetime": (dict[datetime.datetime, bool], {MOMENT: True}),
    "keys: Enum": (dict[Colour, bool], {Colour.RED: True}),
    "keys: IntEnum": (dict[Size, bool], {Size.LARGE: True}),
    "keys: Literal": (dict[Literal["a", 2, None], bool], {"a": True, 2: False}),
    "keys: UUID": (dict[uuid.UUID, bool], {uuid.UUID(int=7): True}),
    "keys: bytes": (dict[bytes, bool], {b"a": True}),
    "keys: Decimal": (dict[decimal.Decimal, bool], {decimal.Decimal("1.5"): True}),
    "keys: timedelta": (dict[datetime.timedelta, bool], {datetime.timedelta(1): True}),
    "keys: str": (dict[Annotated[str, msgspec.Meta(pattern="^[ab]$")], bool], {"a": True}),
    "keys: union": (dict[int | datetime.date | None, bool], {3: True, datetime.date(2024, 1, 2): False}),
    "keys: union with str": (dict[int | Annotated[str, msgspec.Meta(max_length=2)], bool], {"no": True}),
    "keys inside": (dict[str, dict[int, list[datetime.time]]], {"a": {1: [datetime.time(1)]}}),
}
narrowed = pytest.mark.parametrize(("wanted", "value"), NARROWED.values(), ids=NARROWED)


@narrowed
def test_every_text_of_a_type_is_read(wanted, value) -> None:
    made = of_type(wanted, "type")
    for text in sgl.grammar.inspect(type=wanted).sample(60):
        made.reader.read("x", text, "")


@narrowed
def test_what_msgspec_writes_of_a_type_is_in_its_language(wanted, value) -> None:
    text = msgspec.json.encode(value).decode()
    assert sgl.grammar.inspect(type=wanted, whitespace="compact").matches(text)
    assert of_type(wanted, "type").reader.read("x", text, "") == value


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (list[datetime.datetime], '["soon"]'),
        (list[datetime.datetime], '["2023-02-29T00:00:00"]'),
        (list[Annotated[datetime.datetime, msgspec.Meta(tz=False)]], '["2024-01-02T03:04:05Z"]'),
        (list[datetime.timedelta], '["P8Y15M"]'),
        (list[bytes], '["YQ"]'),
        (list[Annotated[bytes, msgspec.Meta(max_length=1)]], '["YWI="]'),
        (list[decimal.Decimal], '["a lot"]'),
        (dict[int, bool], '{"one": true}'),
        (dict[Literal["a", "b"], bool], '{"c": true}'),
        (Visit, '{"at": "soon"}'),
        (Tree, '{"grown": "2024-01-02T03:04:05", "twigs": [{"grown": "soon"}]}'),
        (booked, '<tool_call>\n{"name": "booked", "arguments": {"at": "soon", "days": {}}}\n</tool_call>'),
    ],
)
def test_what_is_not_read_is_not_in_the_language(wanted, text) -> None:
    kind = {"tools": [wanted]} if wanted is booked else {"type": wanted}
    assert not sgl.grammar.inspect(**kind).matches(text)
    with pytest.raises(BadValue):
        sgl.gen("x", **kind).reader.read("x", text, "")


def test_the_arguments_of_a_call_have_the_types_of_the_function() -> None:
    found = sgl.grammar.inspect(tools=[booked], tool_format="json")
    reader = sgl.gen("x", tools=[booked], tool_format="json").reader
    for text in found.sample(40):
        [call] = reader.read("x", text, "")
        assert isinstance(call.arguments["at"], datetime.datetime)
        assert all(type(day) is int and type(at) is datetime.time for day, at in call.arguments["days"].items())


@pytest.mark.parametrize("key", [tuple[int, int], None, frozenset[int]])
def test_keys_that_no_text_is_read_as_are_refused(key) -> None:
    with pytest.raises(ParameterError, match="keys of a dict"):
        of_type(dict[key, int], "type")


class Ledger(pydantic.BaseModel):
    by_id: dict[int, str]
    by_share: dict[float, bool]
    by_day: dict[datetime.date, bool]
    by_answer: dict[bool, int]
    by_price: dict[decimal.Decimal, bool]
    by_size: dict[Size, Colour]
    by_colour: dict[Colour, int]
    by_word: dict[Annotated[str, pydantic.Field(pattern="^[ab]$")], int]


def test_the_keys_of_pydantics_dicts_are_of_their_types() -> None:
    made = of_type(Ledger, "type")
    for text in sgl.grammar.inspect(type=Ledger).sample(60):
        made.reader.read("x", text, "")
    text = (
        '{"by_id": {"-1": ""}, "by_share": {"0.5": true}, "by_day": {"2024-02-29": true}, "by_answer": {"true": 1}, '
        '"by_price": {"1.50": true}, "by_size": {"10": "red"}, "by_colour": {"green": 2}, "by_word": {"a": 1}}'
    )
    assert sgl.grammar.inspect(type=Ledger).matches(text)
    for key in ("-1", "0.5", "2024-02-29", "true", "1.50", "10", "green", "a"):
        assert not sgl.grammar.inspect(type=Ledger).matches(text.replace(f'"{key}"', '"?"'))


# ---- days and times --------------------------------------------------------------------------------------------------


@given(st.dates(min_value=datetime.date(1000, 1, 1)), st.times())
@settings(max_examples=300)
def test_every_day_and_time_is_in_the_language(day, time) -> None:
    assert re.fullmatch(REGEX_DATE, day.isoformat())
    assert re.fullmatch(REGEX_TIME, time.replace(microsecond=0).isoformat())


@given(st.from_regex(REGEX_DATE, fullmatch=True), st.from_regex(REGEX_TIME, fullmatch=True))
@settings(max_examples=300)
def test_every_text_of_the_language_is_a_day_and_time(day, time) -> None:
    datetime.datetime.fromisoformat(f"{day}T{time}")


@pytest.mark.parametrize(
    "wanted", [object(), "list", FakeBackend, Literal["1", 1], re.compile(b"a"), enum.Enum("No", {})]
)
@pytest.mark.parametrize("parameter", ["type", "dtype"])
def test_a_type_without_a_text_is_refused_at_its_line(wanted, parameter) -> None:
    with pytest.raises(ParameterError, match=f"{parameter}="):
        sgl.gen("x", **{parameter: wanted})


@pytest.mark.parametrize(
    "both",
    [
        {"dtype": int, "regex": "a"},
        {"type": int, "dtype": int},
        {"type": int, "json_schema": {}},
        {"type": int, "choices": ["a"]},
    ],
)
def test_two_constraints_are_one_too_many(both) -> None:
    with pytest.raises(ParameterError, match="were both given"):
        sgl.gen("x", **both)


def test_json_schema_takes_classes_and_gives_values() -> None:
    backend = answering('{"id": 3}')
    with sgl.state(backend) as s:
        s += "x" + sgl.gen("row", json_schema=Row) + sgl.gen("plain", json_schema={"type": "object"})
        s += sgl.gen("text", json_schema='{"type": "object"}') + sgl.gen("list", json_schema=list[int])
    assert s.value("row") == s.value("plain") == s.value("text") == {"id": 3}
    with pytest.raises(BadValue):
        s.value("list")
    backend.close()


def test_a_text_that_is_no_value_says_what_is_wrong() -> None:
    class Cut(FakeBackend):
        def _result(self, prompt: str, text: str, node: Gen) -> Any:
            return msgspec.structs.replace(super()._result(prompt, text, node), finish=Finish(type="length", length=3))

    backend = Cut(lambda prompt, node: "[1, ")
    with sgl.state(backend) as s:
        s += "x" + sgl.gen("x", type=list[int], max_tokens=3)
    assert s["x"] == "[1, "
    with pytest.raises(IncompleteOutput, match=r"'x' is no whole list\[int\].*'\[1, '.*max_tokens=3") as caught:
        s.value("x")
    assert isinstance(caught.value.__cause__, BadValue)
    assert isinstance(caught.value, ValueError)
    backend.close()


def test_values_of_lists_of_joins_and_of_what_has_no_type() -> None:
    backend = FakeBackend(lambda prompt, node: "4")
    with sgl.state(backend) as s:
        s["given"] = 7.5
        s += "x" + sgl.gen("many", type=int, n=2) + sgl.gen("text", regex="[0-9]")
        forks = s.fork(2)
        forks += sgl.gen("each", type=int)
        forks.join()
    assert s.value("many") == [40, 41]
    assert s.value("each") == [4, 4]
    assert s.value("text") == "4"
    assert s.value("given") == 7.5
    with pytest.raises(KeyError):
        s.value("nothing")
    backend.close()


def test_the_embedded_model_fills_types() -> None:
    engine = InProcessEngine()
    with sgl.state(engine, max_tokens=160, temperature=0) as s:
        s += "Paris lies in France.\nIn Europe: "
        s += sgl.gen("bool", type=bool) + "\nColour: " + sgl.gen("colour", type=Colour)
        s += "\nDate: " + sgl.gen("date", type=datetime.date) + "\nNumber: " + sgl.gen("number", type=int, max_tokens=4)
        s += "\nPoint: " + sgl.gen("point", type=tuple[Literal[1, 2], bool])
        s += "\nAnswer: " + sgl.gen("answer", type=list[Annotated[str, msgspec.Meta(max_length=3)]] | None)
    assert isinstance(s.value("bool"), bool)
    assert s.value("colour") in Colour
    assert isinstance(s.value("date"), datetime.date)
    assert isinstance(s.value("number"), int)
    assert s.value("point")[0] in (1, 2)
    assert s.value("answer") is None or all(len(text) <= 3 for text in s.value("answer"))
    engine.close()
