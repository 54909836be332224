"""The product of few rows against plain torch."""

from __future__ import annotations

import pytest
import torch

from nbsgl.engine.kernels.skinny import parts_of, skinny


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 16, 17, 64])
@pytest.mark.parametrize(("n", "k"), [(32, 128), (40, 256), (100, 200), (33, 1024), (16, 40)])
def test_product(n: int, k: int, num_rows: int, has_bias: bool) -> None:
    weight, x = (torch.randn(n, k) / k**0.5).half(), torch.randn(num_rows, k).half()
    bias = torch.randn(n).half() if has_bias else None
    guard = torch.full((num_rows + 1, n), 7.0, dtype=torch.float16)  # the row beyond the result stays as it is
    skinny(x, weight, guard[:num_rows], bias=bias, pdl=False)
    wanted = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    torch.testing.assert_close(guard[:num_rows], wanted.half(), rtol=2e-3, atol=2e-3)
    assert guard[num_rows].tolist() == [7.0] * n


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("n", "k"), [(32, 1024), (40, 896), (20, 200)])
def test_parts_sum_to_the_product(n: int, k: int, num_parts: int) -> None:
    weight, x = (torch.randn(n, k) / k**0.5).half(), torch.randn(5, k).half()
    parts = torch.full((num_parts, 5, n), torch.nan)
    skinny(x, weight, parts, pdl=False)
    torch.testing.assert_close(parts.sum(0), x.float() @ weight.float().T, rtol=1e-4, atol=1e-4)


def test_a_short_matrix_is_cut_until_programs_suffice() -> None:
    assert parts_of(1024, 3072) > 1
    assert parts_of(28672, 4096) == 1
    assert parts_of(64, 128) == 1  # nothing to cut
