"""`ProgramStateGroup`: the forks of a state, and how their results come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from nbsgl.errors import ParameterError, ProgramError, RoleError
from nbsgl.lang.branch import Binding, Branch, Gathered
from nbsgl.lang.executor import Executor
from nbsgl.lang.growing import Growing
from nbsgl.lang.ir import Expr
from nbsgl.protocol import Append

if TYPE_CHECKING:
    from nbsgl.lang.state import ProgramState


S = TypeVar("S", bound=Growing)


class Forks(Generic[S]):
    """The forks of a state: indexed, walked over, and grown together."""

    def __init__(self, states: list[S]) -> None:
        self.states = states

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[S]:
        return iter(self.states)

    @overload
    def __getitem__(self, index: int) -> S: ...
    @overload
    def __getitem__(self, index: slice) -> list[S]: ...
    def __getitem__(self, index: int | slice) -> S | list[S]:
        return self.states[index]

    def __setitem__(self, index: int, state: S) -> None:
        """For `group[i] += ...`, which binds the state it had again."""
        if self.states[index] is not state:
            raise ProgramError("A group's states cannot be replaced.", hint="Write `group[i] += ...`.")

    def __iadd__(self, other: Any) -> Self:
        """A string or hole goes to all; of a list each gets one; a function is called with each index."""
        if isinstance(other, (list, tuple)):
            if len(other) < len(self.states):
                raise IndexError(f"{len(self.states)} forks, but only {len(other)} expressions")
            each = list(other)
        elif callable(other) and not isinstance(other, Expr):
            each = [other(i) for i in range(len(self.states))]
        else:
            each = [other] * len(self.states)
        for i, expr in enumerate(each[: len(self.states)]):
            self.states[i] += expr
        return self


class ProgramStateGroup(Forks["ProgramState"]):
    """The forks of a running state."""

    def __init__(self, states: list[ProgramState], parent: ProgramState) -> None:
        super().__init__(states)
        self._parent = parent

    def join(self, mode: str = "gather_variable", on_error: str = "raise") -> None:
        """Bring the children's results to the parent; they stay readable and take nothing more.

        "gather_variable": each name the parent lacks becomes a list by child.  "concate_and_append": each child's
        text since the fork is appended, as tokens.  Waits for nothing.  A failed child makes the lists fail, or with
        `on_error="keep"` leaves its error in them.
        """
        if mode not in ("gather_variable", "concate_and_append"):
            raise ParameterError(name="mode", value=mode, allowed='"gather_variable" or "concate_and_append"')
        if on_error not in ("raise", "keep"):
            raise ParameterError(name="on_error", value=on_error, allowed='"raise" or "keep"')
        executor, parent = self._parent.executor, self._parent.branch
        with executor.lock:
            self._parent._check_open()
            if mode == "gather_variable":
                self._gather(parent, on_error == "keep")
            else:
                self._append(executor, parent)
            for state in self.states:
                executor.close_branch(state.branch)

    def _gather(self, parent: Branch, keeps_errors: bool) -> None:
        found: dict[str | None, list[tuple[int, Binding]]] = {}
        for i, state in enumerate(self.states):
            for name, binding in state.branch.bindings.items():
                if name not in parent.bindings:
                    found.setdefault(name, []).append((i, binding))
        for name, children in found.items():
            parent.bindings[name] = Gathered(children, keeps_errors)

    def _append(self, executor: Executor, parent: Branch) -> None:
        for state in self.states:
            child = state.branch
            if child.role != parent.role:
                raise RoleError(f"A child ends inside {child.role}, the parent stands inside {parent.role}.")
        for state in self.states:
            child = state.branch
            parent.items.extend(child.items[child.inherited :])
            executor.queue(parent, Append(branch=parent.number, source=child.number))
            if child.error is not None and parent.error is None:
                parent.error = child.error
