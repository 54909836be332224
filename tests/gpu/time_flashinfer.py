"""What planning costs the host and attending costs the device: `python -m tests.gpu.time_flashinfer`.

One JSON line per model, page size and number of sequences of 1,024 tokens; then shared prefixes, flat and once each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch

from nbsgl.engine.attention.paged import SharedPrefix
from tests.gpu.test_flashinfer import ROWS, Case, layout_of

NUM_LAYERS = 32  # attention of one layer is timed, in a graph of this many


def host_ms(fn: Callable[[], None], times: int = 30) -> float:
    """Median time of the call itself, the device idle before each."""
    taken = []
    for _ in range(times):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        fn()
        taken.append(time.perf_counter() - begin)
    return 1e3 * sorted(taken)[times // 2]


def device_ms(fn: Callable[[], None], times: int = 20) -> float:
    taken = []
    for _ in range(times + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        fn()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end))
    return sorted(taken[3:])[times // 2]


def time_graphs(model: str, page_size: int) -> None:
    case = Case(model, page_size)
    for num in (1, 8, 64, 256):
        layout = layout_of([i % ROWS for i in range(num)], [1_024] * num)
        case.attend.plan(layout, is_graph=True)
        q = case.queries(layout)
        out = torch.empty_like(q)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for layer in range(NUM_LAYERS):
                case.attend.attend(layer % 2, q, out)
        plan_ms = host_ms(lambda layout=layout: case.attend.plan(layout, is_graph=True))
        numbers = {"plan_host_ms": plan_ms, "attend_ms": device_ms(graph.replay)}
        report(model=model, page_size=page_size, sequences=num, layers=NUM_LAYERS, **numbers)


def time_shared(model: str) -> None:
    """512 sequences, 16 prefixes of 1,920 tokens (all at the same slots here), 80 own tokens each."""
    case = Case(model, shared=1_920)
    rows, kv_lens = [i % ROWS for i in range(512)], [2_000] * 512
    groups = [SharedPrefix(i, i + 32, 1_920) for i in range(0, 512, 32)]
    for name, shared in (("flat", []), ("shared", groups)):
        layout = layout_of(rows, kv_lens, shared=shared)
        q = case.queries(layout)
        out = torch.empty_like(q)

        def attend(q: torch.Tensor = q, out: torch.Tensor = out) -> None:
            for layer in range(NUM_LAYERS):
                case.attend.attend(layer % 2, q, out)

        plan_ms = host_ms(lambda layout=layout: case.attend.plan(layout, is_graph=False))
        numbers = {"plan_host_ms": plan_ms, "attend_ms": device_ms(attend), "attend_host_ms": host_ms(attend, 10)}
        report(model=model, way=name, sequences=512, layers=NUM_LAYERS, **numbers)


def report(**values: object) -> None:
    print(json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in values.items()}), flush=True)


if __name__ == "__main__":
    for each in ("llama-8b", "qwen3-0.6b"):
        for size in (1, 16):
            time_graphs(each, size)
        time_shared(each)
