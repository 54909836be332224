"""Random numbers keyed by (seed, place in the run, token id): the same on every device, whatever else is in the batch.

A counter-based hash in wrapping int32 arithmetic (the finalisers of MurmurHash3 and of Wellons' "lowbias32"), so a draw
needs no state and the order of draws does not matter.
"""

from __future__ import annotations

from torch import Tensor

_MASK64 = (1 << 64) - 1


def draw_keys(seed: int, draw_idx: int) -> tuple[int, int]:
    """Two int32 keys of one draw: SplitMix64 of the seed and of the draw's index."""
    mixed = _splitmix(_splitmix(seed & _MASK64) ^ ((draw_idx * 0x9E3779B97F4A7C15) & _MASK64))
    return _signed(mixed & 0xFFFFFFFF), _signed(mixed >> 32)


def exponentials(keys: Tensor, ids: Tensor) -> Tensor:
    """Exponentially distributed float32 numbers `[rows, n]`; keys int32 `[rows, 2]`, ids int32 `[n]` or `[rows, n]`.

    `argmax(logits - log(exponentials))` draws from softmax(logits): Gumbel's trick.
    """
    h = ids * _signed(0x9E3779B1) + keys[:, :1]
    h = _mix(h, 16, 0x85EBCA6B, 13, 0xC2B2AE35)
    h = _mix(h ^ keys[:, 1:], 16, 0x7FEB352D, 15, _signed(0x846CA68B))
    h ^= _shifted(h, 16)
    # 32 bits of v in (0, 1): float32 keeps their precision near 0, where the likeliest winners are
    v = (h.double() + (2**31 + 0.5)).mul_(2.0**-32).float().clamp_(max=1 - 2**-24)
    return v.neg_().log1p_().neg_()


def _mix(h: Tensor, a: int, x: int, b: int, y: int) -> Tensor:
    h = (h ^ _shifted(h, a)).mul_(_signed(x))
    return h.bitwise_xor_(_shifted(h, b)).mul_(_signed(y))


def _shifted(h: Tensor, bits: int) -> Tensor:
    """Logical shift right of int32."""
    return (h >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _splitmix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)
