"""The product of one row against plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nbsgl.engine.kernels.gemv import gemv, tile_of

SHAPES = [(8, 256), (96, 512), (64, 896), (33, 768), (65, 1024), (5, 136), (100, 3072), (31, 7)]


def expected(weight, x, *, norm_weight=None, eps=0.0, residual=None, bias=None, silu=False):
    weight, x = weight.float(), x.float()
    if norm_weight is not None:
        x = F.rms_norm(x, x.shape, norm_weight.float(), eps)
    y = F.linear(x, weight, None if bias is None else bias.float())
    if silu:
        gate, up = y.chunk(2)
        y = F.silu(gate) * up
    return y if residual is None else y + residual.float()


def check(n: int, k: int, dtype: torch.dtype, *, norm=False, residual=False, bias=False, silu=False) -> None:
    rows = 2 * n if silu else n
    weight = (torch.randn(rows, k) / k**0.5).to(dtype)
    x = torch.randn(k).to(dtype)
    parts = {
        "norm_weight": torch.rand(k).to(dtype) if norm else None,
        "residual": torch.randn(n).to(dtype) if residual else None,
        "bias": torch.randn(rows).to(dtype) if bias else None,
    }
    wanted = expected(weight, x, eps=1e-5 if norm else 0.0, silu=silu, **parts)
    guard = 3  # what lies beyond the result stays as it is
    out = torch.full((n + guard,), 7.0, dtype=dtype)
    gemv(weight, x, out[:n], eps=1e-5 if norm else 0.0, silu=silu, pdl=False, **parts)
    torch.testing.assert_close(out[:n], wanted.to(dtype), rtol=2e-3, atol=2e-3 if dtype == torch.float16 else 1e-5)
    assert out[n:].tolist() == [7.0] * guard


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_plain_product(n: int, k: int, dtype: torch.dtype) -> None:
    check(n, k, dtype)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("norm", "residual", "bias"), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_what_is_folded_in(n: int, k: int, silu: bool, norm: int, residual: int, bias: int) -> None:
    check(n, k, torch.float32, norm=bool(norm), residual=bool(residual), bias=bool(bias), silu=silu)


def test_residual_is_added_in_place() -> None:
    weight, x, stream = torch.randn(48, 256), torch.randn(256), torch.randn(48)
    wanted = stream + weight @ x
    gemv(weight, x, stream, residual=stream, pdl=False)
    torch.testing.assert_close(stream, wanted, rtol=1e-4, atol=1e-4)


def test_garbage_beyond_the_weights_does_not_leak_in() -> None:
    """136 columns in tiles of 128: what the second tile would read beyond the last row is no number."""
    memory = torch.full((4 * 136 + 256,), torch.nan)
    weight = memory[: 4 * 136].view(4, 136)
    weight.copy_(torch.randn(4, 136))
    x, out = torch.randn(136), torch.empty(4)
    gemv(weight, x, out, pdl=False)
    torch.testing.assert_close(out, weight @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("k", [8, 64, 136, 576, 896, 1024, 1536, 2048, 2560, 4096, 4864, 5120, 8192, 11008, 28672])
@pytest.mark.parametrize("n", [1, 40, 1024, 4096, 11008, 32064, 151643, 262144])
def test_tile_fits_registers_and_wastes_little(n: int, k: int, silu: bool) -> None:
    rows, columns, warps = tile_of(n, k, silu)
    in_flight = 2 * rows * columns * (2 if silu else 1) / (warps * 32)
    assert in_flight <= 128
    assert rows * columns >= warps * 32
    assert k < 256 or -k % columns < k / 4
    assert all(value & (value - 1) == 0 for value in (rows, columns, warps))
