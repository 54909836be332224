"""Attention where many sequences share a prefix (cascade): when it pays, and how the work is cut.

The prefix is attended once for all queries below it, as one long request; what each sequence has of its own is
attended as usual from the prefix's end on; the two parts are merged by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nbsgl.engine.attention.paged import Layout
    from nbsgl.engine.batch import SharedPrefix

# performance.md 4.5: H200, 2048 shared + 80 own: 512 sequences 7.2 ms against 19.1 flat, 32 sequences 0.89 against 1.23
MIN_SHARING = 192  # below, launching kernel by kernel takes the host longer than a step (9 ms for 32 layers)
MIN_SAVED = 2.0  # (positions attended) / (distinct positions)


def worth_sharing(kv_lens: np.ndarray, shared: Sequence[SharedPrefix]) -> bool:
    """Whether attending the shared prefixes once is expected to be faster; `kv_lens` `[num_singles]`."""
    num_sharing = sum(group.end - group.begin for group in shared)
    if num_sharing < MIN_SHARING:
        return False
    total = int(kv_lens.sum())
    repeated = sum((group.end - group.begin - 1) * group.length for group in shared)
    return total > MIN_SAVED * (total - repeated)


@dataclass(frozen=True, slots=True)
class PrefixRequests:
    """The prefix part: queries are singles [begin, begin + qo_indptr[-1]), one request per prefix.  All int32.

    `rows`, `lens` `[requests]`: a page-table row with the prefix at its start, and the prefix's length.
    `starts` `[num_singles]`: where each single's own part begins; 0 for those that share nothing.
    """

    begin: int
    rows: np.ndarray
    lens: np.ndarray
    qo_indptr: np.ndarray
    starts: np.ndarray


def prefix_requests(layout: Layout, page_size: int) -> PrefixRequests | None:
    """Cut the layout's shared prefixes into requests, at whole pages; None if no prefix is left.

    Requests follow each other without a gap in the queries.  So singles between two groups are a request over one page
    of the first of them; what it yields is not merged.
    """
    groups = [(g.begin, g.end, g.length - g.length % page_size) for g in layout.shared]
    groups = [group for group in groups if group[2]]
    if not groups:
        return None
    starts = np.zeros(layout.num_singles, np.int32)
    rows: list[int] = []
    lens: list[int] = []
    bounds = [groups[0][0]]
    for begin, end, length in groups:
        if begin > bounds[-1]:
            rows.append(layout.rows[bounds[-1]])
            lens.append(1)
            bounds.append(begin)
        starts[begin:end] = length
        rows.append(layout.rows[begin])
        lens.append(length)
        bounds.append(end)
    indptr = np.array(bounds, np.int32) - np.int32(bounds[0])
    return PrefixRequests(bounds[0], np.array(rows, np.int32), np.array(lens, np.int32), indptr, starts)
