"""One step's small numbers: from the rows of a batch to one int32 block, copied to the device at once.

The block holds four columns over tokens, then six over *wanted* tokens (those whose logits are computed: where tokens
are drawn first, then scored positions), and two more where draws are masked by grammars in tables.  Its place on the
device is the same each step, so that graphs can read it; copies and steps are queued on one stream, so a step never
sees the next one's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import torch
from torch import Tensor

from nbsgl.engine.attention.paged import ExtendSpan
from nbsgl.engine.batch import Row
from nbsgl.engine.cuda.dense import DenseGroup, can_be_dense, groups_of
from nbsgl.engine.cuda.draws import DrawTable
from nbsgl.engine.drafts import lines_of

TOKEN_COLS = 4  # token id (-1: the row's last drawn), page-table row, position, position + 1
# index of the token, page-table row, 1 if it is its row's first draw, temperature (float32 bits), two keys
WANTED_COLS = 6
MASK_COLS = 2  # where the grammar begins in the arena or -1, its state or -1
FED_BACK = -1
NUM_STAGES = 4  # pinned blocks in turn: at most two steps are in flight


@dataclass(slots=True)
class StepTokens:
    """The flat tokens of a step.  int32 arrays `[num_tokens]`; singles first, then extends (see `attention.paged`),
    then those that are attended without the cache.

    `drawing` is the row of each draw (of a draft: a row again and again), `scoring` the rows that score; `wanted` the
    flat indices of the tokens whose logits are wanted: of each draw, then the scored ones.
    """

    tokens: np.ndarray
    rows: np.ndarray
    positions: np.ndarray
    num_singles: int
    extends: list[ExtendSpan]
    dense: list[DenseGroup]
    drawing: list[int]
    scoring: list[int]
    wanted: Sequence[int]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_wanted(self) -> int:
        return len(self.wanted)

    def lines(self, rows: Sequence[Row]) -> list[Row]:
        """A row without a draft for each draw; `rows` are those that were laid out."""
        if self.num_tokens == len(rows):
            return [rows[i] for i in self.drawing]
        return [line for i in dict.fromkeys(self.drawing) for line in lines_of(rows[i])]


class Singles(Enum):
    """Which rows are laid out as singles, token by token."""

    NONE = auto()  # one way for all rows, whatever their number: deterministic mode
    ONES = auto()  # rows of one token
    ALL = auto()  # short extends too


def lay_out(
    rows: Sequence[Row], singles: Singles, *, longest_first: bool = False, has_dense: bool = False
) -> StepTokens:
    """Lay the rows out flat, in their order; with `longest_first` a step of single tokens by falling position.

    With `has_dense` long prompts that begin in this step are set apart.
    """
    if singles is not Singles.NONE and all(row.num_tokens == 1 for row in rows):
        return _lay_out_singles(rows, longest_first)
    is_single = [singles is Singles.ALL or (singles is Singles.ONES and row.num_tokens == 1) for row in rows]
    order = [i for i, single in enumerate(is_single) if single]
    is_dense = [has_dense and not single and can_be_dense(row) for row, single in zip(rows, is_single)]
    longer = [i for i, single in enumerate(is_single) if not single and not is_dense[i]]
    dense = sorted((i for i, alone in enumerate(is_dense) if alone), key=lambda i: rows[i].num_tokens)
    num_singles = sum(rows[i].num_tokens for i in order)
    total = sum(row.num_tokens for row in rows)
    tokens, table_rows, positions = np.empty((3, total), np.int32)
    begins = [0] * len(rows)
    at = 0
    for i in (*order, *longer, *dense):
        row, end = rows[i], at + rows[i].num_tokens
        begins[i] = at
        drafted = end - len(row.draft)
        tokens[at:drafted] = FED_BACK if row.is_fed_back else row.history[row.start : row.start + drafted - at]
        tokens[drafted:end] = row.draft
        table_rows[at:end] = row.row
        positions[at:end] = np.arange(row.start, row.start + row.num_tokens)
        at = end
    spans = [ExtendSpan(rows[i].row, rows[i].num_tokens, rows[i].start + rows[i].num_tokens) for i in longer]
    return StepTokens(
        tokens,
        table_rows,
        positions,
        num_singles,
        spans,
        groups_of([rows[i].num_tokens for i in dense], total - sum(rows[i].num_tokens for i in dense)),
        *_wanted(rows, begins),
    )


def _lay_out_singles(rows: Sequence[Row], longest_first: bool) -> StepTokens:
    """The usual step, quickly: one token a row."""
    num = len(rows)
    if longest_first:
        positions = np.fromiter((row.start for row in rows), np.int32, num)
        order = np.argsort(-positions, kind="stable").tolist()
        placed = [rows[i] for i in order]
    else:
        order, placed = range(num), rows
    tokens = np.fromiter((FED_BACK if r.is_fed_back else r.history[r.start] for r in placed), np.int32, num)
    if all(row.params is not None and not row.score for row in placed):
        drawing, scoring, wanted = list(order), [], range(num)
    else:
        begins = [0] * num
        for begin, i in enumerate(order):
            begins[i] = begin
        drawing, scoring, wanted = _wanted(rows, begins)
    return StepTokens(
        tokens,
        np.fromiter((row.row for row in placed), np.int32, num),
        np.fromiter((row.start for row in placed), np.int32, num),
        num,
        [],
        [],
        drawing,
        scoring,
        wanted,
    )


def _wanted(rows: Sequence[Row], begins: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Each draw's row, which rows score, and the flat indices of the tokens whose logits they want."""
    drawing, wanted = [], []
    for i, row in enumerate(rows):
        if row.params is not None:
            end = begins[i] + row.num_tokens
            wanted.extend(range(end - 1 - len(row.draft), end))
            drawing += [i] * (1 + len(row.draft))
    scoring = [i for i, row in enumerate(rows) if len(row.score)]
    for i in scoring:
        first = begins[i] + rows[i].score.start - rows[i].start
        wanted.extend(range(first, first + len(rows[i].score)))
    return drawing, scoring, wanted


