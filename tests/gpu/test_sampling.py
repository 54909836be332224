"""The sampling kernels on a card against torch: same tokens but for near-ties, whatever the batch, without waiting."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nbsgl.engine.batch import Row
from nbsgl.engine.rng import draw_keys, exponentials
from nbsgl.engine.sampler import Drawn, Sampler, logprobs_of
from nbsgl.protocol import SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

VOCAB = 128_256
NEAR = 5e-5  # of score: fast logarithms, and a product instead of a division


class Matcher:
    """Allows a fixed set of tokens; tests lean on `fill_mask` writing packed little-endian words."""

    def __init__(self, allowed: set[int]) -> None:
        self.allowed = allowed

    def fill_mask(self, words: np.ndarray) -> None:
        words[:] = 0
        for token in self.allowed:
            words[token // 32] |= np.uint32(1 << (token % 32))


def has_pdl() -> bool:
    return torch.cuda.get_device_capability()[0] >= 9


def make_logits(num: int, spread: float, dtype: torch.dtype = torch.bfloat16, vocab: int = VOCAB) -> Tensor:
    gen = torch.Generator("cuda").manual_seed(num)
    return (torch.randn(num, vocab, generator=gen, device="cuda") * spread).to(dtype)


def make_keys(num: int) -> Tensor:
    return torch.tensor([draw_keys(i, 3 * i) for i in range(num)], dtype=torch.int32).cuda()


class Plain:
    """Buffers of one `draw` call that can be captured and run again."""

    def __init__(self, logits: Tensor, temperatures: Tensor) -> None:
        from nbsgl.engine.kernels.draw import DrawScratch

        num = logits.shape[0]
        self.logits, self.temperatures, self.keys = logits, temperatures, make_keys(num)
        self.rows = torch.arange(num, dtype=torch.int32, device="cuda")
        self.flags = self.rows % 2
        self.last = torch.full((num,), -1, dtype=torch.int32, device="cuda")
        self.out = torch.zeros((2, num), dtype=torch.int32, device="cuda")
        self.scratch = DrawScratch(num, torch.device("cuda"))

    def run(self) -> Tensor:
        from nbsgl.engine.kernels.draw import draw

        given = (self.rows, self.flags, self.last, self.out, self.scratch)
        draw(self.logits, self.temperatures, self.keys, *given, pdl=has_pdl())
        return self.out

    def run_filtered(self, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
        from nbsgl.engine.kernels.nucleus import draw_filtered

        given = (self.keys, self.rows, self.flags, self.last, self.out, self.scratch)
        draw_filtered(self.logits, self.temperatures, top_k, top_p, min_p, *given, pdl=has_pdl())
        return self.out


@pytest.mark.parametrize("vocab", [VOCAB, 151_643])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("num", [1, 5, 64, 512])
def test_plain_draw_is_torchs(num: int, dtype: torch.dtype, vocab: int) -> None:
    temperatures = torch.linspace(0.4, 1.6, num, device="cuda")
    temperatures[1::3] = 0.0
    plain = Plain(make_logits(num, 3.0, dtype, vocab), temperatures)
    tokens, is_finite = plain.run()
    assert is_finite.all()
    assert torch.equal(plain.last, torch.where(plain.flags == 1, tokens, -1))
    is_greedy = temperatures == 0
    best = plain.logits == plain.logits.max(-1, keepdim=True).values
    lowest = torch.where(best, torch.arange(vocab, device="cuda"), vocab).min(-1).values
    assert torch.equal(tokens[is_greedy].long(), lowest[is_greedy])
    drawing = (~is_greedy).nonzero().squeeze(1)
    for part in drawing.split(64):
        noise = exponentials(plain.keys[part], torch.arange(vocab, dtype=torch.int32, device="cuda")).log()
        scores = plain.logits[part].float() / temperatures[part].unsqueeze(1) - noise
        lost = scores.max(-1).values - scores.gather(1, tokens[part].long().unsqueeze(1)).squeeze(1)
        assert lost.max() < NEAR
        assert (lost > 0).float().mean() < 0.05


@pytest.mark.parametrize("spread", [0.2, 4.0])
def test_filtered_draw_is_that_of_the_sort(spread: float) -> None:
    filters = [(-1, 0.95, 0.0), (20, 1.0, 0.0), (50, 0.9, 0.02), (-1, 1.0, 0.1), (-1, 0.2, 0.0), (1, 1.0, 0.0)]
    rows = []
    for i in range(192):
        k, p, m = filters[i % len(filters)]
        params = SamplingParams(temperature=0.6 + (i % 5) / 5, top_k=k, top_p=p, min_p=m, seed=i)
        rows.append(Row(i, 0, 1, [], params=params, run_idx=i))
    logits = make_logits(len(rows), spread)
    sampler = Sampler(VOCAB, torch.device("cuda"), torch.zeros(512, dtype=torch.int32, device="cuda"))
    with torch.inference_mode():
        found = sampler.draw(logits, rows).tokens
        sampler.kernels = None
        wanted = torch.cat([sampler.draw(logits[i : i + 32], rows[i : i + 32]).tokens for i in range(0, 192, 32)])
    # a cut within rounding of top-p, or two tokens within rounding of each other
    assert (found != wanted).sum() <= 2


def test_a_captured_draw_repeats_itself() -> None:
    """Hundreds of replays: a program that reads another's part too early would show here."""
    plain = Plain(make_logits(48, 1.0), torch.full((48,), 0.8, device="cuda"))
    top_k = torch.full((48,), 40, dtype=torch.int32, device="cuda")
    top_p, min_p = torch.full((48,), 0.9, device="cuda"), torch.zeros(48, device="cuda")
    calls: list[Callable[[], Tensor]] = [plain.run, lambda: plain.run_filtered(top_k, top_p, min_p)]
    for call in calls:
        wanted = call().clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        wrong = torch.zeros((), dtype=torch.int64, device="cuda")
        for _ in range(500):
            plain.out.fill_(-1)
            graph.replay()
            wrong += (plain.out != wanted).sum()
        assert wrong.item() == 0


