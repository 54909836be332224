"""A notebook, or a session's cells, as one Python file that runs by itself, without IPython.

`%%sgl` cells become `with sgl.state() as s:` blocks, so their names stay visible to later cells; `%sgl start` and
the like become calls; what only a notebook can do becomes a comment; all other cells stay as they are, between the
`# %%` lines which editors read as cells.  The text depends on the cells only: exporting twice gives the same text.
"""

from __future__ import annotations

import ast
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nbsgl
from nbsgl.errors import UsageError
from nbsgl.magics.args import LineError, cell_parser, parse_command, sampling_defaults, split_line, start_settings

INDENT = "    "
_PLACEHOLDER = "__nbsgl_magic_{}__"
_ASSIGN = re.compile(r"^(\s*)([\w.\[\]'\", ]+?)\s*=\s*([%!])(?!=)(.*)$")
_BODY_MAGICS = frozenset({"time", "timeit", "capture", "prun"})
_CALLS = {
    "flush": "sgl.flush_cache()",
    "stop": "sgl.get_default_backend().shutdown()",
    "restart": "sgl.get_default_backend().restart()",
}


@dataclass(frozen=True)
class Cell:
    kind: Literal["code", "markdown"]
    source: str


@dataclass
class _Script:
    """What the translated cells need of the file's head, and which names they have bound so far."""

    names: set[str] = field(default_factory=set)  # of `from nbsgl import ...`
    modules: set[str] = field(default_factory=set)  # of the standard library
    bound: set[str] = field(default_factory=set)
    uses_sgl: bool = False
    uses_display: bool = False
    cell: int = 0


# ---- the whole file --------------------------------------------------------------------------------------------------


def export_cells(cells: Iterable[Cell], title: str = "a notebook") -> str:
    """The cells as the text of one Python file."""
    script = _Script()
    blocks: list[str] = []
    for cell in cells:
        if cell.kind == "markdown":
            text = _comment(cell.source.strip())
            block = f"# %% [markdown]\n{text}" if text else ""
        else:
            script.cell += 1
            text = _translate(cell.source, script)
            block = f"# %%\n{text}" if text else ""
        if block:
            blocks.append(block)
    return "\n\n".join([_head(script, title), *blocks]).rstrip() + "\n"


def export_notebook(path: str | Path) -> str:
    """The code and markdown cells of a notebook file as the text of one Python file."""
    path = Path(path)
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a notebook of format 4 ({error}).", hint="`jupyter nbconvert --to notebook` converts it."
        ) from error
    return export_cells(_cells(cells), path.name)


def _cells(cells: Sequence[Any]) -> list[Cell]:
    found = []
    for cell in cells:
        source = cell["source"]
        text = source if isinstance(source, str) else "".join(source)
        if cell["cell_type"] in ("code", "markdown"):
            found.append(Cell(cell["cell_type"], text))
    return found


def _head(script: _Script, title: str) -> str:
    lines = [
        f'"""Exported by nbsgl from {_one_line(title)}.  Run it with `python`, or cell by cell in an editor."""',
        "",
    ]
    lines += [f"import {name}" for name in sorted(script.modules)]
    if script.modules:
        lines.append("")
    lines.append("import nbsgl as sgl" if script.uses_sgl else "")
    if script.names:
        lines.append(_import_line(sorted(script.names, key=_isort_key)))
    if script.uses_display:
        lines += ["", "display = print  # in a notebook, the richer one of IPython"]
    text = "\n".join(lines)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _isort_key(name: str) -> tuple[int, str]:
    plain = name.split(" as ")[0]
    return (0 if plain.isupper() else 1 if plain[:1].isupper() else 2, name)


def _import_line(names: Sequence[str]) -> str:
    line = f"from nbsgl import {', '.join(names)}"
    if len(line) <= 88:
        return line
    return "from nbsgl import (\n" + "".join(f"{INDENT}{name},\n" for name in names) + ")"


def _one_line(text: str) -> str:
    return re.sub(r"[\\\"\x00-\x1f]", "_", text)


def _comment(text: str) -> str:
    return "\n".join(f"# {line.rstrip()}".rstrip() for line in text.splitlines())


# ---- one cell --------------------------------------------------------------------------------------------------------


def _translate(source: str, script: _Script) -> str:
    source = source.expandtabs(4).strip("\n") if "\t" in source and '"""' not in source else source.strip("\n")
    first = source.lstrip()
    if first.startswith("%%"):
        text = _cell_magic(first, script)
    else:
        text = _plain(source, script)
    return text.strip("\n")


