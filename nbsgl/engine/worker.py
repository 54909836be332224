"""The engine's GPU process: loads the model, then takes segments in, runs steps, and sends updates out.

python -m nbsgl.engine.worker FOLDER PARENT      (its first line of standard input is a `WorkerLaunch`)
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import zmq

from nbsgl import errors
from nbsgl.engine import cuda_context, log, spawn, wire
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.folders import local_folder
from nbsgl.engine.readahead import WeightsAhead
from nbsgl.engine.runtime import RuntimeFolder
from nbsgl.engine.segments import (
    Ask,
    FromWorker,
    Phase,
    Ready,
    StartFailed,
    Stop,
    ToWorker,
    Update,
    Updates,
    WorkerAnswer,
)
from nbsgl.engine.supervisor import GPU_FAULT, WorkerLaunch
from nbsgl.engine.timeline import Timeline
from nbsgl.errors import NbsglError, ParameterError
from nbsgl.protocol import unpack_ids

logger = logging.getLogger("nbsgl")

BEAT_S = 0.25  # an empty update at least this often: the step counter that the front watches
IDLE_S = 0.5
CALM_S = 0.5  # idle for so long: time for the census, and for what the runner prepares ahead
SWEEP_S = 60.0
PROGRESS_S = 0.2
START_FAILED = 5  # exit code after StartFailed


class Link:
    """The socket to the front.  Sending never blocks: the front always reads."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.linger = 200
        self._socket.connect(address)
        self._decode = wire.Decoder(list[ToWorker])
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_r, zmq.POLLIN)

    def send(self, message: FromWorker) -> None:
        self._socket.send(msgspec.msgpack.encode(message))

    def receive(self, wait_s: float) -> list[Any]:
        """All messages that are there; waits for the first one, or for `wake`, for at most `wait_s`."""
        if wait_s:
            if not self._poller.poll(wait_s * 1000):
                return []
            with contextlib.suppress(BlockingIOError):
                self._wake_r.recv(4096)
        messages: list[Any] = []
        while True:
            try:
                messages += self._decode(self._socket.recv(zmq.NOBLOCK)) or ()
            except zmq.Again:
                return messages

    def wake(self) -> None:
        """End the wait of `receive`, now or the next one; from any thread."""
        with contextlib.suppress(BlockingIOError):
            self._wake_w.send(b"\0")

    def close(self) -> None:
        self._context.destroy(linger=200)


