"""A row with a draft, line by line: what each draw sees, and what becomes of the draws."""

from __future__ import annotations

import numpy as np
import torch

from nbsgl.engine.batch import Row
from nbsgl.engine.drafts import lines_of
from nbsgl.engine.launched import LaunchedStep
from nbsgl.engine.sampler import Drawn
from nbsgl.protocol import SamplingParams


class Counter:
    """A grammar of 0, 1, 2 ... in order; tests lean on `rollback` undoing `advance`."""

    def __init__(self) -> None:
        self.at = 0

    def fill_mask(self, words: np.ndarray) -> None:
        words[:] = 0
        words[self.at // 32] = np.uint32(1 << (self.at % 32))

    def advance(self, token: int) -> bool:
        if token != self.at:
            return False
        self.at += 1
        return True

    def rollback(self, num_tokens: int) -> None:
        self.at -= num_tokens


def allowed(line: Row) -> list[int]:
    words = np.zeros(3, np.uint32)
    line.matcher.fill_mask(words)
    return [token for token in range(96) if words[token // 32] >> (token % 32) & 1]


def test_each_line_is_as_if_the_draft_before_it_had_been_drawn() -> None:
    params = SamplingParams(seed=3)
    row = Row(4, 7, 4, [9] * 8, params=params, run_begin=6, run_idx=2, matcher=Counter(), draft=[0, 1, 2],
              states=[5, 6, 7, 8])  # fmt: skip
    lines = lines_of(row)
    assert [line.run_idx for line in lines] == [2, 3, 4, 5]
    assert all(line.history is row.history for line in lines)
    assert [line.states for line in lines] == [[5], [6], [7], [8]]
    assert [allowed(line) for line in reversed(lines)] == [[3], [2], [1], [0]]
    assert row.matcher.at == 0


def test_behind_a_token_that_the_grammar_forbids_nothing_is_allowed() -> None:
    row = Row(0, 0, 4, [1], params=SamplingParams(), matcher=Counter(), draft=[0, 9, 1])
    assert [allowed(line) for line in lines_of(row)] == [[0], [1], [], []]
    assert row.matcher.at == 0


def test_a_row_without_a_draft_is_its_only_line() -> None:
    row = Row(0, 0, 1, [1], params=SamplingParams(), matcher=Counter())
    assert lines_of(row) == [row]


def test_draws_of_a_draft_come_back_with_their_row() -> None:
    asking = SamplingParams(return_logprob=True, top_logprobs_num=1)
    rows = [Row(0, 0, 1, [1], params=asking), Row(1, 0, 3, [1], params=asking, draft=[4, 5])]
    ids = torch.tensor([[7, 4, 5, 6, 0], [1, 1, 0, 1, 0]])
    drawn = Drawn(ids[0], ids[1].bool(), [0, 1, 2, 3], torch.arange(4.0), ids[0, :4, None], torch.zeros(4, 1))
    one, other = LaunchedStep(rows, [0, 1, 1, 1], ids, drawn, [], torch.device("cpu")).result()
    assert (one.token, list(one.more), one.is_finite, one.logprob) == (7, [], True, 0.0)
    assert (other.token, list(other.more), other.is_finite, other.logprob) == (4, [5, 6], False, 1.0)
    assert other.top == [(4, 0.0)]
