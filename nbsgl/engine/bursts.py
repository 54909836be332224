"""Sequences that arrive together begin to decode together.

A beginner, who has drawn one token, waits while others are prefilled.  So the rows of a batch of programs go in step,
and the text between their calls is computed for all of them in one step; one by one every other step would carry some.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

from nbsgl.engine.request import Sequence

HOLD_S = 0.5  # from when a beginner's run was first computed


def on_their_way(decodes: Many[Sequence], now: float) -> list[Sequence]:
    """The decodes that do not wait for others: all of them, if beginners are the smaller part."""
    others = [seq for seq in decodes if not _is_beginner(seq, now)]
    return others if 2 * len(others) < len(decodes) else list(decodes)


def _is_beginner(seq: Sequence, now: float) -> bool:
    run = seq.run
    if run is None or run.launched_at is None or now - run.launched_at > HOLD_S:
        return False
    return len(seq.tokens) - run.begin + run.num_pending <= 1
