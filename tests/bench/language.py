"""What the language costs on a CPU: per gen against raw engine calls, and 10 000 rows against engines that do nothing.

python -m tests.bench.language [overhead] [rows] [--profile]

overhead  the embedded model: a program of 100 gens of one token, and the same nodes sent by hand; at once, and one by
          one (each value read before the next).  Bound: 1.15
rows      run_batch of 10 000 rows of one token: in this process (an engine that answers at once), and over the wire
          (front and a worker that answers at once).  Bounds: 1 000 rows/s, 300 MB of growth
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import pstats
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

import nbsgl as sgl
from nbsgl.engine.handle import Engine
from nbsgl.protocol import (
    AnyEvent,
    AnyNode,
    Close,
    Finish,
    Gen,
    GenDone,
    GenResult,
    Listener,
    ModelInfo,
    Root,
    SamplingParams,
    Text,
    pack_ids,
)
from tests.unit.fakes import FakeBackend

GENS, ROWS, ROUNDS = 100, 10_000, 9
TEXT = " The next station is"


# ---- an engine that does nothing -------------------------------------------------------------------------------------


class NoEngine:
    """Answers every gen on a thread of its own, one list of events per submission."""

    def __init__(self) -> None:
        self.info: ModelInfo = FakeBackend().info
        self.news: queue.SimpleQueue[tuple[Listener, list[AnyEvent]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while (told := self.news.get()) is not None:
            told[0](told[1])

    def open_run(self, listener: Listener) -> NoRun:
        return NoRun(self, listener)

    def close(self) -> None:
        self.news.put(None)


class NoRun:
    def __init__(self, engine: NoEngine, listener: Listener) -> None:
        self.engine, self.listener = engine, listener

    def submit(self, nodes: Sequence[AnyNode]) -> None:
        events: list[AnyEvent] = [_done(node) for node in nodes if isinstance(node, Gen)]
        if events:
            self.engine.news.put((self.listener, events))

    def abort(self, branches: Sequence[int] | None = None, by: str = "the caller") -> None:
        pass

    def close(self) -> None:
        pass


def _done(node: Gen) -> GenDone:
    finish = Finish(type="length", length=1)
    result = GenResult(
        text="x", ids=pack_ids([1]), finish=finish, prompt_tokens=1, cached_tokens=0, completion_tokens=1
    )
    return GenDone(branch=node.branch, slot=node.slot, results=[result])


# ---- overhead per gen ------------------------------------------------------------------------------------------------


@sgl.function
def at_once(s: Any) -> None:
    for i in range(GENS):
        s += TEXT
        s += sgl.gen(f"x{i}", max_tokens=1, temperature=0, ignore_eos=True)


@sgl.function
def one_by_one(s: Any) -> None:
    for i in range(GENS):
        s += TEXT
        s += sgl.gen(f"x{i}", max_tokens=1, temperature=0, ignore_eos=True)
        s[f"x{i}"]


def raw(engine: Engine, is_at_once: bool) -> None:
    """The same nodes without the language."""
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, seed=1, stop=engine.info.stop)
    news: queue.SimpleQueue[list[AnyEvent]] = queue.SimpleQueue()
    run = engine.open_run(news.put)
    steps: list[list[AnyNode]] = [
        [Text(branch=0, text=TEXT, parse_special=True), Gen(branch=0, slot=i + 1, params=params)] for i in range(GENS)
    ]
    waves = [[node for step in steps for node in step]] if is_at_once else steps
    waves[0].insert(0, Root(branch=0))
    for wave in waves:
        run.submit(wave)
        left = sum(isinstance(node, Gen) for node in wave)
        while left:
            left -= len(news.get(timeout=30))
    run.submit([Close(branch=0)])
    run.close()


def bench_overhead(profiler: cProfile.Profile | None) -> None:
    with tempfile.TemporaryDirectory(prefix="nb", dir="/tmp") as folder:
        os.environ["NBSGL_RUNTIME_DIR"] = folder
        with Engine("embedded", keep=0, device="cpu") as engine:
            _ = engine.info
            for program, name in ((at_once, "at once"), (one_by_one, "one by one")):
                _bench_program(engine, program, name, profiler)
            engine.stop(force=True)


def _bench_program(engine: Engine, program: Any, name: str, profiler: cProfile.Profile | None) -> None:
    pairs = []
    for _ in range(ROUNDS):  # alternating: what else the machine does hits both
        engine.flush_cache()
        by_hand = _timed(lambda: raw(engine, program is at_once))
        engine.flush_cache()
        with_language = _timed(lambda: program.run(backend=engine).sync(), profiler)
        pairs.append((by_hand, with_language))
    by_hand, with_language = (statistics.median(times) for times in zip(*pairs, strict=True))
    _say(
        "overhead",
        way=name,
        raw_ms=by_hand * 1e3,
        language_ms=with_language * 1e3,
        ratio=with_language / by_hand,
        us_per_gen=(with_language - by_hand) / GENS * 1e6,
    )


def _timed(call: Callable[[], Any], profiler: cProfile.Profile | None = None) -> float:
    if profiler is not None:
        profiler.enable()
    begin = time.perf_counter()
    call()
    took = time.perf_counter() - begin
    if profiler is not None:
        profiler.disable()
    return took


# ---- rows ------------------------------------------------------------------------------------------------------------


@sgl.function
def row(s: Any, question: str) -> None:
    s += "Q: " + question + "\nA:"
    s += sgl.gen("a", max_tokens=1, temperature=0, ignore_eos=True)


def bench_rows(profiler: cProfile.Profile | None) -> None:
    with tempfile.TemporaryDirectory(prefix="nb", dir="/tmp") as folder:
        os.environ["NBSGL_RUNTIME_DIR"] = folder
        with Engine("embedded", keep=0, device="cpu", _worker_module="tests.bench.at_once_worker") as engine:
            _ = engine.info
            _bench_rows("over the wire", engine, profiler)
            engine.stop(force=True)
    nothing = NoEngine()
    _bench_rows("in process", nothing, profiler)
    nothing.close()


def _bench_rows(way: str, engine: Any, profiler: cProfile.Profile | None) -> None:
    rows = [{"question": f"What is the number {i}?"} for i in range(ROWS)]
    row.run_batch(rows[:200], backend=engine)
    gc.collect()
    this = psutil.Process()
    before, cpu = this.memory_info().rss, time.process_time()
    states: list[Any] = []
    took = _timed(lambda: states.extend(row.run_batch(rows, backend=engine)), profiler)
    cpu = time.process_time() - cpu
    grown = this.memory_info().rss - before
    assert len({state["a"] for state in states}) == 1
    _say("rows", way=way, rows_per_s=ROWS / took, cpu_us_per_row=cpu / ROWS * 1e6, grown_mb=grown / 2**20)


def _say(what: str, **facts: Any) -> None:
    print(json.dumps({"bench": what} | {k: round(v, 3) if isinstance(v, float) else v for k, v in facts.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help="overhead, rows (default: both)")
    parser.add_argument("--profile", action="store_true", help="and where the calling thread's time goes")
    args = parser.parse_args()
    for name, bench in (("overhead", bench_overhead), ("rows", bench_rows)):
        if not args.which or name in args.which:
            profiler = cProfile.Profile() if args.profile else None
            bench(profiler)
            if profiler is not None:
                pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
