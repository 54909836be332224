"""Times the sampling kernels on a CUDA card, beside FlashInfer's and torch's: `python tests/bench/sampling.py [OUT]`.

Milliseconds, median of replays of one captured call (the whole `Sampler.draw`: host and device time, not captured).
Prints a table; writes JSON lines to OUT.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from nbsgl.engine.batch import Row
from nbsgl.engine.kernels.draw import DrawScratch, draw
from nbsgl.engine.kernels.edit import edit
from nbsgl.engine.kernels.logsumexp import logsumexp
from nbsgl.engine.kernels.nucleus import draw_filtered
from nbsgl.engine.rng import draw_keys
from nbsgl.engine.sampler import Sampler, logprobs_of
from nbsgl.protocol import SamplingParams

VOCAB = 128_256
CUDA = torch.device("cuda")
BATCHES = (1, 8, 64, 256, 512)
# standard deviations of normal logits: a model's after training, and one of random weights
SPREADS = {"peaked": 4.0, "flat": 0.3}
# top-k, top-p, min-p
FILTERS = {
    "top-p 0.95": (-1, 0.95, 0.0),
    "top-p 0.5": (-1, 0.5, 0.0),
    "top-k 20": (20, 1.0, 0.0),
    "top-k 50 + top-p 0.9": (50, 0.9, 0.0),
    "min-p 0.05": (-1, 1.0, 0.05),
    "none": (-1, 1.0, 0.0),
}
Case = tuple[str, Callable[[], object]]


def timed(call: Callable[[], object], replays: int = 15) -> float:
    """Milliseconds of one captured call."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(replays)]
    for begin, end in marks:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in marks)


class Buffers:
    """What one call of the draw kernels needs."""

    def __init__(self, num: int, spread: float, dtype: torch.dtype = torch.bfloat16) -> None:
        gen = torch.Generator("cuda").manual_seed(0)
        self.logits = (torch.randn(num, VOCAB, generator=gen, device=CUDA) * spread).to(dtype)
        self.temperatures = torch.full((num,), 0.8, device=CUDA)
        self.keys = torch.tensor([draw_keys(i, 5) for i in range(num)], dtype=torch.int32, device=CUDA)
        self.rows = torch.arange(num, dtype=torch.int32, device=CUDA)
        self.given = (
            self.keys,
            self.rows,
            torch.ones_like(self.rows),
            torch.zeros_like(self.rows),
            torch.zeros((2, num), dtype=torch.int32, device=CUDA),
            DrawScratch(num, CUDA),
        )
        self.pdl = torch.cuda.get_device_capability()[0] >= 9

    def plain(self) -> None:
        draw(self.logits, self.temperatures, *self.given, pdl=self.pdl)

    def filtered(self, top_k: int, top_p: float, min_p: float) -> Callable[[], None]:
        k = torch.full_like(self.rows, top_k)
        p, m = torch.full_like(self.temperatures, top_p), torch.full_like(self.temperatures, min_p)
        return lambda: draw_filtered(self.logits, self.temperatures, k, p, m, *self.given, pdl=self.pdl)


def draws(num: int) -> Iterator[Case]:
    for name, spread in SPREADS.items():
        buffers = Buffers(num, spread)
        yield f"draw, {name}", buffers.plain
        for filter_name, values in FILTERS.items():
            yield f"draw_filtered {filter_name}, {name}", buffers.filtered(*values)
    buffers = Buffers(num, 4.0)
    buffers.temperatures.zero_()
    yield "draw, greedy", buffers.plain
    yield "draw, float32 logits", Buffers(num, 4.0, torch.float32).plain


