"""How each running sequence draws: a host table by page-table row, from which a step's numbers are gathered."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

import numpy as np

from nbsgl.engine.batch import Row
from nbsgl.engine.penalties import has_penalty
from nbsgl.protocol import SamplingParams

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A, _MIX_B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Draws(Enum):
    """What the draws of a step ask for."""

    PLAIN = auto()  # logits, temperatures and seeds: a graph may end with the draw
    MASKED = auto()  # the same, under grammars in tables
    OTHER = auto()  # the sampler


class DrawTable:
    """`temperatures` float32 `[max_running]`, 0 for greedy; seeds and whether a row is plain, as last seen."""

    def __init__(self, max_running: int) -> None:
        self.temperatures = np.zeros(max_running, np.float32)
        self._seeds = np.zeros(max_running, np.uint64)  # mixed once
        self._params: list[SamplingParams | None] = [None] * max_running
        self._is_plain = [True] * max_running

    def note(self, drawing: Sequence[Row]) -> Draws:
        """Take in the rows' parameters where they are new; what is to be done for all of them."""
        is_plain, has_tables = True, False
        for row in drawing:
            place = row.row
            if self._params[place] is not row.params:
                self._set(place, row)
            has_tables = has_tables or row.tables is not None
            has_matcher = row.matcher is not None and row.tables is None
            is_plain = is_plain and self._is_plain[place] and not has_matcher and not row.ban_ids
        if not is_plain:
            return Draws.OTHER
        return Draws.MASKED if has_tables else Draws.PLAIN

    def _set(self, place: int, row: Row) -> None:
        params = row.params
        assert params is not None, "only rows with parameters are drawn"
        self._params[place] = params
        self._is_plain[place] = is_plain(params)
        self.temperatures[place] = 0.0 if params.is_greedy else params.temperature
        self._seeds[place] = _splitmix(np.array([(params.seed or 0) & (2**64 - 1)], np.uint64))[0]

    def keys(self, places: np.ndarray, run_idx: np.ndarray) -> np.ndarray:
        """int32 `[rows, 2]`: `rng.draw_keys` of each row's seed and draw."""
        mixed = _splitmix(self._seeds[places] ^ (run_idx.astype(np.uint64) * _GOLDEN))
        return mixed.view(np.int32).reshape(-1, 2)  # little-endian: the low half first


def is_plain(params: SamplingParams) -> bool:
    """Whether a draw needs the logits, a temperature and a seed, and nothing else."""
    is_filtered = params.top_k != -1 or params.top_p < 1.0 or params.min_p > 0.0
    return not (
        (is_filtered and not params.is_greedy) or params.return_logprob or params.logit_bias or has_penalty(params)
    )


def _splitmix(x: np.ndarray) -> np.ndarray:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_A
    x = (x ^ (x >> np.uint64(27))) * _MIX_B
    return x ^ (x >> np.uint64(31))
