"""`StateBlock`: a program written in place, as `with state() as s:`."""

from __future__ import annotations

from collections.abc import Callable

from nbsgl.errors import Aborted, ProgramError
from nbsgl.lang.branch import Branch
from nbsgl.lang.global_config import show_waited
from nbsgl.lang.state import ProgramState


class StateBlock:
    """`with state() as s:`: a program written in place.  Leaving the block sends and waits; an exception aborts."""

    def __init__(self, begin: Callable[[], ProgramState]) -> None:
        self._begin = begin
        self._state: ProgramState | None = None

    def __enter__(self) -> ProgramState:
        self._state = self._begin()
        return self._state

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        state, self._state = self._state, None
        if state is None:
            raise ProgramError("The block was left before it was entered.")
        if error is not None:
            state.end_body(error)
            return
        try:
            state.end_body()
            wait_for_program(state)
            show_waited(state)
        except BaseException as stopped:
            state.end_body(stopped)
            raise


def wait_for_program(state: ProgramState) -> None:
    """Wait for all branches of the state's program; raises a failure that nobody has seen yet."""
    executor, scope = state.executor, state.branch.scope

    def mine() -> list[Branch]:
        return [branch for branch in executor.branches.values() if branch.scope is scope]

    state._demand(lambda: all(branch.error is not None or branch.is_done for branch in mine()))
    with executor.lock:
        failed = [(branch, branch.error) for branch in mine() if branch.error is not None]
    seen = {id(error) for branch, error in failed if branch.is_error_seen}
    for branch, error in failed:
        was_asked_for = isinstance(error, Aborted) and branch is not state.branch
        if id(error) not in seen and not was_asked_for:
            state._raise(error)
