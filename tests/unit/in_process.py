"""The engine without processes: codec, graph, scheduler and runner in one thread.  A `Backend` like the real one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nbsgl.engine import grammar, loader
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.graph import GraphRunner
from nbsgl.engine.scheduler import Limits, Scheduler
from nbsgl.engine.templates import role_formats
from nbsgl.engine.text import PlainEncoder, TextCodec
from nbsgl.protocol import AnyNode, EngineSnapshot, Listener, ModelInfo


class InProcessRun:
    def __init__(self, engine: InProcessEngine, number: int) -> None:
        self.engine, self.number = engine, number

    def submit(self, nodes: Sequence[AnyNode]) -> None:
        nodes = list(nodes)
        self.engine.submissions.append(nodes)
        self.engine.call(lambda: self.engine.graph.submit("test", self.number, nodes))

    def abort(self, branches: Sequence[int] | None = None, by: str = "the caller") -> None:
        self.engine.call(lambda: self.engine.graph.abort("test", self.number, branches, by))

    def close(self) -> None:
        self.engine.call(lambda: self.engine.graph.close_run("test", self.number))


class InProcessEngine:
    """`strict` runs the census after every step.  `submissions` collects what programs sent."""

    def __init__(self, model_path: str = "embedded", strict: bool = True, limits: dict[str, Any] | None = None) -> None:
        self.model = loader.load(EngineConfig.of(model_path=model_path, device="cpu", num_slots=8192))
        folder = Path(self.model.folder)
        self.codec = TextCodec.load(folder)
        self.scheduler = self.make_scheduler(strict, limits or {})
        self.graph = GraphRunner(
            self.codec,
            send=self.scheduler.take,
            emit=lambda client, run, events: self._listeners.get(run, lambda events: None)(events),
            context_length=self.model.context_length,
            vocab_size=self.model.vocab_size,
        )
        roles = role_formats(folder)
        self._info = ModelInfo(
            model=model_path,
            context_length=self.model.context_length,
            vocab_size=self.model.vocab_size,
            roles=roles.roles,
            stop=roles.stop,
            default_system=roles.default_system,
            folds_system=roles.folds_system,
        )
        self._listeners: dict[int, Listener] = {}
        self.submissions: list[list[AnyNode]] = []
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def make_scheduler(self, strict: bool, limits: dict[str, Any]) -> Scheduler:
        given = {"num_slots": self.model.num_slots, "max_running": 32, "token_budget": 256} | limits
        return Scheduler(
            Limits(**given),
            self.model.runner,
            eos_ids=self.model.eos_ids,
            vocab_bytes=self.codec.vocab.tokens,
            compile_grammar=partial(grammar.compile, vocab=self.codec.vocab),
            context_length=self.model.context_length,
            emit=lambda updates: self.graph.on_updates(updates),
            encode=PlainEncoder(self.codec.files),
            strict=strict,
        )

    def call(self, what: Callable[[], None] | None) -> None:
        self._calls.put(what)

    def _loop(self) -> None:
        while True:
            try:
                what = self._calls.get(block=not self.scheduler.has_work)
                if what is None:
                    return
                what()
            except queue.Empty:
                self.scheduler.step()

    # ---- Backend

    @property
    def info(self) -> ModelInfo:
        return self._info

    def open_run(self, listener: Listener) -> InProcessRun:
        number = len(self._listeners)
        self._listeners[number] = listener
        return InProcessRun(self, number)

    def snapshot(self, *, tree: bool = False) -> EngineSnapshot:
        raise RuntimeError("an engine without processes has no snapshot; look at its scheduler")

    def flush_cache(self) -> bool:
        done = threading.Event()

        def flush() -> None:
            self.scheduler.flush_cache()
            done.set()

        self.call(flush)
        return done.wait(10)

    def close(self) -> None:
        self.call(None)
        self._thread.join(10)
