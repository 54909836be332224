"""Paged attention through FlashInfer: singles on tensor cores (fa2), extends with fa3 where the card has it.

Planned outside the graph, once a step.  Page lists are made on the device from the page table; the plan itself is the
library's host work (design/performance.md 5.7).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nbsgl.engine.attention.flashinfer_calls import (
    PLANNED_DIRECTLY,
    WHOLE_FROM,
    Call,
    PageLists,
    PlanMemory,
    Shape,
    grown_lists,
    workspace_bytes,
)
from nbsgl.engine.attention.paged import ExtendSpan, Layout
from nbsgl.engine.attention.shared_prefix import PrefixRequests, prefix_requests
from nbsgl.engine.kernels.merge_states import merge_states
from nbsgl.engine.kv_cache import KVCache
from nbsgl.engine.model_config import ModelConfig
from nbsgl.engine.transfer import to_device
from nbsgl.errors import EngineStartFailed

log = logging.getLogger("nbsgl")

FIRST_REQUESTS = 512  # room in the lists of steps without a graph, grown when needed
SPLIT_PLAN_BYTES = 2 << 20  # fa2: 24 bytes a tile, 8 a request: 65,536 requests fit
FA3_TILE = 128  # queries of one head that a program of fa3 takes
CUT_FROM = 2048  # positions: fewer are soon read
EXTEND_PLAN_BYTES = 8 << 20  # fa3: 32 bytes a query tile and head; the library's own size


@dataclass(slots=True)
class SharedStep:
    """A step whose singles share prefixes: singles [begin, end) have a prefix part to be merged where `starts` > 0."""

    begin: int
    end: int
    starts: Tensor
    lse: Tensor
    prefix_out: Tensor
    prefix_lse: Tensor


class FlashInferAttention:
    """See `PagedAttention`.  Plan and attend on one stream.

    `generation` grows when buffers that captured graphs read had to move (more pages than there was room for): a graph
    captured under another generation must not be replayed.  It is a step's own `plan` that moves them.  So, per step:
    `plan`, then look at `generation`; if it has grown, capture anew and `plan` again; then replay.  Room is for twice
    the cache's pages at first and then doubles: sequences that share a prefix list its pages once each.

    `dtype` is that of queries and outputs (None: the cache's; to be given with an e4m3 cache).  EngineStartFailed if
    the library has no kernels for this model and card and may not compile them.
    """

    name = "flashinfer"

    def __init__(
        self,
        config: ModelConfig,
        cache: KVCache,
        *,
        dtype: torch.dtype | None = None,
        max_graph_singles: int = 512,
    ) -> None:
        page_size, kv_dtype = cache.page_size, cache.k[0].dtype
        self.cache, self.max_graph_singles, self.generation = cache, max_graph_singles, 0
        self.shape = Shape(
            config.num_heads, config.num_kv_heads, config.head_dim, page_size, dtype or kv_dtype, kv_dtype
        )
        self._kv = [(_paged(k, page_size), _paged(v, page_size)) for k, v in zip(cache.k, cache.v)]
        card = torch.cuda.get_device_properties(cache.device)
        self.enable_pdl = card.major >= 9
        self._num_sms = card.multi_processor_count
        num_bytes = workspace_bytes(self.shape, max_graph_singles, card.multi_processor_count)
        self._workspace = torch.empty(num_bytes, dtype=torch.uint8, device=cache.device)
        self._memory = PlanMemory(SPLIT_PLAN_BYTES, cache.device)  # of singles: one plan a step
        self._graph_indices = self._room(2 * len(cache.k[0]) // page_size)
        self._graphs: dict[int, Call] = {}
        try:
            self._singles = self._call(self._memory, "fa2", causal=False)
            self._extends = self._extend_call()
            self._few_extends = self._cut_extend_call()
            self._prefixes = self._call(PlanMemory(SPLIT_PLAN_BYTES, cache.device), "fa2", causal=False)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, OSError, ImportError) as error:
            raise EngineStartFailed(
                stage="attention",
                reason=f"FlashInfer has no kernels for {self.shape}: {str(error).strip().splitlines()[0]}",
                hint="Use attention_backend='triton'.",
            ) from error
        if not self._singles.is_direct:
            log.warning(
                "FlashInfer's version is not one of %s: planned through its public interface, slower", PLANNED_DIRECTLY
            )
        self._one_each = np.arange(0, dtype=np.int32)
        self._one_each_on = torch.arange(0, dtype=torch.int32, device=cache.device)
        self._parts: list[tuple[Call, int, int]] = []  # a planned call, and which tokens are its queries
        self._shared: SharedStep | None = None

    # ---- calls -----------------------------------------------------------------------------------------------------

    def _call(self, memory: PlanMemory, backend: str, *, causal: bool) -> Call:
        lists = grown_lists(self.cache, FIRST_REQUESTS, len(self._kv[0][0]))
        return self._make(lists, memory, backend, causal=causal, graph_rows=None)

    def _make(
        self, lists: PageLists, memory: PlanMemory, backend: str, *, causal: bool, graph_rows: int | None
    ) -> Call:
        return Call(
            self.shape,
            lists,
            memory,
            self._workspace,
            self._kv[0],
            backend=backend,
            causal=causal,
            enable_pdl=self.enable_pdl,
            graph_rows=graph_rows,
            splits=graph_rows is None or graph_rows * self.shape.num_kv_heads < WHOLE_FROM * self._num_sms,
        )

    def _extend_call(self) -> Call:
        """The library's choice (fa3 on sm_90), or fa2 if that kernel is missing."""
        memory = PlanMemory(EXTEND_PLAN_BYTES, self.cache.device)
        try:
            return self._call(memory, "auto", causal=True)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, OSError) as error:
            log.info("FlashInfer: no fa3 kernels for this model, extends take fa2 (%s)", str(error).strip()[:200])
            return self._call(memory, "fa2", causal=True)

    def _cut_extend_call(self) -> Call:
        """fa2, which cuts positions into parts where programs are few."""
        if self._extends.backend == "fa2":
            return self._extends
        return self._call(PlanMemory(SPLIT_PLAN_BYTES, self.cache.device), "fa2", causal=True)

    def _graph_call(self, num_singles: int, num_pages: int) -> Call:
        """The call of graphs with that many singles; all of them read one list of pages."""
        assert num_singles <= self.max_graph_singles, "the float workspace is made for max_graph_singles"
        if num_pages > len(self._graph_indices):
            self._graph_indices = self._room(num_pages)
            self._graphs.clear()
            self.generation += 1
        if num_singles not in self._graphs:
            lists = PageLists(self.cache, num_singles, self._graph_indices)
            self._graphs[num_singles] = self._make(lists, self._memory, "fa2", causal=False, graph_rows=num_singles)
        return self._graphs[num_singles]

    def _room(self, num_pages: int) -> Tensor:
        """A list with room for that many pages or more."""
        return torch.zeros(1 << (num_pages - 1).bit_length(), dtype=torch.int32, device=self.cache.device)

    # ---- plan ------------------------------------------------------------------------------------------------------

    def plan(self, layout: Layout, *, is_graph: bool) -> None:
        self._parts, self._shared = [], None
        num = layout.num_singles
        if is_graph:
            page_size = self.shape.page_size
            num_pages = int(((layout.kv_lens + (page_size - 1)) // page_size).sum())
            call = self._graph_call(num, num_pages)
            self._plan_singles(call, layout, None, layout.kv_lens)
            self._parts.append((call, 0, num))
            return
        requests = prefix_requests(layout, self.shape.page_size) if layout.shared else None
        if requests is not None:
            self._plan_shared(layout, requests)
        elif num:
            self._plan_singles(self._singles, layout, None, layout.kv_lens)
            self._parts.append((self._singles, 0, num))
        if layout.extends:
            self._plan_extends(num, layout.extends)

    def _plan_singles(self, call: Call, layout: Layout, starts: Tensor | None, kv_lens: np.ndarray) -> None:
        num = layout.num_singles
        if num >= len(self._one_each):
            size = max(FIRST_REQUESTS + 1, 2 * num)
            self._one_each = np.arange(size, dtype=np.int32)
            self._one_each_on = torch.arange(size, dtype=torch.int32, device=self.cache.device)
        qo_indptr, qo_indptr_on = self._one_each[: num + 1], self._one_each_on[: num + 1]
        call.plan(layout.rows_on, starts, layout.kv_lens_on, kv_lens, qo_indptr, qo_indptr_on)

    def _plan_extends(self, begin: int, extends: Sequence[ExtendSpan]) -> None:
        num = len(extends)
        block = np.zeros(3 * num + 1, np.int32)
        rows, kv_lens, qo_indptr = block[:num], block[num : 2 * num], block[2 * num :]
        rows[:] = [extend.row for extend in extends]
        kv_lens[:] = [extend.kv_len for extend in extends]
        np.cumsum([extend.num_tokens for extend in extends], out=qo_indptr[1:])
        on = to_device(block, self.cache.device, torch.int32)
        call = self._few_extends if self._leaves_idle(extends) else self._extends
        call.plan(on[:num], None, on[num : 2 * num], kv_lens, qo_indptr, on[2 * num :])
        self._parts.append((call, begin, begin + int(qo_indptr[-1])))

    def _leaves_idle(self, extends: Sequence[ExtendSpan]) -> bool:
        """Whether fa3, which cuts no request's positions into parts, has too few programs and these are long."""
        tiles = sum(-(-extend.num_tokens // FA3_TILE) for extend in extends)
        return tiles * self.shape.num_heads < self._num_sms and max(e.kv_len for e in extends) >= CUT_FROM

    def _plan_shared(self, layout: Layout, requests: PrefixRequests) -> None:
        """Prefixes once each, and each single from its prefix's end on."""
        num, device = len(requests.rows), self.cache.device
        block = np.concatenate([requests.rows, requests.lens, requests.qo_indptr, requests.starts])
        on = to_device(block, device, torch.int32)
        starts = on[3 * num + 1 :]
        self._prefixes.plan(
            on[:num], None, on[num : 2 * num], requests.lens, requests.qo_indptr, on[2 * num : 3 * num + 1]
        )
        self._plan_singles(self._singles, layout, starts, layout.kv_lens - requests.starts)
        num_queries, heads = int(requests.qo_indptr[-1]), self.shape.num_heads
        begin, end = requests.begin, requests.begin + num_queries
        lse = torch.empty((layout.num_singles, heads), dtype=torch.float32, device=device)
        prefix_lse = torch.empty((num_queries, heads), dtype=torch.float32, device=device)
        shape = (num_queries, heads, self.shape.head_dim)
        prefix_out = torch.empty(shape, dtype=self.shape.q_dtype, device=device)
        self._shared = SharedStep(begin, end, starts, lse, prefix_out, prefix_lse)

    # ---- attend ----------------------------------------------------------------------------------------------------

    def attend(self, layer_idx: int, q: Tensor, out: Tensor) -> None:
        kv = self._kv[layer_idx]
        if self._shared is not None:
            self._attend_shared(self._shared, q, kv, out)
        for call, begin, end in self._parts:
            call.run(q[begin:end], kv, out[begin:end])

    def _attend_shared(self, step: SharedStep, q: Tensor, kv: tuple[Tensor, Tensor], out: Tensor) -> None:
        num = step.lse.shape[0]
        begin, end = step.begin, step.end
        self._prefixes.run(q[begin:end], kv, step.prefix_out, step.prefix_lse)
        self._singles.run(q[:num], kv, out[:num], step.lse)
        merge_states(out[begin:end], step.lse[begin:end], step.starts[begin:end], step.prefix_out, step.prefix_lse)


def _paged(pool: Tensor, page_size: int) -> Tensor:
    """`[slots, kv_heads, head_dim]` -> `[pages, page_size, kv_heads, head_dim]`, a view."""
    assert pool.shape[0] % page_size == 0, "the cache ends in a whole page (the padding slot's)"
    return pool.view(-1, page_size, *pool.shape[1:])
