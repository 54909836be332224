"""What the host costs: the scheduler by batch, and the whole path from `generate` to the first step and back.

python -m tests.bench.host_path [scheduler] [path] [--shape NAME] [--profile ROWS]

scheduler  one step of decoding rows with a runner that does nothing: us, median and 99th percentile, and admission
path       kernel, front and worker as processes, steps of a given length: ms from the call to the first step and from
           the last step's end to the answer, (rows, tokens) of the first steps, and processor ms of each process a call
"""

from __future__ import annotations

import argparse
import cProfile
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

from nbsgl.engine.handle import Engine
from nbsgl.engine.scheduler import Scheduler
from nbsgl.engine.segments import Extend, Forced, Open, Sampled, Update
from nbsgl.protocol import SamplingParams, pack_ids
from tests.bench.instant_worker import VOCAB, InstantRunner, make_scheduler

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
    """Microseconds of each step."""
    took = []
    for _ in range(steps):
        begin = time.perf_counter()
        scheduler.step()
        took.append((time.perf_counter() - begin) * 1e6)
    return sorted(took)


def bench_scheduler() -> None:
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
    parser.add_argument("what", nargs="*", default=["scheduler", "path"], help="scheduler, path")
    parser.add_argument("--shape", choices=[shape.name for shape in SHAPES])
    parser.add_argument("--profile", type=int, metavar="ROWS")
    parser.add_argument("--stream", action="store_true", help="with --profile: rows that stream")
    args = parser.parse_args()
    if args.profile:
        profile(args.profile, args.stream)
        return
    if "scheduler" in args.what:
        bench_scheduler()
    if "path" in args.what:
        bench_path(args.shape)


if __name__ == "__main__":
    main()