def test_a_line_draws_the_same_in_every_batch() -> None:
    line = make_logits(1, 2.0)
    alone = Plain(line, torch.ones(1, device="cuda")).run()[0].item()
    for num in (2, 33, 256, 512):
        plain = Plain(torch.cat((line, make_logits(num - 1, 3.0))), torch.ones(num, device="cuda"))
        assert plain.run()[0, 0].item() == alone


def test_shares_are_the_distributions() -> None:
    num, vocab = 20_000, 64
    logits = make_logits(1, 1.5, vocab=vocab)
    tokens = Plain(logits.expand(num, vocab), torch.ones(num, device="cuda")).run()[0]
    expected = logits[0].float().softmax(-1) * num
    chi2 = ((torch.bincount(tokens, minlength=vocab) - expected) ** 2 / expected).sum().item()
    assert chi2 < 120  # 63 degrees of freedom: p = 2e-5


def random_row(rng: random.Random, i: int) -> Row:
    params = SamplingParams(
        temperature=rng.choice([0.0, 0.7, 1.0]),
        top_p=rng.choice([1.0, 0.9]),
        frequency_penalty=rng.choice([0.0, 0.5]),
        repetition_penalty=rng.choice([1.0, 1.2]),
        logit_bias=rng.choice([{}, {7: 5.0, 100_000: -100.0}]),
        return_logprob=rng.random() < 0.5,
        top_logprobs_num=rng.choice([0, 4]),
        seed=i,
    )
    matcher = rng.choice([None, None, Matcher(set(rng.sample(range(VOCAB), 9)))])
    history = rng.choices(range(VOCAB), k=6)
    return Row(
        i, 0, 1, history, params=params, run_begin=4, run_idx=2, matcher=matcher, ban_ids=[5, 6] if i % 2 else []
    )


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_the_cards_sampler_is_the_cpus_and_waits_for_nothing() -> None:
    rows = [random_row(random.Random(i), i) for i in range(24)]
    # distinct values: the order of equal log-probabilities is anybody's
    gen = torch.Generator().manual_seed(0)
    logits = torch.stack([torch.randperm(VOCAB, generator=gen) for _ in rows]).float() / VOCAB * 20 - 10
    drawn: list[Drawn] = []
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        sampler = Sampler(VOCAB, device, torch.zeros(32, dtype=torch.int32, device=device))
        given = logits.to(device, copy=True)
        with torch.inference_mode():
            if name == "cuda":
                sampler.draw(given, rows)  # compiles
                sampler.forget()
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            try:
                drawn.append(sampler.draw(given, rows))
            finally:
                torch.cuda.set_sync_debug_mode("default")
    cpu, cuda = drawn
    assert cuda.tokens.tolist() == cpu.tokens.tolist()
    assert cuda.is_finite.all()
    assert cuda.logprob_lines == cpu.logprob_lines
    assert cuda.logprobs is not None
    assert cpu.logprobs is not None
    assert torch.allclose(cuda.logprobs.cpu(), cpu.logprobs, atol=1e-4)
    assert cuda.top_ids is not None
    assert cpu.top_ids is not None
    assert cuda.top_ids.tolist() == cpu.top_ids.tolist()


def test_log_probabilities_of_a_prompt_need_no_copy_of_the_logits() -> None:
    logits = make_logits(512, 3.0)
    tokens = torch.randint(VOCAB, (512,), device="cuda")
    wanted = torch.cat([part.float().log_softmax(-1) for part in logits.split(64)]).gather(1, tokens[:, None])[:, 0]
    logprobs_of(logits, tokens, 0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found, _, _ = logprobs_of(logits, tokens, 0)
    assert torch.cuda.max_memory_allocated() - before < 4 << 20
    assert torch.allclose(found, wanted, atol=1e-3)
