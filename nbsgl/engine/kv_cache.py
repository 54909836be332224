"""The tensor half of the KV pool: K and V of all layers by slot, and the page table (position -> slot)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nbsgl.engine.model_config import ModelConfig
from nbsgl.engine.transfer import to_device


class KVCache:
    """Per layer `k[i]`, `v[i]` `[num_slots + page_size, kv_heads, head_dim]` (NHD; a page: `page_size` slots in a row).

    `table` int32 `[max_running + 1, context_length]` maps a running sequence's positions to slots; it is changed by
    deltas.  Its last row, `padding_row`, and the pool's last page are for the padding of steps: all its positions are
    `padding_slot`, which belongs to nobody.  `dtype` is the cache's own, that of the model or float8_e4m3fn.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_slots: int,
        max_running: int,
        context_length: int,
        dtype: torch.dtype,
        device: torch.device,
        page_size: int = 1,
    ) -> None:
        shape = (config.num_layers, 2, num_slots + page_size, config.num_kv_heads, config.head_dim)
        # not zeroed on CUDA; on a CPU zeros are pages that the system gives when first touched
        self.pool = (torch.zeros if device.type == "cpu" else torch.empty)(shape, dtype=dtype, device=device)
        self.k = [self.pool[i, 0] for i in range(config.num_layers)]
        self.v = [self.pool[i, 1] for i in range(config.num_layers)]
        self.table = torch.zeros((max_running + 1, context_length), dtype=torch.int32, device=device)
        self.num_slots, self.context_length, self.device = num_slots, context_length, device
        self.page_size, self.padding_row, self.padding_slot = page_size, max_running, num_slots
        self._clear_padding()
        self._flat_table = self.table.view(-1)
        # Per row: slots of positions [0, run) are base, base + 1, ... ; what reads them may take a view, not a gather
        self._base = [0] * max_running
        self._run = [0] * max_running

    def write_table(self, deltas: Sequence[tuple[int, int, Sequence[int]]]) -> None:
        """Write (row, first position, slots) deltas: one copy to the device and one kernel.  Does not wait for it."""
        deltas = [delta for delta in deltas if len(delta[2])]
        if not deltas:
            return
        if self.device.type == "cpu":  # elsewhere nobody asks
            for row, first, slots in deltas:
                self._note_run(row, first, slots)
        values, begins = array("i"), []
        for row, first, slots in deltas:
            begins.append(row * self.context_length + first - len(values))
            values.extend(slots)
        num = len(values)
        block = np.empty(num + (num + 1) // 2, np.int64)  # int64 places, then int32 slots
        np.add(np.repeat(begins, [len(slots) for _, _, slots in deltas]), np.arange(num), out=block[:num])
        block[num:].view(np.int32)[:num] = values
        on_device = to_device(block, self.device, torch.int64)
        self._flat_table.index_copy_(0, on_device[:num], on_device[num:].view(torch.int32)[:num])

    def _note_run(self, row: int, first: int, slots: Sequence[int]) -> None:
        run = min(self._run[row], first)
        if first == 0:
            self._base[row] = slots[0]
        if run == first:
            wanted = self._base[row] + run
            for slot in slots:
                if slot != wanted:
                    break
                wanted += 1
            run = wanted - self._base[row]
        self._run[row] = run

    def contiguous_base(self, row: int, kv_len: int) -> int | None:
        """The first slot if positions [0, kv_len) of the row lie in ascending neighbouring slots, else None."""
        return self._base[row] if kv_len <= self._run[row] else None

    def slots_at(self, rows: Tensor, positions: Tensor) -> Tensor:
        """int64 slots of (row, position) pairs; both int64 of one shape."""
        flat = (rows * self.context_length).add_(positions).view(-1)
        return self._flat_table.index_select(0, flat).long().view(positions.shape)

    def clear(self) -> None:
        """Zero K and V (after a fault may have left NaN in them) and forget the table."""
        self.pool.zero_()
        self.table.zero_()
        self._clear_padding()
        self._run = [0] * len(self._run)

    def _clear_padding(self) -> None:
        """Padding attends to zeros, never to what the memory held."""
        self.table[self.padding_row] = self.padding_slot
        self.pool[:, :, self.padding_slot :] = 0
