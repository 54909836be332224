"""What an attention backend on CUDA does: attend over a paged cache that already holds the step's own K and V.

The step's tokens are laid out flat: first *singles*, tokens that attend on their own (decoded tokens, and the tokens of
short extends, one by one), then *extends*, runs of consecutive tokens of one sequence.  `rope_kv` writes K and V of all
of them before a layer attends, so every single sees the earlier tokens of its sequence in the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from nbsgl.engine.batch import SharedPrefix

if TYPE_CHECKING:
    import torch

    from nbsgl.engine.kv_cache import KVCache
    from nbsgl.engine.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class ExtendSpan:
    """`num_tokens` consecutive tokens of page-table row `row`, the last ones of its `kv_len` positions; causal."""

    row: int
    num_tokens: int
    kv_len: int


@dataclass(slots=True)
class Layout:
    """The tokens of one step.  Host arrays and device tensors are int32.

    `rows`, `kv_lens` `[num_singles]`: page-table row of each single, and how many positions it attends to (its own
    position + 1).  Singles may be padded (for a graph): padding reads one position of the cache's padding row.
    `rows_on`, `kv_lens_on`: the same on the device.  `shared` counts singles; it may be empty.
    """

    rows: np.ndarray
    kv_lens: np.ndarray
    rows_on: Tensor
    kv_lens_on: Tensor
    extends: Sequence[ExtendSpan] = ()
    shared: Sequence[SharedPrefix] = field(default_factory=list)

    @property
    def num_singles(self) -> int:
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        return self.num_singles + sum(extend.num_tokens for extend in self.extends)


class PagedAttention(Protocol):
    """Made for one KV cache; planned once a step, then called once per layer."""

    name: str
    generation: int  # changes when what graphs read has moved: those captured before are void

    def plan(self, layout: Layout, *, is_graph: bool) -> None:
        """The host's work of one step: never waits for the device.

        With `is_graph` the layout has singles only, and `attend` is captured, or was captured by the first step with
        this many singles: what it reads lies at the same addresses each time, and its launches do not depend on the
        lengths.  Without, launches may be chosen freely and `shared` may be used.
        """

    def attend(self, layer_idx: int, q: Tensor, out: Tensor) -> None:
        """out = softmax(q K^T / sqrt(head_dim)) V; q, out `[num_tokens, heads, head_dim]`, contiguous."""


def create_paged_attention(name: str, config: ModelConfig, cache: KVCache, dtype: torch.dtype) -> PagedAttention:
    """The backend of that name, for queries of that dtype: what `choice.choose_attention` has found possible."""
    if name == "flashinfer":
        from nbsgl.engine.attention.flashinfer_paged import FlashInferAttention

        return FlashInferAttention(config, cache, dtype=dtype)
    from nbsgl.engine.attention.triton_paged import TritonAttention

    return TritonAttention(config, cache, dtype=dtype)
