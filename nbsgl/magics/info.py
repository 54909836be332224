"""The environment report of `%sgl info` and `python -m nbsgl info`: what to paste into a bug report.

Versions are read from the packages' metadata, so nothing is imported for it; least of all torch.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbsgl.engine.runtime import EngineRecord, list_engines
from nbsgl.errors import EngineNotRunning
from nbsgl.magics.status import duration

if TYPE_CHECKING:
    from nbsgl.engine.handle import Engine

PACKAGES = (
    "torch",
    "triton",
    "flashinfer-python",
    "transformers",
    "tokenizers",
    "llguidance",
    "msgspec",
    "pyzmq",
    "numpy",
    "ipython",
    "ipykernel",
    "ipywidgets",
    "anywidget",
    "jupyterlab",
    "nbconvert",
)
GIB = 1 << 30


def report() -> list[tuple[str, str]]:
    """Pairs of what and its value, in the order to show them."""
    rows = [
        ("nbsgl", f"{_version('nbsgl')} ({Path(__file__).parents[1]})"),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", platform.platform()),
        ("cpu", f"{_cpu_name()}, {_cpu_count()} usable"),
        ("memory", _memory()),
    ]
    rows += [("gpu", line) for line in _gpus()]
    rows += [(name, _version(name)) for name in PACKAGES]
    rows += [(name, os.environ[name]) for name in sorted(os.environ) if name.startswith("NBSGL_")]
    return rows + _engine_rows()


def table(rows: list[tuple[str, str]]) -> str:
    """The rows as aligned text; a key is shown once for neighbours that share it."""
    width = max(len(key) for key, _ in rows)
    lines, last = [], ""
    for key, value in rows:
        lines.append(f"{'' if key == last else key:<{width}}  {value}")
        last = key
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> str:
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    return f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB available"


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ["none (no nvidia-smi)"]
    query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run([program, *query], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"nvidia-smi failed ({type(error).__name__})"]
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines if done.returncode == 0 and lines else ["none found by nvidia-smi"]


def _engine_rows() -> list[tuple[str, str]]:
    from nbsgl.engine.runtime import root

    lines = engine_lines() or ["none is running"]
    return [("runtime folder", str(root())), *(("engines", line) for line in lines)]


def engine_lines() -> list[str]:
    """The engines of this user, one a line: key, model, device, state, age."""
    return [engine_line(record) for record in list_engines()]


def engine_line(record: EngineRecord) -> str:
    keep = f"ends {record.keep:g} s after its last client"
    return f"{record.key}  {record.model} on {record.device} · {record.state} · {_age(record)} old · {keep}"


def _age(record: EngineRecord) -> str:
    import psutil

    try:
        return duration(max(0.0, time.time() - psutil.Process(record.pid).create_time()))
    except psutil.Error:
        return "unknown"


def find_engine(key: str) -> EngineRecord:
    """The engine of this key, the beginning of it, or the engine's name; `EngineNotRunning` lists what runs."""
    records = list_engines()
    found = [r for r in records if r.key == key or r.config.get("name") == key] or [
        r for r in records if r.key.startswith(key)
    ]
    if len(found) != 1:
        running = "\n  ".join(["Running:", *map(engine_line, records)]) if records else "None is running."
        raise EngineNotRunning(key=key, hint=running)
    return found[0]


def connect(record: EngineRecord) -> Engine:
    """A handle on an engine that runs."""
    from nbsgl.engine.handle import Engine

    settings: dict[str, Any] = {**record.config, "keep": record.keep}
    return Engine(**settings)


def stop_engine(key: str, *, force: bool) -> str:
    """Stop the engine of this key or name; returns a line that says so."""
    record = find_engine(key)
    connect(record).stop(force=force)
    return f"stopped: {engine_line(record)}"
