"""What SGLang's notebooks import from its `utils`: a request, a server as a child process, texts in a file."""

from __future__ import annotations

import atexit
import contextlib
import json as json_module
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from nbsgl.errors import NbsglError, ParameterError

TICK_S = 0.25
END_S = 5.0  # a server has this long to end by itself


class HttpResponse:
    """The answer to `http_request`: `status_code`, `.text`, `.json()`, and its lines as they come."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._body: bytes | None = None
        self.status_code: int = answer.status

    @property
    def ok(self) -> bool:
        return self.status_code < 400

    @property
    def content(self) -> bytes:
        if self._body is None:
            with self._answer as answer:
                self._body = answer.read()
        return self._body

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        return json_module.loads(self.content)

    def iter_lines(self) -> Iterator[bytes]:
        """The lines without their ends, each as soon as it is there."""
        with self._answer as answer:
            for line in answer:
                yield line.rstrip(b"\r\n")


def http_request(
    url: str,
    json: Any = None,
    stream: bool = False,
    api_key: str | None = None,
    verify: str | bool | None = None,
    method: str | None = None,
    timeout: float = 600.0,
) -> HttpResponse:
    """POST `json`, or GET without it.  An error of the server is an answer (`status_code`), not an exception.

    `verify`: a file of certificates to trust, or False for any.  With `stream` the body is left to `iter_lines()`.
    """
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    body = None if json is None else json_module.dumps(json).encode()
    request = urllib.request.Request(url, body, headers, method=method)
    if request.type not in ("http", "https"):
        raise ParameterError(name="url", value=url, allowed="an http:// or https:// address")
    context = ssl.create_default_context(cafile=verify) if isinstance(verify, str) else None
    if verify is False:
        context = ssl._create_unverified_context()
    try:
        answer = HttpResponse(urllib.request.urlopen(request, timeout=timeout, context=context))
    except urllib.error.HTTPError as error:
        answer = HttpResponse(error)
    if not stream:
        _ = answer.content
    return answer


def print_highlight(html_content: str) -> None:
    """Show a line in strong blue in a notebook; elsewhere print it."""
    if "ipykernel" in sys.modules:
        from IPython.display import HTML, display

        text = html_content.replace("\n", "<br>")
        display(HTML(f"<strong style='color: #00008B;'>{text}</strong>"))
    else:
        sys.stdout.write(f"{html_content}\n")


# ---- a server as a child ---------------------------------------------------------------------------------------------


def launch_server_cmd(
    command: str, host: str = "127.0.0.1", port: int | None = None
) -> tuple[subprocess.Popen[str], int]:
    """Run a server's command with `--host` and `--port` (a free one if none is given): (the process, the port).

    It is in a session of its own, so the stop button does not reach it, and ends with `terminate_process` or with this
    Python.
    """
    port = _free_port(host) if port is None else port
    words = [*shlex.split(command.replace("\\\n", " ")), "--host", host, "--port", str(port)]
    process = subprocess.Popen(words, text=True, stderr=subprocess.STDOUT, start_new_session=True)
    atexit.register(terminate_process, process)
    return process, port


def _free_port(host: str) -> int:
    with socket.socket() as taken:
        taken.bind((host, 0))
        port: int = taken.getsockname()[1]
    return port


def wait_for_server(base_url: str, timeout: float | None = 600.0, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until a server answers `/health`, or where that is unknown `/v1/models`.

    TimeoutError after `timeout` seconds (None: never); `ServerEnded` at once if `process` has ended.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while not _is_up(base_url):
        if process is not None and process.poll() is not None:
            raise ServerEnded(f"The server's process has ended with {process.returncode} before it answered.")
        if end is not None and time.monotonic() > end:
            raise TimeoutError(f"{base_url} does not answer after {timeout} s")
        time.sleep(TICK_S)


class ServerEnded(NbsglError, RuntimeError):
    """The process that was to serve is gone."""


def _is_up(base_url: str) -> bool:
    for path in ("/health", "/v1/models"):
        try:
            status = http_request(base_url.rstrip("/") + path, timeout=5.0).status_code
        except OSError:
            return False
        if status != 404:
            return status == 200
    return False


def terminate_process(process: subprocess.Popen[str]) -> None:
    """End a server and its children: asked first, killed after five seconds.  Idempotent."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            _tell(process, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)


def _tell(process: subprocess.Popen[str], number: int) -> None:
    """Signal the whole session if the process leads one, else the process."""
    if os.getpgid(process.pid) == process.pid:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


# ---- texts -----------------------------------------------------------------------------------------------------------


def dump_state_text(filename: str, states: Iterable[Any], mode: str = "w") -> None:
    """Write the texts of states (or of anything else, by `str`), each under a line with its number."""
    from nbsgl.lang.state import ProgramState

    with open(filename, mode, encoding="utf-8") as file:
        for i, state in enumerate(states):
            text = state.text() if isinstance(state, ProgramState) else str(state)
            file.write(f"{'=' * 40} {i} {'=' * 40}\n{text}\n{'=' * 80}\n\n")
