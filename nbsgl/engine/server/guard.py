"""`Guard`: who may come in, and with how much.  Stands before every route; nothing is parsed before it has agreed."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from nbsgl.errors import ParameterError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_BODY = 8 << 20
BODY_S = 30.0  # a body must be here within that time
STALL_S = 30.0  # a client that reads nothing for so long, with its buffers full, is cut off


@dataclass(frozen=True)
class Rules:
    """`hosts` are the names the server may be called by; without an `api_key` anybody who can connect may ask."""

    api_key: str | None = None
    hosts: frozenset[str] = LOCAL
    max_body: int = MAX_BODY
    body_s: float = BODY_S
    stall_s: float = STALL_S

    @classmethod
    def of(cls, host: str, api_key: str | None, more_hosts: list[str]) -> Rules:
        """The rules for a server at this address; `ParameterError` for one that others can reach without a key."""
        if api_key is not None and not api_key.strip():
            raise ParameterError(name="api_key", value=api_key, allowed="a key that is not empty")
        if host not in LOCAL and api_key is None:
            raise ParameterError(
                f"host={host!r}: others can reach that address, so it needs a key.",
                name="host",
                value=host,
                hint="Add --api-key new, or leave it at --host 127.0.0.1.",
            )
        return cls(api_key, LOCAL | {name.lower() for name in (host, *more_hosts)})


class Refused(Exception):
    """The request ends here with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Stalled(Exception):
    """The client has stopped reading and was cut off."""


class Guard:
    def __init__(self, app: App, rules: Rules) -> None:
        self.app, self.rules = app, rules
        self._digest = None if rules.api_key is None else _digest(rules.api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # nothing else is served
            return
        begun = False

        async def tell(message: Message) -> None:
            nonlocal begun
            begun = True
            await self._send(scope, send, message)

        try:
            self._admit(scope)
            await self.app(scope, _Body(receive, self.rules).receive, tell)
        except Refused as refusal:
            if not begun:
                await refuse(tell, refusal.status, "UsageError", str(refusal))
        except Stalled:
            return
        except asyncio.CancelledError:  # the server ends, and this was still under way
            if not begun:
                await refuse(tell, 503, "EngineError", "The server is ending.")

    # ---- who ---------------------------------------------------------------------------------------------------------

    def _admit(self, scope: Scope) -> None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        host = _only(headers, b"host")
        if _name(host) not in self.rules.hosts:
            raise Refused(403, "This server is not called so (Host); start it with --allow-host NAME.")
        self._check_origin(headers, host)
        if self._digest is not None and not hmac.compare_digest(self._digest, _digest(_key(headers))):
            raise Refused(401, "Wrong or no API key; send it as 'Authorization: Bearer KEY'.")
        if (
            scope["method"] == "POST"
            and _only(headers, b"content-type").partition(";")[0].strip() != "application/json"
        ):
            raise Refused(415, "POST takes JSON: set Content-Type: application/json.")
        self._check_length(_only(headers, b"content-length"))

    def _check_origin(self, headers: dict[bytes, list[bytes]], host: str) -> None:
        """A page of another site, which a browser shows to the user, may not ask in their name."""
        origin, site = _only(headers, b"origin"), _only(headers, b"sec-fetch-site")
        if (origin and urlsplit(origin).netloc.lower() != host) or site in ("cross-site", "same-site"):
            raise Refused(403, "Pages of other sites may not use this server (Origin).")

    def _check_length(self, length: str) -> None:
        if length and (not length.isdigit() or int(length) > self.rules.max_body):
            raise Refused(413, f"The body has {length} bytes, the limit is {self.rules.max_body:,}.")

    # ---- how fast ----------------------------------------------------------------------------------------------------

    async def _send(self, scope: Scope, send: Send, message: Message) -> None:
        try:
            async with asyncio.timeout(self.rules.stall_s):
                await send(message)
        except TimeoutError:
            cut = scope.get("state", {}).get("cut")
            if cut is not None:
                cut()
            raise Stalled from None


class _Body:
    """A request's body as it comes, within its limits of size and time."""

    def __init__(self, receive: Receive, rules: Rules) -> None:
        self._receive, self._rules = receive, rules
        self._size, self._is_whole = 0, False
        self._end = asyncio.get_running_loop().time() + rules.body_s

    async def receive(self) -> Message:
        if self._is_whole:
            return await self._receive()  # the news that the client is gone
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, f"The body was not here within {self._rules.body_s:g} s.") from None
        self._size += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._size > self._rules.max_body:
            raise Refused(413, f"The body is larger than {self._rules.max_body:,} bytes.")
        return message


async def refuse(send: Send, status: int, kind: str, message: str) -> None:
    """Answer with an error; the connection is closed, as more of the request may be on its way."""
    body = error_body(kind, message)
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(kind: str, message: str, request_id: str | None = None) -> bytes:
    """What an answer tells of an error: its class, its message, and which request it ended."""
    error = {"type": kind, "message": message} | ({} if request_id is None else {"request_id": request_id})
    return msgspec.json.encode({"error": error})


def _only(headers: dict[bytes, list[bytes]], name: bytes) -> str:
    """The one value of a header, "" if there is none; two that contradict each other are refused."""
    values = set(headers.get(name, ()))
    if len(values) > 1:
        raise Refused(400, f"More than one {name.decode()} header.")
    return values.pop().decode("latin-1").strip().lower() if values else ""


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _key(headers: dict[bytes, list[bytes]]) -> bytes:
    values = headers.get(b"authorization", [])
    scheme, _, key = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
