"""`Waves`: requests that come at the same time go out as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

from nbsgl.errors import ApiError, NbsglError

GATHER_S = 0.002
MAX_ITEMS = 128
MAX_CHARS = 1 << 20

Send = Callable[[list[Any]], Awaitable[list[Any]]]
"""Answers all items of a batch, in order."""


class Waves:
    """Items of one `key` that come within `GATHER_S` are sent together.  A wave that all have left is cancelled."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._open: dict[Hashable, Wave] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, key: Hashable, item: Any, size: int) -> Any:
        """The item's answer; `size` counts its characters."""
        wave = self._open.get(key)
        if wave is None or len(wave.items) >= MAX_ITEMS or wave.size + size > MAX_CHARS:
            wave = self._open[key] = Wave()
            wave.task = asyncio.get_running_loop().create_task(self._go(key, wave))
            self._tasks.add(wave.task)
            wave.task.add_done_callback(self._tasks.discard)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        wave.items.append((item, future))
        wave.size += size
        try:
            return await future
        finally:
            if wave.task is not None and all(one.done() for _, one in wave.items):
                wave.task.cancel()

    async def _go(self, key: Hashable, wave: Wave) -> None:
        await asyncio.sleep(GATHER_S)
        if self._open.get(key) is wave:
            del self._open[key]
        waiting = [(item, future) for item, future in wave.items if not future.done()]
        try:
            await self._carry_out(waiting)
        except NbsglError as error:
            _fail(waiting, error)
        except Exception as error:
            _fail(waiting, error)
            raise

    async def _carry_out(self, waiting: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        try:
            answers = await self._send([item for item, _ in waiting])
        except ApiError as error:
            is_one_of_them = len(waiting) > 1 and error.status is not None and 400 <= error.status < 500
            if not is_one_of_them:
                raise
            await asyncio.gather(*(self._alone(item, future) for item, future in waiting))
            return
        for (_, future), answer in zip(waiting, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    async def _alone(self, item: Any, future: asyncio.Future[Any]) -> None:
        """A request that one of them made refusable: each is tried by itself."""
        try:
            (answer,) = await self._send([item])
        except NbsglError as error:
            _fail([(item, future)], error)
        else:
            if not future.done():
                future.set_result(answer)


class Wave:
    def __init__(self) -> None:
        self.items: list[tuple[Any, asyncio.Future[Any]]] = []
        self.size = 0
        self.task: asyncio.Task[None] | None = None


def _fail(waiting: list[tuple[Any, asyncio.Future[Any]]], error: Exception) -> None:
    for _, future in waiting:
        if not future.done():
            future.set_exception(error)
