"""Expressions: what a program adds to a state.  They are made by `api`, joined with `+`, and do nothing until taken.

An expression is a *hole*, not a value: comparing it, asking its truth or its length raises `HoleError` at that line.
Written into an f-string it leaves a mark, which is found again when the string is added to a state.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from nbsgl.errors import HoleError

if TYPE_CHECKING:
    from nbsgl.lang.choices import ChoicesSamplingMethod
    from nbsgl.lang.types import Reader
    from nbsgl.protocol import GrammarSpec

REGEX_INT = r"[-+]?[0-9]+[ \n]*"
REGEX_FLOAT = r"[-+]?[0-9]*\.?[0-9]+[ \n]*"
REGEX_BOOL = r"(True|False)"
REGEX_STR = r"\"[\w\d\s]*\""  # quotes included

_HERE = os.path.dirname(os.path.abspath(__file__))
_MAX_MARKS = 65_536  # f-string holes remembered per process; the oldest is forgotten first
_NONCE = os.urandom(6).hex()
_MARK = re.compile(rf"⟦[a-z]+#{_NONCE}:(\d+)⟧")
_marked: dict[int, Expr] = {}
_numbers = itertools.count(1)


def caller() -> str:
    """`file.py:line` of the nearest frame outside the language: the user's line.  A notebook's is `cell:line`."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return shown_line(frame.f_code.co_filename, frame.f_lineno)


def shown_line(path: str, number: int) -> str:
    name = "cell" if "ipykernel_" in path or path.startswith("<ipython") else os.path.basename(path)
    return f"{name}:{number}"


class HoleWarning(UserWarning):
    """A hole was made in a program's body and dropped without being added to a state."""


Dropped = list[tuple[str, str]]  # (line, hole)
_body: ContextVar[Dropped | None] = ContextVar("nbsgl_body", default=None)
_told: dict[Any, Any] = {}  # what `warnings` remembers: one warning per line


@contextmanager
def body() -> Iterator[None]:
    """A program's body: when it ends well, holes that were made and dropped in it are warned of."""
    dropped: Dropped = []
    token = _body.set(dropped)
    try:
        yield
    finally:
        _body.reset(token)
    for where, shown in dropped:
        file, _, line = where.rpartition(":")
        text = f"{shown} was made and never added to a state: nothing was asked.  Write `s += {shown}`."
        warnings.warn_explicit(text, HoleWarning, file, int(line), registry=_told)


class Watch:
    """Tells the body that a hole was made in when it is dropped, unless a state has taken it."""

    __slots__ = ("_dropped", "_where", "is_taken", "shown")

    def __init__(self, where: str) -> None:
        self._dropped, self._where, self.is_taken, self.shown = _body.get(), where, False, ""

    def __del__(self) -> None:
        if not self.is_taken and self._dropped is not None:
            self._dropped.append((self._where, self.shown))


def watched(hole: GenExpr | SelectExpr) -> None:
    """Warn if the hole is dropped without being added to a state."""
    if _body.get() is not None:
        hole.watch = Watch(hole.where)
        hole.watch.shown = repr(hole)


def taken(hole: GenExpr | SelectExpr) -> None:
    """A state has it."""
    if hole.watch is not None:
        hole.watch.is_taken = True


class Expr:
    """Base of all expressions."""

    __slots__ = ("__weakref__",)
    kind = "expression"
    example = 's += gen("x")', 's["x"]'

    def __add__(self, other: object) -> Expr:
        return Concat([*parts(self), *parts(other)])

    def __radd__(self, other: object) -> Expr:
        return Concat([*parts(other), *parts(self)])

    def _refuse(self, use: str) -> NoReturn:
        if isinstance(self, (GenExpr, SelectExpr)):
            taken(self)  # the error tells enough
        add, read = self.example
        raise HoleError(
            f"{self!r} is a hole, not a value: it has no text until a state has run it, so it cannot be {use}.",
            hint=f"Write `{add}`, then use `{read}`.",
        )

    def __eq__(self, other: object) -> NoReturn:
        self._refuse("compared")

    def __ne__(self, other: object) -> NoReturn:
        self._refuse("compared")

    def __lt__(self, other: object) -> NoReturn:
        self._refuse("compared")

    def __le__(self, other: object) -> NoReturn:
        self._refuse("compared")

    def __gt__(self, other: object) -> NoReturn:
        self._refuse("compared")

    def __ge__(self, other: object) -> NoReturn:
        self._refuse("compared")

    def __hash__(self) -> int:
        return id(self)

    def __bool__(self) -> NoReturn:
        self._refuse("true or false")

    def __contains__(self, item: object) -> NoReturn:
        self._refuse("searched")

    def __iter__(self) -> Iterator[NoReturn]:
        self._refuse("iterated over")

    def __len__(self) -> NoReturn:
        self._refuse("measured with len()")

    def __int__(self) -> NoReturn:
        self._refuse("made an int")

    def __float__(self) -> NoReturn:
        self._refuse("made a float")

    def __index__(self) -> NoReturn:
        self._refuse("used as a number")

    def __getitem__(self, key: object) -> NoReturn:
        self._refuse("indexed")

    def __str__(self) -> str:
        """A mark that stands for this hole in a string."""
        number = next(_numbers)
        _marked[number] = self
        if len(_marked) > _MAX_MARKS:
            _marked.pop(next(iter(_marked)), None)
        return f"⟦{self.kind}#{_NONCE}:{number}⟧"

    def __format__(self, spec: str) -> str:
        if spec:
            self._refuse(f"formatted with {spec!r}")
        return str(self)


