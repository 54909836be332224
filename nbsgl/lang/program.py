"""Programs: `@function` makes one of a function of `s`, `run` and `run_batch` run it, `state()` is one in place."""

from __future__ import annotations

import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nbsgl.errors import DeadlineExceeded, ParameterError, ProgramError, Unsupported
from nbsgl.lang.block import StateBlock
from nbsgl.lang.branch import Scope
from nbsgl.lang.default import default
from nbsgl.lang.executor import Executor
from nbsgl.lang.ir import body, caller
from nbsgl.lang.janitor import janitor
from nbsgl.lang.params import ALIASES, NAMES, checked
from nbsgl.lang.program_graph import SubProgram
from nbsgl.lang.state import ProgramState
from nbsgl.lang.trace import current, trace_program

if TYPE_CHECKING:
    from nbsgl.lang.compiled import CompiledProgram
    from nbsgl.lang.explain import Explanation
    from nbsgl.lang.trace import Trace

logger = logging.getLogger("nbsgl")

RUN_PARAMETERS = frozenset([*NAMES, *ALIASES])


def function(func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None) -> Any:
    """Make a program of a function whose first parameter is `s`, the state it grows.

    `num_api_spec_tokens` matters to API services only (`OpenAI(...)`), which are then asked for so many tokens at once:
    what follows a gen is matched against the surplus.  An engine's branch runs through its segments anyway.
    """
    if func is not None:
        return SglFunction(func, num_api_spec_tokens=num_api_spec_tokens)
    return lambda func: SglFunction(func, num_api_spec_tokens=num_api_spec_tokens)


