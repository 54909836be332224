"""Attention of long prompts that begin in this step: cuDNN over the step's own tensors, without the cache.

Nothing is cached before such an extend, so its K and V are rows of the step's `qkv`.  One H200, 32 heads over 8 of 128:
4,096 tokens 0.26 ms (525 TFLOP/s), FlashInfer's paged kernel 0.27 alone and 0.34 within a step at the card's power cap.

The library plans each shape and stride anew, and keeps each plan for ever: 27 ms and some 400 kB of the host's memory.
So lengths are rounded up: a causal row never sees what lies behind it, and what the rows behind a prompt yield is
dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nbsgl.engine.batch import Row

LEAST_TOKENS = 1_024  # shorter extends are left to the attention backend
ROUNDING = 512


@dataclass(frozen=True, slots=True)
class DenseGroup:
    """Tokens [begin, begin + count * length): `count` prompts of `length` tokens; several only of a rounded length."""

    begin: int
    count: int
    length: int

    @property
    def end(self) -> int:
        return self.begin + self.count * self.length

    @property
    def padded_length(self) -> int:
        return -(-self.length // ROUNDING) * ROUNDING

    @property
    def reads_until(self) -> int:
        """The end of the rows that are read, which may lie behind the step's tokens."""
        return self.begin + self.count * self.padded_length


def can_be_dense(row: Row) -> bool:
    return row.start == 0 and row.num_tokens >= LEAST_TOKENS


def groups_of(lengths: Sequence[int], begin: int) -> list[DenseGroup]:
    """Prompts that lie one behind the other from token `begin` on; neighbours of one rounded length are a group."""
    groups: list[DenseGroup] = []
    for length in lengths:
        if groups and groups[-1].length == length and length % ROUNDING == 0:
            last = groups.pop()
            groups.append(DenseGroup(last.begin, last.count + 1, length))
        else:
            groups.append(DenseGroup(groups[-1].end if groups else begin, 1, length))
    return groups


def attend_dense(group: DenseGroup, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`[count * length, heads, head_dim]`: causal attention of each prompt over itself.

    q `[rows, heads, head_dim]`, k and v `[rows, kv_heads, head_dim]`, rows of any stride, with finite values up to
    `group.reads_until`.
    """
    mixed = _causal(_by_prompt(group, q), _by_prompt(group, k), _by_prompt(group, v)).transpose(1, 2)
    if group.length != group.padded_length:
        mixed = mixed[:, : group.length]
    return mixed.reshape(group.count * group.length, *q.shape[1:])


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, False, 0.0, True, False)[0]


def _by_prompt(group: DenseGroup, x: Tensor) -> Tensor:
    """`[count, heads, padded length, head_dim]`, a view whose strides tell nothing of the length before rounding."""
    row, head, dim = x.stride()
    size = (group.count, x.shape[1], group.padded_length, x.shape[2])
    strides = (group.padded_length * row, head, row, dim)
    return x[group.begin :].as_strided(size, strides, x[group.begin :].storage_offset())


def is_there(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether cuDNN's kernels can be had and are the quicker ones: 16 bits, compute capability 9.0 or more."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.backends.cudnn.is_available() and torch.cuda.get_device_capability(device)[0] >= 9
