"""The filtered draw without a sort against the CPU sampler's sort."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from nbsgl.engine.batch import Row
from nbsgl.engine.kernels import nucleus
from nbsgl.engine.kernels.draw import DrawScratch
from nbsgl.engine.kernels.nucleus import draw_filtered
from nbsgl.engine.rng import draw_keys
from nbsgl.engine.sampler import Sampler
from nbsgl.protocol import SamplingParams

CPU = torch.device("cpu")
VOCAB = 2_600


def run(logits: Tensor, params: list[SamplingParams]) -> tuple[list[int], list[int]]:
    """Tokens and is_finite of the kernels; the odd lines are fed back."""
    n = len(params)
    out, last = torch.full((2, n), -7, dtype=torch.int32), torch.full((n,), -1, dtype=torch.int32)
    scratch, flags = DrawScratch(n + 1, CPU), torch.arange(n, dtype=torch.int32) % 2
    keys = torch.tensor([draw_keys(p.seed or 0, i) for i, p in enumerate(params)], dtype=torch.int32)
    floats = [torch.tensor([getattr(p, name) for p in params]) for name in ("temperature", "top_p", "min_p")]
    top_k, rows = torch.tensor([p.top_k for p in params], dtype=torch.int32), torch.arange(n, dtype=torch.int32)
    temperatures, top_p, min_p = (values.float() for values in floats)
    draw_filtered(
        logits, temperatures, top_k, top_p, min_p, keys, rows, flags, last, out, scratch, pdl=False
    )  # fmt: skip
    assert last.tolist() == torch.where(flags == 1, out[0], -1).tolist()
    assert not scratch.arrived.any()
    return out[0].tolist(), out[1].tolist()


def sorted_draw(logits: Tensor, params: list[SamplingParams]) -> list[int]:
    rows = [Row(i, 0, 1, [], params=p, run_idx=i) for i, p in enumerate(params)]
    sampler = Sampler(logits.shape[1], CPU, torch.zeros(len(rows), dtype=torch.int64))
    return sampler.draw(logits.float().clone(), rows).tokens.tolist()


def combinations() -> list[SamplingParams]:
    """Each filter off, mild and hard, alone and together, at three temperatures; greedy and plain lines too."""
    filters = itertools.product((-1, 1, 40), (1.0, 0.9, 0.3, 1e-6), (0.0, 0.05, 1.0))
    found = [
        SamplingParams(temperature=(0.3, 1.0, 4.0)[i % 3], top_k=k, top_p=p, min_p=m, seed=i)
        for i, (k, p, m) in enumerate(filters)
    ]
    return [*found, SamplingParams(temperature=0.0, top_k=3), SamplingParams(temperature=0.7, seed=1)]


@pytest.mark.parametrize("spread, rounds", [(0.0, 2), (0.5, 0), (4.0, 2)])
def test_tokens_are_those_of_the_sort(spread: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nucleus, "ROUNDS", rounds)
    gen = torch.Generator().manual_seed(int(spread))
    params = combinations()[rounds // 2 :: 2]
    logits = torch.randn(len(params), VOCAB, generator=gen) * spread
    tokens, is_finite = run(logits, params)
    assert tokens == sorted_draw(logits, params)
    assert is_finite == [1] * len(params)


def test_equal_scores_are_cut_by_id() -> None:
    logits = (torch.randn(24, VOCAB, generator=torch.Generator().manual_seed(1)) * 2).round()
    params = [SamplingParams(top_k=k, top_p=p, seed=7 * i) for i, (k, p) in enumerate([(30, 1.0), (-1, 0.6)] * 12)]
    assert run(logits, params)[0] == sorted_draw(logits, params)


def test_half_precision_and_forbidden_tokens() -> None:
    logits = torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(3)).half()
    logits[:, torch.randperm(VOCAB, generator=torch.Generator().manual_seed(4))[: VOCAB - 9]] = float("-inf")
    params = [SamplingParams(top_p=0.8, top_k=(-1, 5, 500)[i % 3], min_p=0.1 * (i % 2), seed=i) for i in range(8)]
    tokens, is_finite = run(logits, params)
    assert tokens == sorted_draw(logits, params)
    assert is_finite == [0] * 8


def test_top_k_of_one_is_greedy() -> None:
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(5)) * 0.1
    tokens, _ = run(logits, [SamplingParams(temperature=2.0, top_k=1, seed=i) for i in range(6)])
    assert tokens == logits.argmax(-1).tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_lines_that_are_not_finite_end_and_are_told(value: float) -> None:
    logits = torch.zeros(3, VOCAB)
    logits[1, 2_345] = value
    logits[2] = value
    with np.errstate(invalid="ignore"):  # infinity - infinity
        tokens, is_finite = run(logits, [SamplingParams(top_p=0.5, top_k=4, seed=i) for i in range(3)])
    assert is_finite == [1, 0, 0]
    assert all(0 <= token < VOCAB for token in tokens)
