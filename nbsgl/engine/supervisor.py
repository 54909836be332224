"""The worker's life as the front sees it: start, phases, signs of life, death, restart on demand."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from nbsgl import errors
from nbsgl.engine import log, readahead, wire
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.io_loop import IoLoop, Timer
from nbsgl.engine.runtime import RuntimeFolder
from nbsgl.engine.segments import Ask, FromWorker, Phase, Ready, StartFailed, Stop, Update, Updates, WorkerAnswer
from nbsgl.engine.spawn import Child, Spawner, python
from nbsgl.engine.watch import is_stopped
from nbsgl.errors import EngineCrashLoop, EngineDied, EngineError, EngineHung, EngineStartFailed, GpuFault, NbsglError

logger = logging.getLogger("nbsgl")

MAX_RESTARTS = 3
RESTART_PERIOD_S = 600.0
PHASE_LIMITS_S = {"spawn": 120.0, "load": 1800.0, "warmup": 600.0}
STACKS_S = 0.3  # for faulthandler to write before SIGKILL
HEALTHY_S = 2.0
ASK_TIMEOUT_S = 10.0
GPU_FAULT = 70  # exit code of a worker whose CUDA context is lost
CLOSE_S, TERM_S, KILL_S = 1.5, 0.5, 0.5  # what each step of ending a worker may take


class WorkerLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's first line of standard input."""

    config: EngineConfig
    socket: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Reports:
    """Whom the supervisor tells, on the loop's thread."""

    phase: Callable[[int, str, float | None, str], None]
    ready: Callable[[int, Ready], None]
    updates: Callable[[int, list[Update]], None]
    died: Callable[[int, NbsglError], None]


Answered = Callable[[Any, NbsglError | None], None]


