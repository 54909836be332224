from __future__ import annotations

import socket
import subprocess
import threading
import time

import pytest

from nbsgl.engine.io_loop import IoLoop, shared
from nbsgl.engine.watch import PidWatch


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_clock_jump_rearms() -> None:
    """A stopped process or a sleeping laptop fires no deadline by itself."""
    clock = Clock()
    loop = IoLoop(clock)
    fired: list[float] = []
    loop.later(10.0, lambda: fired.append(clock.now))
    clock.now += 3600
    loop.tick()
    assert fired == []
    assert loop.num_jumps == 1
    for _ in range(9):
        clock.now += 1
        loop.tick()
    assert fired == []
    clock.now += 1
    loop.tick()
    assert len(fired) == 1
    loop.close()


def test_small_delays_are_no_jump() -> None:
    clock = Clock()
    loop = IoLoop(clock)
    fired: list[int] = []
    loop.later(1.0, lambda: fired.append(1))
    clock.now += 4.9
    loop.tick()
    assert fired == [1]
    assert loop.num_jumps == 0
    loop.close()


def test_timers_repeat_move_and_cancel() -> None:
    clock = Clock()
    loop = IoLoop(clock)
    fired: list[str] = []
    loop.every(1.0, lambda: fired.append("every"))
    moved = loop.later(1.0, lambda: fired.append("moved"))
    gone = loop.later(1.0, lambda: fired.append("gone"))
    moved.at += 1.0
    gone.cancel()
    clock.now += 1.0
    loop.tick()
    assert fired == ["every"]
    clock.now += 1.0
    loop.tick()
    assert sorted(fired) == ["every", "every", "moved"]
    loop.close()


def test_sockets_stay_on_io_thread() -> None:
    """Calls from any thread run on the loop's own, in order."""
    threads: list[threading.Thread] = []
    done = threading.Event()
    loop = shared()
    loop.call(lambda: threads.append(threading.current_thread()))
    loop.call(done.set)
    assert done.wait(5)
    assert threads == [loop.thread]
    assert shared() is loop


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_the_end_of_a_process_is_noticed(has_pidfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_pidfd:
        monkeypatch.delattr("os.pidfd_open")
    process = subprocess.Popen(["sleep", "60"])
    ended = threading.Event()
    loop = shared()
    loop.call(lambda: PidWatch(loop, process.pid, ended.set))
    assert not ended.wait(0.2)
    began = time.monotonic()
    process.kill()
    assert ended.wait(5)
    assert time.monotonic() - began < 1.0
    process.wait()


def test_socket_options() -> None:
    import zmq

    from nbsgl.engine import front, link

    for options in (front.SOCKET_OPTIONS, link.SOCKET_OPTIONS):
        assert options[zmq.MAXMSGSIZE] == 8 << 20
        assert options[zmq.SNDHWM] == options[zmq.RCVHWM] == 1000
        assert options[zmq.IMMEDIATE] == 1
        assert options[zmq.HEARTBEAT_IVL] == 5_000
    assert front.SOCKET_OPTIONS[zmq.ROUTER_MANDATORY] == 1
    assert link.SOCKET_OPTIONS[zmq.LINGER] == 0


def test_a_number_taken_again_is_not_called_for_the_old_one() -> None:
    """Both descriptors are ready in one poll; the first call closes the second one, whose number is taken anew."""
    loop = IoLoop()
    first, second = socket.socketpair(), socket.socketpair()
    called: list[str] = []

    def close_and_reuse() -> None:
        called.append("first")
        loop.unwatch(first[0].fileno())
        loop.unwatch(second[0].fileno())
        loop.watch(second[0].fileno(), lambda: called.append("new"))
        loop.stop()

    loop.watch(first[0].fileno(), close_and_reuse)
    loop.watch(second[0].fileno(), lambda: called.append("old"))
    for pair in (first, second):
        pair[1].send(b"x")
    loop.run()
    assert called == ["first"]
    loop.unwatch(second[0].fileno())
    for one in (*first, *second):
        one.close()
    loop.close()


def test_whoever_waits_for_a_loop_hears_of_its_crash() -> None:
    loop = IoLoop()
    heard: list[str] = []
    loop.on_crash.append(lambda: heard.append("crash"))
    loop.call(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.run()
    assert heard == ["crash"]
    loop.close()


def test_no_process_has_such_a_number() -> None:
    loop = IoLoop()
    ended: list[int] = []
    for pid in (-1, 2**40):
        PidWatch(loop, pid, lambda pid=pid: ended.append(pid))
    loop.tick()
    assert sorted(ended) == [-1, 2**40]
    loop.close()