@dataclass(slots=True)
class DeviceInputs:
    """Views of the block on the device, int32 but `temperatures` (float32); the first four `[num_tokens]`.

    `index`, `wanted_rows`, `flags`, `temperatures` `[num_wanted]`, `keys` `[num_wanted, 2]`; `masks` `[2, num_wanted]`,
    if any draw is masked: where the grammar begins or -1, its state or -1.  The columns of rows and lengths on the host
    stay as they are until NUM_STAGES - 1 more steps are sent.
    """

    tokens: Tensor
    rows: Tensor
    positions: Tensor
    kv_lens: Tensor
    index: Tensor
    wanted_rows: Tensor
    flags: Tensor
    temperatures: Tensor
    keys: Tensor
    masks: Tensor | None
    rows_on_host: np.ndarray
    kv_lens_on_host: np.ndarray


class InputBlock:
    """The block on the device with its pinned counterparts, for steps of at most `max_tokens` and `max_wanted`."""

    def __init__(self, max_tokens: int, max_wanted: int, padding_row: int, device: torch.device) -> None:
        size = TOKEN_COLS * max_tokens + (WANTED_COLS + MASK_COLS) * max_wanted
        self.max_tokens, self.max_wanted, self.padding_row = max_tokens, max_wanted, padding_row
        is_cuda = device.type == "cuda"
        self._stages = [torch.zeros(size, dtype=torch.int32, pin_memory=is_cuda) for _ in range(NUM_STAGES)]
        self._arrays = [stage.numpy() for stage in self._stages]
        self._next = 0
        self._block = torch.zeros(size, dtype=torch.int32, device=device)

    def send(
        self,
        step: StepTokens,
        lines: Sequence[Row],
        draws: DrawTable,
        num_tokens: int,
        num_wanted: int,
        masks: np.ndarray | None = None,
    ) -> DeviceInputs:
        """Queue the copy of a step's numbers, padded to `num_tokens` tokens and `num_wanted` wanted ones.

        `lines` are those of the step; `masks` int32 `[2, lines]`, `DeviceGrammars.columns` of them.
        """
        columns, wanted = self._stage(num_tokens, num_wanted, WANTED_COLS + MASK_COLS * (masks is not None))
        self._fill_tokens(columns, step)
        self._fill_wanted(wanted, num_wanted, step, lines, draws)
        if masks is not None:
            padded = wanted[WANTED_COLS * num_wanted :].reshape(MASK_COLS, num_wanted)
            padded[:, : len(lines)], padded[:, len(lines) :] = masks, -1
        return self._copy(columns, wanted, num_wanted)

    def send_padding(self, num_tokens: int, num_wanted: int) -> DeviceInputs:
        """Queue a step of padding only: it computes nothing that anyone reads."""
        columns, wanted = self._stage(num_tokens, num_wanted, WANTED_COLS)
        columns[0], columns[1], columns[2], columns[3] = 0, self.padding_row, 0, 1
        wanted[:] = 0
        wanted[num_wanted : 2 * num_wanted] = self.padding_row
        return self._copy(columns, wanted, num_wanted)

    def _stage(self, num_tokens: int, num_wanted: int, wanted_cols: int) -> tuple[np.ndarray, np.ndarray]:
        """The next pinned block's columns over tokens, and what lies behind them."""
        split, size = TOKEN_COLS * num_tokens, TOKEN_COLS * num_tokens + wanted_cols * num_wanted
        self._next = (self._next + 1) % NUM_STAGES
        host = self._arrays[self._next]
        assert size <= len(host), "a step is no larger than the block was made for"
        return host[:split].reshape(TOKEN_COLS, num_tokens), host[split:size]

    def _copy(self, columns: np.ndarray, wanted: np.ndarray, num_wanted: int) -> DeviceInputs:
        num_tokens, split = columns.shape[1], columns.size
        end, keys_end = split + wanted.size, split + WANTED_COLS * num_wanted
        self._block[:end].copy_(self._stages[self._next][:end], non_blocking=True)
        by_token = self._block[:split].view(TOKEN_COLS, num_tokens)
        by_wanted = self._block[split : split + 4 * num_wanted].view(4, num_wanted)
        return DeviceInputs(
            *by_token.unbind(0),
            index=by_wanted[0],
            wanted_rows=by_wanted[1],
            flags=by_wanted[2],
            temperatures=by_wanted[3].view(torch.float32),
            keys=self._block[split + 4 * num_wanted : keys_end].view(num_wanted, 2),
            masks=self._block[keys_end:end].view(MASK_COLS, num_wanted) if end > keys_end else None,
            rows_on_host=columns[1],
            kv_lens_on_host=columns[3],
        )

    def _fill_tokens(self, columns: np.ndarray, step: StepTokens) -> None:
        num = step.num_tokens
        columns[0, :num], columns[1, :num], columns[2, :num] = step.tokens, step.rows, step.positions
        columns[0, num:], columns[1, num:], columns[2, num:] = 0, self.padding_row, 0
        np.add(columns[2], 1, out=columns[3])

    def _fill_wanted(
        self, block: np.ndarray, num_wanted: int, step: StepTokens, lines: Sequence[Row], draws: DrawTable
    ) -> None:
        columns = block[: 4 * num_wanted].reshape(4, num_wanted)
        keys = block[4 * num_wanted : WANTED_COLS * num_wanted].reshape(num_wanted, 2)
        index = step.wanted
        num_drawn = len(step.drawing)
        columns[0, : len(index)] = index
        columns[0, len(index) :] = 0
        columns[1:, num_drawn:] = 0
        columns[1, num_drawn:] = self.padding_row
        keys[num_drawn:] = 0
        if num_drawn:
            places = np.fromiter((line.row for line in lines), np.int32, num_drawn)
            columns[1, :num_drawn] = places
            columns[2, :1] = 1
            np.not_equal(places[1:], places[:-1], out=columns[2, 1:num_drawn], casting="unsafe")  # of a draft the first
            columns[3, :num_drawn] = draws.temperatures[places].view(np.int32)
            keys[:num_drawn] = draws.keys(places, np.fromiter((line.run_idx for line in lines), np.int64, num_drawn))
