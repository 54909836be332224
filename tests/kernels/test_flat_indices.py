"""Page lists made by a kernel, against lists made by hand; and the merge of a prefix's part."""

from __future__ import annotations

import math

import pytest
import torch

from nbsgl.engine.kernels import flat_indices as module
from nbsgl.engine.kernels.flat_indices import flat_indices
from nbsgl.engine.kernels.merge_states import merge_states

UNTOUCHED = -7


def make_table(rows: int, context: int, page_size: int) -> torch.Tensor:
    """Pages in random order; slots of a page are neighbours."""
    pages = torch.randperm(rows * context // page_size).view(rows, -1)
    slots = pages[:, :, None] * page_size + torch.arange(page_size)
    return slots.reshape(rows, context).to(torch.int32)


def by_hand(table, rows, starts, ends, page_size):
    lists = [table[r, s:e:page_size] // page_size for r, s, e in zip(rows, starts, ends)]
    indptr = torch.tensor([0, *(len(pages) for pages in lists)]).cumsum(0)
    return indptr, torch.cat(lists), (ends - starts - 1) % page_size + 1


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("has_starts", [False, True])
def test_lists_are_those_of_the_table(page_size: int, has_starts: bool) -> None:
    torch.manual_seed(0)
    table = make_table(6, 4_096, page_size)
    rows, ends = int32(5, 0, 3, 3, 1), int32(4_096, 1, 33, 2_500, 17)
    starts = int32(48, 0, 32, 2_480, 0) if has_starts else torch.zeros_like(rows)
    indptr, indices, last_lens = by_hand(table, rows, starts, ends, page_size)
    got_indptr, got_last_lens = torch.full((6,), UNTOUCHED, dtype=torch.int32), torch.empty_like(rows)
    room = torch.full((len(indices) + 5,), UNTOUCHED, dtype=torch.int32)
    flat_indices(
        table,
        rows,
        starts if has_starts else None,
        ends,
        page_size=page_size,
        max_pages=int(indptr.diff().max()),
        indptr=got_indptr,
        indices=room,
        last_lens=got_last_lens,
    )
    assert got_indptr.tolist() == indptr.tolist()
    assert room.tolist() == [*indices.tolist(), *[UNTOUCHED] * 5], "and nothing behind them"
    assert got_last_lens.tolist() == last_lens.tolist()


def test_many_requests_are_summed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCAN", 16)
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "MAX_PARTS", 2)
    table = make_table(4, 128, 1)
    rows, ends = torch.randint(0, 4, (50,), dtype=torch.int32), torch.randint(1, 129, (50,), dtype=torch.int32)
    indptr, indices, _ = by_hand(table, rows, torch.zeros_like(ends), ends, 1)
    got_indptr, got = torch.zeros(51, dtype=torch.int32), torch.zeros(len(indices), dtype=torch.int32)
    last_lens = torch.zeros(50, dtype=torch.int32)
    flat_indices(
        table, rows, None, ends, page_size=1, max_pages=128, indptr=got_indptr, indices=got, last_lens=last_lens
    )
    assert got_indptr.tolist() == indptr.tolist()
    assert got.tolist() == indices.tolist()
    assert last_lens.tolist() == [1] * 50


@pytest.mark.parametrize(("heads", "head_dim"), [(4, 64), (14, 96)])
def test_parts_merge_to_the_whole(heads: int, head_dim: int) -> None:
    """Attention over 7 + 5 keys from its two parts; the last token shares nothing and keeps what it has."""
    torch.manual_seed(1)
    q = torch.randn(3, heads, head_dim)
    k, v = torch.randn(2, 12, heads, head_dim)
    scores = torch.einsum("nhd,khd->nhk", q, k)

    def part(keys: slice) -> tuple[torch.Tensor, torch.Tensor]:
        some = scores[..., keys]
        out = torch.einsum("nhk,khd->nhd", some.softmax(-1), v[keys])
        return out.half().contiguous(), some.logsumexp(-1).contiguous() / math.log(2)

    out, lse = part(slice(7, 12))
    prefix_out, prefix_lse = part(slice(0, 7))
    prefix_out[2], prefix_lse[2] = float("nan"), float("nan")
    own = out[2].clone()
    merge_states(out, lse, int32(7, 7, 0), prefix_out, prefix_lse)
    whole, _ = part(slice(0, 12))
    torch.testing.assert_close(out[:2], whole[:2], atol=4e-3, rtol=1e-3)
    assert torch.equal(out[2], own)
