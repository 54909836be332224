"""Products with the weights: the library's best candidate for sizes that were measured, torch's choice for others.

A step's graph is captured for one number of rows, so its products are measured when it is: every candidate over
distinct weights (the L2 must not help), in a small graph (launches must not count).  Picks are kept on disk by card and
library.  One H200, all layers of Llama-3.1-8B: gate_up at 64 rows 1.99 -> 1.88 ms, at 128 2.16 -> 1.99, at 256 3.21 ->
3.02; down at 64 1.17 -> 1.11; o at 192 0.55 -> 0.49.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nbsgl.engine.cuda.cublaslt import TYPES, CublasLt, Product
from nbsgl.engine.layers.linear import Linear

log = logging.getLogger("nbsgl")

WORKSPACE_BYTES = 64 << 20
READ_BYTES = 128 << 20  # of weights in one measurement: well beyond an L2
LEAST_LAUNCHES, REPEATS = 4, 3
MARGIN = 0.98  # another candidate than the first must be quicker by so much
FIRST = 0

Shape = tuple[int, int, int]  # rows, n, k


class Matmul:
    """`out = x @ weight.T + bias` on CUDA.  `tune` measures; `__call__` only looks up."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._products: dict[Shape, tuple[Product, int]] = {}
        self._library: CublasLt | None = None
        self._picks: Picks | None = None
        if device.type == "cuda" and dtype in TYPES:
            try:
                self._library = CublasLt(device, WORKSPACE_BYTES)
            except OSError as error:
                log.info("products are left to torch: %s", error)
        if self._library is not None:
            self._picks = Picks(device, dtype, self._library.version)

    def __call__(self, linear: Linear, x: Tensor, out: Tensor) -> None:
        """Queue the product; x and out contiguous."""
        weight = linear.weight
        if linear.bias is not None:
            torch.addmm(linear.bias, x, weight.t(), out=out)
            return
        found = self._products.get((x.shape[0], *weight.shape))
        if found is None or self._library is None:
            torch.mm(x, weight.t(), out=out)
        else:
            self._library.run(*found, weight, x, out)

    def tune(self, num_rows: int, groups: Sequence[Sequence[Tensor]]) -> None:
        """Choose candidates for products of `num_rows` rows with weights of equal shape `[n, k]`, a group each.

        Waits for the device, up to some 20 ms a group that was never measured on this machine; nothing else may run.
        """
        if self._library is None or self._picks is None:
            return
        for weights in groups:
            shape = (num_rows, *weights[0].shape)
            if shape in self._products:
                continue
            try:
                product = self._library.product(*shape, weights[0].dtype)
                pick = self._picks.find(shape)
                if pick is None or pick >= product.num_candidates:
                    pick = self._best(product, num_rows, weights)
                    self._picks.keep(shape, pick)
                self._products[shape] = (product, pick)
            except RuntimeError as error:
                log.info("product %s is left to torch: %s", shape, error)

    def _best(self, product: Product, num_rows: int, weights: Sequence[Tensor]) -> int:
        """The quickest candidate whose result is that of the first."""
        assert self._library is not None, "there is a library to measure"
        run = self._library.run
        n, k = weights[0].shape
        device, dtype = weights[0].device, weights[0].dtype
        x = torch.linspace(-1, 1, num_rows * k, device=device).to(dtype).view(num_rows, k)
        out = torch.empty((num_rows, n), dtype=x.dtype, device=x.device)
        count = max(LEAST_LAUNCHES, -(-READ_BYTES // weights[0].nbytes))
        rotation = [weights[i % len(weights)] for i in range(count)]
        run(product, FIRST, weights[0], x, out)
        expected, best, best_ms = out.clone(), FIRST, float("inf")
        for candidate in range(product.num_candidates):
            try:
                run(product, candidate, weights[0], x, out)
                if not torch.allclose(out, expected, rtol=0.05, atol=0.05 * float(expected.abs().max())):
                    continue
                ms = _time(lambda c=candidate: [run(product, c, w, x, out) for w in rotation])
            except RuntimeError as error:
                log.debug("candidate %d refuses: %s", candidate, error)
                continue
            if ms < best_ms * (1.0 if candidate == FIRST else MARGIN):
                best, best_ms = candidate, ms
        return best


def _time(run: Callable[[], object]) -> float:
    """Milliseconds of what `run` queues, as a graph: the best of some replays."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            run()
        finally:
            graph.capture_end()
        graph.replay()
        best = float("inf")
        for _ in range(REPEATS):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end))
    return best


class Picks:
    """Which candidate was best, by shape, in a file for this card, dtype and library."""

    def __init__(self, device: torch.device, dtype: torch.dtype, version: int) -> None:
        card = torch.cuda.get_device_name(device).replace(" ", "-").replace("/", "-")
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.path = root / "nbsgl" / "matmul" / f"{card}-{str(dtype).removeprefix('torch.')}-{version}.json"
        self._found: dict[str, int] = {}
        try:
            self._found = {str(k): int(v) for k, v in json.loads(self.path.read_text()).items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            log.debug("no products measured before: %s", error)

    def find(self, shape: Shape) -> int | None:
        return self._found.get("x".join(map(str, shape)))

    def keep(self, shape: Shape, candidate: int) -> None:
        """Remember, in the file too if it can be written."""
        self._found["x".join(map(str, shape))] = candidate
        part = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self._found))
            part.replace(self.path)
        except OSError as error:
            log.info("what was measured is not kept: %s", error)
