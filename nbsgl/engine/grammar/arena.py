"""Grammars' tables on a device: one block of memory for all that are in use, so that kernels find them by a number.

A grammar is a piece of the block; where it begins is all that a kernel is told.  In int32 words from there:

    [0, 4)   number of token classes; where `next` begins and where `row_of`, in halves; where `rows` begins, in words
    [4, ..)  class_of, uint16 `[vocab]`; then next, row_of (uint16) and rows, each from a multiple of 16 bytes on

Nothing is held between steps: what a step needs is there for that step, and what earlier ones needed stays until room
is wanted.  So a sequence that ends, however it ends, has nothing to give back.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

HEADER = 4
ALIGNED = 4  # words: 16 bytes
MAX_BYTES = 256 << 20
CARD_SHARE = 128  # of a small card: 64 MiB of 8 GiB hold four of the largest grammars, and hundreds of usual ones


def arena_bytes(total: int) -> int:
    """How much of a card of so many bytes its grammars may take."""
    return min(MAX_BYTES, total // CARD_SHARE)


@dataclass(slots=True)
class _Entry:
    """Where a grammar lies; holding its tables keeps their `id` theirs."""

    tables: Any
    begin: int
    size: int


class TableArena:
    """`block` int32: the grammars' tables, for logits of `vocab_size` tokens.  One thread, one stream of steps.

    `block` stays where it is; pieces of it are written on a stream of their own, which steps queued later wait for.
    """

    def __init__(self, device: torch.device, vocab_size: int, num_bytes: int) -> None:
        self.device, self.vocab_size = device, vocab_size
        self.num_words = (vocab_size + 31) // 32
        self.block = torch.empty(max(ALIGNED, num_bytes // 4), dtype=torch.int32, device=device)
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by the tables' id, the least recently used first
        self._holes: list[tuple[int, int]] = [(0, num_bytes // 4 // ALIGNED * ALIGNED)]  # (begin, size), disjoint
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._wait_for_steps()  # the memory may have been theirs

    def __len__(self) -> int:
        return len(self._entries)

    def place(self, wanted: Sequence[Any]) -> list[int]:
        """Where each of these tables begins, for the steps queued from now on; -1 where there is no room for one more.

        Those of one call stay for one another; the others leave, the least recently used first, if that makes room.
        Queues the copies of what is new; does not wait.
        """
        tables = {id(one): one for one in wanted}
        for key in tables:
            if key in self._entries:
                self._entries.move_to_end(key)
        missing = [one for key, one in tables.items() if key not in self._entries]
        if missing:
            self._bring(missing, set(tables))
        return [self.begin_of(one) for one in wanted]

    def begin_of(self, tables: Any) -> int:
        entry = self._entries.get(id(tables))
        return -1 if entry is None else entry.begin

    def _bring(self, missing: Sequence[Any], kept: set[int]) -> None:
        for tables in missing:
            size = _size_of(tables, self.vocab_size, self.num_words)
            begin = self._take(size)
            while begin is None and size <= self.block.numel() and self._evict(kept):
                begin = self._take(size)
            if begin is not None:
                self._entries[id(tables)] = _Entry(tables, begin, size)
                self._copy(tables, begin, size)
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def _wait_for_steps(self) -> None:
        """Let copies begin when all that is queued now is done."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def _copy(self, tables: Any, begin: int, size: int) -> None:
        staged = torch.zeros(size, dtype=torch.int32, pin_memory=self._stream is not None)
        _pack(tables, staged.numpy(), self.vocab_size, self.num_words)
        with torch.cuda.stream(self._stream):  # of None: nothing
            self.block[begin : begin + size].copy_(staged, non_blocking=True)

    # ---- room ------------------------------------------------------------------------------------------------------

    def _take(self, size: int) -> int | None:
        """The first hole that is large enough."""
        for i, (begin, room) in enumerate(self._holes):
            if room >= size:
                self._holes[i : i + 1] = [(begin + size, room - size)] if room > size else []
                return begin
        return None

    def _evict(self, kept: set[int]) -> bool:
        """Let the least recently used grammar go that is not to be kept; False if there is none."""
        key = next((key for key in self._entries if key not in kept), None)
        if key is None:
            return False
        self._wait_for_steps()  # those under way may read what lies there
        gone = self._entries.pop(key)
        insort(self._holes, (gone.begin, gone.size))
        joined: list[tuple[int, int]] = []
        for begin, size in self._holes:
            if joined and sum(joined[-1]) == begin:
                joined[-1] = (joined[-1][0], joined[-1][1] + size)
            else:
                joined.append((begin, size))
        self._holes = joined
        return True


def _aligned(num_words: int) -> int:
    return -(-num_words // ALIGNED) * ALIGNED


def _places(tables: Any, vocab_size: int, num_words: int) -> tuple[int, int, int, int]:
    """Where next, row_of and rows begin, in words from the grammar's beginning, and where it ends."""
    num_states, num_classes = tables.next.shape
    nexts = HEADER + _aligned((vocab_size + 1) // 2)
    row_of = nexts + _aligned((num_states * num_classes + 1) // 2)
    rows = row_of + _aligned((num_states + 1) // 2)
    return nexts, row_of, rows, rows + _aligned(len(tables.rows) * num_words)


def _size_of(tables: Any, vocab_size: int, num_words: int) -> int:
    return _places(tables, vocab_size, num_words)[3]


def _pack(tables: Any, block: np.ndarray, vocab_size: int, num_words: int) -> None:
    """Write the tables to an int32 block of zeros.  Tokens that the tables do not know are not allowed anywhere."""
    nexts, row_of, rows, _ = _places(tables, vocab_size, num_words)
    halves, words = block.view(np.uint16), block.view(np.uint32)
    block[:HEADER] = tables.next.shape[1], 2 * nexts, 2 * row_of, rows
    num_known = min(vocab_size, len(tables.class_of))
    halves[2 * HEADER : 2 * HEADER + num_known] = tables.class_of[:num_known]
    halves[2 * nexts : 2 * nexts + tables.next.size] = tables.next.ravel()
    halves[2 * row_of : 2 * row_of + len(tables.row_of)] = tables.row_of
    num = min(num_words, tables.rows.shape[1])
    masks = words[rows : rows + len(tables.rows) * num_words].reshape(-1, num_words)
    masks[:, :num] = tables.rows[:, :num]
    if vocab_size % 32:
        masks[:, -1] &= np.uint32((1 << vocab_size % 32) - 1)
