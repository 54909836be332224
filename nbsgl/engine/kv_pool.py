"""The index half of the KV pool: which slots and which rows of the page table are free.  The tensors are the runner's.

Slots are 0..num_slots-1; page k is the slots [k * page_size, (k + 1) * page_size), granted and freed as one.  No slot
is reserved: a runner that pads its batches keeps a page of its own beyond num_slots.

Law: free + in tree + owned by sequences + quarantined == num_slots, after every step (`census`).
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence

import numpy as np

log = logging.getLogger("nbsgl")

_FREE, _GRANTED, _QUARANTINED = 0, 1, 2


class KVPool:
    """Free pages and free rows.  All calls are O(pages asked for)."""

    def __init__(self, num_slots: int, page_size: int = 1, num_rows: int = 1) -> None:
        """`num_slots` is rounded down to whole pages."""
        if page_size < 1 or num_slots < page_size or num_rows < 1:
            raise ValueError(f"no pool of {num_slots} slots in pages of {page_size} with {num_rows} rows")
        self.page_size = page_size
        self.num_pages = num_slots // page_size
        self.num_slots = self.num_pages * page_size
        self.num_rows = num_rows
        self.double_frees = 0  # pages freed though nobody held them: corruption, found by `census`
        self._free_pages = array("i", range(self.num_pages - 1, -1, -1))  # a stack: the lowest page is granted first
        self._num_free = self.num_pages
        self._page_state = bytearray(self.num_pages)
        self._states = np.frombuffer(self._page_state, np.uint8)  # the same memory, for many at once
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._quarantined = 0

    @property
    def num_free(self) -> int:
        return self._num_free * self.page_size

    @property
    def num_free_pages(self) -> int:
        return self._num_free

    @property
    def num_quarantined(self) -> int:
        return self._quarantined * self.page_size

    @property
    def capacity(self) -> int:
        """Slots that can ever be granted."""
        return self.num_slots - self.num_quarantined

    @property
    def num_free_rows(self) -> int:
        return len(self._free_rows)

    def alloc(self, num_pages: int) -> array[int] | None:
        """Grant pages; their slots in order, or None (and nothing granted) if there are too few."""
        if num_pages > self._num_free:
            return None
        begin, size = self._num_free - num_pages, self.page_size
        pages = self._free_pages[begin : self._num_free]
        pages.reverse()
        self._num_free = begin
        self._states[np.frombuffer(pages, np.int32)] = _GRANTED
        if size == 1:
            return pages
        return array("i", [slot for page in pages for slot in range(page * size, (page + 1) * size)])

    def free(self, slots: Sequence[int]) -> None:
        """Take back whole pages, as `alloc` granted them.  A page that is not granted is counted and left alone."""
        size = self.page_size
        pages = slots if size == 1 else [slot // size for slot in slots[::size]]
        for page in pages:
            if self._page_state[page] != _GRANTED:
                self.double_frees += 1
                log.error("page %d was freed, but nobody held it", page)
                continue
            self._page_state[page] = _FREE
            self._free_pages[self._num_free] = page
            self._num_free += 1

    def quarantine(self, slots: Sequence[int]) -> int:
        """Put the pages of these slots out of use for good, free or granted; returns how many pages that were new."""
        pages = {slot // self.page_size for slot in slots}
        new = {page for page in pages if self._page_state[page] != _QUARANTINED}
        if any(self._page_state[page] == _FREE for page in new):
            kept = array("i", [page for page in self._free_pages[: self._num_free] if page not in new])
            self._num_free = len(kept)
            self._free_pages[: len(kept)] = kept
        for page in new:
            self._page_state[page] = _QUARANTINED
        self._quarantined += len(new)
        return len(new)

    def free_slots(self) -> list[int]:
        """All free slots, for the census: O(num_slots)."""
        return self._slots_of(self._free_pages[: self._num_free])

    def quarantined_slots(self) -> list[int]:
        return self._slots_of([page for page in range(self.num_pages) if self._page_state[page] == _QUARANTINED])

    def _slots_of(self, pages: Sequence[int]) -> list[int]:
        size = self.page_size
        return list(pages) if size == 1 else [s for page in pages for s in range(page * size, (page + 1) * size)]

    def alloc_row(self) -> int | None:
        return self._free_rows.pop() if self._free_rows else None

    def free_row(self, row: int) -> None:
        assert row not in self._free_rows, f"row {row} was freed twice"
        self._free_rows.append(row)

    def free_rows(self) -> list[int]:
        return list(self._free_rows)
