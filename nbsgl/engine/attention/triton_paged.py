"""Paged attention in own kernels, with no other dependency than Triton: what any card falls back to."""

from __future__ import annotations

import torch
from torch import Tensor

from nbsgl.engine.attention.paged import Layout
from nbsgl.engine.kernels.aot import Card
from nbsgl.engine.kernels.extend_attention import extend_attention, extend_tiles, tile_of
from nbsgl.engine.kernels.split_decode import Splits, SplitScratch, split_decode, splits_of
from nbsgl.engine.kv_cache import KVCache
from nbsgl.engine.model_config import ModelConfig
from nbsgl.engine.transfer import to_device

INTERPRETED = Card(80)  # what the kernels are cut for where Triton interprets them


class TritonAttention:
    """See `PagedAttention`.  Plan and attend on one stream; attends to shared prefixes as to any others.

    `dtype` is that of the queries, in which all is computed (None: the cache's; to be given with an e4m3 cache, which
    is converted when it is read).  The extends' results depend on nothing else in the step, to the last bit.
    """

    name = "triton"
    generation = 0  # nothing that a graph reads ever moves

    def __init__(self, config: ModelConfig, cache: KVCache, *, dtype: torch.dtype | None = None) -> None:
        self.cache, self._kv_heads = cache, config.num_kv_heads
        card = _card(cache.device)
        self._num_sms, self._pdl = card.num_sms, card.pdl
        groups = config.num_heads // config.num_kv_heads
        self._tile = tile_of(config.head_dim, groups, (dtype or cache.k[0].dtype).itemsize, card)
        self._tile_tokens = self._tile.tokens(groups)
        self._scratch = SplitScratch(config.num_heads, config.num_kv_heads, config.head_dim, card.num_sms, cache.device)
        self._splits = Splits(1, 1)
        self._singles: tuple[Tensor, Tensor] | None = None  # rows and lengths
        self._tiles: Tensor | None = None

    def plan(self, layout: Layout, *, is_graph: bool) -> None:
        assert not (is_graph and layout.extends), "a graph has singles only"
        self._singles = self._tiles = None
        if num := layout.num_singles:
            self._singles = layout.rows_on, layout.kv_lens_on
            self._splits = splits_of(num, self._kv_heads, self._num_sms)
        if layout.extends:
            tiles = extend_tiles(layout.extends, num, self._tile_tokens)
            self._tiles = to_device(tiles, self.cache.device, torch.int32)

    def attend(self, layer_idx: int, q: Tensor, out: Tensor) -> None:
        paged = self.cache.k[layer_idx], self.cache.v[layer_idx], self.cache.table
        if self._singles is not None:
            split_decode(q, out, *paged, *self._singles, scratch=self._scratch, splits=self._splits, pdl=self._pdl)
        if self._tiles is not None:
            extend_attention(q, out, *paged, self._tiles, tile=self._tile, pdl=self._pdl)


def _card(device: torch.device) -> Card:
    if device.type != "cuda":
        return INTERPRETED
    found = torch.cuda.get_device_properties(device)
    return Card(10 * found.major + found.minor, found.multi_processor_count)
