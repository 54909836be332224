"""Attention through FlashInfer against attention in float32, on the card.

Slots that nobody owns hold NaN: what is read beyond a sequence's end shows.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from nbsgl.engine.attention.flashinfer_paged import FlashInferAttention
from nbsgl.engine.attention.paged import ExtendSpan, Layout, SharedPrefix

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("flashinfer") is None, reason="needs FlashInfer"),
]

ROWS, CONTEXT = 80, 2_048
LAYERS = 2
LIMIT = 0.015  # |got - wanted| / |wanted| of a token's heads: some roundings of a bfloat16
MODELS = {  # query heads, KV heads, head_dim, dtype
    "llama-8b": (32, 8, 128, torch.bfloat16),
    "qwen3-0.6b": (16, 8, 128, torch.bfloat16),
    "qwen2-0.5b": (14, 2, 64, torch.bfloat16),
    "fp16": (32, 8, 128, torch.float16),
}


class Case:
    """A cache, the backend on it, and what it should say."""

    def __init__(self, model: str, page_size: int = 1, *, shared: int = 0, kv_dtype: torch.dtype | None = None) -> None:
        torch.manual_seed(0)
        self.heads, kv_heads, self.head_dim, self.dtype = MODELS[model]
        num_slots = ROWS * CONTEXT
        pages = torch.randperm(num_slots // page_size, device="cuda").view(ROWS, -1)
        pages[:, : shared // page_size] = pages[:1, : shared // page_size]
        slots = (pages[:, :, None] * page_size + torch.arange(page_size, device="cuda")).view(ROWS, CONTEXT)
        table = torch.cat([slots, torch.full((1, CONTEXT), num_slots, device="cuda")]).to(torch.int32)
        kv = torch.randn(2, LAYERS, num_slots + page_size, kv_heads, self.head_dim, device="cuda")
        kv = kv.to(kv_dtype or self.dtype)
        device = torch.device("cuda", torch.cuda.current_device())
        self.cache = SimpleNamespace(k=list(kv[0]), v=list(kv[1]), table=table, page_size=page_size, device=device)
        config = SimpleNamespace(num_heads=self.heads, num_kv_heads=kv_heads, head_dim=self.head_dim)
        self.attend = FlashInferAttention(config, self.cache, dtype=self.dtype)

    def spoil(self, layout: Layout) -> None:
        """NaN where the layout reads nothing."""
        is_read = torch.zeros(len(self.cache.k[0]), dtype=torch.bool, device="cuda")
        for span in spans_of(layout):
            is_read[self.cache.table[span.row, : span.kv_len].long()] = True
        for pool in (*self.cache.k, *self.cache.v):
            pool[~is_read] = float("nan")

    def queries(self, layout: Layout) -> Tensor:
        return torch.randn(layout.num_tokens, self.heads, self.head_dim, device="cuda").to(self.dtype)

    def expected(self, layout: Layout, q: Tensor, layer: int) -> Tensor:
        parts, begin = [], 0
        for span in spans_of(layout):
            slots = self.cache.table[span.row, : span.kv_len].long()
            keys, values = (pool[layer][slots].float() for pool in (self.cache.k, self.cache.v))
            parts.append(attention(q[begin : begin + span.num_tokens].float(), keys, values))
            begin += span.num_tokens
        return torch.cat(parts)

    def check(self, layout: Layout, q: Tensor, out: Tensor, layer: int) -> None:
        wanted = self.expected(layout, q, layer)
        error = (out.float() - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
        assert bool((error < LIMIT).all()), f"worst token {error.argmax()} of {len(error)}: {error.max():.4f}"

    def check_planned(self, layout: Layout) -> None:
        for layer in range(LAYERS):
            q = self.queries(layout)
            out = torch.full_like(q, float("nan"))
            self.attend.attend(layer, q, out)
            self.check(layout, q, out, layer)


def attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q `[n, heads, d]` at the last n positions."""
    groups = q.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    scores = torch.einsum("nhd,khd->hnk", q, keys) / math.sqrt(q.shape[2])
    positions = torch.arange(len(keys) - len(q), len(keys), device=q.device)
    scores.masked_fill_(torch.arange(len(keys), device=q.device) > positions[:, None], float("-inf"))
    return torch.einsum("hnk,khd->nhd", scores.softmax(-1), values)


def spans_of(layout: Layout) -> list[ExtendSpan]:
    return [ExtendSpan(int(r), 1, int(n)) for r, n in zip(layout.rows, layout.kv_lens)] + list(layout.extends)


