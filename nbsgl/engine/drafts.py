"""A row with a draft as the draws it asks for, one a line: what samplers are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.batch import Row
from nbsgl.engine.penalties import has_penalty


def lines_of(row: Row) -> list[Row]:
    """One row for each draw, in order, each as if the draft before it had been drawn; `[row]` without a draft.

    Masks are filled when the sampler asks for them; the row's matcher is where it was before and after.  A row with
    penalties has no draft: its draws depend on one another.
    """
    if not row.draft:
        return [row]
    assert row.params is not None, "a draft is drawn at each of its places"
    assert not has_penalty(row.params), "penalties count the tokens drawn before"
    walk = None if row.matcher is None else _Walk(row.matcher, row.draft)
    return [
        replace(
            row,
            draft=(),
            run_idx=row.run_idx + i,
            matcher=None if walk is None else _Place(walk, i),
            states=row.states[i : i + 1],
        )
        for i in range(len(row.draft) + 1)
    ]


class _Walk:
    """The masks along a draft, from one walk of the matcher and back."""

    def __init__(self, matcher: Any, draft: Sequence[int]) -> None:
        self.matcher, self.draft = matcher, draft
        self.masks: NDArray[np.uint32] | None = None

    def mask(self, idx: int, num_words: int) -> NDArray[np.uint32]:
        """uint32 `[num_words]` before the draw of that place; empty behind a token that the grammar forbids."""
        if self.masks is None or self.masks.shape[1] != num_words:
            self.masks = np.zeros((len(self.draft) + 1, num_words), np.uint32)
            num_taken = 0
            self.matcher.fill_mask(self.masks[0])
            for token, words in zip(self.draft, self.masks[1:]):
                if not self.matcher.advance(token):
                    break
                num_taken += 1
                self.matcher.fill_mask(words)
            if num_taken:
                self.matcher.rollback(num_taken)
        return self.masks[idx]


class _Place:
    """What a sampler wants of a matcher, for one place of a draft."""

    def __init__(self, walk: _Walk, idx: int) -> None:
        self.walk, self.idx = walk, idx

    def fill_mask(self, words: NDArray[np.uint32]) -> None:
        words[:] = self.walk.mask(self.idx, len(words))
