"""What a front does with bytes that are no client's."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest
import zmq

from nbsgl.engine import wire
from nbsgl.engine.handle import Engine
from nbsgl.engine.link import SOCKET_OPTIONS
from nbsgl.protocol import PROTOCOL_VERSION, GenDone
from tests.process.tools import Program, until

pytestmark = pytest.mark.process

Make = Callable[..., Engine]


class Raw:
    """A DEALER without manners."""

    def __init__(self, engine: Engine) -> None:
        assert engine.info
        assert engine.runtime_folder is not None
        self.folder: Path = engine.runtime_folder
        self.key = engine.config.key
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect(f"ipc://{self.folder}/front.sock")

    def hello(self, **changes: object) -> None:
        fields = {
            "protocol": PROTOCOL_VERSION,
            "version": "x",
            "token": (self.folder / "token").read_bytes(),
            "pid": os.getpid(),
            "key": self.key,
            "keep": 0.0,
        }
        self.socket.send(wire.encode(wire.Hello(**{**fields, **changes})))

    def answer(self, timeout_s: float = 5.0) -> object:
        """The next message, or None if there comes none."""
        if not self.socket.poll(timeout_s * 1000):
            return None
        return wire.Decoder(wire.ToClient)(self.socket.recv())


@pytest.fixture
def engine(make: Make) -> Engine:
    return make()


@pytest.fixture
def raw(engine: Engine) -> Iterator[Raw]:
    peer = Raw(engine)
    yield peer
    peer.context.destroy(linger=0)


def test_hello_required(engine: Engine, raw: Raw) -> None:
    raw.socket.send(wire.encode(wire.AskFront(ask=1, what="status")))
    assert raw.answer(0.5) is None
    raw.hello()
    assert isinstance(raw.answer(), wire.Welcome)
    raw.socket.send(wire.encode(wire.AskFront(ask=1, what="health")))
    assert raw.answer() == wire.Answer(ask=1, value=True)


def test_wrong_token_is_met_with_silence(engine: Engine, raw: Raw) -> None:
    raw.hello(token=b"x" * 32)
    raw.hello()  # too late: it is cut
    assert raw.answer(0.5) is None
    assert engine.status()["counters"]["clients.refused"] == 1


def test_other_protocol_is_told_so(engine: Engine, raw: Raw) -> None:
    raw.hello(protocol=PROTOCOL_VERSION + 1)
    refused = raw.answer()
    assert isinstance(refused, wire.Refused)
    assert refused.error["cls"] == "VersionMismatch"


def test_multipart_is_dropped(engine: Engine, raw: Raw) -> None:
    raw.hello()
    assert isinstance(raw.answer(), wire.Welcome)
    question = wire.encode(wire.AskFront(ask=1, what="health"))
    raw.socket.send_multipart([question, question])
    raw.socket.send_multipart([b"x" * 100_000] * 50)
    assert raw.answer(0.5) is None
    assert engine.status()["counters"]["wire.dropped"] == 2


def test_garbage_is_counted_and_its_peer_cut(engine: Engine, raw: Raw) -> None:
    raw.hello()
    assert isinstance(raw.answer(), wire.Welcome)
    rng = random.Random(1)
    for _ in range(150):
        raw.socket.send(rng.randbytes(rng.randrange(1, 200)))
    until(lambda: engine.status()["counters"]["wire.bad"] == 100)
    raw.socket.send(wire.encode(wire.AskFront(ask=1, what="health")))
    assert raw.answer(0.5) is None
    assert isinstance(Program(engine).wait(), GenDone)


def test_giant_message(engine: Engine, raw: Raw) -> None:
    raw.hello()
    assert isinstance(raw.answer(), wire.Welcome)
    front = psutil.Process(engine.front_pid)
    before = front.memory_info().rss
    raw.socket.send(bytes(64 << 20), copy=False)
    time.sleep(1.0)
    assert front.memory_info().rss - before < 10 << 20
    assert engine.health


def test_forged_nesting_is_survived(engine: Engine, raw: Raw) -> None:
    raw.hello()
    assert isinstance(raw.answer(), wire.Welcome)
    deep = wire.encode(wire.AskFront(ask=1, what="x", args={"a": 0}))
    raw.socket.send(deep[:-1] + b"\x91" * 100_000 + b"\x00")
    raw.socket.send(deep[:-1] + b"\xdd\xff\xff\xff\xff")
    until(lambda: engine.status()["counters"]["wire.bad"] == 2)


def test_foolish_arguments_are_survived(engine: Engine, raw: Raw) -> None:
    front = engine.front_pid
    raw.hello(pid=2**40)  # no process has that number: this client is gone at once
    peer = Raw(engine)
    peer.hello()
    assert isinstance(peer.answer(), wire.Welcome)
    for number, n in enumerate(["many", -5, 10**12, None]):
        peer.socket.send(wire.encode(wire.AskFront(ask=number, what="log", args={"n": n})))
        answer = peer.answer()
        assert isinstance(answer, wire.Answer)
        assert answer.error is None
    peer.context.destroy(linger=0)
    assert isinstance(Program(engine).wait(), GenDone)
    assert engine.front_pid == front


def test_socket_options_of_a_client(engine: Engine) -> None:
    assert engine.info
    found: Future[dict[int, int]] = Future()
    socket = engine._link._socket
    assert socket is not None
    engine._loop.call(lambda: found.set_result({option: socket.getsockopt(option) for option in SOCKET_OPTIONS}))
    assert found.result(5) == SOCKET_OPTIONS