def layout_of(rows, kv_lens, extends=(), shared=()) -> Layout:
    on_host = np.array([rows, kv_lens], np.int32).reshape(2, -1)
    on_device = torch.tensor(on_host, device="cuda")
    return Layout(on_host[0].copy(), on_host[1].copy(), on_device[0], on_device[1], extends, list(shared))


@contextmanager
def forbidden_to_wait() -> Iterator[None]:
    """Whatever makes the host wait for the device raises."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("model", MODELS)
def test_singles_and_extends_agree_with_float32(model: str, page_size: int) -> None:
    case = Case(model, page_size)
    singles = [5, 5, 7, 20, 21, 22], [33, 34, 1, 2_048, 1_000, 17]
    extends = [ExtendSpan(30, 700, 700), ExtendSpan(31, 300, 1_500), ExtendSpan(32, 2, 2), ExtendSpan(33, 17, 2_048)]
    layouts = [layout_of(*singles, extends), layout_of(*singles), layout_of([], [], extends), layout_of([9], [1])]
    case.spoil(layouts[0])
    for pool in (*case.cache.k, *case.cache.v):
        pool[case.cache.table[9, 0]] = 0.5
    for layout in layouts:
        case.attend.plan(layout, is_graph=False)
        case.check_planned(layout)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("model", MODELS)
def test_few_tokens_of_a_long_context_are_cut_into_parts(model: str, page_size: int) -> None:
    """Beside decodes, as a long prompt is computed under a small budget."""
    case = Case(model, page_size)
    layout = layout_of([1, 2, 3], [70, 2_048, 5], [ExtendSpan(40, 100, 2_048)])
    case.spoil(layout)
    case.attend.plan(layout, is_graph=False)
    assert [call for call, _, _ in case.attend._parts] == [case.attend._singles, case.attend._few_extends]
    case.check_planned(layout)


def test_hopper_extends_with_fa3() -> None:
    major, _ = torch.cuda.get_device_capability()
    assert Case("llama-8b").attend._extends.backend == ("fa3" if major == 9 else "fa2")


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("model", ["llama-8b", "qwen3-0.6b"])
@pytest.mark.parametrize("num", [3, 64])
def test_replays_follow_the_plan(model: str, page_size: int, num: int) -> None:
    """One capture; then other rows, other lengths, padding."""
    case = Case(model, page_size)
    rng = np.random.default_rng(0)
    used, padding = num - num // 3, num // 3
    padded = [*range(used), *[ROWS] * padding]
    layouts = [
        layout_of(range(num), rng.integers(1, 200, num)),
        layout_of(range(num)[::-1], rng.integers(1_000, CONTEXT, num)),
        layout_of(padded, [*rng.integers(1, CONTEXT, used), *[1] * padding]),
        layout_of(range(num), [1] * num),
    ]
    case.attend.plan(layouts[0], is_graph=True)
    q = [case.queries(layouts[0]) for _ in range(LAYERS)]
    out = [torch.empty_like(x) for x in q]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(LAYERS):
            case.attend.attend(layer, q[layer], out[layer])
    for layout in layouts:
        case.attend.plan(layout, is_graph=True)
        for layer in range(LAYERS):
            q[layer].normal_()
            out[layer].fill_(float("nan"))
        graph.replay()
        for layer in range(LAYERS):
            case.check(layout, q[layer], out[layer], layer)
    assert case.attend.generation == 0


def test_graphs_of_several_sizes_share_their_memory() -> None:
    """Sizes taken in turn, steps without a graph between them, nothing waited for between plan and plan."""
    case = Case("llama-8b")
    layouts = {num: layout_of(range(num), [1_000 + 3 * i for i in range(num)]) for num in (1, 16, 40)}
    graphs = {}
    for num, layout in layouts.items():
        case.attend.plan(layout, is_graph=True)
        q = case.queries(layout)
        out = torch.empty_like(q)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            case.attend.attend(0, q, out)
        graphs[num] = graph, q, out
    mixed = layout_of([50], [77], [ExtendSpan(51, 400, 900)])
    found = []
    for num in (40, 1, 16, 1, 40):
        graph, q, out = graphs[num]
        case.attend.plan(layouts[num], is_graph=True)
        graph.replay()
        found.append((layouts[num], q, out.clone()))
        case.attend.plan(mixed, is_graph=False)
        q = case.queries(mixed)
        out = torch.empty_like(q)
        case.attend.attend(0, q, out)
        found.append((mixed, q, out))
    for layout, q, out in found:
        case.check(layout, q, out, 0)


def test_more_pages_than_room_move_the_lists() -> None:
    case = Case("llama-8b", shared=CONTEXT)
    num = 320  # 655,360 positions; the cache has 163,841 slots
    layout = layout_of([i % ROWS for i in range(num)], [CONTEXT] * num)
    case.attend.plan(layout, is_graph=True)
    assert case.attend.generation == 1
    case.check_planned(layout)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("model", ["llama-8b", "qwen3-0.6b"])
def test_shared_prefixes_give_what_flat_attention_gives(model: str, page_size: int) -> None:
    case = Case(model, page_size, shared=1_024)
    num = 75
    rows = [i % ROWS for i in range(num)]
    kv_lens = [1_025 + 7 * i for i in range(num)]
    kv_lens[0], kv_lens[34], kv_lens[74] = 1, 5, 900  # no part in it
    groups = [SharedPrefix(1, 34, 1_024), SharedPrefix(35, 74, 1_000)]
    extends = [ExtendSpan(76, 100, 1_200)]
    shared = layout_of(rows, kv_lens, extends, groups)
    case.spoil(shared)
    q = case.queries(shared)
    outs = []
    for layout in (shared, layout_of(rows, kv_lens, extends)):
        case.attend.plan(layout, is_graph=False)
        out = torch.full_like(q, float("nan"))
        case.attend.attend(0, q, out)
        case.check(layout, q, out, 0)
        outs.append(out.float())
    assert bool(((outs[0] - outs[1]).flatten(1).norm(dim=1) < LIMIT * outs[1].flatten(1).norm(dim=1)).all())


@pytest.mark.parametrize("page_size", [1, 16])
def test_an_e4m3_cache_is_read_as_what_it_holds(page_size: int) -> None:
    """K and V are exact in bfloat16 once they are e4m3; what that rounding costs is the model's test."""
    case = Case("llama-8b", page_size, shared=64, kv_dtype=torch.float8_e4m3fn)
    extends = [ExtendSpan(30, 300, 700), ExtendSpan(31, 5, 1_900)]
    layouts = [
        layout_of([5, 6, 7], [33, 2_000, 1], extends),
        layout_of(range(40), [100 + i for i in range(40)], shared=[SharedPrefix(0, 40, 64)]),
    ]
    for layout in layouts:
        case.attend.plan(layout, is_graph=False)
        case.check_planned(layout)
    layout = layout_of(range(8), [200 * i + 1 for i in range(8)])
    case.attend.plan(layout, is_graph=True)
    q = case.queries(layout)
    out = torch.empty_like(q)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.attend.attend(1, q, out)
    out.fill_(float("nan"))
    graph.replay()
    case.check(layout, q, out, 1)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_neither_plan_nor_attend_waits_for_the_device() -> None:
    case = Case("llama-8b", shared=64)
    num = 64
    layouts = [
        (layout_of(range(num), [500] * num), True),
        (layout_of(range(num), [501] * num, [ExtendSpan(70, 90, 300)]), False),
        (layout_of(range(num), [502] * num, [ExtendSpan(70, 9, 309)], [SharedPrefix(0, num, 64)]), False),
    ]
    for layout, is_graph in layouts:
        case.attend.plan(layout, is_graph=is_graph)
        case.check_planned(layout)
    queries = [case.queries(layout) for layout, _ in layouts]
    outs = [torch.empty_like(q) for q in queries]
    with forbidden_to_wait():
        for (layout, is_graph), q, out in zip(layouts, queries, outs):
            case.attend.plan(layout, is_graph=is_graph)
            case.attend.attend(0, q, out)
    for (layout, _), q, out in zip(layouts, queries, outs):
        case.check(layout, q, out, 0)


def test_plans_made_far_ahead_of_the_device_keep_their_numbers() -> None:
    """The device is kept busy while five steps are planned and queued; the pinned buffers are three."""
    case = Case("llama-8b")
    layouts = [layout_of(range(20), [50 + 97 * step + i for i in range(20)]) for step in range(5)]
    queries = [case.queries(layout) for layout in layouts]
    outs = [torch.empty_like(q) for q in queries]
    case.attend.plan(layouts[0], is_graph=False)
    torch.cuda._sleep(200_000_000)  # about 0.1 s
    for layout, q, out in zip(layouts, queries, outs):
        case.attend.plan(layout, is_graph=False)
        case.attend.attend(0, q, out)
    for layout, q, out in zip(layouts, queries, outs):
        case.check(layout, q, out, 0)
