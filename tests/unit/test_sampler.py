"""The sampler against a slow plain reference, and the laws of a draw: seeds, batches, retraction."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbsgl.engine.batch import Row
from nbsgl.engine.rng import draw_keys, exponentials
from nbsgl.engine.sampler import Sampler
from nbsgl.protocol import SamplingParams

VOCAB = 40
CPU = torch.device("cpu")


class Matcher:
    """Allows a fixed set of tokens; tests lean on `fill_mask` writing packed little-endian words."""

    def __init__(self, allowed: set[int]) -> None:
        self.allowed = allowed

    def fill_mask(self, words: np.ndarray) -> None:
        for token in self.allowed:
            words[token // 32] |= np.uint32(1 << (token % 32))


def make_sampler() -> Sampler:
    return Sampler(VOCAB, CPU, torch.zeros(8, dtype=torch.int64))


def draw(sampler: Sampler, logits: np.ndarray, rows: list[Row]) -> list[int]:
    with torch.inference_mode():
        tokens = sampler.draw(torch.tensor(logits, dtype=torch.float32), rows).tokens
        sampler.last_tokens[torch.tensor([row.row for row in rows])] = tokens
        return tokens.tolist()


def row_of(params: SamplingParams, row: int = 0, history: tuple[int, ...] = (), **values: Any) -> Row:
    return Row(row, 0, 1, list(history), params=params, **{"is_run_start": True, **values})


def reference(logits: np.ndarray, row: Row) -> int:
    """One row, token by token, in plain Python."""
    p = row.params
    assert p is not None
    scores = [float(x) for x in logits]
    drawn = list(row.history[row.run_begin :])
    for t in range(VOCAB):
        if t in set(row.history):
            scores[t] = scores[t] / p.repetition_penalty if scores[t] > 0 else scores[t] * p.repetition_penalty
        scores[t] -= p.frequency_penalty * drawn.count(t) + p.presence_penalty * (t in drawn)
        scores[t] += p.logit_bias.get(t, 0.0)
    allowed = row.matcher.allowed if row.matcher else set(range(VOCAB))
    if allowed - set(row.ban_ids):
        allowed = allowed - set(row.ban_ids)
    if p.is_greedy:
        return max(allowed, key=lambda t: (np.float32(scores[t]), -t))
    order = sorted(allowed, key=lambda t: (-np.float32(scores[t] / p.temperature), t))
    top = max(scores[t] / p.temperature for t in order)
    weights = {t: math.exp(scores[t] / p.temperature - top) for t in order}
    total, before, kept = sum(weights.values()), 0.0, []
    for rank, t in enumerate(order):
        prob = weights[t] / total
        is_in = (p.top_k == -1 or rank < p.top_k) and before < p.top_p and prob >= p.min_p * weights[order[0]] / total
        if rank == 0 or is_in:
            kept.append(t)
        before += prob
    keys = torch.tensor([draw_keys(p.seed or 0, row.run_idx)], dtype=torch.int32)
    noise = exponentials(keys, torch.arange(VOCAB, dtype=torch.int32))[0].tolist()
    return max(kept, key=lambda t: scores[t] / p.temperature - math.log(noise[t]))


params_st = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([-1, 1, 3, 100]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.11, 1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -0.4]),
    presence_penalty=st.sampled_from([0.0, 1.3]),
    repetition_penalty=st.sampled_from([1.0, 1.4, 0.8]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB + 5), st.sampled_from([-100.0, -1.5, 3.0]), max_size=3),
    seed=st.integers(0, 2**64 - 1),
)


def _make_row(params: SamplingParams, history: list[int], begin: int, allowed: set[int], ban: list[int]) -> Row:
    begin = min(begin, len(history))
    matcher = Matcher(allowed) if allowed else None
    drawn = len(history) - begin
    return row_of(params, 0, tuple(history), run_begin=begin, run_idx=drawn, matcher=matcher, ban_ids=ban)


token_st = st.integers(0, VOCAB - 1)
rows_st = st.builds(
    _make_row,
    params_st,
    st.lists(token_st, max_size=12),
    st.integers(0, 12),
    st.sets(token_st, max_size=6),
    st.lists(token_st, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(rows_st, min_size=1, max_size=5), st.integers(0, 10_000))
def test_batch_equals_reference_row_by_row(rows: list[Row], seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (len(rows), VOCAB)).astype(np.float32)
    for i, row in enumerate(rows):
        row.row = i
    assert draw(make_sampler(), logits.copy(), rows) == [reference(line, row) for line, row in zip(logits, rows)]


def test_greedy_ties_go_to_the_lowest_id() -> None:
    logits = np.zeros((1, VOCAB))
    logits[0, [7, 9]] = 1.0
    assert draw(make_sampler(), logits, [row_of(SamplingParams(temperature=0))]) == [7]


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05] + [1e-9] * (VOCAB - 4)]))
    rows = [row_of(SamplingParams(temperature=1.0, seed=11), run_idx=i) for i in range(4000)]
    with torch.inference_mode():
        drawn = make_sampler().draw(torch.tensor(logits, dtype=torch.float32).repeat(4000, 1), rows).tokens
    shares = torch.bincount(drawn, minlength=4)[:4] / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_seed_and_place_decide_not_the_neighbours() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (4, VOCAB))
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=42)
    alone = draw(make_sampler(), logits[:1].copy(), [row_of(params, run_idx=3)])
    others = [row_of(SamplingParams(temperature=t, seed=i), row=i) for i, t in ((1, 0.0), (2, 1.0), (3, 2.0))]
    assert (
        draw(make_sampler(), logits[[1, 2, 0, 3]], [others[0], others[1], row_of(params, run_idx=3), others[2]])[2]
        == alone[0]
    )
    seeds = {draw(make_sampler(), logits[:1].copy(), [row_of(SamplingParams(seed=s))])[0] for s in range(30)}
    assert len(seeds) > 3


@pytest.mark.parametrize("is_fed_back", [False, True])
@pytest.mark.parametrize("retract_at", [None, 1, 4])
def test_penalties_do_not_know_of_retraction(retract_at: int | None, is_fed_back: bool) -> None:
    params = SamplingParams(temperature=0, frequency_penalty=0.5, presence_penalty=0.3, repetition_penalty=1.2)
    logits = np.random.default_rng(1).normal(0, 1, VOCAB)
    logits[:3] += 2
    prompt = (0, 5, 5)
    wanted = list(prompt)
    for step in range(8):
        wanted.append(reference(logits, row_of(params, 0, tuple(wanted), run_begin=3, run_idx=step)))
    sampler, history = make_sampler(), list(prompt)
    for step in range(8):
        is_resumed = step == retract_at
        if is_resumed:
            sampler = make_sampler()  # another run had the row meanwhile
        known = history[:-1] if is_fed_back and step and not is_resumed else history
        row = Row(0, 0, 1, list(known), params=params, run_begin=3, run_idx=step, is_run_start=is_resumed or step == 0)
        history += draw(sampler, logits[None].copy(), [row])
    assert history == wanted


def test_in_flight_token_counts_when_state_is_rebuilt() -> None:
    params = SamplingParams(temperature=0, frequency_penalty=2.0)
    logits = np.zeros((1, VOCAB))
    logits[0, [4, 6]] = [1.0, 0.5]
    sampler = make_sampler()
    sampler.last_tokens[0] = 4  # drawn, not yet in the history
    assert draw(sampler, logits, [Row(0, 0, 1, [], params=params, run_idx=1, is_fed_back=True)]) == [6]


def test_grammar_has_the_last_word_over_bans_and_bias() -> None:
    logits = np.zeros((2, VOCAB))
    params = SamplingParams(temperature=0, logit_bias={3: 100.0, 8: -100.0})
    rows = [
        row_of(params, 0, matcher=Matcher({8}), ban_ids=[8]),
        row_of(params, 1, matcher=Matcher({8, 9}), ban_ids=[9]),
    ]
    assert draw(make_sampler(), logits, rows) == [8, 8]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.2, 1.0, 3.0]),
            top_k=st.sampled_from([-1, 1, 7, 60]),
            top_p=st.sampled_from([1.0, 0.9999999, 0.9, 0.3]),
            min_p=st.sampled_from([0.0, 0.05]),
            seed=st.integers(0, 2**64 - 1),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([0.0, 0.25, 2.0]),  # scores are rounded to multiples of it: many are equal
    st.integers(0, 400),  # tokens that a grammar forbids
    st.integers(0, 99),
)
def test_ranking_the_best_draws_what_ranking_all_draws(
    params: list[SamplingParams], step: float, num_forbidden: int, seed: int
) -> None:
    vocab = 400
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(0, 3, (len(params), vocab)), dtype=torch.float32)
    logits = (logits / step).round() * step if step else logits
    logits[0, torch.from_numpy(rng.permutation(vocab)[: min(num_forbidden, vocab - 1)])] = float("-inf")
    rows = [row_of(p, i) for i, p in enumerate(params)]
    drawn = []
    for few in (20, vocab):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nbsgl.engine.sampler.FEW_CANDIDATES", few)
            drawn.append(draw(Sampler(vocab, CPU, torch.zeros(8, dtype=torch.int64)), logits.numpy(), rows))
    assert drawn[0] == drawn[1]
