"""A client's way to its engine: find the front or start it, say hello, carry frames, notice its end."""

from __future__ import annotations

import logging
import os
import resource
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import zmq

import nbsgl
from nbsgl import errors
from nbsgl.engine import log, wire
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.front_launch import MIN_FILES, TAKEN, Launch
from nbsgl.engine.io_loop import IoLoop, Timer
from nbsgl.engine.runtime import EngineRecord, RuntimeFolder
from nbsgl.engine.spawn import Child, python, spawner
from nbsgl.engine.watch import PidWatch
from nbsgl.errors import EngineDied, EngineNotRunning, EngineStartFailed, NbsglError
from nbsgl.protocol import PROTOCOL_VERSION

logger = logging.getLogger("nbsgl")

FIND_S = 30.0  # for a front to appear and answer
LOOK_S = 0.01
SOCKET_OPTIONS: dict[int, int] = {
    zmq.SNDHWM: 1000,
    zmq.RCVHWM: 1000,
    zmq.LINGER: 0,
    zmq.IMMEDIATE: 1,
    zmq.RECONNECT_IVL: -1,  # a front that dropped us has forgotten us: a new connection says hello again
    zmq.MAXMSGSIZE: wire.MAX_MESSAGE_BYTES,
    zmq.HEARTBEAT_IVL: 5_000,
    zmq.HEARTBEAT_TIMEOUT: 30_000,
}


@dataclass(frozen=True, slots=True)
class Ends:
    """Whom the link tells, on the loop's thread.  `gone`: the front has ended, or could not be reached."""

    message: Callable[[Any], None]
    gone: Callable[[NbsglError], None]


