"""A `%%sgl` cell: its body compiled under the cell's own name, run in the user's namespace with a state as `s`."""

from __future__ import annotations

import argparse
import ast
import contextvars
import inspect
import keyword
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

import nbsgl
from nbsgl.errors import NbsglError, ProgramError, UsageError
from nbsgl.magics.args import sampling_defaults
from nbsgl.magics.display import CellView, in_kernel
from nbsgl.magics.runs import STOPS, Run
from nbsgl.magics.session import Session


@dataclass(frozen=True)
class Body:
    """A compiled cell: its statements, the expression at its end (whose value the cell shows), the names it needs."""

    statements: CodeType
    value: CodeType | None
    names: frozenset[str]
    lasting: frozenset[str]  # names that functions made by the cell need after it


def compile_body(shell: Any, line: str, body: str, raw_cell: str | None, number: int) -> Body:
    """Compile so that tracebacks, the debugger and syntax errors show the cell's own name and line numbers."""
    raw = raw_cell if raw_cell is not None and raw_cell.rstrip().endswith(body.rstrip()) else f"%%sgl {line}\n{body}"
    offset = raw[: raw.rstrip().rfind(body.rstrip())].count("\n")
    name = shell.compile.cache(raw, number, raw_code=raw)
    tree = ast.parse("\n" * offset + body, filename=name)
    if not tree.body:
        raise UsageError("The cell has no program.", hint='For example: s += "1 + 1 = " + gen("sum", max_tokens=4)')
    last = tree.body[-1]
    value = None
    if isinstance(last, ast.Expr) and not body.rstrip().endswith(";"):
        tree.body.pop()
        value = _compile(ast.Expression(last.value), name, shell)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.id for node in ast.walk(last) if isinstance(node, ast.Name)}
    return Body(_compile(tree, name, shell), value, frozenset(names), frozenset(_inner_names(tree)))


