"""The decoder that all families share: embedding, layers of attention and gated MLP, final norm, head.

Plain objects that hold tensors, not `nn.Module`s: a decode step of a small model on a CPU costs as much in Python as in
arithmetic.  Weights that read the same input are fused: q, k, v into one matrix, gate and up into another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nbsgl.engine.attention import AttentionBackend
from nbsgl.engine.layers.linear import Linear
from nbsgl.engine.layers.norm import Norm
from nbsgl.engine.layers.rope import Rope, rotate
from nbsgl.engine.model_config import ModelConfig


@dataclass(slots=True)
class Layer:
    """The weights of one decoder layer.  qkv `[(heads + 2 kv_heads) * head_dim, hidden]`, gate_up `[2 mlp, hidden]`."""

    input_norm: Norm
    qkv: Linear
    o: Linear
    post_norm: Norm
    gate_up: Linear
    down: Linear
    q_norm: Norm | None
    k_norm: Norm | None


class Decoder:
    """A model's weights on one device, and its forward pass over a flat batch of tokens."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Allocates all weights, uninitialised; `parameters` names what has to be filled."""
        self.config, self.dtype, self.device = config, dtype, device
        self.q_size = config.num_heads * config.head_dim
        self.kv_size = config.num_kv_heads * config.head_dim
        self.embedding = self._empty(config.vocab_size, config.hidden_size)
        self.layers = [self._make_layer() for _ in range(config.num_layers)]
        self.norm = self._norm(config.hidden_size)
        tied = self.embedding if config.tie_embeddings else None
        self.head = Linear(self._empty(config.vocab_size, config.hidden_size) if tied is None else tied)
        self.num_parameters = sum(tensor.numel() for _, tensor in self.parameters())

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _norm(self, size: int) -> Norm:
        return Norm(self._empty(size), self.config.rms_eps)

    def _linear(self, out: int, size: int, has_bias: bool) -> Linear:
        return Linear(self._empty(out, size), self._empty(out) if has_bias else None)

    def _make_layer(self) -> Layer:
        c = self.config
        return Layer(
            input_norm=self._norm(c.hidden_size),
            qkv=self._linear(self.q_size + 2 * self.kv_size, c.hidden_size, c.qkv_bias),
            o=self._linear(c.hidden_size, self.q_size, c.o_bias),
            post_norm=self._norm(c.hidden_size),
            gate_up=self._linear(2 * c.intermediate_size, c.hidden_size, c.mlp_bias),
            down=self._linear(c.hidden_size, c.intermediate_size, c.mlp_bias),
            q_norm=self._norm(c.head_dim) if c.qk_norm else None,
            k_norm=self._norm(c.head_dim) if c.qk_norm else None,
        )

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name in a checkpoint, where it goes): the places are views, contiguous, of the fused weights.

        After `pack` those of the matrices are copies.
        """
        yield "model.embed_tokens.weight", self.embedding
        for idx, layer in enumerate(self.layers):
            yield from self._layer_parameters(f"model.layers.{idx}.", layer)
        yield "model.norm.weight", self.norm.weight
        if not self.config.tie_embeddings:
            yield "lm_head.weight", self.head.plain()

    def _layer_parameters(self, prefix: str, layer: Layer) -> Iterator[tuple[str, Tensor]]:
        yield prefix + "input_layernorm.weight", layer.input_norm.weight
        yield prefix + "post_attention_layernorm.weight", layer.post_norm.weight
        sizes = [self.q_size, self.kv_size, self.kv_size]
        yield from _split(prefix + "self_attn.", ("q_proj", "k_proj", "v_proj"), layer.qkv, sizes)
        yield from _split(prefix + "self_attn.", ("o_proj",), layer.o, [self.config.hidden_size])
        mlp = self.config.intermediate_size
        yield from _split(prefix + "mlp.", ("gate_proj", "up_proj"), layer.gate_up, [mlp, mlp])
        yield from _split(prefix + "mlp.", ("down_proj",), layer.down, [self.config.hidden_size])
        if layer.q_norm is not None and layer.k_norm is not None:
            yield prefix + "self_attn.q_norm.weight", layer.q_norm.weight
            yield prefix + "self_attn.k_norm.weight", layer.k_norm.weight

    def pack(self) -> None:
        """Lay the weights out for the CPU's kernels, once all are in place.

        A tied head becomes a copy of the embedding, which stays as it is for lookups.
        """
        for layer in self.layers:
            for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down):
                matrix.pack()
            for norm in (layer.input_norm, layer.post_norm, layer.q_norm, layer.k_norm):
                if norm is not None:
                    norm.pack()
        self.norm.pack()
        self.head.pack()

    @property
    def num_bytes(self) -> int:
        return self.num_parameters * self.dtype.itemsize

    def forward(self, ids: Tensor, positions: Tensor, rope: Rope, attention: AttentionBackend) -> Tensor:
        """Hidden states `[num_tokens, hidden]` before the final norm; K and V of all tokens are written to the cache.

        `ids` and `positions` are int64 `[num_tokens]`; `attention` has been planned for these tokens.
        """
        cos, sin = rope.at(positions, self.dtype)
        x = self.embedding.index_select(0, ids)
        for idx, layer in enumerate(self.layers):
            x = x + self._attend(idx, layer, layer.input_norm(x), cos, sin, attention)
            gate, up = layer.gate_up(layer.post_norm(x)).chunk(2, -1)
            x += layer.down(F.silu(gate).mul_(up))
        return x

    def _attend(
        self, idx: int, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, attention: AttentionBackend
    ) -> Tensor:
        c = self.config
        qkv = layer.qkv(x).view(x.shape[0], -1, c.head_dim)
        num_qk = c.num_heads + c.num_kv_heads
        if layer.q_norm is not None and layer.k_norm is not None:
            q = layer.q_norm(qkv[:, : c.num_heads])
            k = layer.k_norm(qkv[:, c.num_heads : num_qk])
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        else:
            qk = rotate(qkv[:, :num_qk], cos, sin)
            q, k = qk[:, : c.num_heads], qk[:, c.num_heads :]
        return layer.o(attention.forward(idx, q, k, qkv[:, num_qk:]))

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits `[rows, vocab]` of hidden states `[rows, hidden]`."""
        return self.head(self.norm(hidden)).float()


def _split(prefix: str, names: tuple[str, ...], linear: Linear, sizes: list[int]) -> Iterator[tuple[str, Tensor]]:
    for name, weight in zip(names, linear.plain().split(sizes)):
        yield f"{prefix}{name}.weight", weight
    if linear.bias is not None:
        for name, bias in zip(names, linear.bias.split(sizes)):
            yield f"{prefix}{name}.bias", bias
