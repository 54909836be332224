"""One planned call of FlashInfer: the page lists it reads, the memory its plans lie in, plan and run.

Decode on tensor cores is the library's paged prefill with one query per request (its decode wrapper loads the same
module), so one kind of wrapper does all: `BatchPrefillWithPagedKVCacheWrapper`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbsgl.engine.kernels.flat_indices import flat_indices
from nbsgl.engine.kv_cache import KVCache

# Versions whose wrapper has been read: plan() there fills lists that we have on the device already, and takes the
# largest of n lengths one tensor element at a time (0.5 ms of 0.65 ms at 256 requests).
PLANNED_DIRECTLY = ("0.6.14",)
NUM_PINNED = 3  # plans whose copy may be under way: at most two steps are in flight
NO_FIXED_SPLIT, NO_COLOCATED = -1, 0  # what the library passes where it splits by itself
# From so many (request, KV head) pairs a multiprocessor on, the library cuts no request of a graph into parts, but
# launches the merge of the parts all the same (3-7 us a layer); and it pads the tiles of a graph, which only that merge
# can tell from real ones.  So these graphs are planned as eager steps are: the number of tiles is that of the rows.
WHOLE_FROM = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """What a plan is told about the model and the cache."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    q_dtype: torch.dtype
    kv_dtype: torch.dtype


