"""How many sequences run at once and how many tokens a step computes, where nobody says: by the model and the card."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nbsgl.engine.model_config import ModelConfig

ON_CPU = (32, 512)  # sequences, tokens
MOST_SEQUENCES, LEAST_SEQUENCES, SEQUENCES_STEP = 512, 16, 16
MOST_TOKENS, LEAST_TOKENS = 8192, 512

STEP_S = 0.25  # a step of the whole budget holds up whoever arrives meanwhile
SUSTAINED = 0.6  # of the peak that large products reach (H200 0.65, A100 0.7)
CLOCK_HZ = 1.5e9
# FLOP a clock of a multiprocessor's tensor cores, 16-bit numbers summed in 32 bits, by compute capability
FLOP_A_CLOCK = {(8, 0): 2048, (8, 7): 2048, (9, 0): 4096, (10, 0): 8192, (10, 3): 8192}
FLOP_A_CLOCK_ELSEWHERE = 1024
TABLE_SHARE = 256  # the page table takes at most one byte in so many of the card's memory
STEP_SHARE = 32  # and what a step makes on its way


@dataclass(frozen=True, slots=True)
class CardSize:
    """What a CUDA card has; memory in bytes."""

    memory: int
    multiprocessors: int
    capability: tuple[int, int]

    @classmethod
    def of(cls, device: torch.device) -> CardSize:
        found = torch.cuda.get_device_properties(device)
        return cls(found.total_memory, found.multi_processor_count, (found.major, found.minor))

    @property
    def flop_s(self) -> float:
        """FLOP/s that large products sustain, about."""
        a_clock = FLOP_A_CLOCK.get(self.capability, FLOP_A_CLOCK_ELSEWHERE)
        return SUSTAINED * CLOCK_HZ * self.multiprocessors * a_clock


def sequences_at_once(card: CardSize, context_length: int) -> int:
    """As many as have room in a page table of a small share of the memory: four bytes a position of the context."""
    rows = card.memory // TABLE_SHARE // (4 * context_length)
    return max(LEAST_SEQUENCES, min(MOST_SEQUENCES, rows - rows % SEQUENCES_STEP))


def tokens_a_step(card: CardSize, model: ModelConfig, num_parameters: int, itemsize: int) -> int:
    """The power of two nearest to what the card computes in STEP_S, if its intermediate values have room.

    An 8B: 8,192 on an H200, 4,096 on an A100, 2,048 on an RTX 4090.
    """
    by_time = STEP_S * card.flop_s / (2 * (num_parameters - model.vocab_size * model.hidden_size))
    by_room = card.memory / STEP_SHARE / (itemsize * (3 * model.intermediate_size + 4 * model.hidden_size))
    tokens = 2 ** round(math.log2(min(by_time, by_room)))
    return max(LEAST_TOKENS, min(MOST_TOKENS, tokens))
