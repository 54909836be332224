"""What grammars in tables cost a decode step: `python -m tests.bench.grammar_step`.

One model of random weights; batches that decode without grammars, with one grammar for all rows, with one for each, and
with filters beside (these draws leave the plain kernel).  Each step is launched ahead of the host, as the scheduler
does it.  `step_ms` is the median of windows that alternate between the cases, so that clocks and heat are the same for
all; `ratio` is to the same draw without grammars.  The figure to keep: 1.03 at batch 64.  Last, what a grammar costs
when it comes: `upload_ms` until the step that brings it is launched, and until the card is done with it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nbsgl.engine.batch import Batch, Launched, Row
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.loader import LoadedModel, load
from nbsgl.protocol import SamplingParams
from tests.unit.fake_tables import START, FakeTables, make_tables

WINDOW, WINDOWS = 20, 9  # steps; windows of each case
WARM = 4  # steps before a window
NUM_GRAMMARS = 8
PLAIN = {"temperature": 0.6}
FILTERED = {"temperature": 0.6, "top_p": 0.95}
NUM_CASES = 5


@dataclass
class Case:
    """A way to draw.  `tables` are handed out to the rows in turn."""

    name: str
    params: dict[str, Any]
    tables: list[FakeTables]


class Stream:
    """Rows of `context` tokens that decode on and on, the host one step behind; each case begins at START."""

    def __init__(self, loaded: LoadedModel, batch: int, context: int) -> None:
        self.runner, self.batch, self.start = loaded.runner, batch, context
        self.flight: Launched | None = None
        self.step = 0
        begin = 0
        self.history = [7] * context
        for row in range(batch):
            slots = range(begin, begin + context + NUM_CASES * (WINDOW + WARM) * (WINDOWS + 1))
            rows = [Row(row, 0, context, self.history, 0, slots, params=SamplingParams(**PLAIN, seed=row))]
            self.runner.launch(Batch(rows)).result()
            begin = slots.stop
        assert begin <= loaded.num_slots, "the pool holds all rows"

    def run(self, case: Case, steps: int) -> None:
        params = [SamplingParams(**case.params, seed=row) for row in range(self.batch)]
        for i in range(steps):
            rows = []
            for row in range(self.batch):
                one = Row(row, self.start, 1, self.history, is_fed_back=True, params=params[row], run_idx=self.step)
                if case.tables:
                    one.tables, one.states = case.tables[row % len(case.tables)], [-1 if i else START]
                rows.append(one)
            launched = self.runner.launch(Batch(rows))
            if self.flight is not None:
                self.flight.result()
            self.flight = launched
            self.start, self.step = self.start + 1, self.step + 1

    def seconds(self, case: Case) -> float:
        """Of one step, in a window of them."""
        self.run(case, WARM)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        self.run(case, WINDOW)
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / WINDOW


def cases(loaded: LoadedModel) -> list[Case]:
    several = [make_tables(i, loaded.vocab_size, states=300, classes=120, eos=i) for i in range(NUM_GRAMMARS)]
    return [
        Case("none", PLAIN, []),
        Case("one grammar", PLAIN, several[:1]),
        Case("many grammars", PLAIN, several),
        Case("none, top-p", FILTERED, []),
        Case("many grammars, top-p", FILTERED, several),
    ]


def measure(loaded: LoadedModel, batch: int, context: int) -> Iterator[dict[str, Any]]:
    stream, listed = Stream(loaded, batch, context), cases(loaded)
    assert len(listed) == NUM_CASES
    times: dict[str, list[float]] = {case.name: [] for case in listed}
    for case in listed:  # graphs and kernels
        stream.run(case, WARM)
    for _ in range(WINDOWS):
        for case in listed:
            times[case.name].append(stream.seconds(case))
    found = {name: statistics.median(some) * 1e3 for name, some in times.items()}
    for name, ms in found.items():
        base = found["none, top-p" if name.endswith("top-p") else "none"]
        row = {"batch": batch, "context": context, "case": name, "step_ms": round(ms, 4), "ratio": round(ms / base, 4)}
        yield row | {"spread": round(max(times[name]) / min(times[name]), 3)}
    yield {"batch": batch, "case": "a new grammar", **upload(stream, loaded.vocab_size)}


def upload(stream: Stream, vocab: int) -> dict[str, Any]:
    tables = [make_tables(100 + i, vocab, states=300, classes=120) for i in range(5)]
    launched, done = [], []
    for one in tables:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        stream.run(Case("", PLAIN, [one]), 1)
        launched.append(time.perf_counter() - begin)
        torch.cuda.synchronize()
        done.append(time.perf_counter() - begin)
    one = tables[0]
    num_bytes = sum(
        array.nbytes for array in (one.class_of, one.next, one.begin, one.low, one.high, one.row_of, one.rows)
    )
    ms = {name: round(statistics.median(some) * 1e3, 3) for name, some in (("launched", launched), ("done", done))}
    return {"table_bytes": num_bytes, "upload_ms": ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nbsgl/bench/models/llama-3.1-8b")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--json", help="append the lines to this file too")
    args = parser.parse_args()
    loaded = load(EngineConfig.of(model_path=args.model, load_format="dummy"))
    for batch in args.batch:
        for row in measure(loaded, batch, args.context):
            line = json.dumps({"model": Path(args.model).name, **row})
            print(line, flush=True)
            if args.json:
                with open(args.json, "a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
