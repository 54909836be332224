"""Measure the engine's scheduler and runner in this process: `python -m nbsgl bench`.

One request, and sixteen submitted at once whose lengths differ as in a notebook's `run_batch`.  Greedy, end tokens
ignored, on an empty cache; the best of the repeats counts.  The floor of a decode step is the time that reading all
weights once takes at the bandwidth measured here.  Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nbsgl.engine.config import DTYPES, EngineConfig
from nbsgl.engine.limits import Limits
from nbsgl.engine.loader import LoadedModel, load
from nbsgl.engine.scheduler import Scheduler
from nbsgl.engine.segments import Forced, Sampled, Update
from nbsgl.protocol import SamplingParams, pack_ids

Work = list[tuple[list[int], int]]  # (prompt, number of output tokens) of each request
Lengths = tuple[int, int]  # shortest, longest

PROBE_BYTES = 256 << 20  # read to measure the bandwidth: well beyond a CPU's caches


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a load took, and the median of the steps that only decoded."""

    seconds: float
    decode_step_s: float


def make_work(batch: int, vocab: int, prompts: Lengths, outputs: Lengths) -> Work:
    """Random prompts; lengths are spread evenly on a log scale over both ranges: most are short, a few long."""
    rng = random.Random(batch)

    def length(low: int, high: int) -> int:
        return round(low * (high / low) ** rng.random())

    work = [(length(*prompts), length(*outputs)) for _ in range(batch)]
    return [(rng.choices(range(3, vocab), k=p), n) for p, n in work]


def run_work(loaded: LoadedModel, work: Work, max_running: int | None = None) -> Timing:
    """Submit all requests at once to a new scheduler with an empty cache and step until they are done.

    At most `max_running` of them run at the same time (None: as many as the model was loaded for).
    """
    got = [0] * len(work)

    def emit(updates: list[Update]) -> None:
        for update in updates:
            assert update.error is None, update.error
            if update.segment == 1:
                got[update.seq] += len(update.ids) // 4

    scheduler = _make_scheduler(loaded, max_running or loaded.max_running, emit)
    begin = time.perf_counter()
    for seq, (prompt, num_tokens) in enumerate(work):
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, seed=0)
        scheduler.open(seq)
        scheduler.extend(seq, 0, 0, [Forced(ids=pack_ids(prompt)), Sampled(params=params)])
        scheduler.close(seq)
    decode_steps = []
    while scheduler.has_work:
        prefilled = scheduler.stats.prefill_computed
        scheduler.step()
        if scheduler.stats.prefill_computed == prefilled:
            decode_steps.append(scheduler.stats.last_step_s)
    seconds = time.perf_counter() - begin
    assert got == [num_tokens for _, num_tokens in work]
    return Timing(seconds, statistics.median(decode_steps or [float("nan")]))


def _make_scheduler(loaded: LoadedModel, max_running: int, emit: Callable[[list[Update]], None]) -> Scheduler:
    limits = Limits(
        num_slots=loaded.num_slots,
        page_size=loaded.page_size,
        max_running=min(max_running, loaded.max_running),
        token_budget=loaded.chunked_prefill_size,
        overlap=loaded.device != "cpu",
    )
    return Scheduler(
        limits,
        loaded.runner,
        eos_ids=loaded.eos_ids,
        vocab_bytes=[b"x"] * loaded.vocab_size,
        compile_grammar=lambda spec: None,
        context_length=loaded.context_length,
        emit=emit,
    )


def warm_up(loaded: LoadedModel, work: Work) -> None:
    """Run the load with prompts of at most 8 and outputs of 2 tokens."""
    run_work(loaded, [(prompt[:8], 2) for prompt, _ in work])


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of reading memory: the best of five sums over PROBE_BYTES."""
    probe = torch.ones(PROBE_BYTES // 4, dtype=torch.float32, device=device)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        probe.sum().item()
        best = min(best, time.perf_counter() - begin)
    return probe.nbytes / best


def load_average() -> float | None:
    """Processes that wanted a core over the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def measure(loaded: LoadedModel, work: Work, repeat: int, floor_s: float) -> dict[str, Any]:
    """The best of `repeat` runs of the load, as a row of the report."""
    warm_up(loaded, work)
    timings = [run_work(loaded, work) for _ in range(repeat)]
    seconds = min(timing.seconds for timing in timings)
    output_tokens = sum(num_tokens for _, num_tokens in work)
    return {
        "batch": len(work),
        "prompt_tokens": sum(len(prompt) for prompt, _ in work),
        "output_tokens": output_tokens,
        "seconds": round(seconds, 3),
        "tok_s": round(output_tokens / seconds, 1),
        "step_ms": round(min(timing.decode_step_s for timing in timings) * 1e3, 3),
        "floor_ms": round(floor_s * 1e3, 3),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report, return 0.  Raises what `load` raises."""
    args = _parser().parse_args(argv)
    config = EngineConfig.of(
        model_path=args.model,
        load_format=args.load_format,
        device=args.device,
        dtype=args.dtype,
        num_threads=args.num_threads,
    )
    loaded = load(config)
    model = loaded.runner.model
    floor_s = model.num_bytes / read_bandwidth(loaded.runner.device)
    name = loaded.folder.name
    _say(f"{name}: {loaded.num_parameters / 1e6:,.1f}M parameters, {loaded.dtype}, {loaded.device_reason}")
    _say("batch  prompt  output  tokens/s  step ms  floor ms")
    rows = []
    for batch in args.batch:
        work = make_work(batch, loaded.vocab_size, tuple(args.prompt), tuple(args.output))
        rows.append(row := measure(loaded, work, args.repeat, floor_s))
        _say(
            f"{row['batch']:5d} {row['prompt_tokens']:7d} {row['output_tokens']:7d} {row['tok_s']:9,.1f} "
            f"{row['step_ms']:8.2f} {row['floor_ms']:9.2f}"
        )
    report = {"bench": "engine", "model": name, "device": loaded.device, "dtype": loaded.dtype}
    report |= {"threads": loaded.num_threads, "load_average": load_average(), "rows": rows}
    _say(json.dumps(report))
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nbsgl bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded", help="'embedded', a folder or a hub name (default: embedded)")
    parser.add_argument("--load-format", default="auto", choices=("auto", "dummy"), help="dummy: random weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", choices=DTYPES)
    parser.add_argument("--num-threads", type=int, default=None, metavar="N")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], metavar="N", help="requests submitted at once")
    parser.add_argument("--prompt", type=int, nargs=2, default=[16, 400], metavar=("LOW", "HIGH"), help="tokens")
    parser.add_argument("--output", type=int, nargs=2, default=[8, 128], metavar=("LOW", "HIGH"), help="tokens")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each load; the best counts")
    return parser
