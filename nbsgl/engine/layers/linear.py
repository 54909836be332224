"""Matrix products with the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# The layout is chosen for this many rows.  Packed for 1, 16 or 256 rows, 2 AVX2 cores, weight [1152, 896]:
# at 1 row 71, 67, 67 us (plain: 92); at 4 rows 200, 97, 93 (256); at 16 rows 366, 267, 248 (378)
PACK_ROWS = 16


@dataclass(slots=True)
class Linear:
    """`y = x @ weight.T + bias`; weight `[out, in]`, after `pack` in a layout of oneDNN's own."""

    weight: Tensor
    bias: Tensor | None = None
    is_packed: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def pack(self) -> None:
        """Replace the weight by a copy laid out for the CPU's kernels; nothing where `can_pack` is false.

        Packed, a row's result is the same to the last bit however many rows are computed with it (checked on AVX2 for
        1..200 rows).
        """
        if not self.is_packed and can_pack(self.weight.device, self.weight.dtype):
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, PACK_ROWS)
            self.is_packed = True

    def plain(self) -> Tensor:
        """The weight `[out, in]`: itself, or a copy if it is packed."""
        return self.weight.to_dense() if self.is_packed else self.weight


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's own layout is there and quicker: float32 on x86 with AVX2 or later."""
    return (
        device.type == "cpu"
        and dtype is torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    )
