"""The draw kernels against plain torch: same noise, same tokens, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nbsgl.engine.kernels.draw import DrawScratch, draw, splits_of
from nbsgl.engine.rng import draw_keys, exponentials

CPU = torch.device("cpu")
VOCAB = 5_003


def keys_of(num_rows: int, seed: int = 0) -> Tensor:
    return torch.tensor([draw_keys(seed + i, i) for i in range(num_rows)], dtype=torch.int32)


def run(logits: Tensor, temperatures: Tensor, keys: Tensor) -> tuple[list[int], list[int]]:
    """Tokens and is_finite; lines with an odd index are fed back to page-table row 2 i."""
    n = logits.shape[0]
    out = torch.full((2, n), -7, dtype=torch.int32)
    last, flags = torch.full((2 * n,), -1, dtype=torch.int32), torch.arange(n, dtype=torch.int32) % 2
    scratch = DrawScratch(n + 3, CPU)
    rows = torch.arange(0, 2 * n, 2, dtype=torch.int32)
    draw(logits, temperatures, keys, rows, flags, last, out, scratch, pdl=False)
    assert last[::2].tolist() == torch.where(flags == 1, out[0], -1).tolist()
    assert (last[1::2] == -1).all()
    assert not scratch.arrived.any()
    return out[0].tolist(), out[1].tolist()


def plain(logits: Tensor, temperatures: Tensor, keys: Tensor) -> list[int]:
    noise = exponentials(keys, torch.arange(logits.shape[1], dtype=torch.int32)).log()
    scores = logits.float() / temperatures.clamp(min=1e-30).unsqueeze(1) - noise
    return torch.where(temperatures == 0, logits.argmax(-1), scores.argmax(-1)).tolist()


def test_tokens_are_those_of_the_plain_draw() -> None:
    gen = torch.Generator().manual_seed(0)
    for spread in (0.0, 1.0, 8.0):
        logits = torch.randn(12, VOCAB, generator=gen) * spread
        temperatures = torch.tensor([0.0, 0.01, 0.5, 0.6, 0.9, 1.0, 1.0, 1.0, 1.3, 2.0, 50.0, 1e4])
        keys = keys_of(12, seed=int(spread))
        tokens, is_finite = run(logits, temperatures, keys)
        assert tokens == plain(logits, temperatures, keys)
        assert is_finite == [1] * 12


def test_noise_is_the_noise_of_rng() -> None:
    # the only two ids with a chance stand `gap` apart; the draw must turn over where torch's noise does
    ids = torch.arange(VOCAB, dtype=torch.int32)
    keys = keys_of(16, seed=5)
    noise = exponentials(keys, ids).log()
    logits = torch.full((16, VOCAB), -1e4)
    logits[:, 17] = 0.0
    for error, wanted in ((4e-6, 4_000), (-4e-6, 17)):
        logits[:, 4_000] = noise[:, 4_000] - noise[:, 17] + error
        assert run(logits, torch.ones(16), keys)[0] == [wanted] * 16


def test_half_precision_logits_draw_as_their_float32_values() -> None:
    logits = (torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(1)) * 3).half()
    temperatures = torch.tensor([0.0, 0.3, 0.8, 1.0, 1.5])
    assert run(logits, temperatures, keys_of(5))[0] == plain(logits, temperatures, keys_of(5))


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[0, [7, 1_031, 4_999]] = 1.0
    assert run(logits, torch.zeros(2), keys_of(2))[0] == [7, 0]


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.full((30, VOCAB), float("-inf"))
    logits[:, [3, 2_000, 4_800]] = torch.tensor([0.0, 1.0, 0.5])
    tokens, is_finite = run(logits, torch.ones(30), keys_of(30))
    assert set(tokens) == {3, 2_000, 4_800}
    assert is_finite == [0] * 30


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_lines_that_are_not_finite_are_told_and_get_a_valid_id(value: float) -> None:
    logits = torch.zeros(3, VOCAB)
    logits[1, 4_321] = value
    logits[2] = value
    tokens, is_finite = run(logits, torch.tensor([1.0, 1.0, 0.0]), keys_of(3))
    assert is_finite == [1, 0, 0]
    assert all(0 <= token < VOCAB for token in tokens)


def test_a_line_draws_the_same_alone_and_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    line = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(2))
    keys = keys_of(1, seed=9)
    seen = set()
    for programs in (1, 3, 1_000):
        monkeypatch.setattr("nbsgl.engine.kernels.draw.PROGRAMS", programs)
        seen.add(splits_of(1, VOCAB))
        batch = torch.cat((torch.zeros(1, VOCAB), line))
        assert run(batch, torch.ones(2), keys.expand(2, 2).contiguous())[0][1] == run(line, torch.ones(1), keys)[0][0]
    assert len(seen) == 3


def test_splits_cover_the_vocabulary_and_none_is_empty() -> None:
    for num_rows in (1, 3, 64, 200, 512):
        for vocab in (40, 1_024, 32_000, 128_256, 151_936):
            splits, chunk = splits_of(num_rows, vocab)
            assert (splits - 1) * chunk < vocab <= splits * chunk
