"""The front's second thread: tokenizer and program graphs.  Encoding a long text never holds up a socket."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import queue
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbsgl
from nbsgl import errors
from nbsgl.engine import wire
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.folders import local_folder, tokenizer_folder
from nbsgl.engine.graph import GraphRunner
from nbsgl.engine.segments import Ready, ToWorker, Update
from nbsgl.engine.templates import RoleFormats, role_formats
from nbsgl.engine.text import TextCodec
from nbsgl.errors import EngineDied, EngineError, EngineHung, EngineStartFailed, NbsglError
from nbsgl.protocol import AnyEvent, AnyNode, ModelInfo, Prompt

logger = logging.getLogger("nbsgl")

BROKEN = 70  # exit code when this thread cannot go on: a front without it would answer nobody

EventsOf = tuple[int, int, list[AnyEvent]]  # client, run, events


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the room tells the front; each is called on the room's thread."""

    output: Callable[[int, list[bytes], list[EventsOf]], None]  # epoch, frames for the worker, events for clients
    ready: Callable[[int, ModelInfo], None]
    failed: Callable[[int, NbsglError], None]  # tokenizer or template cannot be used
    lost: Callable[[int, NbsglError], None]


class TextRoom:
    """All public methods may be called from any thread; they leave an order in the queue.

    `epoch` is the number of the worker that the frames are for.  Before the first worker is ready submissions wait
    here; later ones are carried out at once, and their frames wait in the supervisor.
    """

    def __init__(self, config: EngineConfig, outputs: Outputs) -> None:
        self.config, self._out = config, outputs
        self.epoch = 1
        self._graph: GraphRunner | None = None
        self._held: list[tuple[int, int, list[AnyNode]]] = []
        self._never: dict[tuple[int, int], NbsglError] = {}  # runs that began before a start that failed
        self._frames: list[bytes] = []
        self._events: list[EventsOf] = []
        self._orders: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        self._texts_ahead: tuple[Path, TextCodec, RoleFormats] | None = None
        self._orders.put((self._read_ahead, ()))
        self.thread = threading.Thread(target=self._run, name="nbsgl-text", daemon=True)

    # ---- orders ------------------------------------------------------------------------------------------------------

    def submit(self, client: int, run: int, nodes: list[AnyNode]) -> None:
        self._orders.put((self._submit, (client, run, nodes)))

    def abort(self, client: int, run: int, branches: list[int] | None, by: str) -> None:
        self._orders.put((self._abort, (client, run, branches, by)))

    def close_run(self, client: int, run: int) -> None:
        self._orders.put((self._close_run, (client, run)))

    def drop_client(self, client: int) -> None:
        self._orders.put((self._drop_client, (client,)))

    def updates(self, epoch: int, updates: list[Update]) -> None:
        self._orders.put((self._updates, (epoch, updates)))

    def worker_ready(self, epoch: int, ready: Ready) -> None:
        self._orders.put((self._ready, (epoch, ready)))

    def worker_died(self, epoch: int, error: NbsglError) -> None:
        """Fail what is under way; `lost` then tells how much that was."""
        self._orders.put((self._died, (epoch, error)))

    def encode(self, prompts: Sequence[Prompt], then: Callable[[list[list[int]], NbsglError | None], None]) -> None:
        """Call `then`, on this thread, with the token ids of each prompt, or with the error."""
        self._orders.put((self._encode, (prompts, then)))

    def after(self, then: Callable[[], None]) -> None:
        """Call `then`, on this thread, when all orders given so far are carried out."""
        self._orders.put((then, ()))

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                function, args = self._orders.get()
                function(*args)
                self._flush()
        except BaseException:
            logger.exception("the text thread cannot go on")
            os._exit(BROKEN)

    def _flush(self) -> None:
        if self._frames or self._events:
            frames, self._frames = self._frames, []
            events, self._events = self._events, []
            self._out.output(self.epoch, list(wire.joined(frames)), events)

    def _send(self, message: ToWorker) -> None:
        self._frames.append(wire.encode(message))

    def _emit(self, client: Any, run: int, events: list[AnyEvent]) -> None:
        self._events.append((client, run, events))

    def _submit(self, client: int, run: int, nodes: list[AnyNode]) -> None:
        if (error := self._never.get((client, run))) is not None:
            self._emit(client, run, wire.failures(nodes, error))
        elif self._graph is None:
            self._held.append((client, run, nodes))
        else:
            self._carry_out(self._graph, client, run, nodes)

    def _carry_out(self, graph: GraphRunner, client: int, run: int, nodes: list[AnyNode]) -> None:
        try:
            graph.submit(client, run, nodes)
        except Exception as error:  # a mistake of ours ends one run, not the engine
            logger.exception("a submission of run %d failed", run)
            told = len(self._events)
            graph.abort(client, run, None, by="a fault of the engine (see its log)")  # what was submitted before, too
            graph.close_run(client, run)
            failed = {event.branch for _, number, events in self._events[told:] if number == run for event in events}
            self._never[client, run] = said = errors.decode(errors.encode(error))
            self._emit(client, run, wire.failures([node for node in nodes if node.branch not in failed], said))

    def _encode(self, prompts: Sequence[Prompt], then: Callable[[list[list[int]], NbsglError | None], None]) -> None:
        codec = self._graph.codec if self._graph is not None else None
        if codec is None:
            then([], EngineError("The engine has no tokenizer, or is still starting.", hint="Wait for engine.info."))
            return
        try:
            then([codec.encode_run(prompt.pieces, is_first=prompt.is_first) for prompt in prompts], None)
        except NbsglError as error:
            then([], error)

    def _abort(self, client: int, run: int, branches: list[int] | None, by: str) -> None:
        if self._graph is not None:
            self._graph.abort(client, run, branches, by)
            return
        error = errors.Aborted(by=by)
        for held in [held for held in self._held if held[:2] == (client, run)]:
            gone = [node for node in held[2] if branches is None or node.branch in branches]
            self._held.remove(held)
            if kept := [node for node in held[2] if node not in gone]:
                self._held.append((client, run, kept))
            self._emit(client, run, wire.failures(gone, error))

    def _close_run(self, client: int, run: int) -> None:
        self._never.pop((client, run), None)
        self._held = [held for held in self._held if held[:2] != (client, run)]
        if self._graph is not None:
            self._graph.close_run(client, run)

    def _drop_client(self, client: int) -> None:
        self._never = {key: error for key, error in self._never.items() if key[0] != client}
        self._held = [held for held in self._held if held[0] != client]
        if self._graph is not None:
            self._graph.drop_client(client)

    def _updates(self, epoch: int, updates: list[Update]) -> None:
        if epoch == self.epoch and self._graph is not None:  # those of a worker that is gone are dropped
            self._graph.on_updates(updates)

    def _read_ahead(self) -> None:
        """While the worker starts, read the tokenizer and roles of a local folder: an 8B's take 1.2 s.

        What is wrong with them is said when the worker is ready, after what is wrong with the model.
        """
        importlib.import_module("numpy")  # 0.1 s before the first token ids could be checked
        folder = local_folder(self.config.tokenizer_path or self.config.model_path)
        if folder is None or self.config.skip_tokenizer_init:
            return
        try:
            self._texts_ahead = folder, TextCodec.load(folder), role_formats(folder, self.config.chat_template)
        except Exception:
            logger.debug("the texts cannot be read ahead", exc_info=True)

    def _ready(self, epoch: int, ready: Ready) -> None:
        if epoch != self.epoch:
            return
        try:
            info, codec = self._read_texts(ready)
        except NbsglError as error:
            self._out.failed(epoch, error)
            return
        except Exception as error:  # a file that is broken in a way nobody foresaw
            logger.exception("the tokenizer or the chat template cannot be read")
            self._out.failed(
                epoch, EngineStartFailed(stage="texts", reason=f"{type(error).__name__} in {ready.folder}")
            )
            return
        if self._graph is None:
            self._graph = GraphRunner(
                codec,
                send=self._send,
                emit=self._emit,
                context_length=ready.context_length,
                vocab_size=ready.vocab_size,
                rng=None if self.config.random_seed is None else random.Random(self.config.random_seed),
            )
        gc.freeze()  # what is there now stays: walking it takes 5 ms, in the middle of a batch
        self._out.ready(epoch, info)
        held, self._held = self._held, []
        for client, run, nodes in held:
            self._carry_out(self._graph, client, run, nodes)

    def _read_texts(self, ready: Ready) -> tuple[ModelInfo, TextCodec | None]:
        """Tokenizer and roles (once), and all a client has to know of the model."""
        codec = self._graph.codec if self._graph else None
        formats = None
        ahead, self._texts_ahead = self._texts_ahead, None  # for the first worker only: files may change
        if not self.config.skip_tokenizer_init:
            folder = tokenizer_folder(self.config, Path(ready.folder))
            if codec is None and ahead is not None and ahead[0] == folder:
                _, codec, formats = ahead
            else:
                codec = codec or TextCodec.load(folder)
                formats = role_formats(folder, self.config.chat_template)
            if formats.writes_bos and not codec.start_ids and codec.bos_id is not None:
                codec.start_ids = (codec.bos_id,)  # a BOS that stands only in the chat template
        info = ModelInfo(
            model=self.config.model_path,
            context_length=ready.context_length,
            vocab_size=ready.vocab_size,
            roles=formats.roles if formats else {},
            stop=formats.stop if formats else (),
            default_system=formats.default_system if formats else None,
            folds_system=formats is not None and formats.folds_system,
            template=formats.source if formats else "none",
            thinking=formats.thinking if formats else None,
            device=ready.device,
            dtype=ready.dtype,
            device_reason=ready.device_reason,
            attention=ready.attention,
            num_parameters=ready.num_parameters,
            versions={"nbsgl": nbsgl.__version__},
            start_s=ready.phases,
        )
        return info, codec

    def _died(self, epoch: int, error: NbsglError) -> None:
        lost = len({(client, run) for client, run, _ in self._held})
        if self._graph is not None:
            lost += self._graph.num_unfinished
        if isinstance(error, EngineDied):
            values = {name: getattr(error, name) for name in error.fields} | {"lost": lost}
            message = error.message if isinstance(error, EngineHung) else ""  # else made anew, with the number
            error = type(error)(message, **values, hint=error.hint)
        if self._graph is not None:
            self._graph.worker_died(error)
        held, self._held = self._held, []
        for client, run, nodes in held:
            self._never[client, run] = error
            self._emit(client, run, wire.failures(nodes, error))
        self._frames.clear()
        self.epoch = epoch + 1
        self._out.lost(epoch, error)
