"""What the host costs: the scheduler by batch, and the whole path from `generate` to the first step and back.

python -m tests.bench.host_path [scheduler] [parts] [path] [--shape NAME] [--profile ROWS | PART]

scheduler  one step of decoding rows with a runner that does nothing: us, median and 99th percentile, and admission
parts      the same way in one process, without sockets: processor ms of each part of it (admit, settle: of the longest
           steps with and without waiting sequences)
path       kernel, front and worker as processes, steps of a given length: ms from the call to the first step and from
           the last step's end to the answer, (rows, tokens) of the first steps, and processor ms of each process a call
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import gc
import itertools
import json
import os
import pstats
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nbsgl.engine import wire
from nbsgl.engine.generate import requests
from nbsgl.engine.graph import GraphRunner
from nbsgl.engine.handle import Engine
from nbsgl.engine.scheduler import Scheduler
from nbsgl.engine.segments import Extend, Forced, FromWorker, Open, Sampled, ToWorker, Update, Updates
from nbsgl.protocol import AnyEvent, SamplingParams, pack_ids
from tests.bench.instant_worker import CONTEXT, VOCAB, InstantRunner, make_scheduler

BATCHES = (1, 64, 256, 512)
STEPS = 300


@dataclass(frozen=True)
class Shape:
    """Calls one after the other: prompts of `shared` tokens that are the same and `own` that are not.

    With `grown` the next call's prompts are the last ones with their answers and so many new tokens.
    """

    name: str
    num: int
    own: int
    shared: int = 0
    grown: int = 0
    num_rounds: int = 3
    tokens_out: int = 64
    stream: bool = False

    def rounds(self) -> Iterator[list[list[int]]]:
        prompts: list[list[int]] = []
        for i in range(self.num_rounds):
            draw = random.Random(i)
            if not i or not self.grown:
                shared = [draw.randrange(VOCAB) for _ in range(self.shared)]
                prompts = [shared + [draw.randrange(VOCAB) for _ in range(self.own)] for _ in range(self.num)]
            else:
                for prompt in prompts:
                    prompt += [draw.randrange(VOCAB) for _ in range(self.grown)]
            yield prompts


SHAPES = (
    Shape("chat", 64, 440, grown=130, num_rounds=6),
    Shape("many", 256, 600),
    Shape("prefix", 512, 64, shared=2048),
    Shape("long", 64, 4096),
    Shape("one", 1, 600, num_rounds=9),
    Shape("stream", 256, 600, stream=True),
)


def decoding(num_rows: int, *, stream: bool, max_tokens: int = 4096, prompt: int = 32) -> Scheduler:
    """A scheduler whose rows all decode."""
    scheduler = make_scheduler(_ignore, InstantRunner(512))
    for seq in range(num_rows):
        submit(scheduler, seq, [seq + 100] * prompt, max_tokens, stream)
    while any(seq.run is None or not seq.num_drawn for seq in scheduler.seqs.values()):
        scheduler.step()
    return scheduler


def _ignore(updates: list[Update]) -> None:
    pass


def submit(scheduler: Scheduler, seq: int, ids: list[int], max_tokens: int, stream: bool) -> None:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.6, ignore_eos=True, seed=seq)
    scheduler.take(Open(seq=seq))
    segments = [Forced(ids=pack_ids(ids)), Sampled(params=params, stream=stream)]
    scheduler.take(Extend(seq=seq, first=0, segments=segments))


def time_steps(scheduler: Scheduler, steps: int = STEPS) -> list[float]:
    """Processor time of each step, us."""
    took = []
    for _ in range(steps):
        begin = time.thread_time()
        scheduler.step()
        took.append((time.thread_time() - begin) * 1e6)
    return sorted(took)


def bench_scheduler() -> None:
    gc.disable()  # as in the worker
    for stream in (False, True):
        for rows in BATCHES:
            took = time_steps(decoding(rows, stream=stream))
            _say(
                "decode",
                rows=rows,
                stream=stream,
                us=_at(took, 0.5),
                p99_us=_at(took, 0.99),
                us_per_row=_at(took, 0.5) / rows,
            )
    for num, length in ((256, 600), (512, 2112)):
        scheduler = make_scheduler(_ignore, InstantRunner(512))
        begin = time.perf_counter()
        for seq in range(num):
            submit(scheduler, seq, [seq % 16] * (length - 64) + [seq] * 64, 32, False)
        submitted = time.perf_counter()
        took = []
        while scheduler.waiting:
            at = time.perf_counter()
            scheduler.step()
            took.append((time.perf_counter() - at) * 1e3)
        _say(
            "admission",
            prompts=num,
            tokens=length,
            take_ms=(submitted - begin) * 1e3,
            first_step_ms=took[0],
            most_ms=max(took),
            mean_ms=statistics.mean(took),
            steps=len(took),
        )


def profile(rows: int, stream: bool) -> None:
    scheduler = decoding(rows, stream=stream)
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(STEPS):
        scheduler.step()
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(22)


class Parts:
    """A call's way in one process: each part takes the one before's frames."""

    NAMES = ("call", "front", "worker", "first", "admit", "settle", "update", "answer")

    def __init__(self, profiled: str | None = None) -> None:
        self.took: dict[str, float] = {}
        self.profiler = cProfile.Profile()
        self._profiled = profiled
        self._to_worker: list[bytes] = []
        self._events: list[AnyEvent] = []
        self._updates: list[Update] = []
        self._run = 0
        self.graph = GraphRunner(
            None,
            send=lambda message: self._to_worker.append(wire.encode(message)),
            emit=lambda client, run, events: self._events.extend(events),
            context_length=CONTEXT,
            vocab_size=VOCAB,
        )
        self.scheduler = make_scheduler(lambda updates: self._updates.extend(updates), InstantRunner(512))
        self._decoders = [wire.Decoder(kind) for kind in (wire.ToFront, list[ToWorker], FromWorker, wire.ToClient)]

    def call(self, prompts: list[list[int]], tokens_out: int) -> list[list[int]]:
        """Fill `took` for one call; returns the answers' ids."""
        to_front, to_worker, to_room, to_client = self._decoders
        self.took = dict.fromkeys(self.NAMES, 0.0)
        self._run += 1
        params = {"max_new_tokens": tokens_out, "temperature": 0.6, "ignore_eos": True}
        with self._timed("call"):
            made, _ = requests(None, params, prompts, False, {})
            frames = list(wire.submissions(self._run, [node for request in made for node in request.nodes]))
        self.graph._checked_ids(b"")  # reads numpy
        with self._timed("front"):
            for frame in frames:
                self.graph.submit(0, self._run, to_front(frame).nodes)
            frames = list(wire.joined(self._to_worker))
            self._to_worker.clear()
        with self._timed("worker"):
            for frame in frames:
                for message in to_worker(frame):
                    self.scheduler.take(message)
        with self._timed("first"):
            self.scheduler.step()
        while any(seq.has_work for seq in self.scheduler.seqs.values()):
            part = "admit" if self.scheduler.waiting else "settle"
            most = self.took[part]
            with self._timed(part):
                self.scheduler.step()
            self.took[part] = max(most, self.took[part])
        with self._timed("update"):
            updates = to_room(wire.encode(Updates(step=0, updates=self._updates))).updates
            self._updates.clear()
            self.graph.on_updates(updates)
            frame = wire.encode(wire.Events(seq=0, epoch=0, run=self._run, events=self._events))
            self._events.clear()
        with self._timed("answer"):
            for event in to_client(frame).events:
                made[event.branch].take(event)
        self.graph.close_run(0, self._run)
        self._to_worker.clear()
        return [answer["output_ids"] for request in made for answer in request.answers or ()]

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        if part == self._profiled:
            self.profiler.enable()
        begin = time.thread_time()
        yield
        self.took[part] = (time.thread_time() - begin) * 1e3
        self.profiler.disable()


