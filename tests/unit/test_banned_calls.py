"""W1: bytes become typed structs or nothing, and nothing anywhere runs code or opens a shell from data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "nbsgl"
BANNED_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "multiprocessing",
}
BANNED_NAMES = {"eval", "exec"}
BANNED_ATTRIBUTES = {"recv_pyobj", "send_pyobj", "unsafe_load"}
BANNED_CALLS = {("torch", "load"), ("yaml", "load"), ("os", "system"), ("os", "popen"), ("dist", "TCPStore")}
BANNED_KEYWORDS = {"trust_remote_code", "shell"}
# The one place that runs the user's own cell.
CELLS = {"magics/cell.py"}


def banned(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything banned in a module."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Import():
                yield from ((line, a.name) for a in node.names if a.name.split(".")[0] in BANNED_MODULES)
            case ast.ImportFrom() if node.module and node.module.split(".")[0] in BANNED_MODULES:
                yield line, node.module
            case ast.Call(func=ast.Name(id=name)) if name in BANNED_NAMES:
                yield line, name
            case ast.Attribute(attr=name) if name in BANNED_ATTRIBUTES:
                yield line, name
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)) if (owner, name) in BANNED_CALLS:
                yield line, f"{owner}.{name}"
        if isinstance(node, ast.keyword) and node.arg in BANNED_KEYWORDS:
            is_off = isinstance(node.value, ast.Constant) and node.value.value is False
            if not is_off:
                yield node.value.lineno, node.arg


def test_banned_calls() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for line, what in banned(ast.parse(path.read_text(encoding="utf-8"))):
            if not (name in CELLS and what in BANNED_NAMES):
                found.append(f"{name}:{line}: {what}")
    assert found == []


def test_each_kind_is_found() -> None:
    code = """
import pickle
from multiprocessing.shared_memory import SharedMemory
eval("1")
socket.recv_pyobj()
torch.load("x")
load(trust_remote_code=True)
Popen("x", shell=True)
Popen("x", shell=False)
"""
    assert [what for _, what in sorted(banned(ast.parse(code)))] == [
        "pickle",
        "multiprocessing.shared_memory",
        "eval",
        "recv_pyobj",
        "torch.load",
        "trust_remote_code",
        "shell",
    ]
