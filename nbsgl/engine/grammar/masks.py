"""Masks of libraries' matchers: bit t % 32 of word t // 32 is token t."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbsgl.errors import GrammarError
from nbsgl.protocol import GrammarSpec

Words = NDArray[np.uint32]


def packed(num_tokens: int, tokens: Iterable[int]) -> Words:
    """The mask of `num_tokens` that allows these tokens."""
    words = np.zeros((num_tokens + 31) // 32, np.uint32)
    for token in tokens:
        words[token // 32] |= np.uint32(1 << token % 32)
    return words


def write(words: Words, row: NDArray[Any], num_tokens: int) -> None:
    """Write a mask into a row of 32-bit words; words past the vocabulary become 0."""
    out, size = row.view(np.uint32), (num_tokens + 31) // 32
    out[:size] = words[:size]
    out[size:] = 0


def dead_end(spec: GrammarSpec) -> GrammarError:
    """For a place where nothing is allowed: the vocabulary lacks a byte that the language needs."""
    reason = "no token of the vocabulary can continue it"
    return GrammarError(kind=spec.kind, path="this point of the output", reason=reason)
