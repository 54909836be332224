"""The page lists of paged attention, made on the device: from page-table rows to one flat list of pages.

A library that attends over pages wants, for n requests, `indptr` `[n + 1]`, the pages of request i at
`indices[indptr[i]:indptr[i + 1]]`, and how many entries its last page has.  All three follow from the page table, so
nothing of them is built on the host or copied: 512 sequences of 2,112 tokens are 1.08 million entries.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from nbsgl.engine.kernels.aot import Card, ModelShape, Variant

BLOCK = 1_024  # pages per turn
SCAN = 512  # earlier requests whose page counts are summed at once
MAX_PARTS = 64  # programs per request
NUM_WARPS = 4
PAGE_SIZES = (1, 4, 16)


# rows, starts and ends are pieces of larger blocks: one compiled form, wherever they begin
@triton.jit(
    do_not_specialize=["row_stride"],
    do_not_specialize_on_alignment=["ROWS", "STARTS", "ENDS", "INDPTR", "LAST_LENS"],
)
def _flat_indices(
    TABLE, ROWS, STARTS, ENDS, INDPTR, INDICES, LAST_LENS, row_stride,
    HAS_STARTS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, SCAN: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    part = tl.program_id(1)
    before = 0  # pages of the requests before this one
    for first in range(0, i, SCAN):
        other = first + tl.arange(0, SCAN)
        lens = tl.load(ENDS + other, mask=other < i, other=0)
        if HAS_STARTS:
            lens -= tl.load(STARTS + other, mask=other < i, other=0)
        before += tl.sum((lens + PAGE - 1) // PAGE, 0)
    start = 0
    if HAS_STARTS:
        start = tl.load(STARTS + i)
    num = tl.load(ENDS + i) - start
    num_pages = (num + PAGE - 1) // PAGE
    if part == 0:
        if i == 0:
            tl.store(INDPTR, 0)
        tl.store(INDPTR + i + 1, before + num_pages)
        tl.store(LAST_LENS + i, num - (num_pages - 1) * PAGE)
    slots = TABLE + tl.load(ROWS + i).to(tl.int64) * row_stride + start
    for first in range(part * BLOCK, num_pages, tl.num_programs(1) * BLOCK):
        page = first + tl.arange(0, BLOCK)
        is_there = page < num_pages
        slot = tl.load(slots + page * PAGE, mask=is_there, other=0)
        tl.store(INDICES + before + page, slot // PAGE, mask=is_there)


def flat_indices(
    table: Tensor,
    rows: Tensor,
    starts: Tensor | None,
    ends: Tensor,
    *,
    page_size: int,
    max_pages: int,
    indptr: Tensor,
    indices: Tensor,
    last_lens: Tensor,
) -> None:
    """Write the page lists of positions [starts, ends) of `rows` into `indptr`, `indices` and `last_lens`.

    All int32 on the device: `table` `[rows, context]` of slots, `rows`, `starts`, `ends`, `last_lens` `[n]`, `indptr`
    `[n + 1]`, `indices` with room for all.  `starts` (None: zeros) are multiples of `page_size`; slots of a page are
    neighbours.  `max_pages`, the most that one request has, only decides how many programs are launched.
    """
    grid = (rows.shape[0], min(MAX_PARTS, -(-max_pages // BLOCK)))
    _flat_indices[grid](
        table, rows, rows if starts is None else starts, ends, indptr, indices, last_lens, table.stride(0),
        HAS_STARTS=starts is not None, PAGE=page_size, BLOCK=BLOCK, SCAN=SCAN, num_warps=NUM_WARPS,
    )  # fmt: skip


def variants(shape: ModelShape, card: Card) -> Iterator[Variant]:
    """The same for every model and card."""
    names = ("TABLE", "ROWS", "STARTS", "ENDS", "INDPTR", "INDICES", "LAST_LENS")
    for page_size in PAGE_SIZES:
        for has_starts in (False, True):
            constants = {"HAS_STARTS": has_starts, "PAGE": page_size, "BLOCK": BLOCK, "SCAN": SCAN}
            yield Variant(
                _flat_indices,
                {**dict.fromkeys(names, torch.int32), "row_stride": "i32", **constants},
                num_warps=NUM_WARPS,
            )
