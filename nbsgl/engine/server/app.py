"""The routes, over one engine in this process.

SGLang's names and shapes: its own client and its users' scripts work against them.  No route loads a model, changes a
setting or writes a file; the server ends by a signal only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

import nbsgl
from nbsgl.engine.folders import local_folder
from nbsgl.engine.handle import Engine
from nbsgl.engine.server.body import Body, parsed
from nbsgl.engine.server.guard import Guard, Receive, Refused, Rules, Scope, Send, error_body
from nbsgl.errors import Aborted, EngineError, NbsglError, NumericalError, QueueFull, RequestError, UsageError

logger = logging.getLogger("nbsgl")

SILENT: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}  # nothing is told to others
GONE = 499  # nobody is there to read it
HEALTH_S = 20.0  # longest time for one token


def make_app(engine: Engine, rules: Rules) -> Guard:
    """The application: every route behind the guard."""
    door = Door(engine)
    app = FastAPI(title="nbsgl", docs_url=None, redoc_url=None, openapi_url=None, telemetry=SILENT)
    app.add_api_route("/health", door.health, methods=["GET"])
    app.add_api_route("/health_generate", door.health_generate, methods=["GET"])
    for prefix in ("/get_", "/"):  # SGLang's clients ask by the older and by the newer names
        app.add_api_route(f"{prefix}model_info", door.model_info, methods=["GET"])
        app.add_api_route(f"{prefix}server_info", door.server_info, methods=["GET"])
    app.add_api_route("/flush_cache", door.flush_cache, methods=["GET", "POST"])
    app.add_api_route("/generate", door.generate, methods=["POST"])
    app.add_exception_handler(HTTPException, _unknown_route)
    app.add_exception_handler(Refused, _refused)
    return Guard(app, rules)


class Door:
    """What the routes do.  An error of ours becomes an answer that tells its class and message."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def health(self) -> Response:
        """200 while the engine serves."""
        return Response(status_code=200 if self._engine.is_ready else 503)

    async def health_generate(self) -> Response:
        """200 if one token can be drawn now."""
        try:
            async with asyncio.timeout(HEALTH_S):
                await self._engine.async_generate(input_ids=[0], sampling_params={"max_new_tokens": 1})
        except (NbsglError, TimeoutError):
            return Response(status_code=503)
        return Response(status_code=200)

    async def model_info(self) -> Response:
        config, info = self._engine.config, self._engine.info
        folder = local_folder(config.tokenizer_path or config.model_path)
        return _json(
            {
                "model_path": config.model_path,
                "tokenizer_path": str(folder) if folder else config.tokenizer_path or config.model_path,
                "is_generation": True,
                "preferred_sampling_params": None,
                "nbsgl": info,
            }
        )

    async def server_info(self, tree: bool = False) -> Response:
        """The engine's settings, and its snapshot; with `?tree=true` the prefix tree too."""
        try:
            snapshot = await asyncio.to_thread(self._engine.snapshot, tree=tree)
        except (NbsglError, TimeoutError) as error:
            return failure(error)
        settings = msgspec.to_builtins(self._engine.config)
        more = {"version": nbsgl.__version__, "max_total_num_tokens": snapshot.slots_total, "nbsgl": snapshot}
        return _json({**settings, **more})

    async def flush_cache(self) -> Response:
        try:
            was_flushed = await asyncio.to_thread(self._engine.flush_cache)
        except (NbsglError, TimeoutError) as error:
            return failure(error)
        return Response("Cache flushed.\n" if was_flushed else "The cache is off.\n", 200 if was_flushed else 400)

    async def generate(self, request: Request) -> Response:
        try:
            body, arguments = parsed(await request.body())
            if body.stream:
                return await self._stream(body, arguments, request.receive)
            work = asyncio.ensure_future(self._engine.async_generate(**arguments))
            if not await _ended_first(work, request.receive):
                return Response(status_code=GONE)
            return _json(_with_ids(await work, body))
        except (NbsglError, TimeoutError) as error:
            return failure(error)

    async def _stream(self, body: Body, arguments: dict[str, Any], receive: Receive) -> Response:
        """The status tells of what is wrong at once: the first answer is awaited before it is sent."""
        answers = await self._engine.async_generate(**arguments, stream=True)
        stream: EventStream | None = None
        try:
            first = asyncio.ensure_future(anext(answers, None))
            if await _ended_first(first, receive):
                stream = EventStream(answers, await first, body)
            return stream or Response(status_code=GONE)
        finally:
            if stream is None:
                await answers.aclose()


class EventStream(Response):
    """Answers as server-sent events.  When the client goes, the requests end."""

    def __init__(self, answers: Any, first: Any, body: Body) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._answers, self._first, self._body = answers, first, body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._write(send))
        try:
            if await _ended_first(work, receive):
                work.result()
        finally:
            await self._answers.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in self._events():
            await send({"type": "http.response.body", "body": b"data: %b\n\n" % data, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            if self._first is not None:
                yield msgspec.json.encode(_with_ids(self._first, self._body))
            async for answer in self._answers:
                yield msgspec.json.encode(_with_ids(answer, self._body))
        except NbsglError as error:
            yield _error(error)


async def _ended_first(work: asyncio.Future[Any], receive: Receive) -> bool:
    """Wait for the work or for the client to go; in that case the work is cancelled and this is False."""

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(leave())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        for task in (gone, work):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, NbsglError):
                    await task


def _with_ids(answers: Any, body: Body) -> Any:
    """Under the caller's own request ids, where it gave some."""
    if body.rid is not None:
        for i, answer in enumerate(answers if isinstance(answers, list) else [answers]):
            i = answer.get("index", i)
            if isinstance(body.rid, str):
                answer["meta_info"]["id"] = body.rid
            elif i < len(body.rid):
                answer["meta_info"]["id"] = body.rid[i]
    return answers


# ---- answers ---------------------------------------------------------------------------------------------------------


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def failure(error: Exception) -> Response:
    return Response(_error(error), status_of(error), media_type="application/json")


def status_of(error: Exception) -> int:
    """400: the request is wrong; 503: the engine cannot now; 500: it went wrong here."""
    if isinstance(error, (QueueFull, EngineError, TimeoutError)):
        return 503
    if isinstance(error, (Aborted, NumericalError)):
        return 500
    return 400 if isinstance(error, (UsageError, RequestError)) else 500


def _error(error: Exception) -> bytes:
    request_id = error.request_id if isinstance(error, NbsglError) else None
    return error_body(type(error).__name__, str(error), request_id)


async def _unknown_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = f"{request.method} {request.url.path}: {error.detail if isinstance(error, HTTPException) else 'failed'}"
    return Response(error_body("UsageError", text), status, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    """A body that is too large or too slow: more of it may be on its way, so the connection ends."""
    body = error_body("UsageError", str(error))
    status = error.status if isinstance(error, Refused) else 500
    return Response(body, status, media_type="application/json", headers={"connection": "close"})
