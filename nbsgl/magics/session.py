"""`Session`: the notebook's one owner of its connection to an engine, of its runs, and of its log of cells."""

from __future__ import annotations

import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nbsgl
from nbsgl.engine.runtime import EngineRecord, list_engines
from nbsgl.errors import EngineMismatch, EngineNotRunning, ModelNotFound, NbsglError, UsageError
from nbsgl.lang.default import default
from nbsgl.magics.display import bundle, in_kernel, say
from nbsgl.magics.export import Cell, export_cells
from nbsgl.magics.info import connect
from nbsgl.magics.runs import Run
from nbsgl.magics.status import duration
from nbsgl.protocol import Backend, RunView

logger = logging.getLogger("nbsgl")

MAX_RUNS = 100  # finished runs kept for `%sgl show`
PHASES = {"spawn": "starting its process", "load": "loading the model", "warmup": "warming up"}


class Session:
    """Made by `%load_ext nbsgl`, one per shell.  It starts no engine until a program needs one."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.runs: OrderedDict[str, Run] = OrderedDict()
        self._count = itertools.count(1)
        self._cells: list[str] = []
        self._engines: dict[str, Backend] = {}  # of `--model`
        self._has_stopped = False  # the default engine, by `%sgl stop`: the next program may start one again

    # ---- the engine --------------------------------------------------------------------------------------------------

    def backend(self, model: str | None = None) -> Backend:
        """The engine a cell runs on; starts it, and says so once, if there is none yet."""
        if model is None:
            found = nbsgl.get_default_backend()
            if found is not None:
                return found
            if default.is_off and not self._has_stopped:
                return default.resolve()  # set to None by the user: `NoBackend` says how to set one
            return self.start("embedded")
        if model not in self._engines:
            with Progress(self.shell, f"starting the engine of {model}") as progress, notebook_hints():
                engine: Backend = nbsgl.Engine(model, on_progress=progress.step)
                progress.done(_greeting(engine))
            self._engines[model] = engine
        return self._engines[model]

    def start(self, model: str, **settings: Any) -> Backend:
        """Start an engine or find the running one, make it the default, and say which it is."""
        before = nbsgl.get_default_backend()
        with Progress(self.shell, f"starting the engine of {model}") as progress, notebook_hints():
            try:
                engine: Backend = nbsgl.start(model, on_progress=progress.step, **settings)
                progress.done(_greeting(engine, "engine is running" if engine is before else ""))
            except BaseException:
                self._let_go_since(before)
                raise
        return engine

    def _let_go_since(self, before: Backend | None) -> None:
        """An engine that did not come up is not kept as the default: the next cell would only fail as this one did."""
        failed: Any = nbsgl.get_default_backend()
        if failed is None or failed is before:
            return
        nbsgl.set_default_backend(before)
        self._has_stopped = before is None
        try:
            failed.close()
        except NbsglError as error:
            logger.info("the engine that did not start was let go: %s", error)

    def engine(self) -> Any:
        """The default engine if one is connected; never starts one."""
        found = nbsgl.get_default_backend()
        if found is None:
            raise EngineNotRunning(
                "No engine is connected to this notebook.", hint="`%sgl start` starts one, or finds the running one."
            )
        return found

    def stop(self, *, force: bool = False) -> str:
        """End the default engine; returns its model's name.  The next program starts an engine anew."""
        engine = self.engine()
        try:
            name = str(engine.info.model)
        except NbsglError:  # it is down
            name = "the engine"
        engine.stop(force=force)
        nbsgl.set_default_backend(None)
        self._has_stopped = True
        return name

    def lingering(self) -> str | None:
        """One line about each engine of this user that runs already, or None; starts none."""
        return "\n".join(_found(record) for record in list_engines()) or None

    # ---- runs --------------------------------------------------------------------------------------------------------

    def new_run(self, name: str | None, state: Any) -> Run:
        """Enter a run; one of the same name is stopped and replaced."""
        name = name or str(next(self._count))
        old = self.runs.pop(name, None)
        if old is not None and old.is_running:
            old.stop()
        run = self.runs[name] = Run(name, state)
        finished = [key for key, value in self.runs.items() if not value.is_running]
        for key in finished[: max(0, len(self.runs) - MAX_RUNS)]:
            del self.runs[key]
        return run

    def run(self, name: str) -> Run:
        if name not in self.runs:
            known = ", ".join(self.runs) or "none yet"
            raise UsageError(f"There is no run {name!r}; there are: {known}.", hint="`%%sgl --name N` names a run.")
        return self.runs[name]

    def abort(self, name: str | None = None) -> list[str]:
        """End one run, or all that still run; returns their names."""
        runs = [run for run in self.runs.values() if run.is_running] if name is None else [self.run(name)]
        ended = [run.name for run in runs if run.is_running]
        for run in runs:
            run.stop()
        return ended

    # ---- the log of cells --------------------------------------------------------------------------------------------

    def remember_history(self) -> None:
        """Take in the cells that succeeded before the extension was loaded."""
        history = getattr(self.shell, "history_manager", None)
        if history is None:
            return
        failed = set(getattr(history, "exceptions", None) or {})
        raw = list(history.input_hist_raw)
        current = int(self.shell.execution_count)
        self._cells = [text for n, text in enumerate(raw) if 0 < n < current and n not in failed and text.strip()]

    def log_cell(self, result: Any) -> None:
        """IPython's `post_run_cell`: note a cell that succeeded."""
        info = getattr(result, "info", None)
        if info is not None and result.success and info.raw_cell.strip() and not info.silent:
            self._cells.append(info.raw_cell)

    def export(self) -> str:
        return export_cells([Cell("code", text) for text in self._cells], "a session")

    def close(self) -> None:
        """Stop background runs; the engine stays."""
        self.abort()


