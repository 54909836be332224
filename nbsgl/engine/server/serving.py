"""Listening: the socket, the connections and their time limits, and the signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nbsgl.engine.server.guard import App
from nbsgl.errors import ParameterError

MAX_CONNECTIONS = 256
MAX_HEADER = 16 << 10
HEADER_S = 30.0  # a request's head must be here within that time
IDLE_S = 60  # an idle connection is closed
GRACE_S = 3  # what is under way has this long when the server ends


class Connection(H11Protocol):
    """One client's.  Closed when it takes too long to say what it wants; `state["cut"]` ends it at once."""

    _too_slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.app_state = {**self.app_state, "cut": transport.abort}
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.trailing_data[0]:  # the next request has begun
            self._watch()

    def _watch(self) -> None:
        """The time runs while no request is under way."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self._too_slow is not None:
                self._too_slow.cancel()
                self._too_slow = None
        elif self._too_slow is None:
            self._too_slow = asyncio.get_running_loop().call_later(HEADER_S, self.transport.abort)


class Server(uvicorn.Server):
    """A server that takes its signals itself, so that what is behind it can be closed in order afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        self.force_exit = self.should_exit  # the second time
        self.should_exit = True


def make_server(app: App) -> Server:
    settings: dict[str, Any] = {
        "http": Connection,
        "ws": "none",
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "limit_concurrency": MAX_CONNECTIONS,
        "h11_max_incomplete_event_size": MAX_HEADER,
        "timeout_keep_alive": IDLE_S,
        "timeout_graceful_shutdown": GRACE_S,
    }
    return Server(uvicorn.Config(app, **settings))


def listen(host: str, port: int) -> socket.socket:
    """A socket there (port 0: any free one); `ParameterError` if the address is taken or is not ours."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ParameterError(
            f"{host}:{port}: {reason}.", name="port", value=port, hint="Take another --port; 0 is any free one."
        ) from None
    return found


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def end_with_standard_input(end: Callable[[], None]) -> None:
    """Call `end` when standard input is closed, as it is when the process that opened it is gone."""

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 4096):  # not sys.stdin: a thread that waits in it breaks the interpreter's end
                pass
        end()

    threading.Thread(target=wait, name="nbsgl-stdin", daemon=True).start()
