"""Where a workload's time goes, step by step: scheduler and runner in this process, CUDA events around every launch.

python -m tests.bench.workload_steps --model nbsgl/bench/models/llama-3.1-8b nano prefix chat tree

Steps are gathered by kind (decode by rows, steps with extends); `gap` is the time between one step's end and the next
one's begin on the GPU, `host` what the host computed for them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from nbsgl.bench.drive import drive
from nbsgl.bench.workloads import WORKLOADS
from nbsgl.engine.batch import Batch, Launched
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.limits import Limits
from nbsgl.engine.loader import LoadedModel, load
from nbsgl.engine.scheduler import Scheduler
from nbsgl.engine.segments import Forced, Sampled, Update
from nbsgl.protocol import SamplingParams, pack_ids, unpack_ids

WIDTH = 32  # decode steps are gathered by rows in such classes


class Events:
    """A runner that puts events around every launch."""

    def __init__(self, runner: Any) -> None:
        self.runner, self.has_device_grammars = runner, runner.has_device_grammars
        self.steps: list[tuple[int, int, torch.cuda.Event, torch.cuda.Event, float]] = []

    def launch(self, batch: Batch) -> Launched:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        at = time.perf_counter()
        begin.record()
        launched = self.runner.launch(batch)
        end.record()
        self.steps.append((len(batch.rows), batch.num_tokens, begin, end, time.perf_counter() - at))
        return launched

    def forget(self) -> None:
        self.runner.forget()


class InProcess:
    """`generate` for `drive`: requests to a scheduler, stepped until all are done."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.events = Events(loaded.runner)
        self.outputs: dict[int, list[int]] = {}
        self.next_seq = 0
        self.scheduler = Scheduler(
            Limits(
                num_slots=loaded.num_slots,
                page_size=loaded.page_size,
                max_running=loaded.max_running,
                token_budget=8192,
                overlap=True,
            ),
            self.events,
            eos_ids=(),
            vocab_bytes=[b"x"] * loaded.vocab_size,
            compile_grammar=lambda spec: None,
            context_length=loaded.context_length,
            emit=self._take,
        )
        self.step_s = 0.0

    def _take(self, updates: list[Update]) -> None:
        for update in updates:
            assert update.error is None, update.error
            if update.segment == 1:
                self.outputs[update.seq] += unpack_ids(update.ids)

    def generate(self, prompts: list[list[int]], lengths: list[int], temperature: float) -> list[list[int]]:
        seqs = []
        for prompt, num in zip(prompts, lengths):
            seq, self.next_seq = self.next_seq, self.next_seq + 1
            self.outputs[seq] = []
            params = SamplingParams(temperature=temperature, max_tokens=num, ignore_eos=True, seed=seq)
            self.scheduler.open(seq)
            self.scheduler.extend(seq, 0, 0, [Forced(ids=pack_ids(prompt)), Sampled(params=params)])
            self.scheduler.close(seq)
            seqs.append(seq)
        while self.scheduler.has_work:
            self.scheduler.step()
        return [self.outputs.pop(seq) for seq in seqs]


def report(steps: list[Any]) -> dict[str, Any]:
    """Seconds of GPU, gap and launch by kind of step, with the number of steps and of tokens."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0, 0.0, 0.0])
    before = None
    for rows, tokens, begin, end, host in steps:
        kind = f"decode {(rows + WIDTH - 1) // WIDTH * WIDTH:4d}" if tokens == rows else "extend"
        entry = sums[kind]
        gap = before.elapsed_time(begin) if before is not None else 0.0
        for i, value in enumerate((1, tokens, begin.elapsed_time(end) / 1e3, gap / 1e3, host)):
            entry[i] += value
        before = end
    names = ("steps", "tokens", "gpu_s", "gap_s", "launch_s")
    return {kind: dict(zip(names, (round(v, 4) for v in entry))) for kind, entry in sorted(sums.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", choices=WORKLOADS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--page-size", type=int, default=1)
    parser.add_argument("--json")
    args = parser.parse_args()
    loaded = load(EngineConfig.of(model_path=args.model, load_format="dummy", page_size=args.page_size))
    for name in args.workloads:
        workload = WORKLOADS[name](loaded.vocab_size)
        for _ in range(2):  # the first captures graphs
            engine = InProcess(loaded)
            outcome = drive(engine.generate, workload)
            torch.cuda.synchronize()
        kinds = report(engine.events.steps)
        print(f"{Path(args.model).name} {name}: {outcome.seconds:.3f} s, {outcome.output_tokens} tokens", flush=True)
        for kind, entry in kinds.items():
            print("   ", kind, " ".join(f"{key} {value:g}" for key, value in entry.items()), flush=True)
        if args.json:
            row = {"model": Path(args.model).name, "workload": name, "seconds": outcome.seconds, "kinds": kinds}
            with open(args.json, "a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
