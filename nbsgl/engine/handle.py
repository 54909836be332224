"""`Engine`: the door.  What lives in the user's process; no torch, no sockets outside the I/O thread."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import queue
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import zmq

from nbsgl import chat_templates, errors
from nbsgl.engine import io_loop, wire
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.folders import check_model_path
from nbsgl.engine.generate import Generation
from nbsgl.engine.link import Ends, Link
from nbsgl.engine.runtime import RuntimeFolder
from nbsgl.engine.watch import PidWatch
from nbsgl.errors import (
    EngineError,
    EngineNotRunning,
    EngineStartFailed,
    NbsglError,
    ParameterError,
    UsageError,
    WrongProcess,
)
from nbsgl.protocol import (
    AnyEvent,
    AnyNode,
    BranchFailed,
    Close,
    EngineSnapshot,
    Gen,
    GenDone,
    Listener,
    ModelInfo,
    Peek,
    Prompt,
    Select,
    SelectDone,
)

logger = logging.getLogger("nbsgl")

T = TypeVar("T")

KEEP_IN_NOTEBOOK_S = 60.0
TICK_S = 0.1  # waits are timed waits in the calling thread, so an interrupt ends them at once
BYE_S = 0.5
END_S = 4.5  # a front ends within 4 s
ANSWER_S = 15.0  # the front gives up on its worker after 10 s

OnProgress = Callable[[str, float | None, str], None]
"""(phase, progress 0..1 where known, note), called in the thread that waits for the engine."""


class EngineRun:
    """One program's conversation with the engine (`protocol.Run`)."""

    def __init__(self, engine: Engine, number: int, listener: Listener) -> None:
        self.engine, self.number, self._listener = engine, number, listener
        self._pending: dict[int, dict[int, None]] = {}  # branch -> slots without a result; I/O thread only
        self._error: NbsglError | None = None  # the front that knew this run is gone
        self._has_begun = self._is_closed = False

    def submit(self, nodes: Sequence[AnyNode]) -> None:
        self.engine._check()
        if not self._is_closed and nodes:
            frames = list(wire.submissions(self.number, nodes))
            self.engine._loop.call(self._send, list(nodes), frames)

    def abort(self, branches: Sequence[int] | None = None, by: str = "the caller") -> None:
        self.engine._check_process()
        chosen = None if branches is None else list(branches)
        self._tell(wire.Abort(run=self.number, branches=chosen, by=by))

    def close(self) -> None:
        self.engine._check_process()
        if not self._is_closed:
            self._tell(wire.CloseRun(run=self.number))  # first: an interrupt may land between any two lines
            self.engine._loop.call(self.engine._runs.pop, self.number, None)
            self._is_closed = True

    def _tell(self, message: wire.Message) -> None:
        frame = wire.encode(message)

        def send() -> None:
            if self._has_begun and self._error is None:
                self.engine._link.send(frame)

        self.engine._loop.call(send)

    # ---- on the I/O thread -------------------------------------------------------------------------------------------

    def _send(self, nodes: list[AnyNode], frames: list[bytes]) -> None:
        if self._error is not None:
            self._hear(wire.failures([node for node in nodes if not isinstance(node, Close)], self._error))
            return
        if self.engine._is_closed:
            self._hear(wire.failures(nodes, _closed()))
            return
        self._has_begun = True
        for node in nodes:
            if isinstance(node, Gen | Select):
                self._pending.setdefault(node.branch, {})[node.slot] = None
        self.engine._link.ensure()
        if self._error is None:  # else it failed at once, and so has this run
            for frame in frames:
                self.engine._link.send(frame)

    def _take(self, events: list[AnyEvent]) -> None:
        for event in events:
            match event:
                case GenDone() | SelectDone():
                    slots = self._pending.get(event.branch, {})
                    slots.pop(event.slot, None)
                    if not slots:
                        self._pending.pop(event.branch, None)
                case BranchFailed():
                    self._pending.pop(event.branch, None)
        self._hear(events)

    def _lose(self, error: NbsglError) -> None:
        """The front is gone, and with it all it knew of this run."""
        if not self._has_begun:
            return
        self._error = error
        data = errors.encode(error)
        pending, self._pending = self._pending, {}
        if pending:
            self._hear([BranchFailed(branch=b, slot=next(iter(slots)), error=data) for b, slots in pending.items()])

    def _hear(self, events: list[AnyEvent]) -> None:
        if self._is_closed or not events:
            return
        try:
            self._listener(events)
        except Exception:  # a listener must not raise; if it does, the other runs go on
            logger.exception("a listener of run %d failed", self.number)