class Supervisor:
    """One worker at a time, numbered by `epoch`; a worker that ended is replaced when `ensure` is called.

    Each worker has a socket of its own, so nothing of an older one can be mistaken for the present one's.
    """

    def __init__(
        self, loop: IoLoop, folder: RuntimeFolder, config: EngineConfig, spawner: Spawner, module: str, reports: Reports
    ) -> None:
        self.loop, self.folder, self.config, self.module, self.reports = loop, folder, config, module, reports
        self.epoch = 1
        self.child: Child | None = None
        self.phase = "down"
        self.is_serving = False  # ready, and the front has its texts
        self.steps = 0
        self.num_restarts = self.num_deaths = 0
        self.last_error: NbsglError | None = None
        self._spawner = spawner
        self._socket: zmq.Socket[bytes] | None = None
        self._decode = wire.Decoder(FromWorker)
        self._waiting: list[bytes] = []
        self._restarts: deque[float] = deque()
        self._last_sign = 0.0
        self._deadline: Timer | None = None
        self._has_crashed = False  # the last end was a death, neither a start refused in order nor asked for
        self._failure: NbsglError | None = None  # known before the process ends: StartFailed, hung, restart
        self._asks: dict[int, tuple[Answered, Timer]] = {}
        self._numbers = itertools.count()
        self._then: list[Callable[[], None]] = []  # who waits for the end of the worker
        self._ending: list[Timer] = []

    # ---- start -------------------------------------------------------------------------------------------------------

    @property
    def is_healthy(self) -> bool:
        """Truth over liveness: a step finished, or the queue was empty, within the last two seconds."""
        return self.is_serving and self.loop.clock() - self._last_sign < HEALTHY_S

    @property
    def num_bad(self) -> int:
        return self._decode.num_bad

    def ensure(self) -> NbsglError | None:
        """Start a worker unless there is one; `EngineCrashLoop` instead of a fourth restart in ten minutes."""
        if self.child is not None:
            return None
        if self._has_crashed:
            now = self.loop.clock()
            while self._restarts and now - self._restarts[0] > RESTART_PERIOD_S:
                self._restarts.popleft()
            if len(self._restarts) >= MAX_RESTARTS:
                if isinstance(self.last_error, EngineCrashLoop):
                    return self.last_error
                return EngineCrashLoop(
                    deaths=len(self._restarts) + 1,
                    last=str(self.last_error.message),
                    log_path=str(self.folder.worker_log),
                    hint="Look at the log (%sgl log), then restart: engine.restart() or %sgl restart.",
                )
            self._restarts.append(now)
            self.num_restarts += 1
        try:
            self._start()
        except (OSError, zmq.ZMQError) as error:  # no files or processes left, or the runtime folder is gone
            return EngineStartFailed(
                stage="spawn", reason=error.strerror or "no process", log_path=str(self.folder.front_log)
            )
        return None

    def forgive(self) -> None:
        """The user asked for a restart: earlier deaths no longer count."""
        self._restarts.clear()
        self.last_error, self._has_crashed = None, False

    def _start(self) -> None:
        name = f"worker-{self.epoch % 1000}.sock"
        self._socket = self.loop.context.socket(zmq.PAIR)
        self._socket.set_hwm(0)  # a bounded queue would block the front or drop a segment; what waits is what was asked
        self._socket.linger = 0
        self.loop.watch(self._socket, self._receive)
        self.phase, self._failure = "spawn", None
        launch = WorkerLaunch(config=self.config, socket=self.folder.socket(name), epoch=self.epoch)
        epoch = self.epoch
        readahead.begin_torch()
        try:
            self._socket.bind(self.folder.socket(name))
            self.child = self._spawner.spawn(
                python(self.module, str(self.folder.path), str(os.getpid())),
                log=self.folder.worker_log,
                first_line=msgspec.json.encode(launch),
                on_exit=lambda code: self.loop.call(self._exited, epoch, code),
            )
        except (OSError, zmq.ZMQError):
            self.phase = "down"
            self._close_socket()
            raise
        logger.info("worker %d starts as process %d", self.epoch, self.child.pid)
        self._arm(PHASE_LIMITS_S["spawn"])
        self.reports.phase(self.epoch, "spawn", None, "")

    # ---- messages ----------------------------------------------------------------------------------------------------

    def send(self, epoch: int, frames: list[bytes]) -> None:
        """Frames of `wire.joined` for the worker of that epoch: kept until it is ready, dropped if it is gone."""
        if epoch != self.epoch:
            return
        if not self.is_serving:
            self._waiting += frames
            return
        for frame in frames:
            self._post(frame)

    def _tell(self, message: Ask | Stop) -> None:
        for frame in wire.joined([wire.encode(message)]):
            self._post(frame)

    def _post(self, frame: bytes) -> None:
        """Without a peer the worker has just died: `_exited` fails whoever this was for."""
        if self._socket is not None:
            with contextlib.suppress(zmq.Again):
                self._socket.send(frame, zmq.NOBLOCK)

    def serve(self) -> None:
        """The front is ready too: let waiting frames go."""
        self.is_serving = True
        waiting, self._waiting = self._waiting, []
        self.send(self.epoch, waiting)

    def ask(self, what: str, args: dict[str, Any], then: Answered) -> None:
        """Ask the worker; `then` gets the value or an error, at the latest after ten seconds."""
        if not self.is_serving or self._socket is None:
            then(None, self.last_error or EngineError("The engine's worker is not running."))
            return
        number = next(self._numbers)
        late = EngineError(f"The worker did not answer {what!r} within {ASK_TIMEOUT_S:g} s; it may hang.")
        self._asks[number] = (then, self.loop.later(ASK_TIMEOUT_S, lambda: self._answer(number, None, late)))
        self._tell(Ask(ask=number, what=what, args=args))

    def _answer(self, number: int, value: Any, error: NbsglError | None) -> None:
        if (waiting := self._asks.pop(number, None)) is not None:
            then, timer = waiting
            timer.cancel()
            then(value, error)

    def _receive(self) -> None:
        assert self._socket is not None
        for _ in range(256):
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if self._socket.getsockopt(zmq.RCVMORE):
                self._socket.recv_multipart()
                continue
            message = self._decode(frame)
            if message is not None:
                self._take(message)

    def _take(self, message: Any) -> None:
        self._last_sign = self.loop.clock()
        match message:
            case Updates():
                self.steps = message.step
                if self._deadline is not None and self.phase == "serve":
                    self._deadline.at = self._last_sign + self.config.step_timeout_s
                if message.updates:
                    self.reports.updates(self.epoch, message.updates)
            case Phase():
                if message.phase != self.phase:
                    logger.info("worker %d: %s", self.epoch, message.phase)
                    self._arm(PHASE_LIMITS_S.get(message.phase, self.config.step_timeout_s))
                self.phase = message.phase
                self.reports.phase(self.epoch, message.phase, message.progress, message.note)
            case Ready():
                self.phase = "serve"
                self._arm(self.config.step_timeout_s)
                self.reports.ready(self.epoch, message)
            case StartFailed():
                self._failure = self._start_error(message)
            case WorkerAnswer():
                error = errors.decode(message.error) if message.error is not None else None
                self._answer(message.ask, message.value, error)

    def _start_error(self, message: StartFailed) -> NbsglError:
        """Errors of the tree as they are; anything else as a failed start with the end of the log."""
        error = errors.decode(message.error)
        if type(error) not in (EngineError, NbsglError):
            return error
        return EngineStartFailed(
            stage=message.stage,
            reason=error.message,
            log_path=str(self.folder.worker_log),
            log_tail=log.tail(self.folder.worker_log, 20),
            hint="See the engine's log: engine.log() or %sgl log.",
        )

    # ---- watching ----------------------------------------------------------------------------------------------------

    def _arm(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.later(seconds, self._hangs)

    def _hangs(self) -> None:
        """No sign of life within the limit.  A process held by a signal or a debugger pauses; it does not hang."""
        self._deadline = None
        if self.child is None or self._failure is not None:
            return
        limit = PHASE_LIMITS_S.get(self.phase, self.config.step_timeout_s)
        if is_stopped(self.child.pid):
            self._arm(limit)
            return
        logger.error("worker %d made no step for %g s (%s): writing its stacks, then killing it", *self._where(limit))
        self._failure = EngineHung(
            f"The engine's worker made no step for {limit:g} s and was killed ({self.phase}).",
            process="worker",
            phase=self.phase,
            log_path=str(self.folder.worker_log),
            hint="Its stacks are in the log (%sgl log). The next call starts it again.",
        )
        child = self.child
        child.signal(signal.SIGUSR1)
        self.loop.later(STACKS_S, lambda: child.signal(signal.SIGKILL, group=True))

    def _where(self, limit: float) -> tuple[int, float, str]:
        return self.epoch, limit, self.phase

    def _exited(self, epoch: int, code: int) -> None:
        """The process is gone and reaped: read what it said last, then fail whoever waits."""
        if epoch != self.epoch or self.child is None:
            return
        if self._socket is not None:
            self._receive()
        self.child = None
        self._close_socket()
        for timer in [*self._ending, *filter(None, [self._deadline])]:
            timer.cancel()
        self._ending, self._deadline = [], None
        error = self._failure or self._death(code)
        self._has_crashed = not self._then and (self._failure is None or isinstance(error, EngineHung))
        self.num_deaths += self._has_crashed
        logger.log(logging.INFO if self._then else logging.ERROR, "worker %d ended with %d", epoch, code)
        self.phase, self.is_serving, self.last_error = "down", False, error
        self.epoch += 1
        self._waiting.clear()
        for number in list(self._asks):
            self._answer(number, None, error)
        self.reports.died(epoch, error)
        self._has_ended()

    def _has_ended(self) -> None:
        waiting, self._then = self._then, []
        for then in waiting:
            then()

    def _death(self, code: int) -> NbsglError:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        path = str(self.folder.worker_log)
        if self.phase in PHASE_LIMITS_S:
            reason = f"the worker ended with {how}"
            return EngineStartFailed(
                stage=self.phase,
                reason=reason,
                log_path=path,
                log_tail=log.tail(self.folder.worker_log, 20),
                hint="See the engine's log: engine.log() or %sgl log.",
            )
        kind = GpuFault if code == GPU_FAULT else EngineDied
        return kind(
            process="worker",
            signal=-code if code < 0 else None,
            exit_code=code if code >= 0 else None,
            phase=f"{self.phase}, {how}",
            lost=0,
            log_path=path,
            hint="Run it again: the next call starts the worker anew.",
        )

    def _close_socket(self) -> None:
        if self._socket is not None:
            self.loop.unwatch(self._socket)
            self._socket.close(0)
            self._socket = None

    # ---- end ---------------------------------------------------------------------------------------------------------

    def end(self, why: NbsglError, then: Callable[[], None]) -> None:
        """End the worker within 2.5 s: ask it, SIGTERM, SIGKILL to its group.  `then` is called when it is gone."""
        if self.child is None:
            then()
            return
        self._then.append(then)
        if len(self._then) > 1:
            return  # it is being ended already
        self._failure = why
        child = self.child
        if self.phase == "serve":
            self._tell(Stop())
            wait = CLOSE_S
        else:
            wait = 0.0  # it is loading and listens to nobody
        self._ending = [
            self.loop.later(wait, lambda: child.signal(signal.SIGTERM)),
            self.loop.later(wait + TERM_S, lambda: child.signal(signal.SIGKILL, group=True)),
            self.loop.later(wait + TERM_S + KILL_S, lambda: self._give_up(child)),
        ]

    def _give_up(self, child: Child) -> None:
        logger.error("process %d is still there after SIGKILL", child.pid)
        self._has_ended()

    def refuse(self, error: NbsglError) -> None:
        """The worker serves, but the front cannot use its model: end it with `error`."""
        if self.child is not None:
            self._failure = error
            self.child.signal(signal.SIGKILL, group=True)

    def fail_waiting(self, error: NbsglError) -> None:
        """No worker can be started: what was submitted for it fails with `error`."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        self._waiting.clear()
        self.last_error = error
        self.reports.died(epoch, error)
