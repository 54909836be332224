"""The sampler's work by kernels against the tensors' path of the same sampler."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from nbsgl.engine import sampler as sampler_module
from nbsgl.engine.batch import Row
from nbsgl.engine.cuda.sampling import KernelSampling
from nbsgl.engine.sampler import Drawn, Sampler, logprobs_of
from nbsgl.protocol import SamplingParams

CPU = torch.device("cpu")
VOCAB = 1_201  # neither whole blocks nor whole mask words


class Matcher:
    """Allows a fixed set of tokens; tests lean on `fill_mask` writing packed little-endian words."""

    def __init__(self, allowed: set[int]) -> None:
        self.allowed = allowed

    def fill_mask(self, words: np.ndarray) -> None:
        words[:] = 0
        for token in self.allowed:
            words[token // 32] |= np.uint32(1 << (token % 32))


def samplers(dtype: torch.dtype = torch.int32) -> tuple[Sampler, Sampler]:
    """By tensors, and by kernels."""
    tensors, kernels = (Sampler(VOCAB, CPU, torch.zeros(16, dtype=dtype)) for _ in range(2))
    kernels.kernels = KernelSampling(VOCAB, CPU, kernels.last_tokens, kernels.penalties)
    return tensors, kernels


def random_row(rng: random.Random, place: int, history: list[int], run_idx: int) -> Row:
    def maybe(values: list[Any], otherwise: Any) -> Any:
        return rng.choice(values) if rng.random() < 0.4 else otherwise

    params = SamplingParams(
        temperature=rng.choice([0.0, 0.5, 1.0, 1.7]),
        top_k=maybe([1, 20], -1),
        top_p=maybe([0.9, 0.4], 1.0),
        min_p=maybe([0.1], 0.0),
        frequency_penalty=maybe([0.7, -0.4], 0.0),
        presence_penalty=maybe([1.1], 0.0),
        repetition_penalty=maybe([1.3, 0.8], 1.0),
        logit_bias=maybe([{3: 6.0, 8: -100.0, VOCAB + 5: 1.0}, {1_200: 100.0, 70: 4.0}], {}),
        return_logprob=maybe([True], False),
        top_logprobs_num=rng.choice([0, 3]),
        seed=rng.getrandbits(64),
    )
    allowed = rng.sample(range(VOCAB), rng.choice([1, 5, 400]))
    matcher = maybe([Matcher(set(allowed))], None)
    ban_ids = maybe([allowed[:1], [8, 3, 1_200, VOCAB + 1]], [])
    return Row(place, 0, 1, history, params=params, run_begin=2, run_idx=run_idx, is_run_start=run_idx == 0,
               matcher=matcher, ban_ids=ban_ids)  # fmt: skip


def assert_same(a: Drawn, b: Drawn) -> None:
    assert a.tokens.tolist() == b.tokens.tolist()
    assert a.is_finite.tolist() == b.is_finite.tolist()
    assert a.logprob_lines == b.logprob_lines
    if a.logprobs is not None:
        assert torch.allclose(a.logprobs, b.logprobs, atol=1e-5)
        assert a.top_ids.tolist() == b.top_ids.tolist()
        assert torch.allclose(a.top_logprobs, b.top_logprobs, atol=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_kernels_draw_what_tensors_draw(seed: int) -> None:
    rng, gen = random.Random(seed), torch.Generator().manual_seed(seed)
    both = samplers(torch.int64 if seed % 2 else torch.int32)
    num = rng.choice([1, 4, 9])
    histories = [[rng.randrange(VOCAB) for _ in range(2)] for _ in range(num)]
    rows = [random_row(rng, i, history, 0) for i, history in enumerate(histories)]
    for step in range(3):
        logits = torch.randn(num, VOCAB, generator=gen) * 3
        drawn = []
        for row in rows:
            row.run_idx, row.is_run_start = step, step == 0
        for sampler in both:
            drawn.append(sampler.draw(logits.clone(), rows))
            sampler.last_tokens[:num] = drawn[-1].tokens.to(sampler.last_tokens.dtype)
        assert_same(*drawn)
        for history, token in zip(histories, drawn[0].tokens.tolist()):
            history.append(token)


def test_clamped_scores_tie_and_bans_and_masks_come_after_the_clamp() -> None:
    rng, both = random.Random(1), samplers()
    rows = [random_row(rng, i, [1, 2, 3], 0) for i in range(16)]
    for row in rows:
        assert row.params is not None
        row.params = msgspec.structs.replace(row.params, temperature=0.0)
    logits = torch.randn(16, VOCAB, generator=torch.Generator().manual_seed(1)) * 1e4
    assert_same(*(sampler.draw(logits.clone(), rows) for sampler in both))


def test_logits_stay_as_they_are_and_half_precision_is_read() -> None:
    rng = random.Random(2)
    tensors, kernels = samplers()
    rows = [random_row(rng, i, [1, 2], 0) for i in range(6)]
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0)).half()
    kept = logits.clone()
    assert kernels.draw(logits, rows).tokens.tolist() == tensors.draw(logits.float(), rows).tokens.tolist()
    assert torch.equal(logits, kept)


def test_broken_lines_are_told_though_their_logits_were_changed() -> None:
    _, kernels = samplers()
    logits = torch.zeros(4, VOCAB)
    logits[1, 5] = logits[2, 6] = float("nan")
    rows = [Row(i, 0, 1, [], params=SamplingParams(seed=i, logit_bias={5: -1.0} if i > 1 else {})) for i in range(4)]
    assert kernels.draw(logits, rows).is_finite.tolist() == [True, False, False, True]


def test_more_lines_than_reserved_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbsgl.engine.cuda.sampling.MAX_LINES", 2)
    _, kernels = samplers()
    logits = torch.zeros(5, VOCAB)
    logits[range(5), [9, 8, 7, 6, 5]] = 1.0
    rows = [Row(i, 0, 1, [], params=SamplingParams(temperature=0)) for i in range(5)]
    assert kernels.draw(logits, rows).tokens.tolist() == [9, 8, 7, 6, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_log_probabilities_are_those_of_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = (torch.randn(7, VOCAB, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    logits[2, 10:] = float("-inf")
    tokens = torch.tensor([0, 1, 2, 3, 600, 1_199, 1_200])
    wanted = logits.float().log_softmax(-1)
    monkeypatch.setattr(sampler_module, "has_kernels", lambda device: True)
    chosen, ids, values = logprobs_of(logits, tokens, 4)
    assert torch.allclose(chosen, wanted.gather(1, tokens[:, None])[:, 0], atol=1e-5)
    assert torch.allclose(values, wanted.gather(1, ids), atol=1e-5)
    assert torch.allclose(values, wanted.topk(4, dim=-1).values, atol=1e-5)


def test_no_top_log_probabilities_are_empty_columns() -> None:
    logits: Tensor = torch.randn(3, VOCAB)
    _, ids, values = logprobs_of(logits, torch.zeros(3, dtype=torch.int64), 0)
    assert ids.shape == values.shape == (3, 0)