def bench_parts(only: str | None, profiled: str | None = None) -> None:
    for shape in SHAPES:
        if only not in (None, shape.name) or shape.stream:
            continue
        gc.disable()  # as in the worker
        parts, took = Parts(profiled), []
        for prompts in shape.rounds():
            answers = parts.call(prompts, 16)
            took.append(parts.took)
            for prompt, answer in zip(prompts, answers):
                prompt += answer
        _say("parts", shape=shape.name, **{f"{n}_ms": statistics.median(each[n] for each in took) for n in Parts.NAMES})
        gc.enable()
        gc.collect()
        if profiled and any(each[profiled] for each in took):
            pstats.Stats(parts.profiler).sort_stats("tottime").print_stats(22)


def bench_path(only: str | None) -> None:
    for shape in SHAPES:
        if only in (None, shape.name):
            with tempfile.TemporaryDirectory(prefix="nb", dir="/tmp") as folder:
                os.environ["NBSGL_RUNTIME_DIR"] = folder
                os.environ["NBSGL_INSTANT"] = str(Path(folder) / "steps.json")
                _bench_shape(shape, Path(folder) / "steps.json")


def _bench_shape(shape: Shape, steps: Path) -> None:
    engine = Engine("embedded", skip_tokenizer_init=True, keep=0, _worker_module="tests.bench.instant_worker")
    spans = []
    try:
        _ = engine.info
        engine.generate(input_ids=[[1, 2, 3]], sampling_params={"max_new_tokens": 2, "ignore_eos": True})
        pids = {"kernel": os.getpid(), "front": engine.front_pid or 0, "worker": engine.worker_pid or 0}
        before = _cpu_s(pids)
        for prompts in shape.rounds():
            begin = time.monotonic()
            answers = _generate(engine, prompts, shape)
            spans.append((begin, time.monotonic()))
            for prompt, answer in zip(prompts, answers):
                prompt += answer
        used = {name: seconds - before[name] for name, seconds in _cpu_s(pids).items()}
    finally:
        engine.stop(force=True)
        engine.close()
    launches = json.loads(steps.read_text())
    rounds = [[step for step in launches if begin <= step[0] <= end] for begin, end in spans]
    first = rounds[-1]
    _say(
        "path",
        shape=shape.name,
        to_first_ms=statistics.median((of[0][0] - begin) * 1e3 for of, (begin, _) in zip(rounds, spans)),
        tail_ms=statistics.median((end - of[-1][1]) * 1e3 for of, (_, end) in zip(rounds, spans)),
        idle_ms=statistics.median(map(_idle_ms, rounds)),
        first_steps=[tuple(step[2:]) for step in first[:3]],
        steps=len(first),
        **{f"{name}_ms": seconds * 1e3 / len(rounds) for name, seconds in used.items()},
    )