def workspace_bytes(shape: Shape, max_graph_rows: int, num_sms: int) -> int:
    """The float workspace: partial outputs and their log-sum-exps, float32, of the most tiles a split can have.

    In a graph of n rows there are max(2 sms / kv_heads, ceil(n groups / 16) + n - 1) tiles of 16 rows (64 from 17
    query heads per KV head on), outside at most 2 sms / kv_heads of up to 128.  512 rows of Llama-3.1-8B: 169 MB, of
    Qwen3-0.6B: 76 MB.  FlashInfer 0.6.14, `PrefillPlan`.
    """
    groups = shape.num_heads // shape.num_kv_heads
    split = 2 * num_sms // shape.num_kv_heads
    tile = 16 if groups <= 16 else 64 if groups <= 64 else 128
    graph_tiles = max(split, -(-max_graph_rows * groups // tile) + max_graph_rows - 1)
    rows = max(graph_tiles * tile, split * 128)
    return rows * shape.num_heads * (shape.head_dim + 1) * 4 + 64


def indptr_of(lens: np.ndarray, page_size: int = 1) -> np.ndarray:
    """int32 `[n + 1]`: where each of n requests of `lens` positions begins in a flat list of pages."""
    indptr = np.zeros(len(lens) + 1, np.int32)
    np.cumsum((lens + (page_size - 1)) // page_size, out=indptr[1:])
    return indptr


class PlanMemory:
    """Where the library's plans lie: `on_device`, filled from NUM_PINNED pinned buffers in turn.

    A plan writes a pinned buffer and queues its copy.  The buffer is lent again when that copy is done; with at most
    NUM_PINNED - 1 plans under way, nobody waits for that.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.on_device = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self._pinned = [torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_cuda) for _ in range(NUM_PINNED)]
        self._copied = [torch.cuda.Event() for _ in range(NUM_PINNED)]
        self._next = 0

    def lend(self) -> Tensor:
        """The pinned buffer for the next plan."""
        if not self._copied[self._next].query():
            self._copied[self._next].synchronize()
        return self._pinned[self._next]

    def copied(self) -> None:
        """The lent buffer's copy has been queued on the current stream."""
        self._copied[self._next].record()
        self._next = (self._next + 1) % NUM_PINNED


class PageLists:
    """The pages that requests read, on the device: room for `num_requests` requests of `len(indices)` pages in sum."""

    def __init__(self, cache: KVCache, num_requests: int, indices: Tensor) -> None:
        self.cache, self.indices = cache, indices
        self._numbers = torch.zeros(2 * num_requests + 1, dtype=torch.int32, device=cache.device)
        self.indptr, self.last_lens = self._numbers[: num_requests + 1], self._numbers[num_requests + 1 :]

    def has_room(self, num_requests: int, num_pages: int) -> bool:
        return num_requests <= len(self.last_lens) and num_pages <= len(self.indices)

    def fill(self, rows: Tensor, starts: Tensor | None, ends: Tensor, indptr: np.ndarray) -> None:
        """Queue the making of the lists of positions [starts, ends) of page-table rows `rows`."""
        num = len(indptr) - 1
        flat_indices(
            self.cache.table,
            rows,
            starts,
            ends,
            page_size=self.cache.page_size,
            max_pages=int(np.diff(indptr).max()),
            indptr=self.indptr[: num + 1],
            indices=self.indices,
            last_lens=self.last_lens[:num],
        )


def grown_lists(cache: KVCache, num_requests: int, num_pages: int) -> PageLists:
    """Lists with room for that many, in powers of two."""
    size = 1 << max(num_pages - 1, 0).bit_length()
    indices = torch.zeros(size, dtype=torch.int32, device=cache.device)
    return PageLists(cache, 1 << max(num_requests - 1, 0).bit_length(), indices)


class Call:
    """One wrapper of the library with its page lists.  `causal` aligns queries with the last positions.

    Made for a graph of `graph_rows` requests of one query each, or (None) for any requests.  Without `splits` no
    request's positions are cut into parts (but they are where plans go through the public interface).  Making one loads
    the kernels, or compiles them where they are missing and may be compiled (RuntimeError or OSError if not), and runs
    once on `kv` (pages of one layer), so that nothing is left to be loaded or allocated in a capture.
    """

    def __init__(
        self,
        shape: Shape,
        lists: PageLists,
        memory: PlanMemory,
        workspace: Tensor,
        kv: tuple[Tensor, Tensor],
        *,
        backend: str,
        causal: bool,
        enable_pdl: bool,
        graph_rows: int | None = None,
        splits: bool = True,
    ) -> None:
        import flashinfer

        self.shape, self.lists, self.memory = shape, lists, memory
        self.causal, self.enable_pdl, self.graph_rows = causal, enable_pdl, graph_rows
        self.splits = True  # of the first plan
        buffers: dict[str, Any] = {}
        if graph_rows is not None:
            buffers = {
                "use_cuda_graph": True,
                "qo_indptr_buf": torch.arange(graph_rows + 1, dtype=torch.int32, device=workspace.device),
                "paged_kv_indptr_buf": lists.indptr,
                "paged_kv_indices_buf": lists.indices,
                "paged_kv_last_page_len_buf": lists.last_lens,
            }
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend=backend, **buffers)
        wrapper._int_workspace_buffer = memory.on_device
        self.wrapper = wrapper
        num = graph_rows or 1
        self._plan_publicly(np.arange(num + 1, dtype=np.int32), np.ones(num, np.int32))
        self.is_direct = flashinfer.__version__.partition("+")[0] in PLANNED_DIRECTLY
        self.splits = splits or not self.is_direct
        q = torch.zeros((num, shape.num_heads, shape.head_dim), dtype=shape.q_dtype, device=workspace.device)
        self.run(q, kv, torch.empty_like(q))

    @property
    def backend(self) -> str:
        """Which of the library's kernels: fa2 or fa3."""
        return str(self.wrapper._backend)

    def plan(
        self,
        rows: Tensor,
        starts: Tensor | None,
        ends: Tensor,
        kv_lens: np.ndarray,
        qo_indptr: np.ndarray,
        qo_indptr_on: Tensor,
    ) -> None:
        """Plan requests that attend over positions [starts, ends) of `rows`; `kv_lens` is how many on the host.

        Request i's queries are [qo_indptr[i], qo_indptr[i + 1]).  Host arrays and device tensors are int32.  Does not
        wait for the device; the current stream must be the one that runs.
        """
        kv_lens = np.ascontiguousarray(kv_lens, np.int32)  # the library reads it by its address
        indptr = indptr_of(kv_lens, self.shape.page_size)
        self._make_room(len(kv_lens), int(indptr[-1]))
        self.lists.fill(rows, starts, ends, indptr)
        if self.is_direct:
            self._plan_directly(qo_indptr, qo_indptr_on, indptr, kv_lens)
        else:
            self._plan_publicly(qo_indptr, kv_lens)

    def _make_room(self, num_requests: int, num_pages: int) -> None:
        if self.lists.has_room(num_requests, num_pages):
            return
        assert self.graph_rows is None, "a graph's lists may not move: its owner makes room"
        old = self.lists
        self.lists = grown_lists(old.cache, max(num_requests, len(old.last_lens)), max(num_pages, len(old.indices)))

    def _plan_directly(
        self, qo_indptr: np.ndarray, qo_indptr_on: Tensor, indptr: np.ndarray, kv_lens: np.ndarray
    ) -> None:
        """The part of the wrapper's plan() that is left when the lists are on the device.

        Fields set are those that its run() reads and that differ between plans; the rest stays from the first plan.
        """
        wrapper, shape, num = self.wrapper, self.shape, len(kv_lens)
        num_rows = int(qo_indptr[-1])
        if self.graph_rows is None:
            wrapper._qo_indptr_buf = qo_indptr_on
            wrapper._paged_kv_indptr_buf = self.lists.indptr[: num + 1]
            wrapper._paged_kv_indices_buf = self.lists.indices
            wrapper._paged_kv_last_page_len_buf = self.lists.last_lens[:num]
            wrapper._qo_indptr_last = num_rows
            wrapper._batch_size = num
        wrapper._plan_info = wrapper._cached_module.plan(
            wrapper._float_workspace_buffer,
            self.memory.on_device,
            self.memory.lend(),
            torch.from_numpy(qo_indptr),
            torch.from_numpy(indptr),
            torch.from_numpy(kv_lens),
            num_rows,
            num,
            shape.num_heads,
            shape.num_kv_heads,
            shape.page_size,
            self.graph_rows is not None and self.splits,
            shape.head_dim,
            shape.head_dim,
            self.causal,
            -1,  # no window
            *((NO_FIXED_SPLIT, not self.splits, NO_COLOCATED) if wrapper._backend == "fa2" else ()),
        )
        self.memory.copied()

    def _plan_publicly(self, qo_indptr: np.ndarray, kv_lens: np.ndarray) -> None:
        """Plan as documented: slower, and what it fills anew on the device is what is there already."""
        shape = self.shape
        indptr = indptr_of(kv_lens, shape.page_size)
        last_lens = (kv_lens - 1) % shape.page_size + 1
        self.wrapper._pin_memory_int_workspace_buffer = self.memory.lend()
        self.wrapper.plan(
            qo_indptr=torch.from_numpy(qo_indptr),
            paged_kv_indptr=torch.from_numpy(indptr),
            paged_kv_indices=self.lists.indices[: indptr[-1]],
            paged_kv_last_page_len=torch.from_numpy(last_lens.astype(np.int32)),
            num_qo_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim_qk=shape.head_dim,
            page_size=shape.page_size,
            causal=self.causal,
            q_data_type=shape.q_dtype,
            kv_data_type=shape.kv_dtype,
        )
        self.memory.copied()

    def run(self, q: Tensor, kv: tuple[Tensor, Tensor], out: Tensor, lse: Tensor | None = None) -> None:
        """out, and log-sum-exps in base 2 if `lse` float32 `[n, heads]` is given, of the planned requests."""
        self.wrapper.run(q, kv, out=out, lse=lse, return_lse=lse is not None, enable_pdl=self.enable_pdl)
