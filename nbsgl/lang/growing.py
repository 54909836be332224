"""What grows by `s +=` and has roles: a running state, and the one that stands for it in a trace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

from nbsgl.errors import ParameterError, Unsupported
from nbsgl.lang import api
from nbsgl.lang.ir import Expr, parts


class Growing(ABC):
    """Takes text and holes by `+=` and by roles."""

    def __init__(self) -> None:
        self._taken: Expr | None = None  # what `s.user(x)` has just queued

    @abstractmethod
    def _add(self, items: Sequence[Expr]) -> None:
        """Take these, in order."""

    @abstractmethod
    def _role_block(self, role: str) -> AbstractContextManager[None]:
        """What is added inside is a message of that role."""

    def __iadd__(self, other: Any) -> Self:
        taken, self._taken = self._taken, None
        if taken is None or other is not taken:
            self._add(parts(other))
        return self

    def system(self, expr: Any = None) -> Any:
        """With an expression: queue it as a system message.  Without: a context manager for the message."""
        return self._role("system", expr)

    def user(self, expr: Any = None) -> Any:
        """With an expression: queue it as a user's message.  Without: a context manager for the message."""
        return self._role("user", expr)

    def assistant(self, expr: Any = None) -> Any:
        """With an expression: queue it as an assistant's message.  Without: a context manager for the message."""
        return self._role("assistant", expr)

    def _role(self, role: str, expr: Any) -> Any:
        if expr is None:
            return self._role_block(role)
        message = api.role(role, expr)
        self._add(parts(message))
        self._taken = message  # `s += s.user(x)` takes it once
        return message


def check_fork(size: object, position_ids_offset: object) -> None:
    """Refuse what no state can fork into."""
    if position_ids_offset is not None:
        raise Unsupported(
            "fork(position_ids_offset=...) is not supported: children stand at their true positions.",
            name="position_ids_offset",
            value=position_ids_offset,
            hint="Leave it out.",
        )
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ParameterError(name="size", value=size, allowed="an int >= 0")
