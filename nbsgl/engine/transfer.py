"""Small host values onto the device without making the host wait for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_device(
    values: Sequence[float] | Sequence[Sequence[float]] | np.ndarray, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """A tensor on the device; for CUDA it is copied from pinned memory behind what is queued already."""
    tensor = torch.as_tensor(values, dtype=dtype)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def index_of(lines: Sequence[int], device: torch.device) -> Tensor:
    """int64 index."""
    return to_device(lines, device, torch.int64)


def to_host(tensor: Tensor) -> Tensor:
    """The tensor on the host; for CUDA a pinned copy that is there when the stream has come so far."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