class Progress:
    """The phases of an engine's start under the cell, each in the place of the one before."""

    def __init__(self, shell: Any, title: str) -> None:
        self.shell = shell
        self.title = title
        self.began = time.monotonic()
        self._handle: Any = None
        self._said: str | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None and self._handle is not None:
            self._show(f"{self.title}: failed after {self._seconds():.1f} s")

    def step(self, phase: str, progress: float | None = None, note: str = "") -> None:
        """Called by the engine's handle with the phase it is in, how much of it is done (0..1), and a remark."""
        share = "" if progress is None else f" {progress:.0%}"
        words = f"{PHASES.get(phase, phase)}{share}{f', {note}' if note else ''}"
        self._show(f"{self.title}: {words} ({self._seconds():.0f} s)")

    def done(self, text: str) -> None:
        self._show(f"{text} · {self._seconds():.1f} s")

    def _seconds(self) -> float:
        return time.monotonic() - self.began

    def _show(self, text: str) -> None:
        if not in_kernel(self.shell):
            if text.partition(" (")[0] != self._said:
                say(text)
            self._said = text.partition(" (")[0]
        elif self._handle is None:
            from IPython.display import DisplayHandle

            self._handle = DisplayHandle()
            self._handle.display(bundle(text), raw=True)
        else:
            self._handle.update(bundle(text), raw=True)


@contextmanager
def notebook_hints() -> Iterator[None]:
    """Let an engine that does not start name the line to type in a notebook, not the call to write in a program."""
    try:
        yield
    except EngineMismatch as error:
        error.hint = "`%sgl stop` ends that engine, then run this again; `%%sgl --model MODEL` uses a second one."
        raise
    except ModelNotFound as error:
        error.hint = error.hint.replace("model_path='embedded'", "`%sgl start embedded`")
        raise


def _found(record: EngineRecord) -> str:
    line = f"engine found: {record.model} on {record.device}"
    try:
        engine = connect(record)
        try:
            snapshot = engine.snapshot()
        finally:
            engine.close()
    except NbsglError as error:  # it is ending, or of another version: that is for `%sgl start` to say
        logger.info("the engine %s does not answer: %s", record.key, error)
        return f"{line}, {record.state}"
    return f"{line}, {duration(snapshot.uptime_s)} old, {snapshot.slots_in_tree:,} tokens cached"


def _greeting(engine: Any, found: str = "") -> str:
    info = engine.info
    found = found or ("engine found" if getattr(engine, "was_running", False) else "engine started")
    size = f", {info.num_parameters / 1e6:,.1f}M parameters" if info.num_parameters else ""
    return f"{found}: {info.model}{size} on {info.device} ({info.dtype})"


def branch_text(view: RunView) -> str:
    """The text of a run's first branch, as `s.text()` gives it."""
    if not view.branches:
        return ""
    parts = []
    for segment in view.branches[0].segments:
        if segment.kind == "select":
            parts.append(segment.choices[segment.chosen] if segment.chosen >= 0 else "")
        else:
            parts.append(segment.text)
    return "".join(parts)