class Worker:
    """The loop: receive, step, report."""

    def __init__(
        self,
        link: Link,
        scheduler: Any,
        token_text: Callable[[list[int]], str],
        rotate: Callable[[], None],
        grammars: Any = None,
    ) -> None:
        self.link, self.scheduler, self._cold_grammars = link, scheduler, grammars
        self._token_text, self._rotate = token_text, rotate
        self._is_stopping = False
        self._last_sent = self._last_swept = 0.0
        self._idle_since: float | None = None
        self._is_clean = True  # nothing ran since the last census
        self._is_prepared = False  # all that the runner prepares ahead is there

    def emit(self, updates: list[Update]) -> None:
        """All news of one step."""
        self.link.send(Updates(step=self.scheduler.stats.steps, updates=updates))
        self._last_sent = time.monotonic()

    def serve(self) -> None:
        """Run until told to stop."""
        is_busy = prepares = False
        while not self._is_stopping:
            self._take_all(0.0 if is_busy or prepares else IDLE_S)
            while not self._is_stopping and (wait_s := self.scheduler.patience()) > 0:
                self._take_all(min(wait_s, IDLE_S))
            if is_busy := self.scheduler.has_work or self.scheduler.awaits_grammars:
                self._is_clean, self._idle_since = False, None
                is_busy = self.scheduler.step()
            now = time.monotonic()
            self._beat(now)
            prepares = False
            if not is_busy:
                prepares = self._use_idle_time(now)
            elif now - self._last_swept >= SWEEP_S:
                self._sweep(now)

    def _take_all(self, wait_s: float) -> None:
        for message in self.link.receive(wait_s):
            self._take(message)

    def _beat(self, now: float) -> None:
        if now - self._last_sent >= BEAT_S:
            self.link.send(Updates(step=self.scheduler.stats.steps, updates=[]))
            self._last_sent = now

    def _use_idle_time(self, now: float) -> bool:
        """What would hold up a step: when nothing came for a while.  True if there is more to prepare at once."""
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < CALM_S:
            return False
        if not self._is_clean:
            self._is_clean = True
            self._sweep(now)
            self._rotate()
            if findings := self.scheduler.census():
                logger.error("the pool's census found %d faults: %s", len(findings), "; ".join(findings[:8]))
                self.scheduler.repair()
        self._is_prepared = not self.scheduler.runner.prepare_next()
        if self._is_prepared and self._cold_grammars is not None:
            self._cold_grammars.warm_up()
            self._cold_grammars = None
        return not self._is_prepared

    def _sweep(self, now: float) -> None:
        """Collect cycles: Python's own times would fall into a step (60-100 ms with some hundred sequences)."""
        self._last_swept = now
        gc.collect()

    def _take(self, message: Any) -> None:
        match message:
            case Ask():
                self._answer(message)
            case Stop():
                self._is_stopping = True
            case _:
                self.scheduler.take(message)

    def _answer(self, ask: Ask) -> None:
        try:
            value = self._value(ask)
        except NbsglError as error:
            self.link.send(WorkerAnswer(ask=ask.ask, error=errors.encode(error)))
        else:
            self.link.send(WorkerAnswer(ask=ask.ask, value=value))

    def _value(self, ask: Ask) -> Any:
        if ask.what == "snapshot":
            value = self.scheduler.snapshot()
            value["counters"]["prepared"] = int(self._is_prepared)
            if ask.args.get("tree"):
                value["tree"] = msgspec.to_builtins(self.scheduler.tree_nodes(self._token_text))
            return value
        if ask.what == "peek":
            tree = self.scheduler.tree
            return [tree.peek(unpack_ids(ids), len(ids) // 4)[1] for ids in ask.args["prompts"]]
        if ask.what == "flush":
            self.scheduler.flush_cache()
            return not self.scheduler.limits.disable_radix_cache
        raise ParameterError(name="what", value=ask.what, allowed="snapshot | peek | flush")


def start(config: EngineConfig, link: Link, rotate: Callable[[], None], log_path: Path) -> Worker:
    """Load the model in phases, tell the front what it is, and make the loop."""
    timeline = Timeline()
    link.send(Phase(phase="load", note="importing torch"))
    folder = local_folder(config.model_path)
    ahead = WeightsAhead(folder.glob("*.safetensors") if folder and config.load_format != "dummy" else ())
    cuda_context.begin(config.device)
    from nbsgl.engine.loader import load
    from nbsgl.engine.scheduler import Limits, Scheduler

    gc.freeze()  # modules stay: walking them once takes 0.1 s
    timeline.mark("importing torch")
    ahead.stop()
    with ThreadPoolExecutor(1, "nbsgl-vocab") as background:  # while the weights come, which need little of Python
        early = background.submit(_texts, config, folder) if folder else None
        model = load(config, progress=_progress_to(link), mark=timeline.mark)
        link.send(Phase(phase="warmup"))
        vocab, encode = early.result() if early else _texts(config, model.folder)
    timeline.mark("vocabulary")
    limits = Limits.of(
        config,
        model.num_slots,
        max_running=model.max_running,
        token_budget=model.chunked_prefill_size,
        overlap=model.device.startswith("cuda"),
    )
    eos_ids = sorted({*model.eos_ids, *(vocab.eos_ids if vocab else ())})
    grammars = _grammars(vocab, link, log_path)
    scheduler = Scheduler(
        limits,
        model.runner,
        eos_ids=eos_ids,
        vocab_bytes=_padded(vocab.tokens if vocab else (), model.vocab_size),
        compile_grammar=_compiler(grammars),
        context_length=model.context_length,
        emit=lambda updates: worker.emit(updates),
        encode=encode,
    )
    worker = Worker(link, scheduler, _token_text(vocab), rotate, grammars)
    timeline.mark("scheduler")
    total = sum(timeline.seconds.values())
    link.send(
        Ready(
            context_length=model.context_length,
            vocab_size=model.vocab_size,
            num_slots=model.num_slots,
            device=model.device,
            device_reason=model.device_reason,
            dtype=model.dtype,
            num_parameters=model.num_parameters,
            eos_ids=eos_ids,
            load_s=total,
            folder=str(model.folder),
            attention=model.attention,
            phases=timeline.seconds,
        )
    )
    parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in timeline.seconds.items())
    logger.info("ready after %.2f s (%s): %d slots on %s", total, parts, model.num_slots, model.device)
    return worker


def _progress_to(link: Link) -> Callable[[float, str], None]:
    """Sends on what a load is at: each kind of work once, then every PROGRESS_S."""
    said, kind = time.monotonic(), ""

    def progress(fraction: float, note: str) -> None:
        nonlocal said, kind
        now, now_kind = time.monotonic(), note.partition(":")[0]
        if now_kind != kind or now - said >= PROGRESS_S:
            said, kind = now, now_kind
            link.send(Phase(phase="load", progress=fraction, note=note))

    return progress


def _texts(config: EngineConfig, model_folder: Path) -> tuple[Any, Any]:
    """The tokens' bytes, for stop strings and grammars, and how forced text is spelt; None without a tokenizer."""
    if config.skip_tokenizer_init:
        return None, None
    from nbsgl.engine.folders import tokenizer_folder
    from nbsgl.engine.grammar.vocab import TokenVocab
    from nbsgl.engine.text import PlainEncoder
    from nbsgl.engine.tokenizer_files import TokenizerFiles

    files = TokenizerFiles.load(tokenizer_folder(config, model_folder))
    return TokenVocab.of_files(files), PlainEncoder(files)


def _padded(tokens: Sequence[bytes | None], vocab_size: int) -> list[bytes | None]:
    """Models have more rows than their tokenizer has tokens, to make them a round number."""
    return [*tokens, *[None] * (vocab_size - len(tokens))]


def _grammars(vocab: Any, link: Link, log_path: Path) -> Any:
    """The cache of compiled grammars, which wakes the loop when one is there; None without a tokenizer."""
    if vocab is None:
        return None
    from nbsgl.engine.grammar.cache import GrammarCache

    return GrammarCache(vocab, notify=link.wake, log=log_path)


def _compiler(grammars: Any) -> Callable[[Any], Any]:
    def request(spec: Any) -> Any:
        if grammars is None:
            raise ParameterError(name=spec.kind, value="a grammar", allowed="engines with a tokenizer")
        return grammars.request(spec)

    return request


def _token_text(vocab: Any) -> Callable[[list[int]], str]:
    def text_of(ids: list[int]) -> str:
        if vocab is None:
            return " ".join(map(str, ids))
        return vocab.shown(ids)

    return text_of


def set_up(argv: list[str]) -> tuple[WorkerLaunch, log.LogFile]:
    """What every worker does before anything else: die with its parent, shut out the terminal, open its log."""
    spawn.tie_to_parent(int(argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    launch = msgspec.json.decode(spawn.read_line(), type=WorkerLaunch)
    spawn.die_at_eof()
    handler = log.log_to(RuntimeFolder(Path(argv[1])).worker_log, launch.config.log_level)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    return launch, handler


def main() -> int:
    """Serve until told to stop; `START_FAILED` if the model cannot be loaded, `GPU_FAULT` if the device is lost."""
    gc.disable()  # an eighth of the time that torch's import takes; later see `Worker._sweep`
    launch, handler = set_up(sys.argv)
    link = Link(launch.socket)
    try:
        worker = start(launch.config, link, handler.rotate_if_full, RuntimeFolder(Path(sys.argv[1])).worker_log)
    except Exception as error:  # whatever it is, the front has to hear of it
        logger.exception("the worker could not start")
        link.send(StartFailed(stage="load", error=errors.encode(error)))
        link.close()
        return START_FAILED
    gc.collect()
    gc.freeze()  # what is there now stays: do not walk it again
    try:
        worker.serve()
    except Exception as error:
        logger.exception("the worker cannot go on")
        return GPU_FAULT if _is_gpu_fault(error) else 1
    link.close()
    return 0


def _is_gpu_fault(error: Exception) -> bool:
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)
