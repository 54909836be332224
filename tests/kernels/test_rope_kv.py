"""Rotation with the cache's writes, against the plain layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nbsgl.engine.kernels.rope_kv import rope_kv
from nbsgl.engine.layers.rope import Rope, rotate
from nbsgl.engine.model_config import RopeConfig
from tests.kernels.caches import CONTEXT, CPU, ROWS, make_cache

EPS = 1e-6
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3}


def normed(x: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return x
    return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS) * weight).to(x.dtype)


def rotated(qkv: Tensor, heads: int, kv_heads: int, positions: Tensor, rope: Rope, norms: list) -> list[Tensor]:
    """q, k, v `[tokens, heads, head_dim]`, q and k normed and rotated."""
    q, k, v = qkv.view(len(qkv), heads + 2 * kv_heads, -1).split((heads, kv_heads, kv_heads), 1)
    cos, sin = rope.at(positions.long(), torch.float32)
    q, k = (rotate(normed(x, norm).float(), cos, sin).to(qkv.dtype) for x, norm in zip((q, k), norms))
    return [q, k, v]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("heads, kv_heads, head_dim", [(4, 4, 16), (14, 2, 64), (7, 1, 128), (4, 2, 64)])
def test_rotates_and_writes_as_the_plain_layers(heads, kv_heads, head_dim, has_norm, dtype) -> None:
    torch.manual_seed(0)
    cache = make_cache(kv_heads, head_dim, dtype)
    k, v = cache.k[0], cache.v[0]
    before = k.clone(), v.clone()
    rope = Rope(RopeConfig(), head_dim, CONTEXT, CPU)
    rows = torch.tensor([0, 3, 3, 3, 1, ROWS, ROWS], dtype=torch.int32)
    positions = torch.tensor([0, 200, 201, 202, 319, 0, 0], dtype=torch.int32)
    qkv = torch.randn(7, (heads + 2 * kv_heads) * head_dim).to(dtype)
    qkv[6] = qkv[5]  # both are padding and share a slot
    norms = [torch.randn(head_dim).to(dtype) if has_norm else None for _ in range(2)]
    q_out = torch.full((7, heads, head_dim), float("nan"), dtype=dtype)
    rope_kv(
        qkv, q_out, k, v, cache.table, rows, positions, rope.cos, rope.sin,
        num_heads=heads, q_norm=norms[0], k_norm=norms[1], eps=EPS, pdl=False,
    )  # fmt: skip
    wanted = rotated(qkv, heads, kv_heads, positions, rope, norms)
    slots = cache.table[rows.long(), positions.long()].long()
    for found, expected in zip((q_out, k[slots], v[slots]), wanted):
        assert (found.float() - expected.float()).abs().max() < TOLERANCE[dtype] * expected.float().abs().max()
    assert torch.equal(v[slots], wanted[2])
    is_other = torch.ones(len(k), dtype=torch.bool)
    is_other[slots] = False
    assert torch.equal(k[is_other], before[0][is_other])
    assert torch.equal(v[is_other], before[1][is_other])


def test_e4m3_cache_saturates() -> None:
    torch.manual_seed(0)
    heads, kv_heads, head_dim = 2, 1, 64
    cache = make_cache(kv_heads, head_dim, torch.float8_e4m3fn)
    rope = Rope(RopeConfig(), head_dim, CONTEXT, CPU)
    qkv = torch.randn(2, 4 * head_dim).half()
    qkv[0, head_dim * 3 :] = torch.randint(-8, 9, (head_dim,)) / 4  # exact in e4m3: the interpreter rounds it wrongly
    qkv[1, head_dim * 2 :] *= 5_000
    rows, positions = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([3, 5], dtype=torch.int32)
    q_out = torch.empty((2, heads, head_dim), dtype=torch.float16)
    rope_kv(
        qkv, q_out, cache.k[0], cache.v[0], cache.table, rows, positions, rope.cos, rope.sin,
        num_heads=heads, q_norm=None, k_norm=None, eps=EPS, pdl=False,
    )  # fmt: skip
    slots = cache.table[rows.long(), positions.long()].long()
    _, k, v = rotated(qkv, heads, kv_heads, positions, rope, [None, None])
    for found, expected in ((cache.k[0][slots[1]], k[1]), (cache.v[0][slots[1]], v[1])):
        is_beyond = expected.float().abs() > 464
        assert is_beyond.any()
        assert torch.equal(found.float()[is_beyond], 448 * expected.float().sign()[is_beyond])
    assert torch.equal(cache.v[0][slots[0]].float(), v[0].float())
