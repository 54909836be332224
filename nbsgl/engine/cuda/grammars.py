"""Grammars in tables on CUDA: where each row stands, on the device; and what becomes of those that find no room there.

A row's state steps with each draw, so a step may be launched before the host has seen the last one's tokens.  Tables
that do not fit beside those of the same step stay on the host: there the state follows from the row's last token, so
such a row waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbsgl.engine.batch import Row
from nbsgl.engine.grammar.arena import MAX_BYTES, TableArena, arena_bytes
from nbsgl.engine.kernels.tables import TableLines
from nbsgl.engine.launched import is_out_of_memory

log = logging.getLogger("nbsgl")


class DeviceGrammars:
    """`states` int32 `[max_running + 1]`: each page-table row's state behind its last draw.

    The arena is made for the first grammar: an engine that never meets one has its memory for other things.  No graph
    reads it: a masked draw is launched behind the step's graph, which costs the card 3 us and spares a second set of
    graphs.
    """

    def __init__(self, device: torch.device, vocab_size: int, max_running: int, last_tokens: Tensor) -> None:
        self.device, self.vocab_size, self.last_tokens = device, vocab_size, last_tokens
        self.states = torch.zeros(max_running + 1, dtype=torch.int32, device=device)
        self.arena: TableArena | None = None
        # rows that were drawn under a mask of the host: tables, and the state before that draw
        self._hosted: dict[int, tuple[Any, int]] = {}
        self._placed: dict[int, tuple[Any, int] | None] = {}  # what the launch under way makes of them

    def place(self, lines: list[Row]) -> list[Row]:
        """Queue what has to be copied for these draws; the lines themselves, or with matchers where no room was found.

        Waits for the device only where a row without room does not know its state.
        """
        self._placed = {}
        wanted = [line.tables for line in lines if line.tables is not None]
        if not wanted:
            return lines
        if self.arena is None:
            self.arena = self._make_arena()
        begins = self.arena.place(wanted)
        if min(begins) >= 0 and not self._hosted:
            return lines
        return [line if line.tables is None else self._placed_line(line, self.arena) for line in lines]

    def keep(self) -> None:
        """The launch for which lines were placed has succeeded."""
        for row, hosted in self._placed.items():
            if hosted is None:
                self._hosted.pop(row, None)
            else:
                self._hosted[row] = hosted

    def columns(self, lines: Sequence[Row]) -> NDArray[np.int32]:
        """int32 `[2, lines]`: where each line's grammar begins in the arena, -1 for none; its state, or -1."""
        assert self.arena is not None, "lines are placed before"
        begin_of = self.arena.begin_of
        begins = [-1 if line.tables is None else begin_of(line.tables) for line in lines]
        states = [-1 if line.tables is None else line.states[0] for line in lines]
        return np.array((begins, states), np.int32)

    def lines_on(self, grammars: Tensor, given: Tensor) -> TableLines:
        """What kernels are told, of columns on the device."""
        assert self.arena is not None, "lines are placed before"
        return TableLines(grammars, given, self.states, self.arena.block)

    def forget(self) -> None:
        """All rows were taken away."""
        self.states.zero_()
        self._hosted.clear()
        self._placed.clear()

    def _make_arena(self) -> TableArena:
        num_bytes = MAX_BYTES
        if self.device.type == "cuda":
            num_bytes = arena_bytes(torch.cuda.get_device_properties(self.device).total_memory)
        try:
            return TableArena(self.device, self.vocab_size, num_bytes)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            log.warning("no %d MiB for grammars on %s: their masks come from the host", num_bytes >> 20, self.device)
            return TableArena(self.device, self.vocab_size, 0)

    # ---- without room ----------------------------------------------------------------------------------------------

    def _placed_line(self, line: Row, arena: TableArena) -> Row:
        has_room = arena.begin_of(line.tables) >= 0
        state = line.states[0]
        if state < 0 and (line.row in self._hosted or not has_room):
            state = self._read_state(line.row)
        self._placed[line.row] = None if has_room else (line.tables, state)
        if has_room:
            return replace(line, states=(state,))
        return replace(line, tables=None, states=(), matcher=HostMask(line.tables, state))

    def _read_state(self, row: int) -> int:
        """The row's state behind its last draw.  Waits for that."""
        if row not in self._hosted:
            return int(self.states[row])
        tables, state = self._hosted[row]
        return int(tables.behind(state, int(self.last_tokens[row])))


@dataclass(frozen=True, slots=True)
class HostMask:
    """What a sampler wants of a matcher: the mask of one state, from the tables in memory."""

    tables: Any
    state: int

    def fill_mask(self, words: NDArray[np.uint32]) -> None:
        row = self.tables.rows[self.tables.row_of[self.state]]
        num = min(len(words), len(row))
        words[:num], words[num:] = row[:num], 0
