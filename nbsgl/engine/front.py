"""The engine's first process: owns the runtime folder, serves clients, watches over the worker.  No torch.

    python -m nbsgl.engine.front FOLDER      (its first line of standard input is a `Launch`)

One thread owns all sockets; text and graphs are on another (`text_room`); a third forks and reaps (`spawn`).
"""

from __future__ import annotations

import hmac
import itertools
import logging
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

import nbsgl
from nbsgl import errors
from nbsgl.engine import log, runtime, wire
from nbsgl.engine.credit import Outbox
from nbsgl.engine.front_launch import TAKEN, Launch
from nbsgl.engine.io_loop import IoLoop, Timer
from nbsgl.engine.runtime import EngineRecord, RuntimeFolder
from nbsgl.engine.segments import Ready, Update
from nbsgl.engine.spawn import Spawner, read_line
from nbsgl.engine.supervisor import Reports, Supervisor
from nbsgl.engine.text_room import EventsOf, Outputs, TextRoom
from nbsgl.engine.watch import PidWatch
from nbsgl.errors import (
    EngineDied,
    EngineError,
    EngineNotRunning,
    NbsglError,
    QueueFull,
    RequestTooLarge,
    UsageError,
    VersionMismatch,
)
from nbsgl.protocol import PROTOCOL_VERSION, EngineSnapshot, ModelInfo, Prompt, pack_ids

logger = logging.getLogger("nbsgl")

MAX_CLIENTS = 64
FIRST_CLIENT_S = 30.0  # for the one that started us to say hello
PROBE_S = 5.0
BAD_LIMIT, BAD_PERIOD_S = 100, 10.0
MAX_REMEMBERED_PEERS = 1024  # that were cut
MANY_FILES = 4096
MAX_LOG_LINES = 2000  # in one answer
ABORT_S = 0.2  # between the last words to clients and the worker's end
SOCKET_OPTIONS: dict[int, int] = {
    zmq.ROUTER_MANDATORY: 1,  # a send to a client that is gone raises, it does not vanish
    zmq.SNDHWM: 1000,
    zmq.RCVHWM: 1000,
    zmq.LINGER: 200,
    zmq.IMMEDIATE: 1,
    zmq.MAXMSGSIZE: wire.MAX_MESSAGE_BYTES,
    zmq.HEARTBEAT_IVL: 5_000,
    zmq.HEARTBEAT_TIMEOUT: 30_000,
}


class Client:
    """One connection that has said hello."""

    def __init__(self, number: int, identity: bytes, hello: wire.Hello) -> None:
        self.number, self.identity, self.pid, self.launch = number, identity, hello.pid, hello.launch
        self.outbox = Outbox()
        self.controls: deque[bytes] = deque()  # that the socket did not take yet
        self.watch: PidWatch | None = None