def _generate(engine: Engine, prompts: list[list[int]], shape: Shape) -> list[list[int]]:
    params: dict[str, Any] = {"max_new_tokens": shape.tokens_out, "temperature": 0.6, "ignore_eos": True}
    if not shape.stream:
        answers: Any = engine.generate(input_ids=prompts, sampling_params=params)
        return [answer["output_ids"] for answer in answers]
    for _ in engine.generate(input_ids=prompts, sampling_params=params, stream=True):
        pass
    return [[] for _ in prompts]


def _cpu_s(pids: dict[str, int]) -> dict[str, float]:
    return {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in pids.items()}


def _idle_ms(steps: list[tuple[float, float, int, int]]) -> float:
    """How long the device had nothing to do between the first step and the last."""
    return sum(max(0.0, later[0] - earlier[1]) for earlier, later in itertools.pairwise(steps)) * 1e3


def _at(took: list[float], share: float) -> float:
    return took[int(share * (len(took) - 1))]


def _say(what: str, **values: Any) -> None:
    shown = {name: round(value, 2) if isinstance(value, float) else value for name, value in values.items()}
    print(json.dumps({"what": what, **shown}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["scheduler", "parts", "path"], help="scheduler, parts, path")
    parser.add_argument("--shape", choices=[shape.name for shape in SHAPES])
    parser.add_argument(
        "--profile", metavar="ROWS | PART", help=f"rows that decode, or one of {', '.join(Parts.NAMES)}"
    )
    parser.add_argument("--stream", action="store_true", help="with --profile: rows that stream")
    args = parser.parse_args()
    if args.profile and not args.profile.isdigit():
        bench_parts(args.shape, args.profile)
        return
    if args.profile:
        profile(int(args.profile), args.stream)
        return
    if "scheduler" in args.what:
        bench_scheduler()
    if "parts" in args.what:
        bench_parts(args.shape)
    if "path" in args.what:
        bench_path(args.shape)


if __name__ == "__main__":
    main()