class SglFunction:
    """A program.  Calling it runs it."""

    def __init__(
        self,
        func: Callable[..., Any],
        num_api_spec_tokens: int | None = None,
        bind_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.func = func
        self.num_api_spec_tokens = _checked_lookahead(num_api_spec_tokens)
        self.bind_arguments = dict(bind_arguments or {})
        self.backend: Any = None  # who answers a run that names nobody; None: the default
        self.name = getattr(func, "__name__", type(func).__name__)
        spec = inspect.getfullargspec(func)
        if spec.args[:1] != ["s"]:
            raise ProgramError(
                f"{self.name}: a program's first parameter is the state `s`.", hint=f"def {self.name}(s):"
            )
        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            raise ProgramError(f"{self.name}: a program's body cannot yield.", hint="Return what it gives.")
        self.is_async = inspect.iscoroutinefunction(func)
        self.arg_names: list[str] = spec.args[1:]
        self.arg_defaults: tuple[Any, ...] = spec.defaults or ()
        self._keyword_names = {*self.arg_names, *spec.kwonlyargs}
        self._takes_any_keyword = spec.varkw is not None
        optional = self.arg_names[len(self.arg_names) - len(self.arg_defaults) :]
        self._defaults = {**dict(zip(optional, self.arg_defaults, strict=True)), **(spec.kwonlydefaults or {})}
        self._required = [name for name in [*self.arg_names, *spec.kwonlyargs] if name not in self._defaults]
        self.__doc__, self.__name__ = func.__doc__, self.name
        self.__wrapped__ = func

    def __repr__(self) -> str:
        return f"<SglFunction {self.name}({', '.join(['s', *self.arg_names])})>"

    def __call__(self, *args: Any, **kwargs: Any) -> ProgramState:
        return self.run(*args, **kwargs)

    def bind(self, **kwargs: Any) -> SglFunction:
        """The same program with some arguments fixed."""
        unknown = kwargs.keys() - self._keyword_names
        if unknown and not self._takes_any_keyword:
            raise ProgramError(f"{self.name} has no argument {sorted(unknown)}; it has {self.arg_names}.")
        return SglFunction(self.func, self.num_api_spec_tokens, {**self.bind_arguments, **kwargs})

    def run(
        self,
        *args: Any,
        stream: bool = False,
        backend: Any = None,
        use_thread: bool = True,
        seed: int | None = None,
        deadline_s: float | None = None,
        **kwargs: Any,
    ) -> ProgramState:
        """Run the body and return its state; what it queued may still be running.

        Sampling parameters (`max_new_tokens`, `temperature`, `stop`, ...: `gen`'s, also in SGLang's long forms) are the
        defaults of every gen; other keywords are the program's arguments.  With `stream` the body runs in a thread
        of its own and its texts can be read as they come.  With `use_thread=False` every `s +=` waits (debugging).
        The same `seed` gives the same texts.  After `deadline_s` seconds what is unfinished fails.
        An `async def` body runs as a task of the running event loop, if there is one: then `await` the state.
        """
        swallowed = {name: value for name, value in kwargs.items() if name in RUN_PARAMETERS}
        arguments = {name: value for name, value in kwargs.items() if name not in RUN_PARAMETERS}
        if current() is not None:
            traced: ProgramState = self._traced(
                args, arguments, SubProgram(self.name, checked(swallowed), seed, backend)
            )
            return traced
        job = Job(self, checked(swallowed), seed, deadline_s, stream, eager=not use_thread)
        try:
            return job.run(default.resolve(self.backend if backend is None else backend), 0, args, arguments)
        except TypeError as error:
            _explain_swallowed(self, error, [*swallowed, *_own_parameters(stream, seed, backend)])
            raise

    def run_batch(
        self,
        batch_kwargs: Sequence[Any],
        *,
        backend: Any = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        on_error: str = "raise",
        seed: int | None = None,
        deadline_s: float | None = None,
        **sampling: Any,
    ) -> list[ProgramState] | Iterator[ProgramState]:
        """Run the program once per entry (a dict, or a tuple matched to `arg_names`) and wait for all; order is kept.

        With `generator_style` an iterator that yields each state as soon as it and those before are done.
        `on_error="raise"` raises the first error a body raised, after all others have finished; "keep" keeps it in
        its state's `error()`.  At most `num_threads` instances run at a time ("auto": many).
        An interrupt aborts what runs and returns at once; the states are the exception's `.states`.
        """
        from nbsgl.lang.batch import Batch

        unknown = sampling.keys() - RUN_PARAMETERS
        if unknown:
            raise ProgramError(
                f"run_batch has no parameter {', '.join(sorted(unknown))}.",
                hint="The program's arguments stand in the list: run_batch([{...}, {...}]).",
            )
        if on_error not in ("raise", "keep"):
            raise ParameterError(name="on_error", value=on_error, allowed='"raise" or "keep"')
        is_count = isinstance(num_threads, int) and not isinstance(num_threads, bool) and num_threads >= 1
        if num_threads != "auto" and not is_count:
            raise ParameterError(name="num_threads", value=num_threads, allowed='"auto" or an int >= 1')
        rows = [self._as_keywords(row) for row in batch_kwargs]
        if current() is not None:
            return [self._traced((), row, SubProgram(self.name, checked(sampling), seed, backend)) for row in rows]
        job = Job(self, checked(sampling), seed, deadline_s, stream=False)
        if not rows:
            return iter(()) if generator_style else []
        count = None if num_threads == "auto" else int(num_threads)
        batch = Batch(job, default.resolve(self.backend if backend is None else backend), rows, count, on_error)
        states = batch.states(progress_bar)
        return states if generator_style else list(states)

    def trace(self, strict: bool = True, backend: Any = None, **known: Any) -> Trace:
        """Run the body once with symbols for unknown arguments and all variables; nothing is sent.

        Symbols may be concatenated, appended and passed on; what needs a value raises `TraceError` at its line, or with
        `strict=False` ends the trace there (`.complete`, `.stopped_at`).  A default counts as known.  With a backend,
        roles are checked against its template, and `.explain()` can count tokens.
        """
        return trace_program(self, None if backend is None else default.resolve(backend), strict, known)

    def compile(
        self, backend: Any = None, *, passes: Any = "default", outputs: Sequence[str] | None = None, **known_args: Any
    ) -> CompiledProgram:
        """The same program as a graph, optimised: `run`, `run_batch` and `explain` work as before.

        `backend` answers its runs, `known_args` are fixed, `outputs` are the variables that will be read ("text()":
        the text too), so that others need not be computed.  `passes`: "default", "default+share" (equal requests are
        made once), "none", or a list of names.  `TraceError` if the control flow depends on a value.
        """
        from nbsgl.lang.compiled import compiled

        return compiled(self, backend, passes, outputs, known_args)

    def explain(self, *, analyze: bool = False, backend: Any = None, **args: Any) -> Explanation:
        """The program's graph for these arguments: what would be sent and, with an engine, computed; shown as text or
        in a notebook as a drawing.

        Computes nothing, but for a look at the engine's tokenizer and cache.  With `analyze` it runs the program once
        and shows what that took beside.
        """
        from nbsgl.lang.explain import explain_program

        return explain_program(self, self.backend if backend is None else backend, args, analyze)

    def cache(self, backend: Any = None) -> int:
        """Have the text that every call begins with computed and kept by the engine; how many tokens of it are cached.

        Waits for it.  0 for a program that begins with an argument or a gen.
        """
        from nbsgl.lang.prefetch import Prefetch, known_start

        items = known_start(self.trace(strict=False).graph)
        if not items:
            return 0
        going = Prefetch(default.resolve(self.backend if backend is None else backend), items, caller())
        try:
            return going.wait()
        except BaseException:
            going.cancel()
            raise

    def traced_arguments(self, known: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The arguments with a value (given, bound or by default), and the names of the others."""
        self._refuse_async()
        unknown = known.keys() - self._keyword_names
        if unknown and not self._takes_any_keyword:
            raise ProgramError(f"{self.name} has no argument {sorted(unknown)}; it has {self.arg_names}.")
        arguments = {**self._defaults, **self.merged(known)}
        return arguments, [name for name in self._required if name not in arguments]

    def _refuse_async(self) -> None:
        if self.is_async:
            raise Unsupported(
                f"{self.name}: an `async def` program cannot be traced: what it awaits is not part of the graph.",
                hint="Write `def`; `run` gives a state that can be awaited.",
            )

    def _traced(self, args: Sequence[Any], kwargs: Mapping[str, Any], called: SubProgram) -> Any:
        """A call inside a trace: its branch belongs to that trace, and its state is a `TraceState`."""
        self._refuse_async()
        recorder = current()
        assert recorder is not None
        if called.backend is None:
            called = replace(called, backend=self.backend)
        return recorder.call(self, args, kwargs, called)

    def _as_keywords(self, row: Any) -> dict[str, Any]:
        if isinstance(row, Mapping):
            return dict(row)
        if not isinstance(row, (tuple, list)):
            raise ParameterError(name="batch_kwargs", value=row, allowed="a list of dicts, or of tuples")
        free = [name for name in self.arg_names if name not in self.bind_arguments]
        optional = self.arg_names[len(self.arg_names) - len(self.arg_defaults) :]
        least = sum(name not in optional for name in free)
        if not least <= len(row) <= len(free):
            raise ProgramError(f"{self.name} takes {free} ({least}..{len(free)} values), this entry has {len(row)}.")
        return dict(zip(free, row, strict=False))

    def merged(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with the bound ones, which win."""
        twice = [name for name in kwargs if name in self.bind_arguments]
        if twice:
            logger.warning("%s: %s was bound before; the bound value is used.", self.name, ", ".join(twice))
        return {**kwargs, **self.bind_arguments}


def _checked_lookahead(tokens: Any) -> int | None:
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
        raise ParameterError(name="num_api_spec_tokens", value=tokens, allowed="an int >= 1, or None")
    return tokens


def _own_parameters(stream: bool, seed: int | None, backend: Any) -> list[str]:
    return [name for name, given in (("stream", stream), ("seed", seed), ("backend", backend)) if given]


def _explain_swallowed(program: SglFunction, error: TypeError, taken: list[str]) -> None:
    """`n=3` is a run parameter: a program that has an argument `n` misses it."""
    mine = [name for name in taken if name in program.arg_names]
    if mine:
        error.add_note(f"{', '.join(mine)} is a parameter of run() too and was taken as that: pass it by position.")


class Job:
    """What the instances of one `run` or `run_batch` have in common."""

    def __init__(
        self,
        program: SglFunction,
        defaults: Mapping[str, Any],
        seed: int | None,
        deadline_s: float | None,
        stream: bool,
        eager: bool = False,
    ) -> None:
        self.program = program
        self.defaults = defaults
        self.seed = checked_seed(seed)
        self.deadline_s = checked_deadline(deadline_s)
        self.stream, self.eager = stream, eager
        self.where = caller()

    def new_state(self, backend: Any, instance: int) -> ProgramState:
        return begin(
            Executor(backend),
            Scope(
                title=self.program.name,
                defaults=self.defaults,
                seed=self.seed,
                instance=instance,
                stream=self.stream,
                lookahead=self.program.num_api_spec_tokens or 0,
                eager=self.eager,
                deadline_s=self.deadline_s,
                where=self.where,
            ),
        )

    def run(self, backend: Any, instance: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ProgramState:
        if self.program.is_async and self.eager:
            raise ParameterError(name="use_thread", value=False, allowed="True for an `async def` program")
        state = self.new_state(backend, instance)
        if self.program.is_async:
            from nbsgl.lang import coroutines

            if coroutines.has_loop():
                coroutines.start(state, lambda: self._call(state, args, kwargs))
                return state
        if not self.stream:
            self.run_body(state, args, kwargs)
            return state
        started = threading.Event()
        work = (state, args, kwargs, started)
        threading.Thread(target=self._run_in_thread, args=work, name=f"nbsgl-{self.program.name}", daemon=True).start()
        while not started.wait(0.1):
            pass
        return state

    def _run_in_thread(
        self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any], started: threading.Event
    ) -> None:
        state.branch.scope.thread = threading.get_ident()
        started.set()
        try:
            self.run_body(state, args, kwargs)
        except BaseException as error:  # kept in the state: whoever reads it raises it
            logger.debug("nbsgl: the body of %s raised %s", self.program.name, type(error).__name__)

    def run_body(self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Run the body to its end and send what it queued; its exception ends what it began, and goes on."""
        if self.program.is_async:
            from nbsgl.lang import coroutines

            coroutines.run(state, lambda: self._call(state, args, kwargs))
            return
        try:
            with body():
                value = self._call(state, args, kwargs)
            state.end_body(ret_value=value)
        except BaseException as error:
            state.end_body(error)
            raise

    def _call(self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return self.program.func(state, *args, **self.program.merged(kwargs))


def begin(executor: Executor, scope: Scope) -> ProgramState:
    """A fresh state in `scope`, which ends at its deadline."""
    with executor.lock:
        branch = executor.add_root(scope)
    watch_deadline(executor, scope)
    return ProgramState(executor, branch)


def watch_deadline(executor: Executor, scope: Scope) -> None:
    if scope.deadline_s is not None:
        janitor.start()
        lease, of, late = executor.lease, weakref.ref(scope), DeadlineExceeded(after_s=scope.deadline_s)
        janitor.at(time.monotonic() + scope.deadline_s, lambda: lease.fail(of, late))


def checked_seed(seed: Any) -> int:
    """The seed, or a drawn one."""
    if seed is None:
        return int.from_bytes(os.urandom(8), "little") >> 1
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ParameterError(name="seed", value=seed, allowed="an int")
    return seed


def checked_deadline(deadline_s: Any) -> float | None:
    if deadline_s is None:
        return None
    if not isinstance(deadline_s, (int, float)) or isinstance(deadline_s, bool) or not deadline_s > 0:
        raise ParameterError(name="deadline_s", value=deadline_s, allowed="a number > 0")
    return float(deadline_s)


def state(
    backend: Any = None,
    *,
    on: ProgramState | None = None,
    stream: bool = True,
    seed: int | None = None,
    deadline_s: float | None = None,
    title: str = "state",
    **sampling: Any,
) -> StateBlock:
    """`with state() as s:`: a program written in place, as a `%%sgl` cell is.

    Leaving the block sends what is queued and waits; an exception aborts what runs.  `on` begins from a copy of
    another state (its sampling defaults are kept where none are given).  The rest is as for `SglFunction.run`.
    """
    unknown = sampling.keys() - RUN_PARAMETERS
    if unknown:
        raise ParameterError(
            f"state() has no parameter {', '.join(sorted(unknown))}.",
            name=min(unknown),
            value=sampling[min(unknown)],
            allowed=", ".join(sorted(RUN_PARAMETERS)),
        )
    if on is not None and not isinstance(on, ProgramState):
        raise ParameterError(name="on", value=on, allowed="a state")
    if on is not None and backend is not None:
        raise ParameterError("on= and backend= exclude each other: a copy lives where its state lives.", name="backend")
    defaults = checked(sampling)
    if on is not None:
        defaults = {**on.branch.scope.defaults, **defaults}
    where = caller()

    def enter() -> ProgramState:
        scope = Scope(
            title=title,
            defaults=defaults,
            seed=checked_seed(seed),
            stream=stream,
            deadline_s=checked_deadline(deadline_s),
            where=where,
        )
        if on is None:
            return begin(Executor(default.resolve(backend)), scope)
        copy = on.fork_scope(scope)
        watch_deadline(on.executor, scope)
        return copy

    return StateBlock(enter)