def has_mark(text: str) -> bool:
    return "⟦" in text and _MARK.search(text) is not None


def refuse_mark(value: object, where: str) -> None:
    """A hole that became part of a string must not end as a variable, a choice or a stop string."""
    if isinstance(value, str) and has_mark(value):
        raise HoleError(
            f"{where} contains a hole (a gen or select inside an f-string), which has no text yet.",
            hint="Only a string that is added to a state (`s += ...`) may have holes.",
        )


def parts(value: object) -> list[Expr]:
    """The expression as a flat list; a string is cut at its marks.  `HoleError` for other types."""
    if isinstance(value, Concat):
        return value.items
    if isinstance(value, Expr):
        return [value]
    if not isinstance(value, str):
        raise HoleError(
            f"A state takes strings and holes, not {type(value).__name__} ({caller()}).",
            hint='Make it a string: `s += str(x)`, or `s += f"{x}"`.',
        )
    if not has_mark(value):
        return [TextExpr(value)]
    found: list[Expr] = []
    at = 0
    for match in _MARK.finditer(value):
        hole = _marked.get(int(match[1]))
        if hole is None:
            raise HoleError(f"A hole in this f-string is too old: only the last {_MAX_MARKS:,} are remembered.")
        if match.start() > at:
            found.append(TextExpr(value[at : match.start()]))
        found.extend(parts(hole))
        at = match.end()
    if at < len(value):
        found.append(TextExpr(value[at:]))
    return found


@dataclass(slots=True, eq=False)
class Concat(Expr):
    """Expressions one after the other."""

    items: list[Expr]

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.items))


@dataclass(slots=True, eq=False)
class TextExpr(Expr):
    """Known text; `raw` means that special tokens written in it count even inside a role."""

    text: str
    raw: bool = False
    kind = "text"

    def __repr__(self) -> str:
        shown = repr(self.text if len(self.text) <= 40 else self.text[:39] + "…")
        return f"raw({shown})" if self.raw else shown


@dataclass(frozen=True, slots=True)
class Thinking:
    """A gen's thinking is kept apart; the model type says how it is marked (None: the model's own marks)."""

    model_type: str | None


@dataclass(slots=True, eq=False)
class GenExpr(Expr):
    """A sampled run.  `given` holds the parameters set in the call, under `SamplingParams`' names; `reader` makes the
    typed value of its text."""

    name: str | None
    given: Mapping[str, Any] = field(default_factory=dict)
    grammar: GrammarSpec | None = None
    more_stop: tuple[str, ...] = ()
    where: str = ""
    reader: Reader | None = None
    list_append: bool = False
    heal: bool = False
    thinking: Thinking | None = None
    watch: Watch | None = field(default=None, repr=False)
    kind = "gen"

    def __repr__(self) -> str:
        return f"gen({self.name!r})" if self.name is not None else "gen()"


@dataclass(slots=True, eq=False)
class SelectExpr(Expr):
    """One of `choices`, by score."""

    name: str | None
    choices: tuple[str, ...]
    temperature: float
    method: ChoicesSamplingMethod
    seed: int | None = None
    where: str = ""
    list_append: bool = False
    watch: Watch | None = field(default=None, repr=False)
    ignored: tuple[str, ...] = ()  # parameters that were given and mean nothing to it
    kind = "select"
    example = 's += gen("first_word", choices=[...])', 's["first_word"] == ...'

    def __repr__(self) -> str:
        shown = list(self.choices) if len(self.choices) <= 4 else [*self.choices[:3], "..."]
        return f"select({self.name!r}, choices={shown})"


@dataclass(slots=True, eq=False)
class RefExpr(Expr):
    """The text of a variable of the run `owner`, known or not: `atoms` are texts and places of results."""

    name: str | None
    owner: object
    atoms: tuple[Any, ...]
    kind = "ref"
    example = 's += f.ref("x")', 'f["x"]'

    def __repr__(self) -> str:
        return f"ref({self.name!r})"


@dataclass(slots=True, eq=False)
class ImageExpr(Expr):
    """A picture: a path, bytes, or an image object."""

    source: Any
    kind = "image"
    example = 's += image("a.png")', "s.text()"

    def __repr__(self) -> str:
        return f"image({self.source!r})" if isinstance(self.source, str) else f"image({type(self.source).__name__})"


@dataclass(slots=True, eq=False)
class VideoExpr(Expr):
    """Pictures of a film."""

    path: Any
    num_frames: int
    kind = "video"
    example = 's += video("a.mp4", 8)', "s.text()"

    def __repr__(self) -> str:
        return f"video({self.path!r}, {self.num_frames})"


@dataclass(slots=True, eq=False)
class RoleBegin(Expr):
    role: str
    kind = "role"

    def __repr__(self) -> str:
        return f"{self.role}_begin()"


@dataclass(slots=True, eq=False)
class RoleEnd(Expr):
    role: str
    kind = "role"

    def __repr__(self) -> str:
        return f"{self.role}_end()"
