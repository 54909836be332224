"""CUDA graphs of whole steps, by way and padded size.

A graph reads its inputs from the input block and writes to the runner's own buffers, so graphs share one memory pool:
they never run at the same time, and nothing inside one is read after it.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nbsgl.engine.cuda.forward import MAX_FUSED, Way

log = logging.getLogger("nbsgl")

MAX_BUCKET = 512
# up to 160 tokens padding is nearly free (performance.md 4.2); beyond, a step costs 20 us a token
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, *range(160, MAX_BUCKET + 1, 16))


@dataclass(frozen=True, slots=True)
class GraphKey:
    """`num_tokens` is the padded size; `draws`: the graph ends with the plain draw, else with the logits."""

    way: Way
    num_tokens: int
    draws: bool


def bucket_of(num_tokens: int) -> int | None:
    """The padded size of a step of so many tokens; None beyond the largest."""
    return SIZES[bisect_left(SIZES, num_tokens)] if num_tokens <= MAX_BUCKET else None


def way_of(num_tokens: int, *, is_decode: bool) -> Way:
    """`is_decode`: one token a row, all of different sequences."""
    if is_decode and num_tokens == 1:
        return Way.ONE
    return Way.FEW if is_decode and num_tokens <= MAX_FUSED else Way.ANY


class Graphs:
    """Captures a step when it is first needed, and replays it."""

    def __init__(self) -> None:
        self._graphs: dict[GraphKey, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        self.seconds = 0.0  # spent capturing

    def __len__(self) -> int:
        return len(self._graphs)

    def find(self, key: GraphKey) -> torch.cuda.CUDAGraph | None:
        return self._graphs.get(key)

    def capture(self, key: GraphKey, run: Callable[[], None]) -> None:
        """Run the step once, so that its kernels are loaded, then record it.  Its inputs must be padding.

        Waits for the device.  Raises what `run` raises; the graph is not kept then.
        """
        begin = time.perf_counter()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):  # both times, so that cuBLAS has its workspace before the record
            run()
            torch.cuda.synchronize()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()
        self._graphs[key] = graph
        seconds = time.perf_counter() - begin
        self.seconds += seconds
        log.debug("captured %s in %.0f ms", key, seconds * 1e3)

    def forget(self) -> None:
        """Drop all graphs: the memory they read has moved."""
        self._graphs.clear()
