"""Triton's attention in the interpreter against softmax by definition.  Slots are scattered, others' hold NaN."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from nbsgl.engine.attention.paged import ExtendSpan, Layout
from nbsgl.engine.attention.triton_paged import TritonAttention
from nbsgl.engine.kernels.extend_attention import extend_tiles
from nbsgl.engine.kernels.split_decode import MAX_SPLITS, SplitScratch, splits_of

CPU = torch.device("cpu")
ROWS, CONTEXT, SLOTS = 6, 300, 1_000
LIMIT = {torch.float32: 2e-6, torch.float16: 2e-3}  # |got - wanted| / |wanted| of a token
GIVEN = [  # query heads, KV heads, head_dim, dtype
    (2, 2, 16, torch.float32),
    (4, 2, 64, torch.float16),
    (8, 2, 128, torch.float32),
    (14, 2, 64, torch.float32),
]


class Case:
    """A cache of one layer with a backend on it.  Row r of the table has slots of its own; the last one is padding."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, kv_dtype=None) -> None:
        torch.manual_seed(0)
        self.shape, self.dtype = (heads, head_dim), dtype
        table = torch.full((ROWS + 1, CONTEXT), SLOTS, dtype=torch.int32)
        table[:ROWS, :160] = torch.randperm(SLOTS)[: ROWS * 160].view(ROWS, 160)
        table[0] = torch.randperm(SLOTS)[:CONTEXT]  # a long one: shares slots with others
        self.kv = torch.randn(2, SLOTS + 1, kv_heads, head_dim).to(kv_dtype or dtype)
        self.kv[:, SLOTS] = 0
        self.cache = SimpleNamespace(k=[self.kv[0]], v=[self.kv[1]], table=table, device=CPU)
        config = SimpleNamespace(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
        self.attention = TritonAttention(config, self.cache, dtype=dtype)

    def queries(self, num: int) -> Tensor:
        return torch.randn(num, *self.shape).to(self.dtype)

    def attend(self, layout: Layout, q: Tensor, *, is_graph: bool = False) -> Tensor:
        out = torch.full_like(q, float("nan"))
        self.attention.plan(layout, is_graph=is_graph)
        self.attention.attend(0, q, out)
        return out

    def expected(self, layout: Layout, q: Tensor) -> Tensor:
        tokens = list(zip(layout.rows.tolist(), layout.kv_lens.tolist()))
        for extend in layout.extends:
            tokens += [(extend.row, extend.kv_len - extend.num_tokens + 1 + i) for i in range(extend.num_tokens)]
        out = torch.empty(q.shape)
        for i, (row, kv_len) in enumerate(tokens):
            k, v = self.kv[:, self.cache.table[row, :kv_len].long()].float()
            groups = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            weights = torch.einsum("hd,shd->hs", q[i].float(), k).div(math.sqrt(q.shape[2])).softmax(-1)
            out[i] = torch.einsum("hs,shd->hd", weights, v)
        return out

    def spoil(self, layout: Layout) -> None:
        """NaN in the slots that the layout does not read."""
        is_read = torch.zeros(SLOTS + 1, dtype=torch.bool)
        spans = [*zip(layout.rows.tolist(), layout.kv_lens.tolist()), *((e.row, e.kv_len) for e in layout.extends)]
        for row, kv_len in spans:
            is_read[self.cache.table[row, :kv_len].long()] = True
        self.kv[:, ~is_read] = float("nan")

    def check(self, layout: Layout, q: Tensor, out: Tensor) -> None:
        wanted = self.expected(layout, q)
        error = (out.float() - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1).clamp(min=1e-6)
        assert bool((error < LIMIT[self.dtype]).all()), error


def layout_of(rows: list[int], kv_lens: list[int], extends: tuple[ExtendSpan, ...] = ()) -> Layout:
    on_host = np.array([rows, kv_lens], np.int32).reshape(2, -1)
    on = torch.tensor(on_host)
    return Layout(on_host[0], on_host[1], on[0], on[1], extends)


@pytest.mark.parametrize("heads, kv_heads, head_dim, dtype", GIVEN)
def test_singles_and_extends_agree_with_the_definition(heads: int, kv_heads: int, head_dim: int, dtype) -> None:
    case = Case(heads, kv_heads, head_dim, dtype)
    extends = (ExtendSpan(3, 37, 37), ExtendSpan(4, 5, 133), ExtendSpan(5, 1, 65), ExtendSpan(1, 2, 2))
    layout = layout_of([0, 2, ROWS, ROWS], [259, 64, 1, 1], extends)
    case.spoil(layout)
    q = case.queries(layout.num_tokens)
    case.check(layout, q, case.attend(layout, q))


def test_a_graphs_launch_serves_other_lengths() -> None:
    """The same plan, tensors changed in place: what a replay sees.  Split in two and in five, and not at all."""
    case = Case(4, 2, 16, torch.float32)
    layout = layout_of([ROWS] * 4, [1] * 4)
    q = case.queries(4)
    case.attend(layout, q, is_graph=True)
    for rows, kv_lens in (([0, 1, 2, ROWS], [300, 128, 1, 1]), ([0, 5, 4, 3], [65, 64, 63, 129])):
        layout.rows[:], layout.kv_lens[:] = rows, kv_lens
        layout.rows_on.copy_(torch.tensor(rows))
        layout.kv_lens_on.copy_(torch.tensor(kv_lens))
        out = torch.full_like(q, float("nan"))
        case.attention.attend(0, q, out)
        case.check(layout, q, out)


def test_many_singles_are_not_split() -> None:
    assert splits_of(132, 2, 132).num == 1
    case = Case(2, 2, 16, torch.float32)
    layout = layout_of([i % ROWS for i in range(132)], [1 + i % 150 for i in range(132)])
    q = case.queries(132)
    case.check(layout, q, case.attend(layout, q))


@pytest.mark.parametrize("heads, kv_heads, head_dim, dtype", [GIVEN[1], GIVEN[3]])
def test_results_do_not_depend_on_chunks_or_company(
    heads: int, kv_heads: int, head_dim: int, dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt at once, in two chunks beside others, and token by token as one decodes: equal bit for bit."""
    # the interpreter's product sums a row by its place in the tile; a card's does not, nor does this one
    monkeypatch.setattr(np, "matmul", lambda a, b, **kind: np.einsum("ik,kj->ij", a, b, **kind))
    case = Case(heads, kv_heads, head_dim, dtype)
    whole = (ExtendSpan(1, 150, 150),)
    q = case.queries(150)
    expected = case.attend(layout_of([], [], whole), q)
    others = case.queries(70)
    first = layout_of([0], [99], (ExtendSpan(2, 9, 100), ExtendSpan(1, 71, 71), ExtendSpan(3, 60, 60)))
    found = case.attend(first, torch.cat((others[:1], others[1:10], q[:71], others[10:])))
    assert torch.equal(found[10:81], expected[:71])
    second = layout_of([], [], (ExtendSpan(4, 70, 90), ExtendSpan(1, 79, 150)))
    assert torch.equal(case.attend(second, torch.cat((others, q[71:])))[70:], expected[71:])
    at = [0, 63, 64, 100, 149]
    decodes = layout_of([], [], tuple(ExtendSpan(1, 1, i + 1) for i in at))
    assert torch.equal(case.attend(decodes, q[at]), expected[at])


def test_a_cache_of_8_bits_is_converted() -> None:
    case = Case(4, 2, 64, torch.float32, torch.float8_e4m3fn)
    layout = layout_of([0, 1], [200, 7], (ExtendSpan(2, 20, 90),))
    q = case.queries(layout.num_tokens)
    case.check(layout, q, case.attend(layout, q))


def test_tiles_cover_each_token_once_and_the_longest_come_first() -> None:
    spans = (ExtendSpan(7, 65, 100), ExtendSpan(2, 1, 1), ExtendSpan(5, 32, 500))
    tiles = extend_tiles(spans, 3, 32)
    assert tiles.tolist() == [[5, 69, 468, 32], [7, 67, 99, 1], [7, 35, 67, 32], [7, 3, 35, 32], [2, 68, 0, 1]]


@pytest.mark.parametrize("heads, kv_heads", [(32, 8), (14, 2), (8, 1)])
@pytest.mark.parametrize("num_sms", [16, 108, 132])
def test_the_scratch_has_room_for_every_split(heads: int, kv_heads: int, num_sms: int) -> None:
    scratch = SplitScratch(heads, kv_heads, 128, num_sms, torch.device("meta"))
    for num in range(1, 513):
        splits = splits_of(num, kv_heads, num_sms)
        assert 1 <= splits.num <= MAX_SPLITS
        if splits.num > 1:
            assert num * heads * splits.num <= len(scratch.lses)
            assert num * kv_heads <= len(scratch.arrived)
    assert scratch.outs.numel() * 4 < 32 << 20
