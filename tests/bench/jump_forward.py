"""What jump-forward saves on JSON that the embedded model agrees with, on a CPU.

python -m tests.bench.jump_forward [--rows N] [--repeats N]

A row asks for a country as JSON with five keys.  Each mode's figures are of its fastest repeat, the modes taking turns;
the last line is JSON: by batch size and mode seconds, steps, drafts, and how much faster than without jumps.  `cpu_s`
are processor seconds, of one thread: what other work on the machine changes least.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from nbsgl.engine import grammar, loader
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.limits import Limits
from nbsgl.engine.loader import LoadedModel
from nbsgl.engine.scheduler import Scheduler
from nbsgl.engine.segments import Forced, Sampled, Update
from nbsgl.engine.text import PlainEncoder, TextCodec
from nbsgl.protocol import GrammarSpec, SamplingParams, pack_ids, unpack_ids

COUNTRIES = ("France", "Italy", "Japan", "Spain", "Norway", "Egypt", "Peru", "Greece")
KEYS = ("name", "capital", "continent", "language", "currency")
SCHEMA = {
    "type": "object",
    "properties": {key: {"type": "string", "maxLength": 24} for key in KEYS},
    "required": list(KEYS),
    "additionalProperties": False,
}
PROMPT = "<|im_start|>user\nDescribe {} as JSON.<|im_end|>\n<|im_start|>assistant\n"


class Bench:
    def __init__(self) -> None:
        self.model: LoadedModel = loader.load(EngineConfig.of(model_path="embedded", device="cpu", num_slots=16_384))
        self.codec = TextCodec.load(Path(self.model.folder))
        self.encode = PlainEncoder(self.codec.files)

    def run(self, jump: Any, batch: int, rows: int) -> tuple[float, float, list[str], Scheduler]:
        """Seconds and processor seconds for all rows, `batch` at once."""
        ids: dict[int, list[int]] = {}
        scheduler = Scheduler(
            Limits(num_slots=self.model.num_slots, max_running=batch, token_budget=512, overlap=False),
            self.model.runner,
            eos_ids=self.model.eos_ids,
            vocab_bytes=self.codec.vocab.tokens,
            compile_grammar=lambda spec: grammar.compile(spec, self.codec.vocab),
            context_length=self.model.context_length,
            emit=lambda updates: self._take(updates, ids),
            encode=self.encode,
        )
        spec = GrammarSpec(kind="json_schema", text=json.dumps(SCHEMA), jump=jump)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        for row in range(rows):
            prompt = self.codec.encode_run([(PROMPT.format(COUNTRIES[row % len(COUNTRIES)]), True)], is_first=True)
            params = SamplingParams(temperature=0.0, max_tokens=200, seed=row)
            scheduler.open(row)
            scheduler.extend(row, 0, 0, [Forced(ids=pack_ids(prompt)), Sampled(params=params, grammar=spec)])
            scheduler.close(row)
        while scheduler.step():
            pass
        seconds, cpu_s = time.perf_counter() - begin, time.process_time() - cpu_begin
        return seconds, cpu_s, [self.codec.decode(ids[row]) for row in range(rows)], scheduler

    def _take(self, updates: list[Update], ids: dict[int, list[int]]) -> None:
        for update in updates:
            assert update.error is None, update.error
            ids.setdefault(update.seq, []).extend(unpack_ids(update.ids))


def measure(bench: Bench, batch: int, rows: int, repeats: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    for _ in range(repeats):
        for jump in ("off", "verify", "canonical"):
            seconds, cpu_s, texts[jump], scheduler = bench.run(jump, batch, rows)
            if jump not in found or cpu_s < found[jump]["cpu_s"]:
                found[jump] = {
                    "seconds": round(seconds, 3),
                    "cpu_s": round(cpu_s, 3),
                    "steps": scheduler.stats.batches,
                    "proposed": scheduler.jump.proposed,
                    "accepted": scheduler.jump.accepted,
                }
    assert texts["off"] == texts["verify"], "verified jumps change no token"
    for jump, figures in found.items():
        figures["times_off"] = round(found["off"]["cpu_s"] / figures["cpu_s"], 2)
        figures["text"] = texts[jump][0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.jump_forward", description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    bench = Bench()
    torch.set_num_threads(1)
    report = {}
    for batch in (1, 8):
        report[batch] = measure(bench, batch, args.rows, args.repeats)
        for jump, figures in report[batch].items():
            print(f"{batch} at once, {jump:9}: {figures}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
