"""What of a user's text leaves the engine's memory, and whom its processes talk to: nothing, nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from nbsgl.engine.handle import Engine
from nbsgl.errors import NbsglError
from tests.process.tools import is_alive, until

pytestmark = pytest.mark.process

MARKER = "zanzibar-4711"

# Written into every Python of the test by its `sitecustomize`: calls of `connect` and `bind` that are no AF_UNIX.
SPY = """
import os, socket, sys

def spy(event, args):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"):
        if not args or getattr(args[0], "family", None) != socket.AF_UNIX:
            with open(os.environ["NBSGL_SPY"], "a") as file:
                file.write(f"{event} {os.getpid()} {sys.argv}\\n")

with open(os.environ["NBSGL_SPY"], "a") as file:
    file.write("watched\\n")
sys.addaudithook(spy)
"""

USER = """
import os, socket, sys
from nbsgl.engine.handle import Engine
engine = Engine(keep=0, num_slots=512)
answer = engine.generate("The capital of France is", {"max_new_tokens": 4, "regex": "[a-zA-Z ]+"})
engine.snapshot()
print(engine.front_pid, engine.worker_pid, flush=True)
sys.stdin.readline()
engine.close()
if "connect" in sys.argv:
    socket.socket().connect_ex(("127.0.0.1", 9))
"""


def test_no_connection_but_between_its_own_processes(home: Path, tmp_path: Path) -> None:
    """No socket of the internet's families is opened, listens or connects, in handle, front and worker."""
    (tmp_path / "sitecustomize.py").write_text(SPY)
    spied = tmp_path / "spied"
    paths = [str(tmp_path), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "NBSGL_SPY": str(spied)}
    process = subprocess.Popen(
        [sys.executable, "-c", USER, "connect"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    front, worker = map(int, process.stdout.readline().split())
    engine = [psutil.Process(front), *psutil.Process(front).children(recursive=True)]
    assert worker in [one.pid for one in engine]
    for one in [psutil.Process(process.pid), *engine]:
        assert one.net_connections(kind="inet") == []
    assert any("front.sock" in str(one.laddr) for one in engine[0].net_connections(kind="unix"))
    process.communicate("\n")
    lines = spied.read_text().splitlines()
    assert lines.count("watched") >= 3  # handle, front and worker had their spies
    [only] = [line for line in lines if line != "watched"]  # the one connection that the test itself made, at its end
    assert only.startswith(f"socket.connect {process.pid} ")


def test_no_prompt_in_info_log(home: Path) -> None:
    """A marker in prompts, grammars, stop strings and errors, and through a crash, is in no log."""
    engine = Engine(keep=0, num_slots=512)
    info = engine.info
    assert engine.runtime_folder is not None
    worker = engine.worker_pid or 0
    engine.generate(f"Say {MARKER}.", {"max_new_tokens": 3, "stop": MARKER})
    schema = f'{{"type": "object", "properties": {{"{MARKER}": {{"enum": ["{MARKER}"]}}}}, "required": ["{MARKER}"]}}'
    engine.generate(MARKER, {"max_new_tokens": 8, "json_schema": schema})
    for params in (
        {"regex": f"{MARKER}((("},
        {"json_schema": f'{{"type": "{MARKER}"}}'},
        {"json_schema": f'{{"{MARKER}": '},
        {"max_new_tokens": info.context_length + 1},
    ):
        with pytest.raises(NbsglError):
            engine.generate(MARKER, params)
    stream = engine.generate(MARKER, {"max_new_tokens": 300, "ignore_eos": True}, stream=True)
    next(stream)
    os.kill(worker, signal.SIGABRT)  # its stacks go to the log
    with pytest.raises(NbsglError):
        list(stream)
    until(lambda: not is_alive(worker))
    logs = {path.name: path.read_text() for path in engine.runtime_folder.glob("*.log*")}
    assert "most recent call first" in logs["worker.log"]
    assert "ended with" in logs["front.log"]
    for text in logs.values():
        assert MARKER not in text
    engine.stop()
