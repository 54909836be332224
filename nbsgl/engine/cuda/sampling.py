"""The sampler's work by kernels: what `Sampler` does with tensors, for logits of any float type, left unchanged.

All lines are drawn from the logits as they are.  The lines whose logits are to be changed (penalties, bias, bans,
grammar) are copied to float32, changed on the way, and drawn again from there.  Masks come from matchers, or on the
device from tables; there the states step behind the draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nbsgl.engine.batch import Row
from nbsgl.engine.cuda.grammars import DeviceGrammars
from nbsgl.engine.kernels.draw import DrawScratch, draw
from nbsgl.engine.kernels.edit import edit
from nbsgl.engine.kernels.nucleus import draw_filtered
from nbsgl.engine.kernels.tables import TableLines, gather_masks, step_states
from nbsgl.engine.penalties import Penalties, has_penalty
from nbsgl.engine.rng import draw_keys
from nbsgl.engine.transfer import index_of, to_device
from nbsgl.protocol import SamplingParams

MAX_LINES = 512  # of the scratch; more make a larger one


@dataclass(slots=True)
class _Edits:
    """What `kernels.edit` is given, on the host: `lines` of the batch that change, and how."""

    lines: list[int]
    asked: list[tuple[int, int, int, int]]  # line, place or -1, mask or -1, whether to clamp
    weights: list[tuple[float, float, float]]  # repetition, frequency, presence
    entries: list[tuple[int, int]]  # edited line, token
    biases: list[float]  # of the entries; -inf is a ban
    # the lines with a mask, in the masks' order: first those whose matchers fill it, then those with tables
    masked: list[int]
    tabled: list[int]


@dataclass(frozen=True, slots=True)
class _Placed:
    """Where all lines stand in their grammars; the same for the lines whose draw steps their row's state; `rows` int32
    `[lines]`, of the page table.
    """

    lines: TableLines
    stepped: TableLines
    rows: Tensor


class KernelSampling:
    """Draws for `Sampler` on CUDA; the penalties' state is the sampler's.

    `grammars`, if given, has placed the lines that come with tables.
    """

    def __init__(
        self,
        vocab_size: int,
        device: torch.device,
        last_tokens: Tensor,
        penalties: Penalties,
        *,
        invariant: bool = False,
    ) -> None:
        self.vocab_size, self.device, self.invariant = vocab_size, device, invariant
        self.last_tokens, self.penalties = last_tokens, penalties
        self.grammars: DeviceGrammars | None = None
        self.pdl = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
        self._reserve(MAX_LINES)

    def draw(self, logits: Tensor, rows: Sequence[Row], max_score: float) -> tuple[Tensor, Tensor]:
        """Tokens int32 and is_finite int32, each `[rows]`; counts the penalised rows' tokens, steps rows' states."""
        if len(rows) > self.scratch.max_rows:
            self._reserve(len(rows))
        penalised = [i for i, row in enumerate(rows) if _is_penalised(row)]
        places = dict(zip(penalised, self.penalties.places_of([rows[i] for i in penalised], self.last_tokens)))
        edits = self._edits(rows, places)
        placed = self._placed(rows) if edits.tabled else None
        # a line to be drawn again only tells whether it is finite: without noise that is nearly free
        out = self._choose(logits, rows, set(edits.lines))
        tokens = out[0]
        if edits.lines:
            changed = self._edited(logits, edits, rows, placed, max_score)
            drawn = self._choose(changed, [rows[i] for i in edits.lines], set())[0]
            tokens.index_copy_(0, index_of(edits.lines, self.device), drawn)
        if placed is not None:
            step_states(placed.stepped, placed.rows, tokens)
        if penalised:
            drawn = tokens.index_select(0, index_of(penalised, self.device)).long()
            at = index_of(list(places.values()), self.device)
            self.penalties.add(at, drawn, [rows[i] for i in penalised])
        return tokens, out[1]

    def _reserve(self, num_lines: int) -> None:
        self.scratch = DrawScratch(num_lines, self.device, invariant=self.invariant)
        self.zeros = torch.zeros(num_lines, dtype=torch.int32, device=self.device)

    # ---- the draw --------------------------------------------------------------------------------------------------

    def _choose(self, logits: Tensor, rows: Sequence[Row], greedy: set[int]) -> Tensor:
        """Tokens and is_finite, int32 `[2, rows]`; lines in `greedy` are drawn greedily whatever they ask for."""
        num = len(rows)
        # temperature, top-p, min-p (float32), top-k; then the keys in pairs
        block = np.empty(6 * num, np.int32)
        columns, keys = block[: 4 * num].reshape(4, num), block[4 * num :].reshape(num, 2)
        floats = columns[:3].view(np.float32)
        is_filtered = False
        for i, row in enumerate(rows):
            params = _params(row)
            is_drawn = i not in greedy and not params.is_greedy
            floats[:, i] = (params.temperature if is_drawn else 0.0), params.top_p, params.min_p
            columns[3, i] = params.top_k
            keys[i] = draw_keys(_seed(params), row.run_idx) if is_drawn else (0, 0)
            is_filtered |= is_drawn and (params.top_k != -1 or params.top_p < 1.0 or params.min_p > 0.0)
        sent = to_device(block, self.device, torch.int32)
        values, keys_on = sent[: 4 * num].view(4, num), sent[4 * num :].view(num, 2)
        temperatures, top_p, min_p = values[:3].view(torch.float32).unbind(0)
        out = torch.empty((2, num), dtype=torch.int32, device=self.device)
        # the runner feeds tokens back itself: no line is flagged
        given = (keys_on, self.zeros, self.zeros, self.zeros, out, self.scratch)
        if is_filtered:
            draw_filtered(logits, temperatures, values[3], top_p, min_p, *given, pdl=self.pdl)
        else:
            draw(logits, temperatures, *given, pdl=self.pdl)
        return out

    # ---- changed logits --------------------------------------------------------------------------------------------

    def _edits(self, rows: Sequence[Row], places: dict[int, int]) -> _Edits:
        edits = _Edits([], [], [], [], [], [], [])
        num_filled = sum(row.matcher is not None and row.tables is None for row in rows)
        for i, row in enumerate(rows):
            params = _params(row)
            has_mask = row.matcher is not None or row.tables is not None
            biases = {token: bias for token, bias in params.logit_bias.items() if token < self.vocab_size}
            banned = [] if has_mask else self._bans(row)
            is_clamped = i in places or bool(params.logit_bias)
            if not (is_clamped or has_mask or banned):
                continue
            found = biases | dict.fromkeys(banned, float("-inf"))  # of a banned and biased token: the ban
            edits.entries += [(len(edits.lines), token) for token in found]
            edits.biases += found.values()
            mask = num_filled + len(edits.tabled) if row.tables is not None else len(edits.masked)
            edits.asked.append((i, places.get(i, -1), mask if has_mask else -1, is_clamped))
            edits.weights.append((params.repetition_penalty, params.frequency_penalty, params.presence_penalty))
            edits.lines.append(i)
            if has_mask:
                (edits.masked if row.tables is None else edits.tabled).append(i)
        return edits

    def _edited(
        self,
        logits: Tensor,
        edits: _Edits,
        rows: Sequence[Row],
        placed: _Placed | None,
        max_score: float,
    ) -> Tensor:
        """The changed lines, float32 `[len(edits.lines), vocab]`."""
        asked = np.empty((7, len(edits.lines)), np.int32)
        asked[:4] = np.array(edits.asked, np.int32).T
        asked[4:].view(np.float32)[:] = np.array(edits.weights, np.float32).T
        entries = np.empty((3, len(edits.entries)), np.int32)
        entries[:2] = np.array(edits.entries, np.int32).reshape(-1, 2).T
        entries[2] = np.array(edits.biases, np.float32).view(np.int32)
        changed = torch.empty((len(edits.lines), self.vocab_size), dtype=torch.float32, device=self.device)
        edit(
            logits,
            to_device(asked, self.device, torch.int32),
            to_device(entries, self.device, torch.int32),
            self.penalties.counts,
            self.penalties.seen.view(torch.uint8),
            self._masks(edits, rows, placed),
            changed,
            max_score,
        )
        return changed

    def _masks(self, edits: _Edits, rows: Sequence[Row], placed: _Placed | None) -> Tensor:
        """int32 `[masks, ceil(vocab / 32)]`: what each line's grammar allows and no ban forbids.

        Where a ban leaves nothing that the grammar allows, the grammar wins: the row goes on without its ban.
        """
        filled = self._filled([rows[i] for i in edits.masked])
        if placed is None:
            return filled.to(self.device, non_blocking=True)
        num, num_tabled = len(filled), len(edits.tabled)
        masks = torch.empty((num + num_tabled, filled.shape[1]), dtype=torch.int32, device=self.device)
        masks[:num].copy_(filled, non_blocking=True)
        bans = [self._bans(rows[i]) for i in edits.tabled]
        begins = np.cumsum([0, *map(len, bans)])
        block = np.array([*edits.tabled, *begins, *(token for some in bans for token in some)], np.int32)
        sent = to_device(block, self.device, torch.int32)
        parts = sent.split([num_tabled, num_tabled + 1, int(begins[-1])])
        gather_masks(placed.lines, placed.rows, *parts, masks[num:])
        return masks

    def _filled(self, rows: Sequence[Row]) -> Tensor:
        """The masks that matchers fill, on the host."""
        size = (len(rows), (self.vocab_size + 31) // 32)
        packed = torch.zeros(size, dtype=torch.int32, pin_memory=self.device.type == "cuda" and bool(rows))
        for words, row in zip(packed.numpy().view(np.uint32), rows):
            row.matcher.fill_mask(words)
            if self.vocab_size % 32:
                words[-1] &= np.uint32((1 << (self.vocab_size % 32)) - 1)
            _ban(words, self._bans(row))
        return packed

    def _bans(self, row: Row) -> list[int]:
        return [token for token in row.ban_ids if token < self.vocab_size]

    def _placed(self, rows: Sequence[Row]) -> _Placed:
        """Of a draft's lines the first steps the state: the others are given theirs, and nobody asks for the last."""
        assert self.grammars is not None, "only a runner that places tables gives them to its sampler"
        block = np.empty((4, len(rows)), np.int32)
        block[:2] = self.grammars.columns(rows)
        block[2] = block[0]
        block[3] = [row.row for row in rows]
        block[2, 1:][block[3, 1:] == block[3, :-1]] = -1
        grammars, given, stepped, table_rows = to_device(block, self.device, torch.int32).unbind(0)
        lines_on = self.grammars.lines_on
        return _Placed(lines_on(grammars, given), lines_on(stepped, given), table_rows)


def _ban(words: np.ndarray, tokens: list[int]) -> None:
    """Clear the tokens' bits of a packed mask, in place, if others are left."""
    if not tokens:
        return
    allowed = words.copy()
    for token in tokens:
        allowed[token // 32] &= ~np.uint32(1 << (token % 32))
    if allowed.any():
        words[:] = allowed


def _params(row: Row) -> SamplingParams:
    assert row.params is not None, "only rows with parameters are drawn"
    return row.params


def _is_penalised(row: Row) -> bool:
    return has_penalty(_params(row))


def _seed(params: SamplingParams) -> int:
    assert params.seed is not None, "a sampled run's seed is drawn before it reaches the worker"
    return params.seed
