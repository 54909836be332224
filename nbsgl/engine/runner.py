"""Carries batches out: rows to one flat batch of tokens, forward, logits where they are wanted, draw.

Everything is queued on the device in the order of `launch`; what the host wants to know is read in `Launched.result`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nbsgl.engine.attention import AttentionBackend, Span
from nbsgl.engine.batch import Batch, Row
from nbsgl.engine.drafts import lines_of
from nbsgl.engine.launched import LaunchedStep, Scored, memory_errors
from nbsgl.engine.layers.rope import Rope
from nbsgl.engine.sampler import Drawn, Sampler, logprobs_of
from nbsgl.engine.transfer import index_of, to_device

if TYPE_CHECKING:
    from nbsgl.engine.kv_cache import KVCache
    from nbsgl.engine.models.decoder import Decoder

SCORE_CHUNK = 512  # scored positions per call of the head: 512 x 152k float32 logits are 311 MB


class ModelRunner:
    """Implements `batch.Runner` for one model on one device."""

    has_device_grammars = False

    def __init__(
        self, model: Decoder, cache: KVCache, attention: AttentionBackend, rope: Rope, max_running: int
    ) -> None:
        self.model, self.cache, self.attention, self.rope = model, cache, attention, rope
        self.device = cache.device
        # the token drawn last for each row of the page table: the next step's input before the host has seen it
        self.last_tokens = torch.zeros(max_running, dtype=torch.int64, device=self.device)
        self.sampler = Sampler(model.config.vocab_size, self.device, self.last_tokens)

    @torch.inference_mode()
    def launch(self, batch: Batch) -> LaunchedStep:
        """Queue the batch on the device (on a CPU: compute it).

        Writes the rows' new slots to the page table, K and V of all its tokens, and the drawn tokens to `last_tokens`.
        Raises StepOutOfMemory; the page table keeps the new slots then, sending them again is harmless.
        """
        with memory_errors(self.device):
            self.cache.write_table([(row.row, row.slots_from, row.slots) for row in batch.rows])
            spans = _lay_out(batch.rows)
            hidden = self._forward(batch.rows, spans)
            drawn, drawn_rows = self._draw(batch.rows, spans, hidden)
            scored = [self._score(row, span, hidden) for row, span in zip(batch.rows, spans) if len(row.score)]
            ids = None if drawn is None else torch.stack((drawn.tokens, drawn.is_finite.long()))
            return LaunchedStep(batch.rows, drawn_rows, ids, drawn, scored, self.device)

    def forget(self) -> None:
        """All rows were taken away: drop what is held per row, and zero the pool (a fault may have left NaN)."""
        with torch.inference_mode():
            self.sampler.forget()
            self.last_tokens.zero_()
            self.cache.clear()

    def prepare_next(self) -> bool:
        """Nothing is prepared ahead."""
        return False

    def _forward(self, rows: Sequence[Row], spans: Sequence[Span]) -> Tensor:
        ids, positions, token_rows, fed_back = _flatten(rows, spans)
        block = to_device(np.stack((ids, positions, token_rows)), self.device, torch.int64)
        token_ids, positions_on, rows_on = block.unbind(0)
        if fed_back:
            known = self.last_tokens.index_select(0, rows_on)
            token_ids = known if len(fed_back) == len(ids) else _patched(token_ids, known, fed_back)
        ordered = sorted(spans, key=_begin)
        self.attention.plan(ordered, self.cache.slots_at(rows_on, positions_on))
        return self.model.forward(token_ids, positions_on, self.rope, self.attention)

    def _draw(self, rows: Sequence[Row], spans: Sequence[Span], hidden: Tensor) -> tuple[Drawn | None, list[int]]:
        """Draws of the rows that ask for them, in order, a row with a draft once for each of its places."""
        drawing = [(i, line) for i, row in enumerate(rows) if row.params is not None for line in lines_of(row)]
        wanted = [i for i, _ in drawing]
        if not wanted:
            return None, wanted
        places = [place for i in dict.fromkeys(wanted) for place in _drawn_at(rows[i], spans[i])]
        if places != list(range(hidden.shape[0])):
            hidden = hidden.index_select(0, index_of(places, self.device))
        drawn = self.sampler.draw(self.model.logits(hidden), [line for _, line in drawing])
        at = index_of([line.row for _, line in drawing], self.device)
        self.last_tokens.index_copy_(0, at, drawn.tokens)  # nobody asks for a drafted row's: the host sees it first
        return drawn, wanted

    def _score(self, row: Row, span: Span, hidden: Tensor) -> list[Scored]:
        """Log-probabilities of `history[p + 1]` for the scored positions p, at most SCORE_CHUNK logits at a time."""
        parts = []
        for first in range(row.score.start, row.score.stop, SCORE_CHUNK):
            stop = min(first + SCORE_CHUNK, row.score.stop)
            begin = span.begin + first - span.start
            logits = self.model.logits(hidden[begin : begin + stop - first])
            nexts = index_of([row.history[p + 1] for p in range(first, stop)], self.device)
            parts.append(Scored(logits.sum(-1).isfinite().all(), *logprobs_of(logits, nexts, row.score_top)))
        return parts


# ---- rows to tokens ------------------------------------------------------------------------------------------------


def _lay_out(rows: Sequence[Row]) -> list[Span]:
    """Where each row's tokens lie in the flat batch: rows of one token first, then the others; in the rows' order."""
    spans = [Span(row.row, 0, row.num_tokens, row.start) for row in rows]
    begin = 0
    for is_single in (True, False):
        for span in spans:
            if (span.num_tokens == 1) is is_single:
                span.begin = begin
                begin += span.num_tokens
    return spans


def _flatten(rows: Sequence[Row], spans: Sequence[Span]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """int64 token ids, positions and page-table rows by token, and which tokens are fed back (id 0 here)."""
    total = sum(span.num_tokens for span in spans)
    ids, positions, token_rows = np.zeros((3, total), dtype=np.int64)
    fed_back = []
    for row, span in zip(rows, spans):
        begin, end = span.begin, span.begin + span.num_tokens
        drafted = end - len(row.draft)
        if row.is_fed_back:
            fed_back.append(begin)
        else:
            ids[begin:drafted] = row.history[row.start : row.start + drafted - begin]
        ids[drafted:end] = row.draft
        positions[begin:end] = range(row.start, row.start + row.num_tokens)
        token_rows[begin:end] = row.row
    return ids, positions, token_rows, fed_back


def _drawn_at(row: Row, span: Span) -> range:
    """Where in the flat batch the row's tokens are drawn from."""
    end = span.begin + span.num_tokens
    return range(end - 1 - len(row.draft), end)


def _patched(ids: Tensor, known: Tensor, places: list[int]) -> Tensor:
    at = index_of(places, ids.device)
    return ids.index_copy(0, at, known.index_select(0, at))


def _begin(span: Span) -> int:
    return span.begin