class Engine(Generation):
    """An engine of its own processes: started, or found if one with these settings runs already.

    Making it returns at once; `info` waits until the model is loaded and raises what went wrong.  `keep` seconds the
    engine outlives its last client (default: 60 in a notebook, 0 in a script).  `chat_template` (`chat_template_name`
    is the same) replaces the model's own: a .jinja file, a `ChatTemplate`, or its name.  Others: `EngineConfig`.
    `on_progress(phase, progress, note)` is called in a thread that waits for `info`.
    """

    def __init__(
        self,
        model_path: str = "embedded",
        *,
        keep: float | None = None,
        on_progress: OnProgress | None = None,
        _worker_module: str = "nbsgl.engine.worker",
        **settings: Any,
    ) -> None:
        if keep is not None and not (isinstance(keep, int | float) and 0 <= keep < float("inf")):
            raise ParameterError(name="keep", value=keep, allowed="seconds >= 0")
        if "server_args" in settings:
            model_path, settings = _from_server_args(settings, model_path)
        if isinstance(model_path, os.PathLike) or (isinstance(model_path, str) and os.path.isdir(model_path)):
            model_path = str(Path(model_path).expanduser().resolve())
        path = settings.get("tokenizer_path")  # the engine's processes have a working folder of their own
        if isinstance(path, os.PathLike) or (isinstance(path, str) and os.path.exists(path)):
            settings["tokenizer_path"] = str(Path(path).expanduser().resolve())
        settings["chat_template"] = _chat_template(settings, model_path)
        self.config = EngineConfig.of(model_path=model_path, **settings)
        check_model_path(self.config.model_path)
        self.keep = (KEEP_IN_NOTEBOOK_S if "ipykernel" in sys.modules else 0.0) if keep is None else float(keep)
        self.on_progress = on_progress
        self._pid = os.getpid()
        self._is_closed = False
        self._info: ModelInfo | None = None
        self._is_serving = False
        self._worker_pid: int | None = None
        self._runs: dict[int, EngineRun] = {}
        self._numbers, self._questions = itertools.count(), itertools.count()
        self._asks: dict[int, Future[Any]] = {}
        self._waiting: list[Future[ModelInfo]] = []
        self._bye: Future[bool] | None = None
        self._phases: queue.SimpleQueue[tuple[str, float | None, str]] = queue.SimpleQueue()
        self._last_phases: deque[tuple[str, float | None, str]] = deque(maxlen=1)
        try:
            self._loop = io_loop.shared()
        except (OSError, zmq.ZMQError) as error:  # no descriptors left
            raise EngineStartFailed(stage="client", reason=error.strerror or "no I/O thread") from error
        self._loop.on_crash.append(self._crashed)
        self._link = Link(self._loop, self.config, self.keep, _worker_module, Ends(self._take, self._gone))
        self._at_exit = _closer(weakref.ref(self))
        atexit.register(self._at_exit)
        self._loop.call(self._link.ensure)

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        """The model.  Waits until the engine serves; starts its worker again if that is down."""
        self._check()
        if self._is_serving and self._info is not None:
            return self._info
        return self.wait_ready()

    def wait_ready(self, timeout: float | None = None) -> ModelInfo:
        """`info` with a limit in seconds: `TimeoutError` beyond it, and the engine goes on starting."""
        self._check()
        future: Future[ModelInfo] = Future()
        self._loop.call(self._want_info, future)
        return self._wait(future, timeout)

    @property
    def is_closed(self) -> bool:
        """Whether this handle was let go of (`close`, `shutdown`, `stop`)."""
        return self._is_closed

    @property
    def is_ready(self) -> bool:
        """Whether a worker serves, as far as this process knows.  Never waits."""
        return self._is_serving

    @property
    def progress(self) -> tuple[str, float | None, str] | None:
        """The phase of the start that was last heard of."""
        return self._last_phases[0] if self._last_phases else None

    @property
    def was_running(self) -> bool:
        """Whether this handle found a running engine (known once `info` has answered)."""
        return self._link.was_running

    @property
    def runtime_folder(self) -> Path | None:
        return self._link.folder.path if self._link.folder else None

    @property
    def front_pid(self) -> int | None:
        return self._link.front_pid

    @property
    def worker_pid(self) -> int | None:
        return self._worker_pid

    @property
    def health(self) -> bool:
        """Whether the worker made a step, or had nothing to do, within the last two seconds."""
        with contextlib.suppress(EngineError, TimeoutError):
            return bool(self._ask("health", timeout=2.0))
        return False

    def status(self) -> dict[str, Any]:
        """State, process ids, epoch, clients, folder and counters."""
        return {**self._ask("status"), "was_running": self.was_running}

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "serving" if self._is_serving else "not serving"
        return f"<nbsgl.Engine {self.config.model_path!r}, {state}>"

    # ---- the backend -------------------------------------------------------------------------------------------------

    def open_run(self, listener: Listener) -> EngineRun:
        """Begin a run; `listener` is called on the I/O thread."""
        self._check()
        run = EngineRun(self, next(self._numbers), listener)
        self._loop.call(self._runs.__setitem__, run.number, run)
        return run

    def snapshot(self, *, tree: bool = False) -> EngineSnapshot:
        """A picture of the engine now; waits for a start that is under way."""
        if not self._is_serving and self._info is None:
            self.wait_ready()
        return msgspec.convert(self._ask("snapshot", tree=tree), EngineSnapshot)

    def peek(self, prompts: Sequence[Prompt]) -> list[Peek]:
        """The prompts' tokens, and how many the cache holds now; waits for a start that is under way."""
        if not self._is_serving and self._info is None:
            self.wait_ready()
        return msgspec.convert(self._ask("peek", prompts=msgspec.to_builtins(list(prompts))), list[Peek])

    def flush_cache(self) -> bool:
        """Drop every cached prefix that nobody uses.  False if the cache is off."""
        if not self._is_serving and self._info is None:
            self.wait_ready()
        return bool(self._ask("flush"))

    # ---- life --------------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """End the worker and start a new one, with an empty cache; requests under way fail with `EngineDied`."""
        self._check()
        self._is_serving = False
        self._ask("restart")
        self.wait_ready()

    def log(self, n: int = 50) -> str:
        """The last lines of the engine's logs."""
        self._check_process()
        try:
            return str(self._ask("log", n=n))
        except (EngineError, TimeoutError):
            from nbsgl.engine.log import tail

            folder = self._link.folder or RuntimeFolder(Path(os.devnull))
            texts = [tail(path, n) for path in (folder.front_log, folder.worker_log)]
            return "\n".join(filter(None, texts))

    def stop(self, force: bool = False) -> None:
        """End the engine's processes.  `UsageError` if other processes use it, unless `force`."""
        self._check_process()
        if self._is_closed:
            return
        if self._link.state != "none":
            with self._front_end() as ended:
                with contextlib.suppress(EngineError, TimeoutError):
                    self._ask("stop", force=force)
                self._wait_quietly(ended, END_S)
        self.close()

    def close(self) -> None:
        """Leave the engine; with keep=0 and no other client it ends, and this waits for that.  Idempotent."""
        if self._is_closed or self._pid != os.getpid():
            return
        self._is_closed = True
        atexit.unregister(self._at_exit)
        with self._front_end() as ended:
            bye: Future[bool] = Future()
            closed: Future[None] = Future()
            try:
                self._loop.call(self._leave, bye)
                is_ending = self._wait_quietly(bye, BYE_S)
            finally:  # an interrupt ends the waiting, not the leaving
                self._loop.call(self._let_go, closed)
            self._wait_quietly(closed, BYE_S)
            if is_ending:
                self._wait_quietly(ended, END_S)

    def shutdown(self) -> None:
        """The same as `close`, as SGLang names it."""
        self.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- waiting, in the caller's thread -----------------------------------------------------------------------------

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise WrongProcess(pid=self._pid, here=os.getpid(), hint="Make an Engine of its own in the child process.")

    def _check(self) -> None:
        self._check_process()
        if self._is_closed:
            raise _closed()
        if not self._loop.is_alive:
            raise _crashed()

    def _wait(self, future: Future[T], timeout: float | None = None) -> T:
        """Timed waits with the progress of the start between them; an error of the I/O thread is raised here."""
        if threading.current_thread() is self._loop.thread:
            raise UsageError(
                "This would wait, and the engine's I/O thread may not.",
                hint="In a listener, only submit, abort and close.",
            )
        left = timeout
        while True:
            wait = TICK_S if left is None else min(TICK_S, max(0.0, left))
            try:
                result = future.result(wait)
            except TimeoutError:
                if future.done():
                    return future.result()  # the answer came just as the wait ended
                if left is not None and (left := left - wait) <= 0:
                    raise TimeoutError(f"the engine did not answer within {timeout:g} s") from None
                if not self._loop.is_alive:
                    raise _crashed() from None
                self._show_progress()
            else:
                self._show_progress()
                return result

    def _show_progress(self) -> None:
        while self.on_progress is not None and not self._phases.empty():
            self.on_progress(*self._phases.get())

    def _wait_quietly(self, future: Future[T], timeout: float) -> T | None:
        with contextlib.suppress(EngineError, TimeoutError):
            return self._wait(future, timeout)
        return None

    def _ask(self, what: str, timeout: float = ANSWER_S, **args: Any) -> Any:
        self._check()
        future: Future[Any] = Future()
        self._loop.call(self._send_question, future, what, args)
        return self._wait(future, timeout)

    @contextlib.contextmanager
    def _front_end(self) -> Iterator[Future[None]]:
        """A future that is done when the front's process has ended; watched only within the `with`."""
        future: Future[None] = Future()
        watches: list[PidWatch] = []

        def watch() -> None:
            pid = self._link.front_pid or (self._link.child.pid if self._link.child else None)
            if pid is None:
                future.set_result(None)
            else:
                watches.append(PidWatch(self._loop, pid, lambda: future.set_result(None)))

        self._loop.call(watch)
        try:
            yield future
        finally:
            self._loop.call(lambda: [one.close() for one in watches])

    # ---- on the I/O thread -------------------------------------------------------------------------------------------

    def _want_info(self, future: Future[ModelInfo]) -> None:
        if self._is_serving and self._info is not None:
            future.set_result(self._info)
            return
        self._waiting.append(future)
        is_up = self._link.state == "up"
        self._link.ensure()
        if is_up:
            self._send_question(self._silent_start(), "start", {})

    def _silent_start(self) -> Future[Any]:
        """Its error, if any, goes to those who wait for the model."""
        future: Future[Any] = Future()

        def done(answered: Future[Any]) -> None:
            error = answered.exception()
            if isinstance(error, NbsglError):
                self._fail_waiting(error)

        future.add_done_callback(done)
        return future

    def _send_question(self, future: Future[Any], what: str, args: dict[str, Any]) -> None:
        if self._link.state == "none":
            hint = "The next call starts it; engine.info waits for it."
            future.set_exception(EngineNotRunning(key=self.config.model_path, hint=hint))
            return
        number = next(self._questions)
        self._asks[number] = future
        self._link.send(wire.encode(wire.AskFront(ask=number, what=what, args=args)))

    def _take(self, message: Any) -> None:
        match message:
            case wire.Events():
                if (run := self._runs.get(message.run)) is not None:
                    run._take(message.events)
            case wire.Answer():
                future = self._asks.pop(message.ask, None)
                if future is not None and message.error is not None:
                    future.set_exception(errors.decode(message.error))
                elif future is not None:
                    future.set_result(message.value)
            case wire.Welcome():
                self._worker_pid = message.worker
                if message.info is not None:
                    self._serves(message.info)
                elif message.state == "down" and self._waiting:
                    self._send_question(self._silent_start(), "start", {})
            case wire.Starting():
                phase = (message.phase, message.progress, message.note)
                self._last_phases.append(phase)
                if self.on_progress is not None:
                    self._phases.put(phase)
            case wire.Serving():
                self._worker_pid = message.worker
                self._serves(message.info)
            case wire.Lost():
                self._is_serving, self._worker_pid = False, None
                error = errors.decode(message.error)
                logger.info("the engine's worker is gone: %s", error.message)
                if not message.is_final:
                    self._fail_waiting(error)
            case wire.Farewell():
                if self._bye is not None and not self._bye.done():
                    self._bye.set_result(message.is_ending)

    def _serves(self, info: ModelInfo) -> None:
        self._info, self._is_serving = info, True
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            future.set_result(info)

    def _fail_waiting(self, error: NbsglError) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            future.set_exception(error)

    def _gone(self, error: NbsglError) -> None:
        """The front has ended or cannot be reached: everybody who waits hears it."""
        self._is_serving, self._worker_pid = False, None
        self._fail_waiting(error)
        asks, self._asks = self._asks, {}
        for future in asks.values():
            future.set_exception(error)
        for run in list(self._runs.values()):
            run._lose(error)
        if self._bye is not None and not self._bye.done():
            self._bye.set_result(True)

    def _crashed(self) -> None:
        """The I/O thread ends by a mistake of ours."""
        self._link.close()
        self._gone(_crashed())

    def _leave(self, bye: Future[bool]) -> None:
        self._bye = bye
        if self._link.state == "up":
            self._link.send(wire.encode(wire.Bye()))
        else:
            is_mine = self._link.child is not None and self.keep <= 0
            bye.set_result(is_mine)  # our front, still on its way: it ends when its pipe closes

    def _let_go(self, closed: Future[None]) -> None:
        self._link.close()
        self._gone(_closed())
        with contextlib.suppress(ValueError):
            self._loop.on_crash.remove(self._crashed)
        closed.set_result(None)


