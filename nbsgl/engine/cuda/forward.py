"""The decoder's forward pass in fused kernels, over the model's own tensors: three ways through a layer.

* one token: own GEMVs with norm, residual and activation folded in, attention in one launch;
* few sequences, one token each: library products, attention in one launch with rotation and KV write in it;
* any tokens: rotation and KV write in a kernel of their own, then the attention backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor

from nbsgl.engine.attention.paged import PagedAttention
from nbsgl.engine.cuda.dense import DenseGroup, attend_dense
from nbsgl.engine.cuda.inputs import DeviceInputs
from nbsgl.engine.cuda.matmul import Matmul
from nbsgl.engine.kernels.decode_attention import DecodeScratch, decode_attention
from nbsgl.engine.kernels.fused import add_rmsnorm, embed, rmsnorm_rows, silu_mul
from nbsgl.engine.kernels.gemv import gemv
from nbsgl.engine.kernels.rope_kv import rope_kv
from nbsgl.engine.kv_cache import KVCache
from nbsgl.engine.layers.linear import Linear
from nbsgl.engine.layers.norm import Norm
from nbsgl.engine.layers.rope import Rope
from nbsgl.engine.models.decoder import Decoder, Layer

MAX_FUSED = 8  # sequences up to which one launch of decode attention beats the library (performance.md 4.1)

FEW_WANTED = 2  # one token in so many, or fewer, is few


class Way(Enum):
    """How a step goes through the layers."""

    ONE = auto()  # a single decoding token
    FEW = auto()  # at most MAX_FUSED decoding tokens, each of its own sequence
    ANY = auto()  # any tokens; the attention backend has been planned
    PIECES = auto()  # the same, in pieces between which the host launches the attention


@dataclass(slots=True)
class Hidden:
    """The residual stream `[rows, hidden]`, and what is still to be added to it (None: nothing, one token).

    `index` int32 `[num_wanted]`: the rows of the wanted tokens.
    """

    residual: Tensor
    added: Tensor | None
    index: Tensor


@dataclass(frozen=True, slots=True)
class Buffers:
    """What the pieces of a step hand on: the stream `[tokens, hidden]`; q, mixed `[tokens, heads, head_dim]`."""

    residual: Tensor
    q: Tensor
    mixed: Tensor

    def of(self, num_tokens: int) -> Buffers:
        """Those of the first tokens."""
        return Buffers(self.residual[:num_tokens], self.q[:num_tokens], self.mixed[:num_tokens])


@dataclass(slots=True)
class Forward:
    """Hidden states and logits of flat tokens.  All is queued on the current stream; nothing waits for the device."""

    model: Decoder
    cache: KVCache
    attention: PagedAttention
    rope: Rope
    scratch: DecodeScratch
    last_tokens: Tensor
    matmul: Matmul
    pdl: bool
    deterministic: bool = False
    dense: Sequence[DenseGroup] = ()  # of the step under way

    def hidden(self, way: Way, inputs: DeviceInputs, dense: Sequence[DenseGroup] = ()) -> Hidden:
        """Through all layers.  Writes K and V of all tokens at their slots.

        `dense` are the last tokens; for the others the attention backend has been planned, unless `way` does without.
        Behind its attention the last layer goes on with the wanted tokens only, if they are few: of a prompt all but
        one (3 % of a step of 8,192 tokens on an 8B).
        """
        model = self.model
        self.dense = dense
        residual = self._empty(inputs.tokens.shape[0], model.config.hidden_size)
        self._embed(inputs, residual)
        if way is Way.ONE:
            self._one(inputs, residual)
            return Hidden(residual, None, inputs.index)
        attend = self._attend_few if way is Way.FEW else self._attend_any
        added: Tensor | None = None
        for idx, layer in enumerate(model.layers[:-1]):
            added = self._mlp(layer, self._attention(idx, layer, added, residual, inputs, attend), residual)
        last = model.layers[-1]
        mixed = self._attention(len(model.layers) - 1, last, added, residual, inputs, attend)
        index, num_wanted = inputs.index, inputs.index.shape[0]
        if num_wanted * FEW_WANTED <= residual.shape[0]:
            mixed, residual = mixed.index_select(0, index), residual.index_select(0, index)
            index = torch.arange(num_wanted, dtype=torch.int32, device=index.device)
        return Hidden(residual, self._mlp(last, mixed, residual) if num_wanted else residual, index)

    def logits(self, hidden: Hidden, begin: int, end: int, out: Tensor) -> None:
        """Logits in the model's dtype of the wanted tokens [begin, end), into `out` `[end - begin, vocab]`."""
        model, norm, index = self.model, self.model.norm, hidden.index[begin:end]
        if hidden.added is None:
            gemv(model.head.weight, hidden.residual[0], out[0], norm_weight=norm.weight, eps=norm.eps, pdl=self.pdl)
            return
        normed = self._empty(index.shape[0], model.config.hidden_size)
        rows = hidden.added, hidden.residual, index
        rmsnorm_rows(*rows, norm.weight, norm.eps, normed, pdl=self.pdl, invariant=self.deterministic)
        self._matmul(model.head, normed, out)

    def piece(self, layer_idx: int, inputs: DeviceInputs, buffers: Buffers) -> None:
        """What lies before the attention of a layer, from that of the layer before, whose result is in `buffers.mixed`.

        Leaves queries in `buffers.q`, keys and values in the cache.
        """
        added: Tensor | None = None
        if layer_idx:
            added = self._mlp_of(buffers, layer_idx - 1)
        else:
            self._embed(inputs, buffers.residual)
        layer = self.model.layers[layer_idx]
        self.dense = ()
        self._rotate(layer_idx, layer, self._qkv(layer, added, buffers.residual), inputs, buffers.q)

    def last_piece(self, inputs: DeviceInputs, buffers: Buffers) -> Hidden:
        """What lies behind the last attention."""
        return Hidden(buffers.residual, self._mlp_of(buffers, len(self.model.layers) - 1), inputs.index)

    def _mlp_of(self, buffers: Buffers, layer_idx: int) -> Tensor:
        mixed = buffers.mixed.view(buffers.mixed.shape[0], -1)
        return self._mlp(self.model.layers[layer_idx], mixed, buffers.residual)

    # ---- one token -----------------------------------------------------------------------------------------------

    def _one(self, inputs: DeviceInputs, residual: Tensor) -> None:
        c, pdl, x = self.model.config, self.pdl, residual[0]
        for idx, layer in enumerate(self.model.layers):
            qkv = self._empty(1, layer.qkv.weight.shape[0])
            norm = layer.input_norm
            gemv(layer.qkv.weight, x, qkv[0], norm_weight=norm.weight, eps=norm.eps, bias=layer.qkv.bias, pdl=pdl)
            mixed = self._empty(1, c.num_heads * c.head_dim)
            self._decode(idx, layer, qkv, inputs, mixed)
            gemv(layer.o.weight, mixed[0], x, residual=x, bias=layer.o.bias, pdl=pdl)
            active = self._empty(1, c.intermediate_size)
            norm = layer.post_norm
            gemv(
                layer.gate_up.weight,
                x,
                active[0],
                norm_weight=norm.weight,
                eps=norm.eps,
                bias=layer.gate_up.bias,
                silu=True,
                pdl=pdl,
            )
            gemv(layer.down.weight, active[0], x, residual=x, bias=layer.down.bias, pdl=pdl)

    # ---- several -------------------------------------------------------------------------------------------------

    def _attention(
        self,
        idx: int,
        layer: Layer,
        added: Tensor | None,
        residual: Tensor,
        inputs: DeviceInputs,
        attend: Callable[[int, Layer, Tensor, DeviceInputs], Tensor],
    ) -> Tensor:
        """What the layer's attention mixes, `[num_tokens, heads * head_dim]`; `added` goes to the stream before."""
        return attend(idx, layer, self._qkv(layer, added, residual), inputs)

    def _qkv(self, layer: Layer, added: Tensor | None, residual: Tensor) -> Tensor:
        normed = self._normed(layer.input_norm, added, residual)
        qkv = self._with_room(normed.shape[0], layer.qkv.weight.shape[0])
        return self._matmul(layer.qkv, normed, qkv)

    def _normed(self, norm: Norm, added: Tensor | None, residual: Tensor) -> Tensor:
        normed = torch.empty_like(residual)
        add_rmsnorm(added, residual, norm.weight, norm.eps, normed, pdl=self.pdl, invariant=self.deterministic)
        return normed

    def _mlp(self, layer: Layer, mixed: Tensor, residual: Tensor) -> Tensor:
        """The rest of the layer: what is to be added to the stream next."""
        normed = self._normed(layer.post_norm, self._matmul(layer.o, mixed), residual)
        gate_up = self._matmul(layer.gate_up, normed)
        active = self._empty(residual.shape[0], self.model.config.intermediate_size)
        silu_mul(gate_up, active, pdl=self.pdl)
        return self._matmul(layer.down, active)

    def _attend_few(self, idx: int, layer: Layer, qkv: Tensor, inputs: DeviceInputs) -> Tensor:
        mixed = self._empty(qkv.shape[0], self.model.q_size)
        self._decode(idx, layer, qkv, inputs, mixed)
        return mixed

    def _attend_any(self, idx: int, layer: Layer, qkv: Tensor, inputs: DeviceInputs) -> Tensor:
        c, num_tokens = self.model.config, qkv.shape[0]
        q = self._with_room(num_tokens, c.num_heads, c.head_dim)
        self._rotate(idx, layer, qkv, inputs, q)
        mixed = self._mixed_dense(q, qkv) if self.dense else torch.empty_like(q)
        num_others = self.dense[0].begin if self.dense else num_tokens
        if num_others:
            self.attention.attend(idx, q[:num_others], mixed[:num_others])
        return mixed.view(num_tokens, -1)

    def _rotate(self, idx: int, layer: Layer, qkv: Tensor, inputs: DeviceInputs, q: Tensor) -> None:
        """Rotated queries to `q`; rotated keys and values to the cache."""
        c = self.model.config
        rope_kv(
            qkv,
            q,
            self.cache.k[idx],
            self.cache.v[idx],
            self.cache.table,
            inputs.rows,
            inputs.positions,
            self.rope.cos,
            self.rope.sin,
            num_heads=c.num_heads,
            q_norm=_weight(layer.q_norm),
            k_norm=_weight(layer.k_norm),
            eps=c.rms_eps,
            keeps_k=bool(self.dense),
            pdl=self.pdl,
        )

    def _mixed_dense(self, q: Tensor, qkv: Tensor) -> Tensor:
        """What all tokens get, `[num_tokens, heads, head_dim]`, with the dense groups' rows filled in."""
        c, num_tokens = self.model.config, qkv.shape[0]
        heads = qkv.view(num_tokens, -1, c.head_dim)
        k, v = heads[:, c.num_heads : -c.num_kv_heads], heads[:, -c.num_kv_heads :]
        if len(self.dense) == 1 and self.dense[0].begin == 0:
            return attend_dense(self.dense[0], q, k, v)
        mixed = self._empty(num_tokens, c.num_heads, c.head_dim)
        for group in self.dense:
            mixed[group.begin : group.end] = attend_dense(group, q, k, v)
        return mixed

    def _decode(self, idx: int, layer: Layer, qkv: Tensor, inputs: DeviceInputs, out: Tensor) -> None:
        c = self.model.config
        decode_attention(
            qkv,
            out,
            self.cache.k[idx],
            self.cache.v[idx],
            self.cache.table,
            inputs.rows,
            inputs.kv_lens,
            self.rope.cos,
            self.rope.sin,
            num_heads=c.num_heads,
            q_norm=_weight(layer.q_norm),
            k_norm=_weight(layer.k_norm),
            eps=c.rms_eps,
            scratch=self.scratch,
            pdl=self.pdl,
        )

    # ---- parts ---------------------------------------------------------------------------------------------------

    def _matmul(self, linear: Linear, x: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = self._empty(x.shape[0], linear.weight.shape[0])
        if self.deterministic:
            from nbsgl.engine.kernels.invariant_matmul import invariant_matmul

            invariant_matmul(x, linear.weight, out, bias=linear.bias)
        else:
            self.matmul(linear, x, out)
        return out

    def _embed(self, inputs: DeviceInputs, residual: Tensor) -> None:
        embed(inputs.tokens, inputs.rows, self.last_tokens, self.model.embedding, residual, pdl=self.pdl)

    def tune(self, num_rows: int) -> None:
        """Choose how products of so many rows are computed.  Waits for the device."""
        layers = self.model.layers
        groups = [[layer.qkv, layer.o, layer.gate_up, layer.down] for layer in layers]
        self.matmul.tune(num_rows, [[m.weight for m in group] for group in (*zip(*groups), [self.model.head])])

    def _with_room(self, num_rows: int, *shape: int) -> Tensor:
        """`[num_rows, *shape]` before as many rows as dense groups read beyond, which are finite."""
        more = max((group.reads_until - num_rows for group in self.dense), default=0)
        if more <= 0:
            return self._empty(num_rows, *shape)
        room = self._empty(num_rows + more, *shape)
        room[num_rows:] = 0
        return room[:num_rows]

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.model.dtype, device=self.model.device)


def _weight(norm: object) -> Tensor | None:
    return None if norm is None else norm.weight  # type: ignore[attr-defined]
