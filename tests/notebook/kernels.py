"""A real notebook kernel, driven cell by cell."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jupyter_client.manager import KernelManager


@dataclass
class Reply:
    """What one cell gave: its streams and displays as text (the last form of each display), and its error."""

    text: str = ""
    html: str = ""
    error: str | None = None
    traceback: str = ""
    seconds: float = 0.0
    displays: dict[str, dict[str, str]] = field(default_factory=dict)
    mimes: set[str] = field(default_factory=set)


class Kernel:
    """`run` executes a cell and waits; `start` and `finish` are its halves, for acting in between."""

    def __init__(self, manager: KernelManager, runtime: Path) -> None:
        self.manager, self.runtime = manager, runtime
        self.client = manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    @property
    def pid(self) -> int:
        return self.manager.provisioner.pid

    def start(self, code: str) -> str:
        return self.client.execute(code)

    def run(self, code: str, timeout: float = 60.0) -> Reply:
        return self.finish(self.start(code), timeout)

    def finish(self, msg_id: str, timeout: float = 60.0) -> Reply:
        reply, began = Reply(), time.monotonic()
        parts: list[str | dict[str, str]] = []
        while True:
            left = timeout - (time.monotonic() - began)
            message = self.client.get_iopub_msg(timeout=max(left, 0.1))
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                parts.append(content["text"])
            elif kind in ("display_data", "execute_result", "update_display_data"):
                _display(reply, parts, content)
            elif kind == "error":
                reply.error = content["ename"]
                reply.traceback = "\n".join(content["traceback"])
                parts.append(f"{content['ename']}: {content['evalue']}\n")
            elif kind == "status" and content["execution_state"] == "idle":
                break
        reply.seconds = time.monotonic() - began
        reply.text = "".join(part if isinstance(part, str) else part.get("text/plain", "") + "\n" for part in parts)
        reply.html = "".join(part.get("text/html", "") for part in parts if isinstance(part, dict))
        reply.mimes = {mime for part in parts if isinstance(part, dict) for mime in part}
        return reply

    def wait_for_display(self, msg_id: str, word: str, timeout: float = 60.0) -> None:
        """Until some output of the cell contains the word."""
        ends = time.monotonic() + timeout
        while time.monotonic() < ends:
            message = self.client.get_iopub_msg(timeout=timeout)
            if message["parent_header"].get("msg_id") == msg_id and word in str(message["content"]):
                return
        raise AssertionError(f"{word!r} was not shown within {timeout} s")

    def interrupt(self) -> None:
        """As Jupyter's stop button: a signal to the kernel's process group."""
        os.killpg(os.getpgid(self.pid), signal.SIGINT)

    def restart(self) -> None:
        """As after a crash: the kernel is killed, and a new one takes its place."""
        self.manager.restart_kernel(now=True)
        self.client.wait_for_ready(timeout=60)


def _display(reply: Reply, parts: list[str | dict[str, str]], content: dict) -> None:
    key = (content.get("transient") or {}).get("display_id")
    if key in reply.displays:
        reply.displays[key].clear()
        reply.displays[key].update(content["data"])
        return
    data = dict(content["data"])
    parts.append(data)
    if key:
        reply.displays[key] = data


@contextlib.contextmanager
def kernel(cwd: Path, **environment: str) -> Iterator[Kernel]:
    """A kernel of this interpreter, ended on every road out.  Its engines live in a runtime folder of its own."""
    runtime = Path(tempfile.mkdtemp(prefix="nbsgl-"))  # short: the path of a socket is limited
    manager = KernelManager(kernel_name="python3")
    own = {"IPYTHONDIR": f"{cwd}/ipython", "NBSGL_RUNTIME_DIR": str(runtime), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    manager.start_kernel(cwd=str(cwd), env={**os.environ, **own, **environment})
    made = Kernel(manager, runtime)
    try:
        yield made
    finally:
        made.client.stop_channels()
        manager.shutdown_kernel(now=True)
        shutil.rmtree(runtime, ignore_errors=True)
