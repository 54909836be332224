"""Typed gens: the language a type is written in, and the value that is read back."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import re
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbsgl as sgl
from nbsgl.engine import grammar
from nbsgl.errors import BadValue, IncompleteOutput, ParameterError
from nbsgl.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR
from nbsgl.lang.types import REGEX_DATE, REGEX_TIME, of_type
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