class Front:
    """See the module.  All methods run on the loop's thread."""

    def __init__(self, folder: RuntimeFolder, lock: int, launch: Launch) -> None:
        self.folder, self.lock, self.launch, self.config = folder, lock, launch, launch.config
        self.loop = IoLoop()
        self.token = folder.new_token()
        self.info: ModelInfo | None = None
        self.keep = launch.keep
        self.began, self.began_at = time.time(), self.loop.clock()
        self.is_closing = False
        self.num_failures = 0
        self.clients: dict[bytes, Client] = {}
        self.by_number: dict[int, Client] = {}
        self.counters: dict[str, int] = dict.fromkeys(
            ("wire.bad", "wire.dropped", "wire.merged", "clients.refused", "clients.lost"), 0
        )
        self._numbers = itertools.count(1)
        self._cut: dict[bytes, None] = {}  # peers we no longer listen to
        self._bad: dict[bytes, deque[float]] = {}
        self._decode = wire.Decoder(wire.ToFront)
        self._linger: Timer | None = None
        self._phase: wire.Starting | None = None
        self.room = TextRoom(
            self.config,
            Outputs(
                output=lambda *args: self.loop.call(self._on_output, *args),
                ready=lambda *args: self.loop.call(self._on_serving, *args),
                failed=lambda *args: self.loop.call(self._on_texts_failed, *args),
                lost=lambda *args: self.loop.call(self._on_lost, *args),
            ),
        )
        self.supervisor = Supervisor(
            self.loop,
            folder,
            self.config,
            Spawner(),
            launch.worker_module,
            Reports(
                phase=self._on_phase,
                ready=self._on_ready,
                updates=self._on_updates,
                died=self.room.worker_died,
            ),
        )
        self.router = self.loop.context.socket(zmq.ROUTER)
        for option, value in SOCKET_OPTIONS.items():
            self.router.setsockopt(option, value)
        self.router.bind(folder.socket("front.sock"))
        self.loop.watch(self.router, self._receive)

    # ---- life --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until nobody wants the engine any more; leaves nothing behind."""
        self.room.thread.start()
        self.loop.watch(0, self._starter_gone)
        self.loop.every(PROBE_S, self._probe)
        self._wait_for_clients(FIRST_CLIENT_S + self.keep)
        self._record("starting")
        self.supervisor.ensure()
        logger.info("front serves %s", self.folder.path.name)
        self.loop.run()
        self.loop.context.destroy(linger=SOCKET_OPTIONS[zmq.LINGER])
        self.folder.remove(self.lock, keep_logs=self.num_failures > 0)

    def _record(self, state: str) -> None:
        """A folder that vanished or a full disk costs new clients the way in, not the engine its life."""
        if not self.folder.is_owner(self.lock):
            logger.warning("the runtime folder was removed: new clients will not find this engine")
            return
        child = self.supervisor.child
        try:
            self.folder.write(
                EngineRecord(
                    pid=os.getpid(),
                    started=runtime.my_start_time(),
                    protocol=PROTOCOL_VERSION,
                    version=nbsgl.__version__,
                    state=state,
                    key=self.folder.path.name,
                    model=self.config.model_path,
                    device=self.info.device if self.info else self.config.device,
                    keep=self.keep,
                    worker=child.pid if child else None,
                    config=msgspec.to_builtins(self.config),
                )
            )
        except OSError as error:
            logger.warning("engine.json cannot be written (%s): new clients will not find this engine", error.strerror)

    @property
    def state(self) -> str:
        if self.is_closing:
            return "closing"
        if self.supervisor.child is None:
            return "down"
        return "serving" if self.supervisor.is_serving else "starting"

    def _wait_for_clients(self, seconds: float) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._linger = self.loop.later(seconds, self._nobody_came)

    def _nobody_came(self) -> None:
        if not self.clients and not self.is_closing:
            logger.info("no client for %g s", self.keep)
            self.close(EngineNotRunning("The engine ended: no client was left."))

    def close(self, why: NbsglError) -> None:
        """Refuse new work, tell everybody, end the worker, and leave the loop: 4 s at most."""
        if self.is_closing:
            return
        self.is_closing = True
        self._record("closing")
        for client in list(self.clients.values()):
            self.room.drop_client(client.number)
            self._tell(client, wire.Lost(epoch=self.supervisor.epoch, error=errors.encode(why), is_final=True))
        self.loop.later(ABORT_S if self.clients else 0.0, lambda: self.supervisor.end(why, self.loop.stop))

    # ---- clients -----------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(256):
            try:
                identity = self.router.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            frames = []
            is_single = True
            while self.router.getsockopt(zmq.RCVMORE):
                frame = self.router.recv(zmq.NOBLOCK)
                if frames:
                    is_single = False  # read frame by frame and dropped, so that many frames take the memory of one
                else:
                    frames.append(frame)
            if identity in self._cut:
                continue
            if not is_single or not frames:
                self.counters["wire.dropped"] += 1
                continue
            message = self._decode(frames[0])
            if message is None:
                self._note_bad(identity)
            elif (client := self.clients.get(identity)) is not None:
                self._take(client, message)
            elif isinstance(message, wire.Hello):
                self._greet(identity, message)
            else:
                self.counters["wire.dropped"] += 1

    def _note_bad(self, identity: bytes) -> None:
        self.counters["wire.bad"] += 1
        now = self.loop.clock()
        if len(self._bad) > MAX_REMEMBERED_PEERS:
            self._bad.clear()
        times = self._bad.setdefault(identity, deque(maxlen=BAD_LIMIT))
        times.append(now)
        if len(times) == BAD_LIMIT and now - times[0] < BAD_PERIOD_S:
            logger.warning("a peer sent %d bad messages in %g s: it is cut", BAD_LIMIT, BAD_PERIOD_S)
            self._cut_peer(identity)

    def _cut_peer(self, identity: bytes) -> None:
        """Listen to it no more.  (A ROUTER cannot close one connection.)"""
        self._bad.pop(identity, None)
        self._cut[identity] = None
        if len(self._cut) > MAX_REMEMBERED_PEERS:
            del self._cut[next(iter(self._cut))]
        if (client := self.clients.get(identity)) is not None:
            self._drop(client, "cut")

    def _greet(self, identity: bytes, hello: wire.Hello) -> None:
        """Wrong token: silence.  Another protocol, too many clients, closing: an error.  Else a client."""
        if not hmac.compare_digest(hello.token, self.token):
            self.counters["clients.refused"] += 1
            self._cut_peer(identity)
            return
        error: NbsglError | None = None
        if hello.protocol != PROTOCOL_VERSION:
            error = VersionMismatch(
                engine=PROTOCOL_VERSION,
                client=hello.protocol,
                hint="End the engine with its own version, or wait until it has ended by itself.",
            )
        elif hello.key != self.config.key:
            error = UsageError(
                f"An engine named {self.config.name!r} runs with other settings.",
                name="name",
                value=self.config.name,
                hint="Use the same settings, stop it first, or give the new one another name.",
            )
        elif self.is_closing:
            error = EngineNotRunning("The engine is ending.")
        elif len(self.clients) >= MAX_CLIENTS:
            error = QueueFull(what="clients", n=len(self.clients), limit=MAX_CLIENTS)
        if error is not None:
            self.counters["clients.refused"] += 1
            self._send(identity, wire.encode(wire.Refused(error=errors.encode(error))))
            return
        client = Client(next(self._numbers), identity, hello)
        self.clients[identity] = self.by_number[client.number] = client
        client.watch = PidWatch(self.loop, hello.pid, lambda: self._drop(client, "its process ended"))
        self.keep = max(self.keep, hello.keep)
        if self._linger is not None:
            self._linger.cancel()
        logger.info("client %d is process %d", client.number, client.pid)
        serving = self._serving() if self.state == "serving" else None
        self._tell(
            client,
            wire.Welcome(
                pid=os.getpid(),
                version=nbsgl.__version__,
                state=self.state,
                epoch=self.supervisor.epoch,
                info=serving.info if serving else None,
                worker=serving.worker if serving else None,
            ),
        )
        if self.state == "starting" and self._phase is not None:
            self._tell(client, self._phase)

    def _drop(self, client: Client, why: str) -> None:
        """A client is gone: its requests end now; without any client the engine waits for `keep` seconds."""
        if self.clients.pop(client.identity, None) is None:
            return
        self.by_number.pop(client.number, None)
        if client.watch is not None:
            client.watch.close()
        logger.info("client %d left: %s", client.number, why)
        self.counters["clients.lost"] += why != "bye"
        self.room.drop_client(client.number)
        if not self.clients and not self.is_closing:
            self._wait_for_clients(self.keep)

    def _starter_gone(self) -> None:
        """The pipe from the client that started us: its end is that client's."""
        if os.read(0, 4096):
            return
        self.loop.unwatch(0)
        for client in [client for client in self.clients.values() if client.launch == self.launch.launch]:
            self._drop(client, "its pipe closed")
        if not self.clients:
            self._wait_for_clients(self.keep)

    def _probe(self) -> None:
        for client in list(self.clients.values()):
            self._tell(client, wire.Probe())
            self._deliver(client)

    def _take(self, client: Client, message: Any) -> None:
        match message:
            case wire.Submit():
                self._submit(client, message)
            case wire.Abort():
                self.room.abort(client.number, message.run, message.branches, message.by)
            case wire.CloseRun():
                client.outbox.forget(message.run)
                self.room.close_run(client.number, message.run)
            case wire.Ack():
                client.outbox.ack(message.seq)
                self._deliver(client)
            case wire.AskFront():
                self._answer(client, message)
            case wire.Bye():
                is_ending = len(self.clients) == 1 and self.keep <= 0
                self._tell(client, wire.Farewell(is_ending=is_ending))
                self._drop(client, "bye")
                if is_ending:
                    self.close(EngineNotRunning("The engine ended with its last client."))
            case wire.Hello():
                self.counters["wire.dropped"] += 1

    def _submit(self, client: Client, message: wire.Submit) -> None:
        if self.is_closing:
            return
        self.room.submit(client.number, message.run, message.nodes)
        self._start_if_down()

    def _start_if_down(self) -> None:
        error = self.supervisor.ensure()
        if error is not None:
            self.supervisor.fail_waiting(error)
            if not self.folder.is_owner(self.lock):
                self.close(error)  # without its folder it can start no worker; the next client starts anew

    # ---- to clients --------------------------------------------------------------------------------------------------

    def _send(self, identity: bytes, frame: bytes) -> bool:
        """False if the socket is full; `ConnectionError` if the peer is gone."""
        try:
            self.router.send_multipart([identity, frame], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH and identity in self.clients:
                self._drop(self.clients[identity], "its connection closed")
        return True

    def _tell(self, client: Client, message: wire.Message) -> None:
        """A control message: needs no credit, waits its turn if the socket is full."""
        if isinstance(message, wire.Probe) and client.controls:
            return
        client.controls.append(wire.encode(message))
        self._deliver(client)

    def _tell_all(self, message: wire.Message) -> None:
        for client in list(self.clients.values()):
            self._tell(client, message)

    def _deliver(self, client: Client) -> None:
        while client.controls:
            if not self._send(client.identity, client.controls[0]):
                return
            client.controls.popleft()
        for seq, run, events in client.outbox.take():
            client.controls.append(
                wire.encode(wire.Events(seq=seq, epoch=self.supervisor.epoch, run=run, events=events))
            )
        while client.controls and self._send(client.identity, client.controls[0]):
            client.controls.popleft()

    def _on_output(self, epoch: int, frames: list[bytes], events: list[EventsOf]) -> None:
        if frames:
            self.supervisor.send(epoch, frames)
        touched: dict[int, Client] = {}
        for number, run, news in events:
            client = self.by_number.get(number)
            if client is not None:
                merged = client.outbox.num_merged
                client.outbox.add(run, news)
                self.counters["wire.merged"] += client.outbox.num_merged - merged
                touched[number] = client
        for client in touched.values():
            self._deliver(client)

    # ---- the worker --------------------------------------------------------------------------------------------------

    def _on_phase(self, epoch: int, phase: str, progress: float | None, note: str) -> None:
        if phase == "spawn":
            self._record("starting")
        self._phase = wire.Starting(epoch=epoch, phase=phase, progress=progress, note=note)
        self._tell_all(self._phase)

    def _on_ready(self, epoch: int, ready: Ready) -> None:
        self.room.worker_ready(epoch, ready)

    def _on_updates(self, epoch: int, updates: list[Update]) -> None:
        self.room.updates(epoch, updates)

    def _on_serving(self, epoch: int, info: ModelInfo) -> None:
        if epoch != self.supervisor.epoch or self.supervisor.child is None:
            return
        self.info, self._phase = info, None
        self.supervisor.serve()
        self._record("serving")
        if (serving := self._serving()) is not None:
            self._tell_all(serving)

    def _serving(self) -> wire.Serving | None:
        child = self.supervisor.child
        if child is None or self.info is None:
            return None
        return wire.Serving(epoch=self.supervisor.epoch, worker=child.pid, info=self.info)

    def _on_texts_failed(self, epoch: int, error: NbsglError) -> None:
        if epoch == self.supervisor.epoch:
            self.supervisor.refuse(error)

    def _on_lost(self, epoch: int, error: NbsglError) -> None:
        if not self.is_closing:
            self.num_failures += 1
            self._record("down")
            self._tell_all(wire.Lost(epoch=epoch, error=errors.encode(error)))

    # ---- questions ---------------------------------------------------------------------------------------------------

    def _answer(self, client: Client, message: wire.AskFront) -> None:
        def then(value: Any, error: NbsglError | None = None) -> None:
            if client.identity not in self.clients:
                return
            data = errors.encode(error) if error is not None else None
            try:
                self._tell(client, wire.Answer(ask=message.ask, value=value, error=data))
            except RequestTooLarge as too_large:  # the tree of a large cache
                self._tell(client, wire.Answer(ask=message.ask, error=errors.encode(too_large)))

        known: dict[str, Callable[[], None]] = {
            "start": lambda: self._ask_start(client, then),
            "health": lambda: then(self.supervisor.is_healthy),
            "status": lambda: then(self._status()),
            "log": lambda: then(self._log(message.args.get("n", 50))),
            "snapshot": lambda: self._ask_snapshot(bool(message.args.get("tree")), then),
            "peek": lambda: self._ask_peek(message.args.get("prompts"), then),
            "flush": lambda: self.supervisor.ask("flush", {}, then),
            "restart": lambda: self._ask_restart(then),
            "stop": lambda: self._ask_stop(client, bool(message.args.get("force")), then),
        }
        if message.what in known:
            known[message.what]()
        else:
            then(None, UsageError(f"The engine knows no question {message.what!r}.", name="what", value=message.what))

    def _ask_start(self, client: Client, then: Callable[..., None]) -> None:
        error = self.supervisor.ensure()
        then(None, error) if error is not None else then(True)
        if self.state == "serving" and (serving := self._serving()) is not None:
            self._tell(client, serving)  # one that asks does not know

    def _ask_restart(self, then: Callable[..., None]) -> None:
        why = EngineDied(
            "The engine was restarted; the request is lost, the cache is empty.", process="worker", phase="restart"
        )

        def go_on() -> None:
            if self.is_closing:
                return
            self.supervisor.forgive()
            error = self.supervisor.ensure()
            then(None, error) if error is not None else then(True)

        # only when everybody has heard of the old worker's end: else that would pass for the new one's
        self.supervisor.end(why, lambda: self.room.after(lambda: self.loop.call(go_on)))

    def _ask_stop(self, client: Client, is_forced: bool, then: Callable[..., None]) -> None:
        others = sum(other.pid != client.pid for other in self.clients.values())
        if others and not is_forced:
            n = "1 other client is" if others == 1 else f"{others} other clients are"
            error = UsageError(
                f"{n} attached to this engine.",
                name="force",
                value=False,
                hint="Use stop(force=True): %sgl stop --force.",
            )
            then(None, error)
            return
        then(True)
        self.close(EngineNotRunning("The engine was stopped.", hint="The next engine of these settings starts anew."))

    def _status(self) -> dict[str, Any]:
        child = self.supervisor.child
        return {
            "state": self.state,
            "front": os.getpid(),
            "worker": child.pid if child else None,
            "epoch": self.supervisor.epoch,
            "phase": self.supervisor.phase,
            "health": self.supervisor.is_healthy,
            "clients": len(self.clients),
            "keep": self.keep,
            "uptime_s": self.loop.clock() - self.began_at,
            "folder": str(self.folder.path),
            "counters": self._counters(),
        }

    def _counters(self) -> dict[str, int]:
        return self.counters | {
            "restarts": self.supervisor.num_restarts,
            "deaths": self.supervisor.num_deaths,
            "clock.jumps": self.loop.num_jumps,
        }

    def _log(self, asked: Any) -> str:
        """The tail of both logs, each under its name."""
        num_lines = max(1, min(asked, MAX_LOG_LINES)) if isinstance(asked, int) else 50
        parts = [(path.name, log.tail(path, num_lines)) for path in (self.folder.front_log, self.folder.worker_log)]
        return "\n".join(f"== {name} ==\n{text}" for name, text in parts if text)

    def _ask_peek(self, asked: Any, then: Callable[..., None]) -> None:
        """Texts to tokens on the text thread, then to the worker: how many of them its tree holds."""
        try:
            prompts = msgspec.convert(asked, list[Prompt])
        except msgspec.ValidationError as error:
            then(None, UsageError(f"peek: {error}.", name="prompts"))
            return

        def encoded(found: list[list[int]], error: NbsglError | None) -> None:
            if error is not None:
                then(None, error)
                return
            ids = [pack_ids(each) for each in found]
            first = [data if prompt.is_first else b"" for data, prompt in zip(ids, prompts, strict=True)]
            self.supervisor.ask("peek", {"prompts": first}, lambda value, error: told(ids, value, error))

        def told(ids: list[bytes], cached: Any, error: NbsglError | None) -> None:
            if error is not None:
                then(None, error)
            else:
                then([{"ids": data, "cached": count} for data, count in zip(ids, cached, strict=True)])

        self.room.encode(prompts, lambda *answer: self.loop.call(encoded, *answer))

    def _ask_snapshot(self, with_tree: bool, then: Callable[..., None]) -> None:
        info = self.info
        if info is None:
            then(
                None,
                self.supervisor.last_error
                or EngineError("The engine is still starting.", hint="Wait for engine.info."),
            )
            return

        def answered(value: Any, error: NbsglError | None) -> None:
            data = value if isinstance(value, dict) else dict(_NO_WORKER)
            if error is not None and self.supervisor.is_serving:
                data["counters"] = {"snapshot.late": 1}
            counters = {**data.pop("counters", {}), **self._counters()}
            snapshot = {
                "time": time.time(),
                "uptime_s": self.loop.clock() - self.began_at,
                "info": msgspec.to_builtins(info),
                "epoch": self.supervisor.epoch,
                "health": self.supervisor.is_healthy,
                "clients": len(self.clients),
                "counters": counters,
                **data,
            }
            then(msgspec.to_builtins(msgspec.convert(snapshot, EngineSnapshot)))

        if self.supervisor.is_serving:
            self.supervisor.ask("snapshot", {"tree": with_tree}, answered)
        else:
            answered(None, None)


_NO_WORKER: dict[str, Any] = {
    "policy": "",
    **dict.fromkeys(
        ("slots_total", "slots_free", "slots_in_tree", "slots_owned", "running", "waiting", "parked", "steps")
        + ("prefill_tokens_computed", "prefill_tokens_cached", "decode_tokens"),
        0,
    ),
    "hit_rate": 0.0,
}


def _raise_file_limit() -> None:
    """A listening socket that cannot accept for want of a descriptor would spin."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if most == resource.RLIM_INFINITY else min(most, MANY_FILES)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def main() -> int:
    """Own the folder and serve; `TAKEN` if somebody else owns it already."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _raise_file_limit()
    sys.setswitchinterval(0.001)  # two threads hand over at every step: 5 ms would be a step's time
    folder = RuntimeFolder(Path(sys.argv[1]))
    folder.make()
    launch = msgspec.json.decode(read_line(), type=Launch)
    lock = folder.try_lock()
    if lock is None:
        return TAKEN
    folder.clear()
    log.log_to(folder.front_log, launch.config.log_level)
    front = Front(folder, lock, launch)
    signal.signal(
        signal.SIGTERM, lambda *_: front.loop.call(front.close, EngineNotRunning("The engine was terminated."))
    )
    front.run()
    return 0


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except Exception:
        logger.exception("the front cannot go on")
    logging.shutdown()
    os._exit(code)  # the text and spawner threads never end
