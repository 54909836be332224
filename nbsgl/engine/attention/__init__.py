"""The register of attention backends, and what one does: write K and V of new tokens, attend over cached and new.

A backend is made for one KV cache, planned once a step for the step's spans, and then called once per layer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nbsgl.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

    from nbsgl.engine.kv_cache import KVCache
    from nbsgl.engine.model_config import ModelConfig


@dataclass(slots=True)
class Span:
    """One sequence's tokens in the flat batch: [begin, begin + num_tokens), at positions from `start` on.

    `row` is its row of the page table.  Positions [0, start) are cached; it attends to [0, start + num_tokens).
    """

    row: int
    begin: int
    num_tokens: int
    start: int

    @property
    def kv_len(self) -> int:
        return self.start + self.num_tokens


class AttentionBackend(Protocol):
    """Attention over the paged cache."""

    def plan(self, spans: Sequence[Span], slots: Tensor) -> None:
        """Prepare for one step.  Spans of one token come first; `slots` int64 `[num_tokens]` take the new K and V."""

    def forward(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write k, v `[num_tokens, kv_heads, head_dim]`, return the mixed values `[num_tokens, heads * head_dim]`."""


Create = Callable[["ModelConfig", "KVCache"], AttentionBackend]

MODULES = {"torch": "torch_paged"}  # name -> module of this package that registers it
_backends: dict[str, Create] = {}


def register_attention(name: str) -> Callable[[Create], Create]:
    """Decorator of a function that makes the backend."""

    def add(create: Create) -> Create:
        _backends[name] = create
        return create

    return add


def create_attention(name: str, config: ModelConfig, cache: KVCache) -> AttentionBackend:
    """Make the backend of that name ("auto": torch).  ParameterError naming those there are."""
    name = "torch" if name == "auto" else name
    if name not in _backends and name in MODULES:
        importlib.import_module(f"{__name__}.{MODULES[name]}")
    if name not in _backends:
        known = " | ".join(["'auto'", *(repr(n) for n in sorted(MODULES.keys() | _backends.keys()))])
        raise ParameterError(name="attention_backend", value=name, allowed=known)
    return _backends[name](config, cache)
