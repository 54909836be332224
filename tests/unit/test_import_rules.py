"""Who may import whom: the rooms of the architecture, held by walking every file's syntax tree.

Imports inside functions count.  Imports for type checkers count between rooms, but not for third-party packages.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbsgl

ROOT = Path(nbsgl.__file__).parent
GROUND = {
    "nbsgl.protocol",
    "nbsgl.automaton",
    "nbsgl.scoring",
    "nbsgl.errors",
    "nbsgl.chat_templates",
    "nbsgl.reasoning",
    "nbsgl.structural_tags",
}
ROOMS = ("engine", "lang", "widgets", "magics", "bench")
NOTEBOOK = {"IPython", "ipywidgets", "anywidget", "traitlets", "comm", "ipykernel", "nbconvert", "nbformat"}

# third-party packages a room may use (None: all but the notebook's)
THIRD_PARTY = {
    "ground": {"msgspec"},
    "lang": {"msgspec", "tqdm", "httpx", "tiktoken", "litellm", "vertexai", "transformers"},  # the last four when used
    "widgets": {"msgspec", "anywidget", "traitlets"},
    "engine": None,
    "magics": {"msgspec", "psutil", "nbclient", *NOTEBOOK},
    "bench": {"tqdm", "torch", "safetensors", "tokenizers", "matplotlib"},
    "door": {"msgspec"},  # nbsgl/__init__.py, __main__.py
}
NEIGHBOURS = {
    "lang": set(),
    "widgets": set(),
    "engine": set(),
    "magics": {"lang", "widgets", "engine"},
    "bench": {"engine"},
}

# parts of the engine that run without torch: the front, the handle, and what the simulation runs alone
WITHOUT_TORCH = (
    "handle",
    "front",
    "graph",
    "text",
    "request",
    "scheduler",
    "policy",
    "radix_cache",
    "segments",
    "config",
)
INNER = ("layers", "attention", "models", "grammar")
OUTER = ("scheduler", "worker", "front", "handle")


def files(room: str) -> list[Path]:
    if room == "ground":
        return [ROOT / f"{name.partition('.')[2]}.py" for name in sorted(GROUND)]
    if room == "door":
        return [path for path in (ROOT / "__init__.py", ROOT / "__main__.py") if path.exists()]
    return sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Every imported module or name of one, with its line, and whether only type checkers see it."""
    yield from _walk(ast.parse(path.read_text(encoding="utf-8")), path, False)


def _walk(node: ast.AST, path: Path, is_typing: bool) -> Iterator[tuple[str, int, bool]]:
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.body:
            yield from _walk(child, path, True)
        for child in node.orelse:
            yield from _walk(child, path, is_typing)
        return
    if isinstance(node, ast.Import):
        yield from ((alias.name, node.lineno, is_typing) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            package = path.relative_to(ROOT.parent).parent.parts
            module = ".".join([*package[: len(package) - node.level + 1], *filter(None, [module])])
        yield from ((f"{module}.{alias.name}", node.lineno, is_typing) for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, path, is_typing)


def third_party(room: str) -> Iterator[tuple[Path, int, str]]:
    for path in files(room):
        for name, line, is_typing in imports(path):
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in ("nbsgl", "__future__") and not is_typing:
                yield path, line, top


def told(found: list[tuple[Path, int, str]]) -> list[str]:
    return [f"{path.relative_to(ROOT.parent)}:{line} imports {name}" for path, line, name in found]


@pytest.mark.parametrize("room", THIRD_PARTY)
def test_third_party_packages_of_a_room(room) -> None:
    allowed = THIRD_PARTY[room]
    wrong = [
        (path, line, top)
        for path, line, top in third_party(room)
        if (top in NOTEBOOK if allowed is None else top not in allowed)
    ]
    assert told(wrong) == []


def door_names(path: Path) -> set[str]:
    """What a file takes from `nbsgl` itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {
        name.removeprefix("nbsgl.") for name, _, _ in imports(path) if name.count(".") == 1 and name[:6] == "nbsgl."
    }
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    found |= {node.attr for node in uses if node.value.id == "nbsgl"}
    return found - {*ROOMS, "protocol", "automaton", "scoring", "errors", "chat_templates"}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_the_ground_and_themselves(room) -> None:
    allowed = {room, *NEIGHBOURS[room]}
    wrong = []
    for path in files(room):
        for name, line, _ in imports(path):
            parts = name.split(".")
            if parts[0] != "nbsgl" or ".".join(parts[:2]) in GROUND:
                continue
            if len(parts) > 1 and parts[1] in allowed:
                continue
            is_door = len(parts) == 1 or parts[1] not in ROOMS
            if is_door and (
                room in ("magics", "bench") or (room == "engine" and door_names(path) <= {"__version__", "__file__"})
            ):
                continue
            wrong.append((path, line, name))
    assert told(wrong) == []


def test_the_ground_imports_only_itself() -> None:
    wrong = []
    for path in files("ground"):
        for name, line, _ in imports(path):
            if name.startswith("nbsgl") and ".".join(name.split(".")[:2]) not in GROUND:
                wrong.append((path, line, name))
    assert told(wrong) == []


def test_the_inner_engine_does_not_know_the_outer() -> None:
    wrong = []
    for part in INNER:
        for path in sorted([*(ROOT / "engine" / part).rglob("*.py"), *(ROOT / "engine").glob(f"{part}.py")]):
            for name, line, _ in imports(path):
                if name.startswith(tuple(f"nbsgl.engine.{outer}." for outer in OUTER)):
                    wrong.append((path, line, name))
    assert told(wrong) == []


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


HEAVY = ["torch", "numpy", "IPython", "transformers", "tokenizers", "zmq", "anywidget", "msgspec", "tqdm", "asyncio"]


def loaded(code: str, names: list[str]) -> set[str]:
    return set(run_python(f"import sys\n{code}\nprint(*(n for n in {names} if n in sys.modules))").split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded("import nbsgl", HEAVY) == set()


def test_importing_the_package_takes_less_than_200_ms() -> None:
    code = "import time; t = time.perf_counter(); import nbsgl; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.2


def test_writing_a_program_loads_neither_torch_nor_ipython() -> None:
    code = "import nbsgl as sgl\nsgl.function(lambda s: None)\nsgl.gen('x'), sgl.state, sgl.ProgramState"
    assert loaded(code, HEAVY) <= {"msgspec"}


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_parts_of_the_engine_without_torch(part) -> None:
    if not (ROOT / "engine" / f"{part}.py").exists():
        pytest.skip(f"engine/{part}.py is not there")
    assert loaded(f"import nbsgl.engine.{part}", ["torch", "IPython", "transformers"]) == set()


def test_the_measuring_process_takes_no_memory_of_the_card() -> None:
    assert loaded("import nbsgl.bench.cli, nbsgl.bench.start", ["torch", "numpy", "matplotlib", "IPython"]) == set()


def test_no_module_adds_a_log_handler() -> None:
    code = "import logging, nbsgl, nbsgl.lang.program, nbsgl.lang.batch\nprint(logging.getLogger('nbsgl').handlers)"
    assert run_python(code) == "[]"


def test_walking_finds_imports_in_functions_and_relative_ones() -> None:
    path = ROOT / "lang" / "made_up.py"
    tree = ast.parse("def f():\n    import torch\n    from . import ir\n    from ..engine import worker\n")
    assert [name for name, _, _ in _walk(tree, path, False)] == ["torch", "nbsgl.lang.ir", "nbsgl.engine.worker"]