def _cell_magic(source: str, script: _Script) -> str:
    head, _, body = source.partition("\n")
    name, _, line = head[2:].partition(" ")
    if name == "sgl":
        return _sgl_cell(line.strip(), body, head, script)
    if name in _BODY_MAGICS:
        return f"{_comment(head)}\n{_plain(body, script)}"
    return _comment(source)


def _sgl_cell(line: str, body: str, head: str, script: _Script) -> str:
    if not body.strip() or {"-h", "--help"} & set(line.split()):
        return ""
    args = cell_parser().parse_args(split_line(line))
    script.uses_sgl = True
    body = _plain(textwrap.dedent(body), script, is_program=True)
    state = args.out or "s"
    inner = "s" if state != "s" and "s" in _names(body) else state
    call = [f"sgl.Engine({args.model!r})"] if args.model else []
    if args.on:
        call.append(f"on={args.on}")
    call += [f"{keyword}={value!r}" for keyword, value in sampling_defaults(args).items()]
    if not _has_statement(body):
        body = f"{body}\npass".strip()
    lines = [_comment(head.rstrip())] if line else []
    keep = inner != state and "s" in script.bound
    if keep:
        lines.append("s_before = s")
    lines.append(f"with sgl.state({', '.join(call)}) as {inner}:")
    lines.append(_indent(body))
    if inner != state:
        lines.append(f"{state} = s")
    if keep:
        lines.append("s = s_before")
    script.bound |= {state} if inner == state or keep else {state, "s"}
    return "\n".join(lines)


def _plain(source: str, script: _Script, is_program: bool = False) -> str:
    """Python with line magics in it: these are replaced, and what the head must provide is noted."""
    text = _replace_magics(source, script)
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UsageError(
            f"cell {script.cell} is not Python (line {error.lineno}: {error.msg}): {source[:60]!r}"
        ) from error
    text, tree = _hoist(text, tree, script)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if is_program:
        script.names |= {name for name in used if name in nbsgl.__all__} - script.bound
    script.bound |= _bound(tree)
    script.uses_sgl |= "sgl" in used
    script.uses_display |= "display" in used and "display" not in script.bound
    if any(_is_top_await(node) for node in tree.body):
        return _await_cell(text, tree, script)
    return text


