"""Elementwise kernels against plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nbsgl.engine.kernels import fused
from nbsgl.engine.kernels.fused import add_rmsnorm, embed, rmsnorm_rows, silu_mul

DTYPES = [torch.float32, torch.float16]
EPS = 1e-5


def close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    tolerance = 2e-3 if actual.dtype == torch.float16 else 1e-5
    torch.testing.assert_close(actual, wanted.to(actual.dtype), rtol=tolerance, atol=tolerance)


def normed(stream: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(stream.float(), stream.shape[-1:], weight.float(), EPS)


@pytest.mark.parametrize("hidden", [8, 64, 100, 1024])
def test_embed_reads_the_token_given_or_the_row_s_last(hidden: int) -> None:
    table = torch.randn(50, hidden)
    tokens = torch.tensor([3, -1, 0, -1, 49], dtype=torch.int32)
    rows = torch.tensor([0, 2, 4, 0, 1], dtype=torch.int32)
    last_tokens = torch.tensor([11, 12, 13, 14, 15], dtype=torch.int32)
    out = torch.empty(5, hidden)
    embed(tokens, rows, last_tokens, table, out, pdl=False)
    assert torch.equal(out, table[[3, 13, 0, 11, 49]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "hidden"), [(1, 64), (3, 100), (7, 1024), (40, 896)])
def test_add_rmsnorm_keeps_the_sum_and_normalises_it(num_rows: int, hidden: int, dtype: torch.dtype) -> None:
    x, stream = torch.randn(num_rows, hidden).to(dtype), torch.randn(num_rows, hidden).to(dtype)
    weight, out = torch.rand(hidden).to(dtype), torch.empty(num_rows, hidden, dtype=dtype)
    total = stream + x
    add_rmsnorm(x, stream, weight, EPS, out, pdl=False)
    assert torch.equal(stream, total)
    close(out, normed(total, weight))


def test_add_rmsnorm_without_anything_to_add_leaves_the_stream() -> None:
    stream, weight, out = torch.randn(3, 96), torch.rand(96), torch.empty(3, 96)
    before = stream.clone()
    add_rmsnorm(None, stream, weight, EPS, out, pdl=False)
    assert torch.equal(stream, before)
    close(out, normed(before, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_x", [True, False])
def test_rmsnorm_rows_reads_the_wanted_rows_and_writes_only_its_result(has_x: bool, dtype: torch.dtype) -> None:
    stream, x = torch.randn(6, 100).to(dtype), torch.randn(6, 100).to(dtype)
    weight, out = torch.rand(100).to(dtype), torch.empty(3, 100, dtype=dtype)
    before, x_before = stream.clone(), x.clone()
    index = torch.tensor([5, 0, 5], dtype=torch.int32)
    rmsnorm_rows(x if has_x else None, stream, index, weight, EPS, out, pdl=False)
    assert torch.equal(stream, before)
    assert torch.equal(x, x_before)
    close(out, normed(before + x if has_x else before, weight)[[5, 0, 5]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "intermediate"), [(1, 64), (3, 100), (5, 1024), (2, 3000)])
def test_silu_mul(num_rows: int, intermediate: int, dtype: torch.dtype) -> None:
    x = (3 * torch.randn(num_rows, 2 * intermediate)).to(dtype)
    out = torch.empty(num_rows, intermediate, dtype=dtype)
    silu_mul(x, out, pdl=False)
    gate, up = x.float().chunk(2, 1)
    close(out, F.silu(gate) * up)


def test_tiles_of_many_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, stream, weight = torch.randn(4, 4200), torch.randn(4, 2100), torch.rand(2100)
    results = []
    for many_rows in (fused.MANY_ROWS, 1):
        monkeypatch.setattr(fused, "MANY_ROWS", many_rows)
        normed_rows, active = torch.empty(4, 2100), torch.empty(4, 2100)
        add_rmsnorm(None, stream, weight, EPS, normed_rows, pdl=False)
        silu_mul(x, active, pdl=False)
        results.append((normed_rows, active))
    assert fused.silu_tile(4) == (2048, 8)
    torch.testing.assert_close(results[0], results[1])
