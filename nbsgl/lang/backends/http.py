"""`HttpClient`: JSON over HTTP to one service, with keys, retries and server-sent events.  Lives on one event loop."""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import json
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Protocol

import httpx

from nbsgl.errors import ApiError, ParameterError

FIRST_DELAY_S, MAX_DELAY_S = 0.5, 8.0  # of the back-off, which doubles; half of each delay is drawn
MAX_RETRY_AFTER_S = 60.0  # a server that asks for more patience than this has refused
LOCAL = ("localhost", "127.0.0.1", "::1")
MAX_CONNECTIONS = 256  # further requests wait their turn
CONNECT_S = 10.0
RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504, 520, 522, 524, 529})


class Transport(Protocol):
    """What carries a request body to a service."""

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer; `ApiError` if there is none."""

    def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The answer as it comes; `ApiError` if it breaks off."""

    async def close(self) -> None: ...


class HttpClient:
    """Posts to `base_url`.  A refusal that may pass, or no answer, is tried again up to `max_retries` times, after the
    server's Retry-After or an exponential back-off; a stream only until its first event.

    `timeout` seconds without a byte end a request.  `key_hint` is what to type when the key is refused.
    `verify` is a file of certificates to trust, or False for any.
    """

    def __init__(
        self,
        service: str,
        base_url: str,
        headers: Mapping[str, str],
        *,
        timeout: float = 600.0,
        max_retries: int = 4,
        query: Mapping[str, str] | None = None,
        key_hint: str = "",
        verify: str | bool = True,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ParameterError(name="base_url", value=base_url, allowed="http://... or https://...")
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not timeout > 0:
            raise ParameterError(name="timeout", value=timeout, allowed="a number > 0 (seconds)")
        if not isinstance(max_retries, int) or isinstance(max_retries, bool) or max_retries < 0:
            raise ParameterError(name="max_retries", value=max_retries, allowed="an int >= 0")
        self.service, self.base_url = service, base_url.rstrip("/")
        self._headers, self._query = dict(headers), dict(query or {})
        self._timeout, self._max_retries, self._key_hint = float(timeout), max_retries, key_hint
        self._verify, self._max_connections = verify, max_connections
        self._client: httpx.AsyncClient | None = None

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer; `ApiError` after the last retry."""
        response = await self._send(path, body, whole=True)
        answer = _parsed(response.text)
        if not isinstance(answer, dict):
            raise self._error(response, f"no JSON object: {response.text[:200]!r}")
        return answer

    async def ask(self, path: str, body: Mapping[str, Any] | None = None, *, retries: int | None = None) -> Any:
        """Whatever JSON the answer is (None if it is none); without a body it is a GET.  `ApiError` as `post`."""
        response = await self._send(path, body, whole=True, retries=retries)
        return _parsed(response.text)

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of the answer; `ApiError` if it breaks off or tells of an error."""
        response = await self._send(path, body, whole=False)
        try:
            async for data in _events(response):
                event = _parsed(data)
                if not isinstance(event, dict):
                    raise self._error(response, f"an event that is no JSON object: {data[:200]!r}")
                if event.get("error"):
                    raise self._error(response, _reason(event, data))
                yield event
        except httpx.TransportError as error:
            raise self._lost(error, "the stream broke off") from error
        finally:
            await response.aclose()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _send(
        self, path: str, body: Mapping[str, Any] | None, *, whole: bool, retries: int | None = None
    ) -> httpx.Response:
        most = self._max_retries if retries is None else retries
        for attempt in itertools.count():
            delay: float | None = None
            try:
                response = await self._once(path, body, whole)
                if response.is_success:
                    return response
                problem = self._error(response, _reason(_parsed(response.text), response.text))
                delay = _asked_delay(response.headers)
                is_final = response.status_code not in RETRIED or (delay or 0.0) > MAX_RETRY_AFTER_S
            except httpx.TransportError as error:
                problem, is_final = self._lost(error, "no answer"), False
                problem.__cause__ = error
            if is_final or attempt >= most:
                raise problem
            await asyncio.sleep(_backed_off(attempt) if delay is None else delay)
        raise AssertionError("unreachable")

    async def _once(self, path: str, body: Mapping[str, Any] | None, whole: bool) -> httpx.Response:
        """An answer: read if it is wanted whole, or is a refusal."""
        if self._client is None:
            self._client = self._opened()
        method, content = ("GET", None) if body is None else ("POST", dict(body))
        request = self._client.build_request(method, f"{self.base_url}/{path}", json=content)
        response = await self._client.send(request, stream=True)
        if whole or not response.is_success:
            try:
                await response.aread()
            finally:
                await response.aclose()
        return response

    def _opened(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            timeout=httpx.Timeout(self._timeout, connect=min(CONNECT_S, self._timeout), pool=None),
            limits=httpx.Limits(max_connections=self._max_connections),
            headers=self._headers,
            params=self._query,
            verify=ssl.create_default_context(cafile=self._verify) if isinstance(self._verify, str) else self._verify,
            trust_env=httpx.URL(self.base_url).host not in LOCAL,  # no proxy stands between processes of one machine
        )

    def _error(self, response: httpx.Response, reason: str) -> ApiError:
        status = response.status_code
        found = response.headers
        return ApiError(
            service=self.service,
            status=status,
            reason=reason,
            request_id=found.get("x-request-id") or found.get("request-id"),
            hint=self._key_hint if status in (401, 403) else "",
        )

    def _lost(self, error: httpx.TransportError, what: str) -> ApiError:
        reason = f"{what} from {self.base_url} ({type(error).__name__}: {error or 'no details'})"
        return ApiError(f"{self.service}: {reason}", service=self.service, reason=reason)


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    """The data of server-sent events, up to `[DONE]`."""
    data: list[str] = []
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            if data == ["[DONE]"]:
                return
            yield "\n".join(data)
            data = []
    if data and data != ["[DONE]"]:
        yield "\n".join(data)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _reason(answer: Any, text: str) -> str:
    """What a service says of its refusal: every one nests it differently."""
    found = answer.get("error") or answer if isinstance(answer, dict) else None
    if isinstance(found, dict):
        found = found.get("message") or found.get("detail")
    return found if isinstance(found, str) else text.strip()[:300] or "nothing"


def _asked_delay(headers: httpx.Headers) -> float | None:
    """Retry-After in seconds or as a date; None if there is none."""
    asked = headers.get("retry-after")
    if asked is None:
        return None
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return None


def _backed_off(attempt: int) -> float:
    delay = min(MAX_DELAY_S, FIRST_DELAY_S * 2**attempt)
    return float(delay * random.uniform(0.5, 1.0))