class Link:
    """All methods run on the loop's thread.

    `state`: "none" (no front), "finding", "greeting" (hello sent), "up".  Frames wait until it is up; when the front
    ends they are dropped, and the next `ensure` finds or starts another.
    """

    def __init__(self, loop: IoLoop, config: EngineConfig, keep: float, module: str, ends: Ends) -> None:
        self.loop, self.config, self.keep, self.module, self._ends = loop, config, keep, module, ends
        self.state: Literal["none", "finding", "greeting", "up"] = "none"
        self.folder: RuntimeFolder | None = None
        self.front_pid: int | None = None
        self.was_running = True
        self.child: Child | None = None  # the front, if we started it
        self._launch = ""
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._watch: PidWatch | None = None
        self._frames: deque[bytes] = deque()
        self._decode = wire.Decoder(wire.ToClient)
        self._deadline = 0.0
        self._timer: Timer | None = None
        self._last_words: NbsglError | None = None

    # ---- finding -----------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Find the engine, or start it, unless that is done or under way."""
        if self.state != "none":
            return
        self.state, self._last_words = "finding", None
        self.was_running = True
        self._deadline = self.loop.clock() + FIND_S
        self._look()

    def _look(self) -> None:
        self._timer = None
        try:  # each time: an owner that ends removes the folder
            self.folder = RuntimeFolder.open(self.config.key)
        except NbsglError as error:
            self._fail(error)
            return
        record = self.folder.read()
        if self.loop.clock() > self._deadline:
            self._fail(self._start_error("it does not answer"))
        elif record is not None and record.state != "closing":
            self._connect(self.folder, record)
        else:
            if record is None and self.child is None:
                self._start_front(self.folder)
            if self.state == "finding":
                self._timer = self.loop.later(LOOK_S, self._look)

    def _start_front(self, folder: RuntimeFolder) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if 0 <= limit < MIN_FILES:
            reason = f"processes here may have {limit} files open, an engine needs {MIN_FILES}"
            self._fail(self._start_error(reason, f"Raise the hard limit: ulimit -Hn {4 * MIN_FILES}"))
            return
        self.was_running = False
        self._launch = secrets.token_hex(8)
        launch = Launch(config=self.config, keep=self.keep, launch=self._launch, worker_module=self.module)
        try:
            self.child = spawner().spawn(
                python("nbsgl.engine.front", str(folder.path)),
                log=folder.front_log,
                first_line=msgspec.json.encode(launch),
                on_exit=lambda code: self.loop.call(self._front_exited, self._launch, code),
            )
        except FileNotFoundError:
            return  # an owner that ends has just removed the folder: look again
        except OSError as error:
            self._fail(self._start_error(error.strerror or "no process"))

    def _front_exited(self, launch: str, code: int) -> None:
        """A front of ours ended.  While we look for one: another has the folder (look on), or it cannot run at all."""
        if launch != self._launch:
            return
        self.child = None
        if self.state == "finding":
            if code == TAKEN:
                self.was_running = True
            elif self.folder is not None and self.folder.read() is None:
                self._fail(self._start_error(f"its front ended with {code}"))

    def _start_error(self, reason: str, hint: str = "") -> NbsglError:
        path = self.folder.front_log if self.folder else None
        return EngineStartFailed(
            stage="front",
            reason=reason,
            log_path=str(path) if path else None,
            log_tail=log.tail(path, 20) if path else None,
            hint=hint or (f"See {path}." if path else ""),
        )

    # ---- connection --------------------------------------------------------------------------------------------------

    def _connect(self, folder: RuntimeFolder, record: EngineRecord) -> None:
        self.state = "greeting"
        self.front_pid = record.pid
        try:
            self._socket = self.loop.context.socket(zmq.DEALER)
            for option, value in SOCKET_OPTIONS.items():
                self._socket.setsockopt(option, value)
            self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            self._socket.connect(folder.socket("front.sock"))
        except zmq.ZMQError as error:  # no descriptors left
            self._fail(self._start_error(error.strerror or "no socket"))
            return
        self.loop.watch(self._socket, self._receive)
        self.loop.watch(self._monitor, self._disconnected)
        self._watch = PidWatch(self.loop, record.pid, self._front_ended)
        hello = wire.Hello(
            protocol=PROTOCOL_VERSION,
            version=nbsgl.__version__,
            token=folder.read_token(),
            pid=os.getpid(),
            key=self.config.key,
            keep=self.keep,
            launch=self._launch if self.child is not None else "",
        )
        self._hello(wire.encode(hello))

    def _hello(self, frame: bytes) -> None:
        """With IMMEDIATE there is nowhere to put it until the connection stands."""
        self._timer = None
        if self._socket is None:
            return
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            if self.loop.clock() > self._deadline:
                self._fail(self._start_error("it does not answer"))
            else:
                self._timer = self.loop.later(LOOK_S / 10, lambda: self._hello(frame))
            return
        self._timer = self.loop.later(max(1.0, self._deadline - self.loop.clock()), self._no_welcome)

    def _no_welcome(self) -> None:
        self._timer = None
        self._fail(self._start_error("it does not answer"))

    def send(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._flush()

    def _flush(self) -> None:
        if self.state != "up" or self._socket is None:
            return
        while self._frames:
            try:
                self._socket.send(self._frames[0], zmq.NOBLOCK)
            except zmq.Again:
                if self._timer is None:
                    self._timer = self.loop.later(LOOK_S, self._flush_again)
                return
            self._frames.popleft()

    def _flush_again(self) -> None:
        self._timer = None
        self._flush()

    def _receive(self) -> None:
        last_seq = 0
        for _ in range(256):
            if self._socket is None:
                return
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            message = self._decode(frame)
            if isinstance(message, wire.Events):
                last_seq = message.seq
            if message is not None:
                self._take(message)
        if last_seq:
            self.send(wire.encode(wire.Ack(seq=last_seq)))

    def _take(self, message: Any) -> None:
        match message:
            case wire.Probe():
                return
            case wire.Welcome():
                self._stop_timer()
                self.state = "up"
                self._ends.message(message)
                self._flush()
                return
            case wire.Refused():
                error = errors.decode(message.error)
                if isinstance(error, EngineNotRunning):  # it ends just now: wait for its end, then start another
                    self._disconnect()
                    self.state = "finding"
                    self._timer = self.loop.later(LOOK_S, self._look)
                else:
                    self._fail(error)
                return
            case wire.Lost() if message.is_final:
                self._last_words = errors.decode(message.error)
        self._ends.message(message)

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _front_ended(self) -> None:
        """Its last messages are still in our socket: take them, then it is gone."""
        self._watch = None
        self._receive()
        if self.state == "greeting":  # it ended between our look and our hello
            self._disconnect()
            self.state = "finding"
            self._timer = self.loop.later(LOOK_S, self._look)
            return
        self._fail(self._last_words or self._death("front", "it ended"))

    def _disconnected(self) -> None:
        """The connection broke, though the front may live: it has forgotten us."""
        assert self._monitor is not None
        self._monitor.recv_multipart()
        if self.state == "up" and self._watch is not None:
            self._receive()
            self._stop_timer()
            self._timer = self.loop.later(0.05, self._broken)  # its end explains it better, if that is the reason

    def _broken(self) -> None:
        self._timer = None
        if self.state == "up":
            self._fail(self._last_words or self._death("connection", "the connection to the engine broke"))

    def _death(self, process: str, phase: str) -> NbsglError:
        return EngineDied(
            f"The engine's {process} is gone ({phase}); what was under way is lost.",
            process=process,
            phase=phase,
            log_path=str(self.folder.front_log) if self.folder else None,
            hint="Run it again: the next call finds or starts the engine.",
        )

    def _fail(self, error: NbsglError) -> None:
        self._disconnect()
        self._frames.clear()
        self.state, self.front_pid = "none", None
        self._ends.gone(error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _disconnect(self) -> None:
        self._stop_timer()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._monitor is not None and self._socket is not None:
            self.loop.unwatch(self._monitor)
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._monitor = None
        if self._socket is not None:
            self.loop.unwatch(self._socket)
            self._socket.close(0)
            self._socket = None

    def close(self) -> None:
        """Let go: the front sees the pipe and the socket close."""
        self._disconnect()
        self._frames.clear()
        self.state = "none"
        if self.child is not None:
            self.child.close_stdin()
