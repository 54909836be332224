"""From nothing to the first token: a fresh Python process that imports the engine, starts it and draws one token.

python -m nbsgl.bench.start SETUP      (JSON of `Start`; prints a line when the token is there, then ends)
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nbsgl.bench.cards import environment
from nbsgl.bench.drive import BenchError
from nbsgl.bench.engines import ENGINES, Nbsgl, Setup

NUM_PROMPT = 512
LIMIT_S = 600.0
MARK = "nbsgl-bench-start "


def first_token(engine: str, setup: Setup, vocab: int) -> tuple[float, dict[str, Any]]:
    """Seconds from the start of a process until its engine's first token, and the phases on the way (seconds)."""
    given = {"engine": engine, "vocab": vocab, "setup": _plain(setup)}
    command = [sys.executable, "-m", "nbsgl.bench.start", json.dumps(given)]
    begin = time.perf_counter()
    seconds, phases = 0.0, {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:  # what an engine prints itself is not ours
                if line.startswith(MARK):
                    seconds, phases = time.perf_counter() - begin, json.loads(line.removeprefix(MARK))
        except BaseException:
            process.kill()
            raise
        finally:
            limit.cancel()
    if process.returncode or not seconds:
        raise BenchError(f"start: the process with {engine} ended with status {process.returncode} and no token.")
    return seconds, phases


def _plain(setup: Setup) -> dict[str, Any]:
    fields = {name: getattr(setup, name) for name in ("load_format", "device", "dtype", "with_text", "settings")}
    tokenizer = None if setup.tokenizer_path is None else str(setup.tokenizer_path)
    return {"model_path": str(setup.model_path), "tokenizer_path": tokenizer, **fields}


def _setup(plain: dict[str, Any]) -> Setup:
    tokenizer = plain.pop("tokenizer_path")
    path = None if tokenizer is None else Path(tokenizer)
    return Setup(Path(plain.pop("model_path")), tokenizer_path=path, **plain)


def main(text: str) -> None:
    begin = time.perf_counter()
    given = json.loads(text)
    setup = _setup(given["setup"])
    phases: dict[str, float] = {}

    def note(phase: str, *_: object) -> None:
        phases.setdefault(phase, round(time.perf_counter() - begin, 3))

    if given["engine"] == "nbsgl":
        engine: Any = Nbsgl(setup, note)
    else:
        engine = ENGINES[given["engine"]](setup)
    note("ready")
    engine.generate([[100 + i % (given["vocab"] - 400) for i in range(NUM_PROMPT)]], [1], 0.0)
    note("first token")
    sys.stdout.write(f"\n{MARK}{json.dumps(phases)}\n")
    sys.stdout.flush()
    engine.close()


if __name__ == "__main__":
    main(sys.argv[1])
