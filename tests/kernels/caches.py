"""A small paged cache with scattered slots, as `KVCache` has them."""

from __future__ import annotations

from types import SimpleNamespace

import torch

ROWS, CONTEXT, LAYERS = 6, 320, 2
CPU = torch.device("cpu")


def make_cache(kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """Every position of every row has a slot of its own; the padding row and slot come last."""
    num_slots = ROWS * CONTEXT
    table = torch.full((ROWS + 1, CONTEXT), num_slots, dtype=torch.int32)
    table[:ROWS] = torch.randperm(num_slots, dtype=torch.int32).view(ROWS, CONTEXT)
    pool = torch.randn(LAYERS, 2, num_slots + 1, kv_heads, head_dim).to(dtype)
    pool.view(torch.uint8)[:, :, num_slots:] = 0
    return SimpleNamespace(k=list(pool[:, 0]), v=list(pool[:, 1]), table=table, device=CPU, padding_row=ROWS)
