"""A helper process as its owner sees it: started at need, asked one thing at a time, killed when it takes too long.

What is said: frames of msgpack behind their length, both ways over one socket, which is the helper's standard input.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any, Literal

import msgspec

from nbsgl import errors
from nbsgl.engine import spawn
from nbsgl.engine.grammar import HandOver
from nbsgl.engine.grammar.plans import Plan
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.protocol import GrammarSpec

MAX_MEMORY_BYTES = 1 << 30
MAX_FRAME_BYTES = 64 << 20
START_S = 30.0  # imports and the vocabulary's tree: 0.5 s on a machine of its own
MODULE = "nbsgl.engine.grammar.compile_helper"
_LENGTH = struct.Struct("<Q")


class Vocabulary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a helper is told first; without tokens it can only probe."""

    tokens: list[bytes | None]
    eos_ids: tuple[int, ...]


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`max_s` of processor time."""

    what: Literal["pack", "plan"]
    spec: GrammarSpec
    max_s: float


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Behind it come `size` bytes, of a grammar.  `limit`: why there is none, though the spec is right."""

    size: int = 0
    plan: Plan | None = None
    limit: str = ""
    error: dict[str, Any] | None = None


class HelperDied(Exception):
    """The process ended before it answered."""


class HelperTimedOut(Exception):
    """It did not answer in time, and was killed."""


class Channel:
    """Frames over a socket; `EOFError` when the other side is gone, `TimeoutError` after the deadline."""

    def __init__(self, own: socket.socket) -> None:
        self._socket = own
        self.deadline: float | None = None  # by time.monotonic

    def send(self, message: msgspec.Struct, data: Any = b"") -> None:
        frame = msgspec.msgpack.encode(message)
        try:
            for part in (_LENGTH.pack(len(frame)) + frame, data):
                self._set_timeout()
                self._socket.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None

    def receive(self, kind: Any) -> Any:
        (length,) = _LENGTH.unpack(self.read(_LENGTH.size))
        return msgspec.msgpack.decode(self.read(length), type=kind)

    def read(self, size: int) -> bytearray:
        if size > MAX_FRAME_BYTES:
            raise EOFError(f"a frame of {size:,} bytes")
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            self._set_timeout()
            try:
                count = self._socket.recv_into(rest)
            except ConnectionResetError:
                count = 0
            if not count:
                raise EOFError
            rest = rest[count:]
        return data

    def _set_timeout(self) -> None:
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)

    def close(self) -> None:
        self._socket.close()


class Helper:
    """One process, replaced when it has died.  One thread asks; `close` may come from any."""

    def __init__(self, vocab: TokenVocab | None, log: Path | None) -> None:
        self._vocab, self._log = vocab, log or Path(os.devnull)
        self._child: spawn.Child | None = None
        self._channel: Channel | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Of the process there is now."""
        child = self._child
        return child.pid if child is not None and child.returncode is None else None

    def warm_up(self) -> None:
        """Start it, and wait until it can work; a failure shows when it is asked."""
        with contextlib.suppress(HelperDied, HelperTimedOut):
            self._started()

    def pack(self, spec: GrammarSpec, timeout_s: float) -> bytearray:
        """Compile with the spec's packing engine; raises its error, `HandOver`, `HelperDied` or `HelperTimedOut`."""
        return self._ask(Job("pack", spec, timeout_s), timeout_s)[1]

    def plan(self, spec: GrammarSpec, timeout_s: float) -> Plan:
        """Read a spec, and probe its engine; raises the spec's error, `HelperDied` or `HelperTimedOut`."""
        plan = self._ask(Job("plan", spec, timeout_s), timeout_s)[0].plan
        assert plan is not None
        return plan

    def close(self) -> None:
        """End it, whatever it does; who asks hears `HelperDied`."""
        with self._lock:
            self._is_closed = True
            child = self._child
        if child is not None:
            child.signal(signal.SIGKILL, group=True)

    def drop(self) -> str:
        """Kill what is left of the process, and close what led to it; how it had ended."""
        child, self._child = self._child, None
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        if child is None:
            return "there was none"
        time.sleep(0.02 if child.returncode is None else 0)  # a process that ended by itself says how
        code = child.returncode
        child.signal(signal.SIGKILL, group=True)
        if code is None:
            return "it hung up"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _ask(self, job: Job, timeout_s: float) -> tuple[Answer, bytearray]:
        channel = self._started()
        try:
            channel.deadline = time.monotonic() + timeout_s
            channel.send(job)
            answer = channel.receive(Answer)
            data = channel.read(answer.size)
        except TimeoutError:
            self.drop()
            raise HelperTimedOut(f"{timeout_s:.1f} s of compiling") from None
        except (EOFError, OSError, msgspec.DecodeError):
            raise HelperDied(self.drop()) from None
        if answer.error is not None:
            raise errors.decode(answer.error)
        if answer.limit:
            raise HandOver(answer.limit)
        return answer, data

    def _started(self) -> Channel:
        """The channel to a process that is ready."""
        if self._channel is not None and self.pid is not None:
            return self._channel
        self.drop()
        ours, theirs = socket.socketpair()
        with self._lock:
            if self._is_closed:
                ours.close()
                theirs.close()
                raise HelperDied("it was closed")
            try:
                self._child = spawn.spawner().spawn(
                    spawn.python(MODULE, str(os.getpid())), log=self._log, stdin=theirs.fileno()
                )
            except OSError as error:  # no processes or no memory left
                ours.close()
                raise HelperDied(error.strerror or "no process") from None
            finally:
                theirs.close()
        channel = self._channel = Channel(ours)
        channel.deadline = time.monotonic() + START_S
        try:
            tokens, eos_ids = (self._vocab.tokens, self._vocab.eos_ids) if self._vocab else ([], ())
            channel.send(Vocabulary(tokens, eos_ids))
            channel.receive(Answer)
        except TimeoutError:
            self.drop()
            raise HelperTimedOut(f"{START_S:g} s to start a helper") from None
        except (EOFError, OSError, msgspec.DecodeError):
            raise HelperDied(self.drop()) from None
        return channel