def others(num: int) -> Iterator[Case]:
    buffers = Buffers(num, 4.0)
    logits, out = buffers.logits, torch.empty((num, VOCAB), device=CUDA)
    counts = torch.zeros((num, VOCAB), dtype=torch.int32, device=CUDA)
    seen, words = counts.to(torch.uint8), torch.full((num, VOCAB // 32), -1, dtype=torch.int32, device=CUDA)
    lines, weights = torch.arange(num, device=CUDA), torch.tensor([1.1, 0.5, 0.2], device=CUDA).view(torch.int32)
    asked = torch.empty((7, num), dtype=torch.int32, device=CUDA)
    asked[:3], asked[3], asked[4:] = lines, 1, weights.unsqueeze(1)
    entries = torch.stack((lines, lines * 7, lines * 0)).int()
    yield "edit: penalties and masks of all lines", lambda: edit(
        logits, asked, entries, counts, seen, words, out, 1e4
    )  # fmt: skip
    tokens = torch.zeros(num, dtype=torch.int64, device=CUDA)
    yield "log-probabilities", lambda: logprobs_of(logits, tokens, 0)
    yield "log-probabilities, top 5", lambda: logprobs_of(logits, tokens, 5)
    yield "logsumexp", lambda: logsumexp(logits)
    yield "torch logsumexp of float32", lambda: logits.float().logsumexp(-1)
    yield "torch argmax", lambda: logits.argmax(-1)
    yield "torch top-p: softmax, sort, cumsum", lambda: torch_top_p(logits)


def torch_top_p(logits: Tensor) -> Tensor:
    probs, ids = (logits.float() / 0.8).softmax(-1).sort(-1, descending=True)
    probs = probs.masked_fill(probs.cumsum(-1) - probs >= 0.95, 0.0)
    noise = torch.empty_like(probs).exponential_()
    return ids.gather(1, (probs / noise).argmax(-1, keepdim=True))


def flashinfers(num: int) -> Iterator[Case]:
    if find_spec("flashinfer") is None:
        return
    import flashinfer.sampling as fi

    for name, spread in SPREADS.items():
        logits = Buffers(num, spread).logits.float()
        probs = (logits / 0.8).softmax(-1)
        yield f"FlashInfer softmax, {name}", lambda logits=logits: fi.softmax(logits, 0.8)
        yield f"FlashInfer top_p_renorm 0.95, {name}", lambda probs=probs: fi.top_p_renorm_probs(probs, 0.95)
        yield f"FlashInfer top_k_renorm 20, {name}", lambda probs=probs: fi.top_k_renorm_probs(probs, 20)
        yield (
            f"FlashInfer softmax + top_p_sampling 0.95, {name}",
            lambda logits=logits: fi.top_p_sampling_from_probs(fi.softmax(logits, 0.8), 0.95),
        )


def samplers() -> Iterator[dict[str, object]]:
    """`Sampler.draw` of 256 rows as a runner calls it: host time until it returns, and until the card is done."""
    mixes = {
        "top-p": {"top_p": 0.95},
        "penalties": {"frequency_penalty": 0.5, "repetition_penalty": 1.1},
        "log-probabilities": {"return_logprob": True, "top_logprobs_num": 5},
    }
    logits = Buffers(256, 4.0).logits
    for name, values in mixes.items():
        sampler = Sampler(VOCAB, CUDA, torch.zeros(512, dtype=torch.int32, device=CUDA))
        rows = [Row(i, 0, 1, [1, 2], params=SamplingParams(seed=i, **values), run_begin=2) for i in range(256)]
        times = []
        for step in range(12):
            for row in rows:
                row.run_idx, row.is_run_start = step, step == 0
            torch.cuda.synchronize()
            begin = time.perf_counter()
            sampler.draw(logits, rows)
            host = time.perf_counter()
            torch.cuda.synchronize()
            times.append((host - begin, time.perf_counter() - begin))
        host_ms, all_ms = (statistics.median(t[i] for t in times[2:]) * 1e3 for i in (0, 1))
        yield {"case": f"Sampler.draw, {name}", "batch": 256, "host_ms": host_ms, "ms": all_ms}


def measured(num: int, cases: Iterator[Case]) -> Iterator[dict[str, object]]:
    for name, call in cases:
        try:
            yield {"case": name, "batch": num, "ms": timed(call)}
        except (RuntimeError, TypeError, FileNotFoundError) as error:  # another version of FlashInfer, or no compiler
            yield {"case": name, "batch": num, "error": str(error)[:200]}


def main() -> None:
    results: list[dict[str, object]] = []
    with torch.inference_mode():
        results += samplers()
        for cases in (draws, others, flashinfers):  # FlashInfer's last: a failed capture may spoil what follows
            for num in BATCHES:
                results += measured(num, cases(num))
    names = list(dict.fromkeys(str(r["case"]) for r in results))
    found = {(r["case"], r["batch"]): r for r in results}
    print(f"{torch.cuda.get_device_name()}, vocabulary {VOCAB}, bf16 logits, ms")
    print(f"{'':50}" + "".join(f"{num:>9}" for num in BATCHES))
    for name in names:
        cells = [found.get((name, num)) for num in BATCHES]
        print(f"{name:50}" + "".join(f"{c['ms']:9.4f}" if c and "ms" in c else f"{'-':>9}" for c in cells))
    for result in results:
        if "host_ms" in result or "error" in result:
            print(result)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text("".join(json.dumps(result) + "\n" for result in results))


if __name__ == "__main__":
    main()