def _compile(tree: ast.Module | ast.Expression, name: str, shell: Any) -> CodeType:
    flags = shell.compile.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    mode = "exec" if isinstance(tree, ast.Module) else "eval"
    code: CodeType = compile(tree, name, mode, flags=flags, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        raise ProgramError(
            "A %%sgl cell cannot `await`: it runs its program and waits for it.",
            hint='Read values with s["name"], or use `with nbsgl.state() as s:` in a plain cell.',
        )
    return code


def _inner_names(tree: ast.Module) -> set[str]:
    """The names used inside functions and classes."""
    scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    inner = [node for node in ast.walk(tree) if isinstance(node, scopes)]
    return {name.id for node in inner for name in ast.walk(node) if isinstance(name, ast.Name)}


@contextmanager
def language_in(namespace: dict[str, Any], body: Body) -> Iterator[None]:
    """Lend the cell the language's names it uses and the namespace does not have; take back what none needs after."""
    lent = {name: getattr(nbsgl, name) for name in body.names & set(nbsgl.__all__) if name not in namespace}
    if "sgl" in body.names and "sgl" not in namespace:
        lent["sgl"] = nbsgl
    namespace |= lent
    try:
        yield
    finally:
        for name, value in lent.items():
            if name not in body.lasting and namespace.get(name) is value:
                del namespace[name]


@contextmanager
def bound(namespace: dict[str, Any], out: str, state: Any) -> Iterator[None]:
    """Bind the state to `out`, and to `s` for the cell only if that is another name."""
    namespace[out] = state
    if out == "s":
        yield
        return
    had, before = "s" in namespace, namespace.get("s")
    namespace["s"] = state
    try:
        yield
    finally:
        if had:
            namespace["s"] = before
        else:
            namespace.pop("s", None)


def prepare(session: Session, args: argparse.Namespace, body: Body) -> Callable[[], Any]:
    """Check everything and make the cell's state (an engine is started if there is none); the result runs the cell.

    It runs to the cell's end, or with `--bg` starts it in the background and returns its `Run`.
    """
    namespace = session.shell.user_ns
    out = args.out or "s"
    if not out.isidentifier() or keyword.iskeyword(out):
        raise UsageError(f"--out {out!r} is not a variable's name.")
    manager = _state(session, args, namespace)
    return partial(_background if args.bg else _foreground, session, args, manager, body, namespace, out)


def _state(session: Session, args: argparse.Namespace, namespace: dict[str, Any]) -> Any:
    defaults, title = sampling_defaults(args), args.name or "%%sgl"
    if args.on is None:
        return nbsgl.state(session.backend(args.model), title=title, **defaults)
    if args.model:
        raise UsageError("--on and --model exclude each other: a fork lives where its state lives.")
    if args.on not in namespace:
        known = [name for name, value in namespace.items() if isinstance(value, nbsgl.ProgramState) and name[0] != "_"]
        raise UsageError(f"--on {args.on}: there is no such variable. States: {', '.join(known) or 'none yet'}.")
    base = namespace[args.on]
    if not isinstance(base, nbsgl.ProgramState):
        raise UsageError(f"--on {args.on}: a state is needed, this is a {type(base).__name__}.")
    return nbsgl.state(on=base, title=title, **defaults)


def _foreground(
    session: Session, args: argparse.Namespace, manager: Any, body: Body, namespace: dict[str, Any], out: str
) -> Any:
    __tracebackhide__ = True
    state = manager.__enter__()
    run = session.new_run(args.name, state)
    view = CellView(run.view, session.shell, args.view, on_stop=run.stop)
    try:
        view.open()
        with bound(namespace, out, state):
            value = _execute(manager, body, namespace)
    except BaseException as error:
        if isinstance(error, STOPS):
            run.stop()
        run.end(error)
        view.error_below = str(error) or type(error).__name__
        shorten(error, body.statements.co_filename, session.shell)
        raise
    else:
        run.end()
        return value
    finally:
        view.freeze()


def _background(
    session: Session, args: argparse.Namespace, manager: Any, body: Body, namespace: dict[str, Any], out: str
) -> Run:
    state = manager.__enter__()
    run = session.new_run(args.name, state)
    # nothing prints from a thread: it would land in whichever cell runs then
    kind = args.view if in_kernel(session.shell) else "none"
    view = CellView(run.view, session.shell, kind, on_stop=run.stop)
    namespace[out] = state
    view.open()
    # a copy: a cell in the background must not race for `s` with the cells after it
    own = {**namespace, out: state, "s": state}

    def work() -> None:
        error: BaseException | None = None
        try:
            _execute(manager, body, own)
        except BaseException as caught:  # kept for `result()`, and shown in the run's frozen view
            error = caught
        run.end(error, has_reader=True)
        view.freeze()

    context = contextvars.copy_context()  # keeps what the thread displays under this cell
    threading.Thread(target=context.run, args=(work,), name=f"nbsgl-run-{run.name}", daemon=True).start()
    return run


def shorten(error: BaseException, filename: str, shell: Any) -> None:
    """Have IPython show the error from the cell's own line on, without the magic above it.

    Of an error of ours, and of the stop button, what lies below the cell's last line is ours too, and is cut; one that
    no line of the cell raised (a gen that nobody read has failed) is shown as its message alone.
    """
    places = [place for place in _places(error.__traceback__) if place.tb_frame.f_code.co_filename == filename]
    if not isinstance(error, (NbsglError, *STOPS)):
        if places:
            _show_from(error, places[0], shell)
        return
    if isinstance(error, NbsglError) and _is_ours(error.__cause__):
        error.__cause__, error.__suppress_context__ = None, True
    if places:
        places[-1].tb_next = None
        _show_from(error, places[0], shell)
    else:
        plainly(error)


class CellSyntaxError(SyntaxError):
    """A syntax error in a `%%sgl` cell, for which IPython shows the cell's line and not the magic above it."""


def show_syntax_error(shell: Any, kind: type[BaseException], error: SyntaxError, *rest: Any, **more: Any) -> list[str]:
    """The handler for `shell.set_custom_exc`."""
    lines: list[str] = shell.SyntaxTB.structured_traceback(SyntaxError, error, [])
    shell._showtraceback(SyntaxError, error, lines)  # IPython leaves the showing to the handler
    return lines


def _places(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _is_ours(cause: BaseException | None) -> bool:
    """Whether the cause was raised inside nbsgl: then the error's own message has said it."""
    if cause is None or cause.__traceback__ is None:
        return cause is not None
    return Path(cause.__traceback__.tb_frame.f_code.co_filename).is_relative_to(Path(nbsgl.__file__).parent)


def _show_from(error: BaseException, place: TracebackType, shell: Any) -> None:
    draw = getattr(shell, "InteractiveTB", None)
    if draw is not None:
        error.__dict__["_render_traceback_"] = lambda: draw.structured_traceback(type(error), error, place)


def plainly(error: BaseException) -> BaseException:
    """Have IPython show the error as its message, without a traceback."""
    words = str(error) or ("the run was ended; the engine and its cache go on." if isinstance(error, STOPS) else "")
    error.__dict__["_render_traceback_"] = f"{type(error).__name__}: {words}".splitlines  # the hook IPython asks for
    return error


def _execute(manager: Any, body: Body, namespace: dict[str, Any]) -> Any:
    """Run the body; leaving the state's block sends what is queued and waits for it, or aborts it after an error."""
    __tracebackhide__ = True
    try:
        with language_in(namespace, body):
            exec(body.statements, namespace)
            value = None if body.value is None else eval(body.value, namespace)
    except BaseException as error:
        if not manager.__exit__(type(error), error, error.__traceback__):
            raise
        return None
    manager.__exit__(None, None, None)
    return value
