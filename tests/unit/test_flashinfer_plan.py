"""FlashInfer's planning without FlashInfer: a stand-in library reads the lists that were made for it, in plain torch.

What the stand-in lets these tests lean on: its `run` reads the wrapper's fields that the library's `run` reads, and its
`plan` takes what the library's takes.  The kernels of ours have their own tests (`tests/kernels`).
"""

from __future__ import annotations

import logging
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nbsgl.engine.attention import flashinfer_calls, flashinfer_paged
from nbsgl.engine.attention.flashinfer_calls import PlanMemory, Shape, indptr_of, workspace_bytes
from nbsgl.engine.attention.flashinfer_paged import FlashInferAttention
from nbsgl.engine.attention.paged import ExtendSpan, Layout, SharedPrefix
from nbsgl.engine.attention.shared_prefix import prefix_requests, worth_sharing
from nbsgl.errors import EngineStartFailed

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
ROWS, CONTEXT = 6, 96
PADDING_ROW = ROWS


class Event:
    """A CUDA event whose copy is done, unless `is_pending`."""

    is_pending = False
    waits = 0

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return not Event.is_pending

    def synchronize(self) -> None:
        Event.waits += 1


class Module:
    """The library's compiled module: plan says what it was told; run is the wrapper's business here."""

    def __init__(self, backend: str) -> None:
        self.num_args = 19 if backend == "fa2" else 16

    def plan(self, *args: object) -> SimpleNamespace:
        assert len(args) == self.num_args
        pinned, qo_indptr, indptr, kv_lens, num_rows, num = args[2:8]
        assert len(qo_indptr) == len(indptr) == num + 1 == len(kv_lens) + 1
        assert all(t.dtype == torch.int32 and t.device.type == "cpu" for t in (qo_indptr, indptr, kv_lens))
        assert num_rows == qo_indptr[-1]
        assert args[8:11] == (HEADS, KV_HEADS, args[10])
        assert args[12:14] == (HEAD_DIM, HEAD_DIM)
        assert args[15] == -1
        return SimpleNamespace(pinned=pinned.data_ptr(), is_graph=args[11], causal=args[14], kv_lens=kv_lens.clone())


class Wrapper:
    """The library's wrapper of paged prefill, by its fields."""

    missing: tuple[str, ...] = ()

    def __init__(self, workspace, kv_layout, *, backend, use_cuda_graph=False, **buffers):
        assert kv_layout == "NHD"
        self._backend = "fa3" if backend == "auto" else backend
        if self._backend in Wrapper.missing:
            raise RuntimeError(f"no module for {self._backend}\nsecond line")
        self._float_workspace_buffer, self.is_graph = workspace, use_cuda_graph
        self.device = workspace.device
        assert use_cuda_graph == bool(buffers)
        for name, buffer in buffers.items():
            setattr(self, f"_{name}", buffer)
        self.public_plans = 0

    def plan(
        self, *, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size, causal, **others
    ):
        self._cached_module = Module(self._backend)
        self.public_plans += 1
        fresh = {
            "_qo_indptr_buf": qo_indptr,
            "_paged_kv_indptr_buf": paged_kv_indptr,
            "_paged_kv_indices_buf": paged_kv_indices,
            "_paged_kv_last_page_len_buf": paged_kv_last_page_len,
        }
        for name, values in fresh.items():
            if self.is_graph:
                getattr(self, name)[: len(values)].copy_(values)
            else:
                setattr(self, name, values.clone())
        kv_lens = (paged_kv_indptr.diff() - 1) * page_size + paged_kv_last_page_len
        own = () if self._backend == "fa3" else (-1, False, 0)
        self._plan_info = self._cached_module.plan(
            self._float_workspace_buffer,
            self._int_workspace_buffer,
            self._pin_memory_int_workspace_buffer,
            qo_indptr,
            paged_kv_indptr,
            kv_lens,
            int(qo_indptr[-1]),
            len(kv_lens),
            others["num_qo_heads"],
            others["num_kv_heads"],
            page_size,
            self.is_graph,
            others["head_dim_qk"],
            others["head_dim_qk"],
            causal,
            -1,
            *own,
        )
        self._qo_indptr_last = int(qo_indptr[-1])

    def run(self, q, kv, *, out, lse, return_lse, enable_pdl):
        assert self.is_graph or q.shape[0] == self._qo_indptr_last
        assert return_lse == (lse is not None)
        indptr, last_lens = self._paged_kv_indptr_buf.tolist(), self._paged_kv_last_page_len_buf.tolist()
        bounds = self._qo_indptr_buf.tolist()
        assert len(indptr) == len(last_lens) + 1 == len(bounds)
        page_size = kv[0].shape[1]
        for i, last in enumerate(last_lens):
            pages = self._paged_kv_indices_buf[indptr[i] : indptr[i + 1]].long()
            kv_len = (len(pages) - 1) * page_size + last
            assert self._plan_info.kv_lens[i] == kv_len, "host and device agree"
            keys, values = (part[pages].flatten(0, 1)[:kv_len] for part in kv)
            begin, end = bounds[i], bounds[i + 1]
            got, got_lse = attention(q[begin:end], keys, values, causal=self._plan_info.causal)
            out[begin:end] = got
            if lse is not None:
                lse[begin:end] = got_lse


