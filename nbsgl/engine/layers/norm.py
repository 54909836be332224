"""RMSNorm.  Zhang & Sennrich 2019, "Root Mean Square Layer Normalization"."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension; sums in float32 whatever the dtype of x."""
    wide = x.float()
    scale = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
    if x.dtype is torch.float32:
        return (x * scale).mul_(weight)
    return (wide * scale).to(x.dtype) * weight
