"""Time of one decode step by batch, its host part, and how long the GPU idles in it.

python -m tests.bench.steps --model nbsgl/bench/models/qwen3-0.6b --batch 1 8 64 256 --json steps.jsonl

In this process: scheduler and runner over a model of random weights; all sequences at one context length, greedy or
drawn.  `host_ms` is what the host computes in a step (waiting not counted); `idle` is the share of a window in which no
kernel and no copy ran, and `kernels` the milliseconds a step of the dearest ones, from the profiler's trace.  Last, one
step that computes `--prefill` tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nbsgl.engine.batch import Batch, Launched, Row, RowResult
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.limits import Limits
from nbsgl.engine.loader import LoadedModel, load
from nbsgl.engine.scheduler import Scheduler
from nbsgl.engine.segments import Forced, Sampled, Update
from nbsgl.protocol import SamplingParams, pack_ids

NUM_KERNELS = 12


class Waits:
    """A runner that adds up the time spent waiting for results, so that it can be taken off the host's."""

    def __init__(self, runner: Any) -> None:
        self.runner, self.seconds = runner, 0.0
        self.has_device_grammars = runner.has_device_grammars

    def launch(self, batch: Batch) -> Launched:
        launched = self.runner.launch(batch)
        waits = self

        class Timed:
            def result(self) -> list[RowResult]:
                begin = time.perf_counter()
                if launched.event is not None:
                    launched.event.synchronize()
                waits.seconds += time.perf_counter() - begin
                return launched.result()

        return Timed()

    def forget(self) -> None:
        self.runner.forget()


def measure(loaded: LoadedModel, batch: int, context: int, temperature: float, steps: int) -> dict[str, Any]:
    """One row of the report: `batch` sequences of `context` tokens, decoding `steps` tokens each."""
    runner = Waits(loaded.runner)
    errors: list[Any] = []
    scheduler = Scheduler(
        Limits(num_slots=loaded.num_slots, max_running=loaded.max_running, token_budget=8192, overlap=True),
        runner,
        eos_ids=(),
        vocab_bytes=[b"x"] * loaded.vocab_size,
        compile_grammar=lambda spec: None,
        context_length=loaded.context_length,
        emit=lambda updates: errors.extend(u.error for u in updates if isinstance(u, Update) and u.error),
    )
    rng = random.Random(0)
    total = 2 * steps + 40
    for seq in range(batch):
        prompt = [rng.randrange(100, loaded.vocab_size - 300) for _ in range(context - steps)]
        params = SamplingParams(temperature=temperature, max_tokens=total, ignore_eos=True, seed=seq)
        scheduler.open(seq)
        scheduler.extend(seq, 0, 0, [Forced(ids=pack_ids(prompt)), Sampled(params=params)])
        scheduler.close(seq)
    while len(scheduler.running) < batch or any(not s.num_drawn for s in scheduler.running.values()):
        scheduler.step()
    for _ in range(10):
        scheduler.step()
    torch.cuda.synchronize()
    runner.seconds = 0.0
    begin = time.perf_counter()
    for _ in range(steps):
        scheduler.step()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    row = {
        "batch": batch,
        "context": context,
        "step_ms": round(seconds / steps * 1e3, 3),
        "host_ms": round((seconds - runner.seconds) / steps * 1e3, 3),
        **traced(scheduler.step, min(steps, 20)),
    }
    while scheduler.has_work:
        scheduler.step()
    if errors:
        row["error"] = str(errors[0])[:300]
    return row


def traced(run: Callable[[], None], steps: int) -> dict[str, Any]:
    """`idle` and `kernels` of `steps` steps."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    events = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and "dur" in e]
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in events:
        entry = sums[event["name"][:60]]
        entry[0] += event["dur"] / 1e3 / steps
        entry[1] += 1 / steps
    dearest = sorted(sums.items(), key=lambda item: -item[1][0])[:NUM_KERNELS]
    return {
        "idle": share_of_gaps(sorted((e["ts"], e["ts"] + e["dur"]) for e in events)),
        "kernels": {name: [round(ms, 3), round(count, 1)] for name, (ms, count) in dearest},
    }


def share_of_gaps(spans: list[tuple[float, float]]) -> float | None:
    """What share of the time from the first begin to the last end no span covers; spans sorted by begin."""
    if not spans:
        return None
    covered, until = 0.0, spans[0][0]
    for begin, end in spans:
        if end > until:
            covered += end - max(begin, until)
            until = end
    return round(1 - covered / (until - spans[0][0]), 4)


def measure_prefill(loaded: LoadedModel, num_tokens: int, length: int) -> dict[str, Any]:
    """Steps of `num_tokens` new tokens in sequences of `length`, one after the other on the same slots."""
    rng = random.Random(0)
    rows = []
    for row in range(num_tokens // length):
        prompt = [rng.randrange(100, loaded.vocab_size - 300) for _ in range(length)]
        slots = range(row * length, (row + 1) * length)
        rows.append(Row(row, 0, length, prompt, 0, slots, params=SamplingParams(temperature=0.0, seed=0)))
    launched: list[Launched] = []

    def step() -> None:
        launched.append(loaded.runner.launch(Batch(rows)))
        if len(launched) > 1:
            launched.pop(0).result()

    for _ in range(6):  # a second of matrix work: the clocks settle
        step()
    torch.cuda.synchronize()
    begin, steps = time.perf_counter(), 10
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    ms = (time.perf_counter() - begin) / steps * 1e3
    return {"prefill": num_tokens, "length": length, "step_ms": round(ms, 2), **traced(step, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--prefill", type=int, nargs="*", default=[], metavar="LENGTH", help="8,192 tokens in LENGTHs")
    parser.add_argument("--json")
    args = parser.parse_args()
    begin = time.perf_counter()
    config = EngineConfig.of(model_path=args.model, load_format="dummy", attention_backend=args.attention)
    loaded = load(config)
    print(f"{args.model}: loaded in {time.perf_counter() - begin:.1f} s, {loaded.num_slots} slots", flush=True)
    for batch in args.batch:
        for _ in range(2):  # the first captures graphs
            row = measure(loaded, batch, args.context, args.temperature, args.steps)
        report(args, row)
    for length in args.prefill:
        report(args, measure_prefill(loaded, 8192, length))


def report(args: argparse.Namespace, row: dict[str, Any]) -> None:
    row = {"model": Path(args.model).name, "attention": args.attention, **row}
    print(json.dumps(row), flush=True)
    if args.json:
        with open(args.json, "a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
