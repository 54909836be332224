"""The magics: `%%sgl` runs a cell as a program, `%sgl` looks after the engine; each is thin over a public call."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand

import nbsgl
from nbsgl.errors import NbsglError
from nbsgl.magics.args import COMMANDS, LineError, cell_parser, overview, parse_command, split_line
from nbsgl.magics.cell import CellSyntaxError, compile_body, plainly, prepare
from nbsgl.magics.display import bundle, frozen, say, show
from nbsgl.magics.session import Session

F = TypeVar("F", bound=Callable[..., Any])


def _with_options(function: F) -> F:
    """Give the docstring, which `%%sgl?` shows, the usage before it and the options behind it."""
    function.__doc__ = cell_parser(inspect.cleandoc(function.__doc__ or "")).format_help()
    return function


@magics_class
class SglMagics(Magics):  # type: ignore[misc]
    def __init__(self, shell: Any, session: Session) -> None:
        super().__init__(shell)
        self.session = session
        self.raw_cell: str | None = None
        self.number = 0

    def note_cell(self, info: Any) -> None:
        """IPython's `pre_run_cell`: the cell as it was typed, and its number."""
        self.raw_cell = getattr(info, "raw_cell", None)
        self.number = self.shell.execution_count - bool(getattr(info, "store_history", False))

    # ---- cells -------------------------------------------------------------------------------------------------------

    @no_var_expand  # type: ignore[untyped-decorator]
    @cell_magic("sgl")  # type: ignore[untyped-decorator]
    @_with_options
    def run_program(self, line: str, cell: str) -> Any:
        """Run the cell as a program on the engine, and show its text as it is generated.

        The cell is plain Python.  `s` is a fresh state; grow it with `s += ...`:

            s += system("You answer in one word.")
            s += user("What is the capital of France?")
            s += assistant(gen("answer", max_tokens=8, temperature=0))

        Afterwards `s["answer"]` is what was generated, and `s` stays in the notebook.  `gen`, `select`, `user` and
        the language's other names are in reach unless the notebook has variables of these names.  The first cell
        starts the engine of the embedded model if none is running; `%sgl start MODEL` chooses another.
        """
        __tracebackhide__ = True
        if {"-h", "--help"} & set(line.split()):
            say(str(SglMagics.run_program.__doc__))
            return None
        try:
            args = cell_parser().parse_args(split_line(line))
            body = compile_body(self.shell, line, cell, self.raw_cell, self.number)
            program = prepare(self.session, args, body)
        except NbsglError as error:
            raise plainly(error) from error.__cause__
        except SyntaxError as error:
            raise CellSyntaxError(*error.args) from None
        return program()

    # ---- lines -------------------------------------------------------------------------------------------------------

    @no_var_expand  # type: ignore[untyped-decorator]
    @line_magic("sgl")  # type: ignore[untyped-decorator]
    def command(self, line: str) -> Any:
        """Look after the engine: `%sgl help` lists the commands, `%sgl COMMAND --help` explains one.

        For a program, use `%%sgl` (two %) at the top of a cell.
        """
        __tracebackhide__ = True
        words = line.split()
        if not words or words[0] in ("help", "-h", "--help"):
            rest = [word for word in words[1:] if word in COMMANDS]
            say(COMMANDS[rest[0]].parser().format_help() if rest else overview())
            return None
        if {"-h", "--help"} & set(words) and words[0] in COMMANDS:
            say(COMMANDS[words[0]].parser().format_help())
            return None
        try:
            command, args = parse_command(line)
            return getattr(self, f"_{command.name}")(args)
        except NbsglError as error:
            raise plainly(error) from error.__cause__

    def _start(self, args: Any) -> None:
        from nbsgl.magics.args import start_settings

        self.session.start(args.model, **start_settings(args))

    def _status(self, args: Any) -> None:
        from nbsgl.magics.info import table
        from nbsgl.magics.status import html_table, status_rows

        rows = status_rows(self.session.engine().snapshot())
        show(self.shell, bundle(table(rows), html_table(rows)))

    def _info(self, args: Any) -> None:
        from nbsgl.magics.info import report, table

        say(table(report()))

    def _tree(self, args: Any) -> Any:
        engine = self.session.engine()
        if args.live:
            return _live_tree(engine)
        from nbsgl.widgets import tree_html, tree_text

        snapshot = engine.snapshot(tree=True)
        show(self.shell, bundle(tree_text(snapshot), tree_html(snapshot)))
        return None

    def _show(self, args: Any) -> None:
        show(self.shell, frozen(self.session.run(args.run).view()))

    def _runs(self, args: Any) -> None:
        from nbsgl.magics.info import table

        rows = []
        for run in self.session.runs.values():
            view = run.view()
            rows.append((run.name, f"{view.status:<8} {view.generated:>7,} tokens generated {view.elapsed_s:>7.1f} s"))
        say(table(rows) if rows else "No runs yet.")

    def _abort(self, args: Any) -> None:
        ended = self.session.abort(args.run)
        say(f"aborted: {', '.join(ended)}" if ended else "Nothing was running.")

    def _flush(self, args: Any) -> None:
        before = self.session.engine().snapshot().slots_in_tree
        nbsgl.flush_cache()
        say(f"flushed: {before - self.session.engine().snapshot().slots_in_tree:,} of {before:,} cached tokens dropped")

    def _restart(self, args: Any) -> None:
        engine = self.session.engine()
        engine.restart()
        say(f"restarted: {engine.info.model}; the cache is empty")

    def _log(self, args: Any) -> None:
        say("\n".join(_lines(self.session.engine().log(args.n))) or "The log is empty.")

    def _engines(self, args: Any) -> None:
        from nbsgl.magics.info import engine_lines

        say("\n".join(engine_lines()) or "No engine is running.")

    def _stop(self, args: Any) -> None:
        say(f"stopped: {self.session.stop(force=args.force)}")

    def _export(self, args: Any) -> None:
        path = Path(args.path).expanduser()
        if path.suffix != ".py":
            raise LineError(f"%sgl export {args.path}: the file's name must end in .py.")
        text = self.session.export()
        path.write_text(text, encoding="utf-8")
        say(f"written: {path} ({text.count(chr(10))} lines); run it with `python {path}`")


def _live_tree(engine: Any) -> Any:
    """A tree that follows the engine; when the engine is gone, it stays as it was last seen."""
    from nbsgl.widgets import TreeWidget

    last = engine.snapshot(tree=True)

    def source() -> Any:
        nonlocal last
        try:
            last = engine.snapshot(tree=True)
        except NbsglError:
            # on a thread of its own: this one is the pump's, which asks here
            threading.Thread(target=widget.finish, name="nbsgl-tree-end", daemon=True).start()
        return last

    widget = TreeWidget(source)
    return widget


def _lines(log: Any) -> list[str]:
    return log.splitlines() if isinstance(log, str) else [str(line) for line in log]
