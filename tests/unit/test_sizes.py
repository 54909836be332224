"""Sequences at once and tokens a step follow the model and the card."""

from __future__ import annotations

import pytest

from nbsgl.bench.models import find_model
from nbsgl.engine.sizes import CardSize, sequences_at_once, tokens_a_step

GB = 1 << 30
H200 = CardSize(140 * GB, 132, (9, 0))
A100 = CardSize(80 * GB, 108, (8, 0))
RTX_4090 = CardSize(24 * GB, 128, (8, 9))
LAPTOP = CardSize(8 * GB, 24, (8, 9))
PARAMETERS = {"llama-3.1-8b": 8_030_261_248, "qwen3-0.6b": 596_049_920}


@pytest.mark.parametrize(
    ("card", "model", "tokens"),
    [
        (H200, "llama-3.1-8b", 8192),
        (A100, "llama-3.1-8b", 4096),
        (RTX_4090, "llama-3.1-8b", 2048),
        (LAPTOP, "llama-3.1-8b", 512),
        (H200, "qwen3-0.6b", 8192),
        (LAPTOP, "qwen3-0.6b", 8192),
    ],
)
def test_tokens_a_step(card: CardSize, model: str, tokens: int) -> None:
    assert tokens_a_step(card, find_model(model).config, PARAMETERS[model], 2) == tokens


def test_a_step_has_room_for_what_it_makes() -> None:
    tiny_memory = CardSize(1 * GB, 132, (9, 0))
    config = find_model("llama-3.1-8b").config
    tokens = tokens_a_step(tiny_memory, config, PARAMETERS["llama-3.1-8b"], 2)
    assert tokens == 512
    assert tokens_a_step(H200, config, PARAMETERS["llama-3.1-8b"], 2) > tokens


@pytest.mark.parametrize(
    ("card", "context", "sequences"),
    [(H200, 131_072, 512), (RTX_4090, 131_072, 192), (LAPTOP, 131_072, 64), (LAPTOP, 4096, 512), (LAPTOP, 10**7, 16)],
)
def test_sequences_at_once(card: CardSize, context: int, sequences: int) -> None:
    assert sequences_at_once(card, context) == sequences
