"""Time between tokens of open streams, alone and while a long prompt is prefilled beside them."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nbsgl.bench.workloads import Ids

Gap = tuple[float, float]  # (when a stream's next tokens came, seconds since its last ones)


@dataclass(frozen=True, slots=True)
class Load:
    """`streams` of `prompt` tokens that draw up to `tokens`; beside them `long_count` prompts of `long` tokens."""

    streams: int = 8
    prompt: int = 512
    tokens: int = 4096
    alone: int = 256  # tokens of each stream that are timed without a long prompt
    long: int = 32_768
    long_count: int = 3


SCALES = {"full": Load(), "tiny": Load(streams=4, prompt=16, tokens=600, alone=24, long=900, long_count=2)}


@dataclass
class Watch:
    """Gaps of all streams."""

    gaps: list[Gap] = field(default_factory=list)
    _last: dict[int, float] = field(default_factory=dict)

    def hear(self, stream: int) -> None:
        now = time.perf_counter()
        if stream in self._last:
            self.gaps.append((now, now - self._last[stream]))
        self._last[stream] = now


def measure(generate: Callable[..., Any], vocab: int, load: Load) -> dict[str, Any]:
    """p50 and p99 in ms of the gaps between a stream's chunks, alone and beside long prompts, and their ratio."""
    rng = random.Random(6)

    def prompt(length: int) -> Ids:
        return [rng.randrange(100, vocab - 300) for _ in range(length)]

    watch, prefills = Watch(), []
    longs = [prompt(load.long) for _ in range(load.long_count)]
    is_done = threading.Event()

    def send_longs() -> None:
        try:
            for ids in longs:
                begin = time.perf_counter()
                generate(input_ids=ids, sampling_params={"max_new_tokens": 1, "temperature": 0, "ignore_eos": True})
                prefills.append((begin, time.perf_counter()))
        finally:
            is_done.set()

    thread = threading.Thread(target=send_longs, name="nbsgl-long-prompts", daemon=True)
    params = {"max_new_tokens": load.tokens, "temperature": 0, "ignore_eos": True}
    streams = generate(
        input_ids=[prompt(load.prompt) for _ in range(load.streams)], sampling_params=params, stream=True
    )
    for answer in streams:
        watch.hear(answer["index"])
        if not thread.ident and answer["meta_info"]["completion_tokens"] >= load.alone:
            thread.start()
        if is_done.is_set():
            break
    streams.close()
    thread.join()
    return _summary(watch.gaps, prefills)


def _summary(gaps: list[Gap], prefills: list[Gap]) -> dict[str, Any]:
    first = prefills[0][0]
    settled = [gap for when, gap in gaps if when < first]
    alone = settled[len(settled) // 4 :]  # the streams' own prefill stands at the beginning
    beside = [gap for when, gap in gaps if any(begin < when and when - gap < end for begin, end in prefills)]
    p50, p99 = _percentile(alone, 50), _percentile(beside, 99)
    return {
        "figure": round(p99 / p50, 3),
        "alone_p50_ms": round(p50 * 1e3, 3),
        "alone_p99_ms": round(_percentile(alone, 99) * 1e3, 3),
        "beside_p50_ms": round(_percentile(beside, 50) * 1e3, 3),
        "beside_p99_ms": round(p99 * 1e3, 3),
        "prefill_s": round(statistics.mean(end - begin for begin, end in prefills), 3),
        "gaps": [len(alone), len(beside)],
    }


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
