"""A batch on its way: what the host will want to know is copied behind the step, and read when the copy is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from nbsgl.engine.batch import Row, RowResult, StepOutOfMemory
from nbsgl.engine.sampler import Drawn
from nbsgl.engine.transfer import to_host

TOO_LITTLE_FREE = 256 << 20  # of the card's bytes
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(slots=True)
class Scored:
    """One chunk of scored positions: is_finite `[]`, logprobs `[n]`, top ids and values `[n, tops]`."""

    is_finite: Tensor
    logprobs: Tensor
    top_ids: Tensor
    top_logprobs: Tensor

    def on_host(self) -> Scored:
        return Scored(*map(to_host, (self.is_finite, self.logprobs, self.top_ids, self.top_logprobs)))


class LaunchedStep:
    """Implements `batch.Launched`.

    `ids` `[2, n]`, n >= len(drawn_rows): drawn tokens and whether their logits were finite, a line for each draw;
    `drawn_rows` its row (of a draft: a row again and again); `drawn` adds log-probabilities, which are given of a row's
    first draw; `scored[k]` are the chunks of the k-th row that scores.  On CUDA an event marks the end of the copies.
    """

    def __init__(
        self,
        rows: list[Row],
        drawn_rows: list[int],
        ids: Tensor | None,
        drawn: Drawn | None,
        scored: list[list[Scored]],
        device: torch.device,
    ) -> None:
        self.rows, self.drawn_rows, self.device = rows, drawn_rows, device
        self.ids = None if ids is None else to_host(ids)
        self.logprob_lines = drawn.logprob_lines if drawn is not None else []
        self.logprobs = self.top_ids = self.top_logprobs = None
        if drawn is not None and drawn.logprobs is not None and drawn.top_ids is not None:
            assert drawn.top_logprobs is not None, "they come together"
            self.logprobs, self.top_ids = to_host(drawn.logprobs), to_host(drawn.top_ids)
            self.top_logprobs = to_host(drawn.top_logprobs)
        self.scored = [[part.on_host() for part in parts] for parts in scored]
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.event = torch.cuda.Event()
            self.event.record()

    def result(self) -> list[RowResult]:
        """One entry per row, in order.  Raises StepOutOfMemory."""
        with memory_errors(self.device):
            if self.event is not None:
                self.event.synchronize()
            results = [RowResult() for _ in self.rows]
            self._settle_drawn(results)
            self._settle_scored(results)
            return results

    def _settle_drawn(self, results: list[RowResult]) -> None:
        if self.ids is None:
            return
        tokens, is_finite = self.ids.tolist()
        before = -1
        for i, token, good in zip(self.drawn_rows, tokens, is_finite):
            result = results[i]
            if i == before:
                result.more = [*result.more, token]
                result.is_finite &= bool(good)
            else:
                result.token, result.is_finite = token, bool(good)
            before = i
        if self.logprobs is None or self.top_ids is None or self.top_logprobs is None:
            return
        tops = zip(self.top_ids.tolist(), self.top_logprobs.tolist())
        for line, logprob, (ids, values) in zip(self.logprob_lines, self.logprobs.tolist(), tops):
            i = self.drawn_rows[line]
            if line and self.drawn_rows[line - 1] == i:
                continue
            params = self.rows[i].params
            assert params is not None
            results[i].logprob = logprob
            results[i].top = list(zip(ids, values))[: params.top_logprobs_num]

    def _settle_scored(self, results: list[RowResult]) -> None:
        if not self.scored:
            return
        scoring = [i for i, row in enumerate(self.rows) if len(row.score)]
        for i, parts in zip(scoring, self.scored):
            for part in parts:
                results[i].is_finite &= bool(part.is_finite)
                results[i].scores += part.logprobs.tolist()
                if self.rows[i].score_top:
                    pairs = zip(part.top_ids.tolist(), part.top_logprobs.tolist())
                    results[i].score_tops += [list(zip(ids, values)) for ids, values in pairs]


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Turn running out of memory into StepOutOfMemory, with the allocator's cache emptied."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise StepOutOfMemory(str(error)[:200]) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says so: torch's allocators, the driver (graphs, modules) and cuBLAS have words of their own.

    cuDNN, which loads its kernels when they are first asked for, has none: it counts where next to nothing is free.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in NO_MEMORY):
        return True
    return "cuDNN error" in str(error) and torch.cuda.mem_get_info()[0] < TOO_LITTLE_FREE
