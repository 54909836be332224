"""CUDA graphs of whole steps, by way and padded size, and of the pieces between a step's attentions.

A graph reads its inputs from the input block and writes to the runner's own buffers, so graphs share one memory pool:
they never run at the same time, and nothing inside one is read after it.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nbsgl.engine.cuda.forward import MAX_FUSED, Way
from nbsgl.engine.launched import is_out_of_memory

log = logging.getLogger("nbsgl")

MAX_BUCKET = 512
# the driver takes some MB for a graph, torch its intermediates; a card of 8 GB keeps 128 MB free for them
LEAST_FREE_BYTES, LEAST_FREE_SHARE = 256 << 20, 64
# up to 160 tokens padding is nearly free (performance.md 4.2); beyond, a step costs 20 us a token
PIECES_STEP = 32
SIZES: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, *range(160, MAX_BUCKET + 1, 16))


@dataclass(frozen=True, slots=True)
class GraphKey:
    """`num_tokens` is the padded size; `draws`: the last graph ends with the plain draw, else with the logits."""

    way: Way
    num_tokens: int
    draws: bool


def bucket_of(num_tokens: int) -> int:
    """The padded size of a step of so many tokens, at most MAX_BUCKET."""
    return SIZES[bisect_left(SIZES, num_tokens)]


def pieces_bucket_of(num_tokens: int) -> int:
    """The padded size of a step in pieces: coarser, there are as many graphs to a size as layers."""
    return -(-num_tokens // PIECES_STEP) * PIECES_STEP


def way_of(num_tokens: int, *, is_decode: bool) -> Way:
    """`is_decode`: one token a row, all of different sequences."""
    if is_decode and num_tokens == 1:
        return Way.ONE
    return Way.FEW if is_decode and num_tokens <= MAX_FUSED else Way.ANY


class NoRoomForGraph(Exception):
    """The device has no memory for one more graph: the step has to do without."""


class Graphs:
    """What was captured: a step's graph, or its graphs from each attention to the next."""

    def __init__(self) -> None:
        self._graphs: dict[GraphKey, list[torch.cuda.CUDAGraph]] = {}
        self._pool: tuple[int, int] | None = None  # made by the first capture: nothing here needs a device
        self._stream: torch.cuda.Stream | None = None
        self._is_broken = False
        self.seconds = 0.0  # spent capturing

    def __len__(self) -> int:
        return len(self._graphs)

    def find(self, key: GraphKey) -> list[torch.cuda.CUDAGraph] | None:
        return self._graphs.get(key)

    def capture(self, key: GraphKey, parts: Sequence[Callable[[], None]]) -> list[torch.cuda.CUDAGraph]:
        """A graph of each part, which is run once, so that its kernels are loaded, then recorded.  Inputs are padding.

        Waits for the device.  Raises what a part raises, or NoRoomForGraph; nothing is kept then.
        """
        begin = time.perf_counter()
        self._check_room()
        graphs = []
        self._stream = self._stream or torch.cuda.Stream()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):  # both times, so that cuBLAS has its workspace before the record
            for run in parts:
                run()
                torch.cuda.synchronize()
                try:
                    graphs.append(self._record(run))
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    raise NoRoomForGraph(str(error)[:200]) from error
        self._graphs[key] = graphs
        seconds = time.perf_counter() - begin
        self.seconds += seconds
        log.debug("captured %s in %.0f ms", key, seconds * 1e3)
        return graphs

    def _record(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            run()
        except BaseException:
            self._give_up(graph)
            raise
        try:
            graph.capture_end()
        except BaseException:
            self._break()
            raise
        return graph

    def forget(self) -> None:
        """Drop all graphs: the memory they read has moved."""
        self._graphs.clear()
        self._pool = None  # torch refuses to record into a pool that no graph uses any more

    def _check_room(self) -> None:
        """NoRoomForGraph before anything is begun: a record that cannot be ended cannot be undone either."""
        if self._is_broken:
            raise NoRoomForGraph("an earlier record could not be ended; restart the engine for full speed")
        free, total = torch.cuda.mem_get_info()
        if free < min(LEAST_FREE_BYTES, total // LEAST_FREE_SHARE):
            raise NoRoomForGraph(f"{free >> 20} MiB of the device's memory are free")

    def _break(self) -> None:
        """After this torch takes its allocator and generator for recording still: go on with the graphs there are."""
        self._is_broken = True
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a record that has failed; what failed is said by whoever raised it."""
        with contextlib.suppress(RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the graph is empty
            graph.capture_end()
        if not self._graphs:
            self._pool = None