def attention(q, keys, values, *, causal):
    """Plain attention of q `[n, heads, d]`, with log-sum-exps in base 2."""
    keys, values = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (keys, values))
    scores = torch.einsum("nhd,khd->nhk", q, keys) / math.sqrt(HEAD_DIM)
    if causal:
        first = len(keys) - len(q)
        is_hidden = torch.arange(len(keys)) > first + torch.arange(len(q))[:, None]
        scores = scores.masked_fill(is_hidden[:, None, :], float("-inf"))
    return torch.einsum("nhk,khd->nhd", scores.softmax(-1), values), scores.logsumexp(-1) / math.log(2)


def lists_by_hand(table, rows, starts, ends, *, page_size, max_pages, indptr, indices, last_lens):
    starts = torch.zeros_like(ends) if starts is None else starts
    pages = [table[r, s:e:page_size] // page_size for r, s, e in zip(rows, starts, ends)]
    assert max(len(p) for p in pages) == max_pages
    flat = torch.cat(pages)
    indices[: len(flat)] = flat
    indptr.copy_(torch.tensor([0, *(len(p) for p in pages)]).cumsum(0))
    last_lens.copy_((ends - starts - 1) % page_size + 1)


def merge_by_hand(out, lse, starts, prefix_out, prefix_lse):
    share = torch.sigmoid((prefix_lse - lse) * math.log(2))[..., None]
    out.copy_(torch.where(starts[:, None, None] > 0, out + (prefix_out - out) * share, out))


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The stand-in, importable as flashinfer; kernels of ours replaced by plain torch."""
    fake = SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=Wrapper, __version__="0.6.14+cu130")
    monkeypatch.setitem(sys.modules, "flashinfer", fake)
    monkeypatch.setattr(flashinfer_calls, "flat_indices", lists_by_hand)
    monkeypatch.setattr(flashinfer_paged, "merge_states", merge_by_hand)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    card = SimpleNamespace(major=9, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(Event, "waits", 0)
    return fake


def make_cache(page_size: int = 1, shared: int = 0) -> SimpleNamespace:
    """Two layers; the rows' pages in random order, all rows with the same slots at their first `shared` positions."""
    torch.manual_seed(0)
    num_slots = ROWS * CONTEXT
    pages = torch.randperm(num_slots // page_size).view(ROWS, -1)
    pages[:, : shared // page_size] = pages[:1, : shared // page_size]
    slots = (pages[:, :, None] * page_size + torch.arange(page_size)).view(ROWS, CONTEXT)
    table = torch.cat([slots, torch.full((1, CONTEXT), num_slots)]).to(torch.int32)
    k, v = torch.randn(2, 2, num_slots + page_size, KV_HEADS, HEAD_DIM)
    return SimpleNamespace(k=list(k), v=list(v), table=table, page_size=page_size, device=torch.device("cpu"))


def make(cache: SimpleNamespace) -> FlashInferAttention:
    config = SimpleNamespace(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    return FlashInferAttention(config, cache, max_graph_singles=8)


def layout_of(rows: list[int], kv_lens: list[int], extends=(), shared=()) -> Layout:
    on_host = np.array([rows, kv_lens], np.int32)
    on_device = torch.tensor(np.array(on_host))
    return Layout(on_host[0], on_host[1], on_device[0], on_device[1], extends, list(shared))


def expected(cache, layout: Layout, q: torch.Tensor, layer: int) -> torch.Tensor:
    spans = [ExtendSpan(int(r), 1, int(n)) for r, n in zip(layout.rows, layout.kv_lens)] + list(layout.extends)
    parts, begin = [], 0
    for span in spans:
        slots = cache.table[span.row, : span.kv_len].long()
        queries = q[begin : begin + span.num_tokens]
        parts.append(attention(queries, cache.k[layer][slots], cache.v[layer][slots], causal=True)[0])
        begin += span.num_tokens
    return torch.cat(parts)


def check(attend: FlashInferAttention, cache, layout: Layout) -> None:
    """Both layers, for the plan that was made."""
    for layer in range(2):
        q = torch.randn(layout.num_tokens, HEADS, HEAD_DIM)
        out = torch.full_like(q, float("nan"))
        attend.attend(layer, q, out)
        torch.testing.assert_close(out, expected(cache, layout, q, layer), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("page_size", [1, 16])
def test_singles_and_extends_of_one_step(page_size: int) -> None:
    cache = make_cache(page_size)
    attend = make(cache)
    extends = [ExtendSpan(4, 20, 50), ExtendSpan(0, 3, 3)]
    for layout in (
        layout_of([3, 1, 1], [40, 16, 17], extends),
        layout_of([2], [1]),
        layout_of([], [], extends),
        layout_of([5, PADDING_ROW], [96, 1]),
    ):
        attend.plan(layout, is_graph=False)
        check(attend, cache, layout)


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_graph_reads_the_same_addresses_whatever_the_lengths(page_size: int) -> None:
    cache = make_cache(page_size)
    attend = make(cache)
    layouts = [layout_of([0, 1, 2], [5, 90, 1]), layout_of([4, 4, PADDING_ROW], [33, 34, 1])]
    seen = set()
    for layout in layouts:
        attend.plan(layout, is_graph=True)
        check(attend, cache, layout)
        wrapper = attend._parts[0][0].wrapper
        assert wrapper._plan_info.is_graph
        fields = ("_qo_indptr_buf", "_paged_kv_indptr_buf", "_paged_kv_indices_buf", "_paged_kv_last_page_len_buf")
        seen.add(tuple(getattr(wrapper, name).data_ptr() for name in fields))
    assert len(seen) == 1
    assert attend.generation == 0


def test_steps_without_a_graph_leave_what_graphs_read() -> None:
    cache = make_cache()
    attend = make(cache)
    graph = layout_of([0, 1], [5, 90])
    attend.plan(graph, is_graph=True)
    captured = attend._parts[0][0].wrapper
    attend.plan(layout_of(list(range(ROWS)) * 200, [CONTEXT] * ROWS * 200), is_graph=False)
    assert attend.generation == 0, "only lists of steps without a graph have grown"
    attend.plan(graph, is_graph=True)
    assert attend._parts[0][0].wrapper is captured
    check(attend, cache, graph)


def test_more_pages_than_room_is_a_new_generation() -> None:
    cache = make_cache()
    attend = FlashInferAttention(
        SimpleNamespace(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM), cache, max_graph_singles=64
    )
    small = layout_of([0, 1], [5, 90])
    attend.plan(small, is_graph=True)
    before = attend._parts[0][0].wrapper._paged_kv_indices_buf
    shared = layout_of([0] * 64, [CONTEXT] * 64)  # 6,144 positions in a cache of 577 slots
    attend.plan(shared, is_graph=True)
    assert attend.generation == 1
    check(attend, cache, shared)
    attend.plan(small, is_graph=True)
    after = attend._parts[0][0].wrapper._paged_kv_indices_buf
    assert after.data_ptr() != before.data_ptr()
    assert len(after) >= 64 * CONTEXT
    attend.plan(shared, is_graph=True)
    assert attend.generation == 1, "room was made once"


def test_a_plan_never_writes_where_the_two_before_are_still_copied_from() -> None:
    attend = make(make_cache())
    attend.plan(layout_of([0], [1]), is_graph=True)  # the first of a size plans twice
    pinned = []
    for length in (3, 4, 5, 6, 7):
        layout = layout_of([0], [length])
        attend.plan(layout, is_graph=length % 2 == 0)  # graph and eager plans share the memory
        pinned.append(attend._parts[0][0].wrapper._plan_info.pinned)
    assert all(len(set(pinned[i : i + 3])) == 3 for i in range(3)), pinned
    assert Event.waits == 0


def test_pinned_memory_is_waited_for_only_if_its_copy_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = PlanMemory(64, torch.device("cpu"))
    memory.lend()
    assert Event.waits == 0
    monkeypatch.setattr(Event, "is_pending", True)
    memory.lend()
    assert Event.waits == 1


def test_the_librarys_own_plan_runs_once_per_wrapper() -> None:
    attend = make(make_cache())
    for length in (3, 4):
        attend.plan(layout_of([0], [length], [ExtendSpan(1, 2, 9)]), is_graph=False)
    assert [call.wrapper.public_plans for call, _, _ in attend._parts] == [1, 1]


@pytest.mark.parametrize("page_size", [1, 16])
def test_an_unknown_version_is_planned_as_documented(page_size: int, library, caplog) -> None:
    library.__version__ = "0.7.0"
    cache = make_cache(page_size)
    with caplog.at_level(logging.WARNING, logger="nbsgl"):
        attend = make(cache)
    assert "public interface" in caplog.text
    for is_graph in (False, True):
        for layout in (layout_of([3, 1], [40, 16]), layout_of([5, 1], [2, 17])):
            attend.plan(layout, is_graph=is_graph)
            check(attend, cache, layout)
    mixed = layout_of([3], [40], [ExtendSpan(4, 20, 50)])
    attend.plan(mixed, is_graph=False)
    check(attend, cache, mixed)


def test_extends_take_fa2_where_fa3_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make(make_cache())._extends.backend == "fa3"
    monkeypatch.setattr(Wrapper, "missing", ("fa3",))
    cache = make_cache()
    attend = make(cache)
    assert attend._extends.backend == "fa2"
    layout = layout_of([], [], [ExtendSpan(4, 20, 50)])
    attend.plan(layout, is_graph=False)
    check(attend, cache, layout)


def test_a_model_without_kernels_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrapper, "missing", ("fa2",))
    with pytest.raises(EngineStartFailed, match="no module for fa2") as caught:
        make(make_cache())
    assert "attention_backend='triton'" in caught.value.hint


# ---- shared prefixes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("has_extends", [False, True])
def test_shared_prefixes_change_nothing_but_the_work(page_size: int, has_extends: bool) -> None:
    """Rows share 40 positions (32 in whole pages of 16); singles 0, 3 and 6 take no part, 3 lies between two groups."""
    cache = make_cache(page_size, shared=48)
    attend = make(cache)
    layout = layout_of(
        [5, 0, 1, 2, 3, 4, 5],
        [60, 41, 60, 1, 96, 49, 2],
        [ExtendSpan(2, 7, 30)] if has_extends else (),
        [SharedPrefix(1, 3, 40), SharedPrefix(4, 6, 33)],
    )
    attend.plan(layout, is_graph=False)
    assert attend._shared is not None
    assert attend._prefixes.wrapper._plan_info.kv_lens.tolist() == ([40, 1, 33] if page_size == 1 else [32, 1, 32])
    check(attend, cache, layout)
    attend.plan(layout_of([0], [5]), is_graph=False)
    assert attend._shared is None, "and it ends with its step"


def test_a_prefix_shorter_than_a_page_is_not_shared() -> None:
    layout = layout_of([0, 1], [20, 20], shared=[SharedPrefix(0, 2, 15)])
    assert prefix_requests(layout, 16) is None
    requests = prefix_requests(layout, 1)
    assert (requests.begin, requests.rows.tolist(), requests.lens.tolist()) == (0, [0], [15])
    assert (requests.qo_indptr.tolist(), requests.starts.tolist()) == ([0, 2], [15, 15])


def test_sharing_is_worth_it_from_192_sequences_and_half_the_positions_on() -> None:
    def is_worth(num: int, length: int, own: int) -> bool:
        return worth_sharing(np.full(num, length + own, np.int32), [SharedPrefix(0, num, length)])

    assert is_worth(192, 2048, 80)
    assert not is_worth(191, 2048, 80), "few sequences: the host would hold them up"
    assert is_worth(192, 130, 120), "48,000 positions, 23,170 of them distinct"
    assert not is_worth(192, 100, 100)
    assert not worth_sharing(np.array([5], np.int32), [])


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_the_workspace_holds_what_a_plan_may_ask_for() -> None:
    """From `PrefillPlan`: heads x tiles x rows of a tile x (head_dim + 1) floats."""
    llama = Shape(32, 8, 128, 1, torch.bfloat16, torch.bfloat16)
    qwen = Shape(16, 8, 128, 1, torch.bfloat16, torch.bfloat16)
    assert workspace_bytes(llama, 512, 132) == 32 * (128 + 511) * 16 * 129 * 4 + 64
    assert workspace_bytes(qwen, 512, 132) == 16 * (64 + 511) * 16 * 129 * 4 + 64
    assert workspace_bytes(llama, 8, 132) == 32 * 33 * 128 * 129 * 4 + 64, "a split outside graphs"


def test_indptr_counts_pages() -> None:
    lens = np.array([1, 16, 17, 40], np.int32)
    assert indptr_of(lens).tolist() == [0, 1, 17, 34, 74]
    assert indptr_of(lens, 16).tolist() == [0, 1, 2, 4, 7]
    assert indptr_of(lens, 16).dtype == np.int32
