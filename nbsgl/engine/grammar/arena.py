"""Grammars' tables on a device: one block of memory for all that are in use, so that kernels find them by a number.

A grammar is a piece of the block; where it begins is all that a kernel is told.  In int32 words from there:

    [0]      where class_of begins, in halves
    [4, ..)  three words a state: where its mask begins, in words; where its window would begin in `next` if it began
             with class 0, in halves; low and high, the window's ends, in the lower and the upper half
    then     class_of uint16 `[vocab]`, next (uint16), rows (the masks), each from a multiple of 16 bytes on

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
STATE = 3  # words
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
    """Where class_of, next and rows begin, in words from the grammar's beginning, and where it ends."""
    class_of = HEADER + _aligned(STATE * len(tables.begin))
    nexts = class_of + _aligned((vocab_size + 1) // 2)
    rows = nexts + _aligned((len(tables.next) + 1) // 2)
    return class_of, nexts, rows, rows + _aligned(len(tables.rows) * num_words)


def _size_of(tables: Any, vocab_size: int, num_words: int) -> int:
    return _places(tables, vocab_size, num_words)[3]


def _pack(tables: Any, block: np.ndarray, vocab_size: int, num_words: int) -> None:
    """Write the tables to an int32 block of zeros.  Tokens that the tables do not know are not allowed anywhere."""
    class_of, nexts, rows, _ = _places(tables, vocab_size, num_words)
    halves, words = block.view(np.uint16), block.view(np.uint32)
    block[0] = 2 * class_of
    states = block[HEADER : HEADER + STATE * len(tables.begin)].reshape(-1, STATE)
    states[:, 0] = rows + tables.row_of.astype(np.int32) * num_words
    states[:, 1] = 2 * nexts + tables.begin.astype(np.int32) - tables.low
    states.view(np.uint32)[:, 2] = tables.low | tables.high.astype(np.uint32) << 16
    num_known = min(vocab_size, len(tables.class_of))
    halves[2 * class_of : 2 * class_of + num_known] = tables.class_of[:num_known]
    halves[2 * nexts : 2 * nexts + len(tables.next)] = tables.next
    num = min(num_words, tables.rows.shape[1])
    masks = words[rows : rows + len(tables.rows) * num_words].reshape(-1, num_words)
    masks[:, :num] = tables.rows[:, :num]
    if vocab_size % 32:
        masks[:, -1] &= np.uint32((1 << vocab_size % 32) - 1)
