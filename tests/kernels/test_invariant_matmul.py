"""The product that does not depend on the batch: right, and each row the same to the last bit in any company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nbsgl.engine.kernels.invariant_matmul import invariant_matmul


def product(x: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty(x.shape[0], weight.shape[0])  # float32: shows every bit of the sums
    invariant_matmul(x, weight, out)
    return out


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("num_rows", "n", "k"), [(1, 64, 64), (5, 40, 200), (64, 8200, 32), (65, 130, 96)])
def test_product(num_rows: int, n: int, k: int, dtype: torch.dtype, has_bias: bool) -> None:
    weight, x = (torch.randn(n, k) / k**0.5).to(dtype), torch.randn(num_rows, k).to(dtype)
    bias = torch.randn(n).to(dtype) if has_bias else None
    guard = torch.full((num_rows + 1, n), 7.0, dtype=dtype)  # the row beyond the result stays as it is
    invariant_matmul(x, weight, guard[:num_rows], bias=bias)
    wanted = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    tolerance = 2e-3 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(guard[:num_rows].double(), wanted, rtol=tolerance, atol=tolerance)
    assert guard[num_rows].tolist() == [7.0] * n


def uneven(num_rows: int, tiles: int = 4) -> tuple[Tensor, Tensor]:
    """x and weight whose sums are exact within a tile of k, and rounded between tiles.

    So the result tells in which order tiles are added up, but not how the interpreter's numpy sums within one.
    """
    scales = torch.tensor([2.0**-4, 2.0**6]).repeat(tiles // 2).repeat_interleave(64)
    return tuple((torch.randint(-4, 5, (n, 64 * tiles)) * scales).half() for n in (num_rows, 72))


@pytest.mark.parametrize("num_rows", [2, 64, 67, 600])  # 600 rows: more than one group of tiles
def test_a_row_is_the_same_alone_and_in_company(num_rows: int) -> None:
    x, weight = uneven(num_rows)
    together = product(x, weight)
    for i in {0, 1, num_rows // 2, num_rows - 1}:
        assert torch.equal(product(x[i : i + 1], weight)[0], together[i])
    assert torch.equal(product(x.flip(0), weight).flip(0), together)


def test_another_order_along_k_would_be_seen() -> None:
    x, weight = uneven(64)
    assert not torch.equal(product(x, weight), product(x.flip(1), weight.flip(1)))