def _from_server_args(settings: dict[str, Any], model_path: str) -> tuple[str, dict[str, Any]]:
    """All settings at once, as `ServerArgs`; they stand for themselves."""
    args = settings["server_args"]
    if not isinstance(args, EngineConfig):
        raise ParameterError(name="server_args", value=args, allowed="a ServerArgs")
    if len(settings) > 1 or model_path not in ("embedded", args.model_path):
        raise ParameterError("Engine(server_args=...) takes no other settings.", name="server_args")
    found = msgspec.structs.asdict(args)
    return found.pop("model_path"), found


def _chat_template(settings: dict[str, Any], model_path: str) -> str | None:
    """The template that was asked for under either name, else what a registered function knows for this model."""
    found = [settings.pop(name, None) for name in ("chat_template", "chat_template_name")]
    asked = [value for value in found if value is not None]
    if len(asked) > 1:
        raise ParameterError(
            "chat_template and chat_template_name are the same setting; give one.", name="chat_template_name"
        )
    template = asked[0] if asked else chat_templates.matched_by_user(model_path)
    return None if template is None else chat_templates.setting(template)


def _closed() -> EngineNotRunning:
    return EngineNotRunning("This engine handle is closed.", hint="Make a new one: nbsgl.Engine(...) or nbsgl.start().")


def _crashed() -> EngineError:
    return EngineError(
        "The engine's I/O thread in this process has ended.", hint="See its traceback; make a new Engine."
    )


def _closer(engine: weakref.ref[Engine]) -> Callable[[], None]:
    def close() -> None:
        if (found := engine()) is not None:
            found.close()

    return close