def _hoist(text: str, tree: ast.Module, script: _Script) -> tuple[str, ast.Module]:
    """Move the cell's own imports of nbsgl to the file's head, where they are merged with what the head needs."""
    lines = text.split("\n")
    gone: set[int] = set()
    for node in tree.body:
        alone = node.end_lineno is not None and not any(
            other is not node and other.lineno <= node.end_lineno and (other.end_lineno or 0) >= node.lineno
            for other in tree.body
        )
        if not alone:
            continue
        if isinstance(node, ast.Import) and [(a.name, a.asname) for a in node.names] == [("nbsgl", "sgl")]:
            script.uses_sgl = True
        elif isinstance(node, ast.ImportFrom) and node.module == "nbsgl" and node.level == 0:
            names = {f"{a.name} as {a.asname}" if a.asname else a.name for a in node.names}
            if "*" in names:
                names = set(nbsgl.__all__) & {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
            script.names |= names
        else:
            continue
        gone |= set(range(node.lineno - 1, node.end_lineno or node.lineno))
    if not gone:
        return text, tree
    text = "\n".join(line for i, line in enumerate(lines) if i not in gone).strip("\n")
    return text, ast.parse(text)


def _await_cell(text: str, tree: ast.Module, script: _Script) -> str:
    """A cell with `await` becomes a coroutine of its own that binds the same global names."""
    script.modules.add("asyncio")
    name = f"cell_{script.cell}"
    names = sorted(_bound(tree))
    body = f"global {', '.join(names)}\n{text}" if names else text
    return f"async def {name}():\n{_indent(body)}\n\n\nasyncio.run({name}())"


# ---- line magics -----------------------------------------------------------------------------------------------------


def _replace_magics(source: str, script: _Script) -> str:
    lines = source.split("\n")
    if _parses(source):
        return source
    for i, line in enumerate(lines):
        if _looks_magic(line) and not _continues("\n".join(lines[:i])):
            lines[i] = _line(line, script)
    lines = [part for line in lines for part in line.split("\n")]
    text = "\n".join(lines)
    if not _parses(text):  # a block that held nothing but magics is empty now
        text = "\n".join(_with_pass(line) if _was_magic(line) else line for line in lines)
    return text


def _with_pass(line: str) -> str:
    text = line.lstrip()
    return f"{line[: len(line) - len(text)]}pass  {text}"


def _was_magic(line: str) -> bool:
    return line.lstrip().startswith(("# %", "# !", "# ?")) or (line.lstrip().startswith("# ") and line.endswith("?"))


def _looks_magic(line: str) -> bool:
    text = line.strip()
    return text.startswith(("%", "!", "?")) or bool(_ASSIGN.match(line)) or bool(re.fullmatch(r"[\w.*%]+\?\??", text))


def _line(line: str, script: _Script) -> str:
    """One line magic or shell line as Python, or as a comment."""
    assign = _ASSIGN.match(line)
    if assign:
        indent, target, mark, rest = assign.groups()
        if mark == "%":
            return f"{indent}{target} = None  # {mark}{rest.strip()}"
        script.modules.add("subprocess")
        run = f"subprocess.run({rest.strip()!r}, shell=True, capture_output=True, text=True, check=False)"
        return f"{indent}{target} = {run}.stdout.splitlines()"
    text = line.strip()
    indent = line[: len(line) - len(line.lstrip())]
    if text.startswith("%sgl") and text[4:5] in ("", " "):
        return "\n".join(indent + part for part in _sgl_line(text, script).split("\n"))
    if re.match(r"%(re)?load_ext\s+nbsgl\b", text):
        script.uses_sgl = True
        return ""
    return f"{indent}# {text}"


def _sgl_line(text: str, script: _Script) -> str:
    try:
        command, args = parse_command(text[4:].partition("#")[0].strip())
    except LineError:
        return f"# {text}"
    if command.name == "start":
        script.uses_sgl = True
        given = [repr(args.model)] if args.model != "embedded" else []
        given += [f"{keyword}={value!r}" for keyword, value in start_settings(args).items()]
        return f"sgl.start({', '.join(given)})"
    if command.name in _CALLS:
        script.uses_sgl = True
        return _CALLS[command.name]
    return "" if command.name == "export" else f"# {text}"


# ---- Python source ---------------------------------------------------------------------------------------------------


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def _continues(before: str) -> bool:
    """Whether a line after this text would stand inside an open bracket, string or continued line."""
    if before.endswith("\\"):
        return True
    try:
        list(tokenize.generate_tokens(io.StringIO(before + "\n").readline))
    except tokenize.TokenError:
        return True
    except (SyntaxError, IndentationError):
        return False
    return False


def _has_statement(text: str) -> bool:
    return bool(ast.parse(text).body)


def _names(text: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def _bound(tree: ast.Module) -> set[str]:
    """The names a cell binds at module level."""
    found: set[str] = set()
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(a.asname or a.name).partition(".")[0] for a in node.names if a.name != "*"}
        todo.extend(ast.iter_child_nodes(node))
    return found


def _is_top_await(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        return False
    if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
        return True
    if isinstance(node, ast.comprehension) and node.is_async:
        return True
    return any(_is_top_await(child) for child in ast.iter_child_nodes(node))


def _indent(text: str) -> str:
    """Indent by one level, leaving the inside of multi-line strings as it is."""
    inside: set[int] = set()
    start_row = 0
    for token in tokenize.generate_tokens(io.StringIO(text + "\n").readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("STRING", "FSTRING_MIDDLE"):
            inside |= set(range(token.start[0] + 1, token.end[0] + 1))
        elif kind == "FSTRING_START":
            start_row = token.start[0]
        elif kind == "FSTRING_END":
            inside |= set(range(start_row + 1, token.end[0] + 1))
    lines = text.split("\n")
    return "\n".join(line if i + 1 in inside or not line.strip() else INDENT + line for i, line in enumerate(lines))


# ---- nbconvert -------------------------------------------------------------------------------------------------------


def __getattr__(name: str) -> Any:
    """`SglExporter`, made when first asked for: nbconvert (and with it IPython) is not needed by anything else."""
    if name != "SglExporter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nbconvert.exporters import Exporter

    class SglExporter(Exporter):  # type: ignore[misc]
        """`jupyter nbconvert --to sgl nb.ipynb`: the same text as `nbsgl export nb.ipynb`."""

        export_from_notebook = "nbsgl script"
        output_mimetype = "text/x-python"

        def _file_extension_default(self) -> str:
            return ".py"

        def from_notebook_node(self, nb: Any, resources: Any = None, **kwargs: Any) -> tuple[str, Any]:
            nb, resources = super().from_notebook_node(nb, resources, **kwargs)
            title = (resources.get("metadata") or {}).get("name")
            return export_cells(_cells(nb.cells), f"{title}.ipynb" if title else "a notebook"), resources

    SglExporter.__qualname__ = "SglExporter"
    globals()["SglExporter"] = SglExporter
    return SglExporter
