"""Paged attention in plain torch: the reference for every other backend, and the one that runs on a CPU.

Spans of one token are gathered by the page table and attended as padded batches; longer ones one by one.  Query heads
that share a KV head are laid along the query axis, so K and V are never repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nbsgl.engine.attention import Span, register_attention
from nbsgl.engine.kv_cache import KVCache
from nbsgl.engine.model_config import ModelConfig
from nbsgl.engine.transfer import index_of, to_device

QUERY_CHUNK = 1_024  # most query positions per masked call: bounds the mask to QUERY_CHUNK x groups x context
PAD_WASTE = 1.5  # a padded batch may read this many times the tokens it needs, then it is cut in two


@register_attention("torch")
def _create(config: ModelConfig, cache: KVCache) -> TorchAttention:
    return TorchAttention(config, cache)


@dataclass(slots=True)
class DecodeGroup:
    """Spans of one token that are attended together: tokens `tokens` of the batch, keys of `kv_len` padded positions.

    `slots` is `[n * kv_len]`; or None, and the keys are slots [base, base + kv_len).  `mask` is additive
    `[n, 1, 1, kv_len]`, None where nothing is padded.  `tokens` is None if the group is the whole batch.
    """

    num: int
    kv_len: int
    tokens: Tensor | None
    slots: Tensor | None
    base: int
    mask: Tensor | None


@dataclass(slots=True)
class ExtendSpan:
    """A span of several tokens with its keys: `slots` `[kv_len]`, or None and [base, base + kv_len)."""

    span: Span
    slots: Tensor | None
    base: int


class TorchAttention:
    """See `AttentionBackend`.  Works on any device; one step's plan is held until the next.

    Computes in the dtype of q; a cache in 8 bits is converted when it is written and when it is read.
    """

    def __init__(self, config: ModelConfig, cache: KVCache) -> None:
        self.cache = cache
        self.mask_dtype = cache.pool.dtype if cache.pool.dtype.itemsize > 1 else torch.float32
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.groups = config.num_heads // config.num_kv_heads
        self.slots = torch.empty(0, dtype=torch.int64)
        self.decodes: list[DecodeGroup] = []
        self.extends: list[ExtendSpan] = []

    # ---- plan ------------------------------------------------------------------------------------------------------

    def plan(self, spans: Sequence[Span], slots: Tensor) -> None:
        self.slots = slots
        singles = [span for span in spans if span.num_tokens == 1]
        groups = _group_by_length(singles)
        self.decodes = [self._plan_decode(group, len(group) == len(spans)) for group in groups]
        self.extends = [self._plan_extend(span) for span in spans if span.num_tokens > 1]

    def _plan_decode(self, spans: list[Span], is_whole: bool) -> DecodeGroup:
        kv_len = max(span.kv_len for span in spans)
        device = self.cache.device
        tokens = None if is_whole else index_of([span.begin for span in spans], device)
        if len(spans) == 1:
            base = self.cache.contiguous_base(spans[0].row, kv_len)
            slots = self._slots_of(spans[0]) if base is None else None
            return DecodeGroup(1, kv_len, tokens, slots, base or 0, None)
        if is_whole:  # in the order of the batch
            spans = sorted(spans, key=lambda span: span.begin)
        rows = to_device([[span.row for span in spans], [span.kv_len for span in spans]], device, torch.int64)
        positions = torch.arange(kv_len, device=device)
        is_padding = positions >= rows[1].unsqueeze(1)
        # padded positions read the row's own first slot: a stale slot may hold another row's NaN, and 0 * NaN is NaN
        table = self.cache.table.index_select(0, rows[0])[:, :kv_len]
        slots = torch.where(is_padding, table[:, :1], table)
        mask = torch.zeros(is_padding.shape, dtype=self.mask_dtype, device=device)
        mask.masked_fill_(is_padding, float("-inf"))
        return DecodeGroup(len(spans), kv_len, tokens, slots.reshape(-1), 0, mask[:, None, None, :])

    def _plan_extend(self, span: Span) -> ExtendSpan:
        base = self.cache.contiguous_base(span.row, span.kv_len)
        return ExtendSpan(span, self._slots_of(span) if base is None else None, base or 0)

    def _slots_of(self, span: Span) -> Tensor:
        return self.cache.table[span.row, : span.kv_len]

    # ---- forward ---------------------------------------------------------------------------------------------------

    def forward(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pool_k, pool_v = self.cache.k[layer_idx], self.cache.v[layer_idx]
        _write(pool_k, self.slots, k)
        _write(pool_v, self.slots, v)
        num_tokens = q.shape[0]
        if len(self.decodes) == 1 and self.decodes[0].tokens is None:
            return self._decode(self.decodes[0], q, pool_k, pool_v).reshape(num_tokens, -1)
        out = q.new_empty((num_tokens, self.heads, self.head_dim))
        for group in self.decodes:
            out.index_copy_(0, group.tokens, self._decode(group, q.index_select(0, group.tokens), pool_k, pool_v))
        for extend in self.extends:
            end = extend.span.begin + extend.span.num_tokens
            out[extend.span.begin : end] = self._extend(extend, q[extend.span.begin : end], pool_k, pool_v)
        return out.view(num_tokens, -1)

    def _decode(self, group: DecodeGroup, q: Tensor, pool_k: Tensor, pool_v: Tensor) -> Tensor:
        """q `[n, heads, head_dim]` -> the same shape."""
        keys, values = _read(pool_k, pool_v, group.slots, group.base, group.num * group.kv_len, q.dtype)
        mask = None if group.mask is None else group.mask.to(q.dtype)
        shape = (group.num, group.kv_len, self.kv_heads, self.head_dim)
        grouped = q.reshape(group.num, self.kv_heads, self.groups, self.head_dim)
        mixed = F.scaled_dot_product_attention(
            grouped, keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2), attn_mask=mask
        )
        return mixed.reshape(group.num, self.heads, self.head_dim)

    def _extend(self, extend: ExtendSpan, q: Tensor, pool_k: Tensor, pool_v: Tensor) -> Tensor:
        """q `[num_tokens, heads, head_dim]` -> the same shape; causal, after a cached prefix."""
        span = extend.span
        keys, values = _read(pool_k, pool_v, extend.slots, extend.base, span.kv_len, q.dtype)
        keys, values = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
        if span.start == 0:
            mixed = F.scaled_dot_product_attention(
                q.transpose(0, 1)[None], keys, values, is_causal=True, enable_gqa=self.groups > 1
            )
            return mixed[0].transpose(0, 1)
        parts = [
            self._extend_masked(q[i : i + QUERY_CHUNK], keys, values, span.start + i)
            for i in range(0, span.num_tokens, QUERY_CHUNK)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _extend_masked(self, q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        num, kv_len = q.shape[0], start + q.shape[0]
        positions = torch.arange(start, kv_len, device=q.device)
        is_visible = torch.arange(kv_len, device=q.device) <= positions.unsqueeze(1)
        # [1, kv_heads, groups * num, head_dim]: the heads of a group are further queries of its KV head
        grouped = q.view(num, self.kv_heads, self.groups, self.head_dim).permute(1, 2, 0, 3)
        mixed = F.scaled_dot_product_attention(
            grouped.reshape(1, self.kv_heads, self.groups * num, self.head_dim),
            keys[:, :, :kv_len],
            values[:, :, :kv_len],
            attn_mask=is_visible.repeat(self.groups, 1)[None, None],
        )
        mixed = mixed.view(self.kv_heads, self.groups, num, self.head_dim).permute(2, 0, 1, 3)
        return mixed.reshape(num, self.heads, self.head_dim)


def _write(pool: Tensor, slots: Tensor, x: Tensor) -> None:
    """K or V `[n, kv_heads, head_dim]` to its slots.  To 8 bits it saturates, as the kernels do; torch makes NaN."""
    if pool.dtype.itemsize == 1:
        limit = torch.finfo(pool.dtype).max
        x = x.clamp(-limit, limit).to(pool.dtype).view(torch.uint8)
        pool = pool.view(torch.uint8)  # torch has no index_copy of float8
    pool.index_copy_(0, slots, x)


def _read(
    pool_k: Tensor, pool_v: Tensor, slots: Tensor | None, base: int, count: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """K and V `[count, kv_heads, head_dim]` of the slots: a view of neighbouring slots, else a gather."""
    if slots is None:
        return pool_k[base : base + count].to(dtype), pool_v[base : base + count].to(dtype)
    if pool_k.dtype.itemsize > 1:
        return pool_k.index_select(0, slots), pool_v.index_select(0, slots)
    k, v = (pool.view(torch.uint8).index_select(0, slots).view(pool.dtype).to(dtype) for pool in (pool_k, pool_v))
    return k, v


def _group_by_length(spans: list[Span]) -> list[list[Span]]:
    """Cut into batches of similar length, so that padding reads at most PAD_WASTE times what is needed."""
    if not spans:
        return []
    ordered = sorted(spans, key=lambda span: -span.start)
    if len(ordered) * ordered[0].kv_len <= PAD_WASTE * sum(span.kv_len for span in ordered):
        return [ordered]
    groups: list[list[Span]] = [[]]
    for span in ordered:
        if groups[-1] and span.kv_len * PAD_WASTE < groups[-1][0].kv_len:
            groups.append([])
        groups[-1].append(span)
    return groups
