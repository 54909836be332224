"""`Symbol`: what stands for a value that a trace does not know.

It may be concatenated, written into f-strings, appended to states, passed on, and given names.  Whatever needs its
value raises `TraceError` at that line: the body's control flow would depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from nbsgl.errors import TraceError
from nbsgl.lang.ir import Concat, Expr, caller, parts


class Symbol(Expr):
    """An argument (`var` None) or a variable of a traced program.

    `on_need` hears of each use that needs a value, before it raises.
    """

    __slots__ = ("name", "on_need", "var")
    kind = "value"

    def __init__(self, name: str, var: int | None, on_need: Callable[[TraceError], None]) -> None:
        self.name, self.var, self.on_need = name, var, on_need

    def __repr__(self) -> str:
        return f"<Symbol {self.name}>"

    def __add__(self, other: object) -> Expr:
        return Mixed([*parts(self), *parts(other)])

    def __radd__(self, other: object) -> Expr:
        return Mixed([*parts(other), *parts(self)])

    def _refuse(self, use: str) -> NoReturn:
        self.need(f"it is {use}")

    def __str__(self) -> NoReturn:
        self._refuse("made a string")

    def __format__(self, spec: str) -> str:
        """A mark in an f-string, found again when the string is added to a state."""
        if spec:
            self._refuse(f"formatted with {spec!r}")
        return super().__str__()

    def need(self, use: str) -> NoReturn:
        """Raise the error of a use that needs the value."""
        where = caller()
        error = TraceError(
            f"{where}: control flow depends on `{self.name}`: {use}, and a trace has no value for it.",
            hint=f"Pass it: trace({self.name}=...)."
            if self.var is None
            else "trace(strict=False) gives what is before.",
        )
        error.where = where  # type: ignore[attr-defined]
        self.on_need(error)
        raise error

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self.need(f".{name} is read")

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        self._refuse("called")

    def _calculate(self, *others: object) -> NoReturn:
        self._refuse("calculated with")

    __mul__ = __rmul__ = __sub__ = __rsub__ = __truediv__ = __rtruediv__ = __floordiv__ = __mod__ = _calculate
    __rmod__ = __neg__ = __pow__ = _calculate


class Mixed(Concat):
    """Text with symbols in it: needed as a value, it is its first symbol that is missing."""

    def __add__(self, other: object) -> Expr:
        return Mixed([*self.items, *parts(other)])

    def __radd__(self, other: object) -> Expr:
        return Mixed([*parts(other), *self.items])

    def _refuse(self, use: str) -> NoReturn:
        next(symbols_in(self))._refuse(f"part of a text that is {use}")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") or name == "items":
            raise AttributeError(name)
        next(symbols_in(self)).need(f"it is part of a text whose .{name} is read")


def symbols_in(value: Any) -> Iterator[Symbol]:
    """The symbols in a value: an expression, or lists, tuples, sets and dicts of such."""
    if isinstance(value, Symbol):
        yield value
    elif isinstance(value, Concat):
        yield from (item for item in value.items if isinstance(item, Symbol))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from symbols_in(key)
            yield from symbols_in(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from symbols_in(item)


def replaced(value: Any, known: Callable[[Any], Any]) -> Any:
    """The value with `known(x)` for each leaf x of its lists, tuples and dicts; others are taken as they are."""
    if isinstance(value, dict):
        return {replaced(key, known): replaced(item, known) for key, item in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(replaced(item, known) for item in value)
    return known(value)
