"""Frequency, presence and repetition penalties: which tokens a row has drawn, kept on the device.

State is per page-table row, made when a row first needs it, brought forward by each draw and rebuilt from the row's
history when a run starts there; so a retracted and resumed run is penalised as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nbsgl.engine.batch import Row
from nbsgl.engine.transfer import index_of, to_device
from nbsgl.protocol import SamplingParams


def has_penalty(params: SamplingParams) -> bool:
    return params.frequency_penalty != 0.0 or params.presence_penalty != 0.0 or params.repetition_penalty != 1.0


@dataclass(slots=True)
class _Place:
    """A page-table row's place in the tensors, and the run and number of draws that its counts hold."""

    idx: int
    run_begin: int = -1
    num_drawn: int = -1


class Penalties:
    """`counts` int32 `[places, vocab]`: tokens drawn in this run; `seen` bool: tokens of the whole history."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device
        self.counts = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)
        self.seen = torch.zeros((0, vocab_size), dtype=torch.bool, device=device)
        self.places: dict[int, _Place] = {}

    def apply(self, logits: Tensor, wanted: Sequence[tuple[int, Row]], last_tokens: Tensor) -> Tensor:
        """Penalise, in place, line i of the logits for each (i, row) of `wanted`; returns the rows' places, int64.

        Repetition first, on the model's own scores (Keskar et al. 2019, "CTRL"), then frequency and presence.
        `last_tokens[row.row]` is the row's last drawn token, which its history may not hold yet.
        """
        places = index_of(self.places_of([row for _, row in wanted], last_tokens), self.device)
        lines = index_of([i for i, _ in wanted], self.device)
        weights = to_device(
            [
                (row.params.repetition_penalty, row.params.frequency_penalty, row.params.presence_penalty)
                for _, row in wanted
                if row.params is not None
            ],
            self.device,
            torch.float32,
        )
        repetition, frequency, presence = weights.unsqueeze(-1).unbind(1)
        chosen = logits.index_select(0, lines)
        scaled = torch.where(chosen > 0, chosen / repetition, chosen * repetition)
        chosen = torch.where(self.seen.index_select(0, places), scaled, chosen)
        counts = self.counts.index_select(0, places)
        chosen -= frequency * counts + presence * (counts > 0)
        logits.index_copy_(0, lines, chosen)
        return places

    def places_of(self, rows: Sequence[Row], last_tokens: Tensor) -> list[int]:
        """The rows' places in `counts` and `seen`, brought up to date; may replace both tensors by larger ones."""
        return [self._prepare(row, last_tokens) for row in rows]

    def add(self, places: Tensor, tokens: Tensor, rows: Sequence[Row]) -> None:
        """Count the tokens just drawn, int64 `[len(rows)]`, on the device; no two rows share a place."""
        self.counts.index_put_((places, tokens), self.counts[places, tokens] + 1)
        self.seen.index_put_((places, tokens), torch.ones_like(tokens, dtype=torch.bool))
        for row in rows:
            self.places[row.row].num_drawn += 1

    def clear(self) -> None:
        self.places.clear()

    def _prepare(self, row: Row, last_tokens: Tensor) -> int:
        place = self.places.get(row.row)
        if place is None:
            place = self.places[row.row] = _Place(len(self.places))
            self._grow(len(self.places))
        is_current = place.run_begin == row.run_begin and place.num_drawn == row.run_idx
        if row.is_run_start or not is_current:
            self._rebuild(place.idx, row, last_tokens)
            place.run_begin, place.num_drawn = row.run_begin, row.run_idx
        return place.idx

    def _rebuild(self, idx: int, row: Row, last_tokens: Tensor) -> None:
        history = index_of(list(row.history), self.device)
        drawn = history[row.run_begin :]
        # at most one token of the run is drawn but not yet known to the host
        if row.run_idx > drawn.shape[0]:
            in_flight = last_tokens[row.row : row.row + 1].long()
            history, drawn = torch.cat((history, in_flight)), torch.cat((drawn, in_flight))
        self.counts[idx].zero_().index_add_(0, drawn, torch.ones_like(drawn, dtype=torch.int32))
        self.seen[idx].zero_().index_fill_(0, history, True)

    def _grow(self, num_places: int) -> None:
        if num_places <= self.counts.shape[0]:
            return
        more = max(num_places, 2 * self.counts.shape[0]) - self.counts.shape[0]
        self.counts = torch.cat((self.counts, self.counts.new_zeros((more, self.vocab_size))))
        self.seen = torch.cat((self.seen, self.seen.new_zeros((more, self.vocab_size))))
