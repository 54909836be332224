"""`async def` programs: their bodies run as tasks of the running event loop, or in a loop of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from nbsgl.lang.branch import inside
from nbsgl.lang.ir import body
from nbsgl.lang.state import ProgramState

logger = logging.getLogger("nbsgl")

_running: set[asyncio.Task[None]] = set()  # a loop alone would let go of its tasks


def has_loop() -> bool:
    """Whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def start(state: ProgramState, make: Callable[[], Awaitable[Any]]) -> None:
    """Begin the body in this thread's running loop.  Its exception is kept in the state: whoever reads it raises it."""
    loop = asyncio.get_running_loop()
    state.branch.scope.loop = loop
    coroutine = _made(state, make)
    task = loop.create_task(_kept(state, coroutine), name=f"nbsgl-{state.branch.scope.title}")
    _running.add(task)
    task.add_done_callback(_running.discard)


def run(state: ProgramState, make: Callable[[], Awaitable[Any]]) -> None:
    """Run the body to its end in an event loop of its own; its exception goes on."""
    asyncio.run(_driven(state, _made(state, make)))


def _made(state: ProgramState, make: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
    """The coroutine; wrong arguments raise here, at the line of the call."""
    try:
        return make()
    except BaseException as error:
        state.end_body(error)
        raise


async def _kept(state: ProgramState, coroutine: Awaitable[Any]) -> None:
    try:
        await _driven(state, coroutine)
    except Exception as error:
        logger.debug("nbsgl: the body of %s raised %s", state.branch.scope.title, type(error).__name__)


async def _driven(state: ProgramState, coroutine: Awaitable[Any]) -> None:
    scope = state.branch.scope
    scope.loop = asyncio.get_running_loop()
    token = inside.set((*inside.get(), scope))
    try:
        with body():
            value = await coroutine
        state.end_body(ret_value=value)
    except BaseException as error:
        state.end_body(error)
        raise
    finally:
        inside.reset(token)
