"""The KV-oracle: a model in plain integers, as a `batch.Runner`.

The KV entry of a position is a hash of (token, position, KV entry of the position before, read through the page
table); the logits are a hash of the last entry.  So a wrong slot, a wrong position or a stale page changes what is
drawn.  Tests lean on exactly that, and on `reference`, which runs one sequence alone, without a table or a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from nbsgl.engine.batch import Batch, Row, RowResult, StepOutOfMemory
from nbsgl.engine.drafts import lines_of
from tests.sim.toy_grammar import EOS

VOCAB = [bytes([97 + i]) for i in range(14)] + [b"ab", b"bc", b"cab", b"\xc3", b"\xa9", None]
assert len(VOCAB) - 1 == EOS
_MASK = (1 << 61) - 1
START = 0x9E3779B97F4A7C15 & _MASK  # what stands before position 0


def kv_entry(before: int, token: int, position: int) -> int:
    """The KV of a token: depends on all tokens up to it."""
    x = (before * 6364136223846793005 + token * 1442695040888963407 + position * 2862933555777941757 + 1) & _MASK
    x ^= x >> 29
    return (x * 0xBF58476D1CE4E5B9) & _MASK


def score_of(entry: int, token: int) -> float:
    """The log-probability of `token` after an entry."""
    return -float(kv_entry(entry, token, 7) % 10_000) / 1000


def draw(entry: int, row: Row, allowed: Collection[int] | None) -> int:
    """The next token: a hash of the last entry, the seed and the draw's place; EOS about once in VOCAB."""
    params = row.params
    assert params is not None
    place = 0 if params.is_greedy else (params.seed or 0) * 1000 + row.run_idx + 1
    return pick(entry, place, row.ban_ids, allowed)


def pick(entry: int, place: int, ban_ids: Collection[int], allowed: Collection[int] | None = None) -> int:
    """`allowed`: by a grammar.  Where nothing is, as behind a draft that went wrong, it is token 0."""
    chosen = [token for token in range(len(VOCAB)) if token not in ban_ids and (allowed is None or token in allowed)]
    return chosen[(kv_entry(entry, place, 3) >> 7) % len(chosen)] if chosen else 0


@dataclass
class OracleRunner:
    """Carries batches out at launch, in order.  `fault(row)` may say "nan"; `launch_fault(batch)` and
    `result_fault(batch)` say whether the device has no memory for it."""

    num_slots: int
    fault: Callable[[Row], bool] = lambda row: False
    launch_fault: Callable[[Batch], bool] = lambda batch: False
    result_fault: Callable[[Batch], bool] = lambda batch: False
    watch: Callable[[Batch], None] = lambda batch: None
    kv: list[int] = field(default_factory=list)
    table: dict[int, list[int]] = field(default_factory=dict)
    drawn: dict[int, int] = field(default_factory=dict)  # the token the batch before drew for each row
    states: dict[int, int] = field(default_factory=dict)  # behind that token, of rows with tables
    num_computed: int = 0
    has_device_grammars: bool = False

    def __post_init__(self) -> None:
        self.kv = [0] * self.num_slots

    def launch(self, batch: Batch) -> OracleResult:
        self.watch(batch)
        if self.launch_fault(batch):
            raise StepOutOfMemory
        if self.result_fault(batch):  # its page table stands: the next batch may be launched already
            for row in batch.rows:
                self._write_table(row)
            self.drawn, self.states = {}, {}
            return OracleResult(None)
        results: list[RowResult] = []
        drawn: dict[int, int] = {}
        states: dict[int, int] = {}
        for row in batch.rows:
            self._write_table(row)
            results.append(self._run(row, drawn, states))
        self.drawn, self.states = drawn, states
        return OracleResult(results)

    def prepare_next(self) -> bool:
        return False

    def forget(self) -> None:
        self.table, self.drawn, self.states = {}, {}, {}

    def _write_table(self, row: Row) -> None:
        table = self.table.setdefault(row.row, [])
        if row.slots_from == 0 and row.slots:
            table.clear()
        assert row.slots_from <= len(table), "the page table has a hole"
        table[row.slots_from : row.slots_from + len(row.slots)] = row.slots
        assert row.start + row.num_tokens <= len(table), "no slot was granted for a token"

    def _run(self, row: Row, drawn: dict[int, int], states: dict[int, int]) -> RowResult:
        table, kv = self.table[row.row], self.kv
        result = RowResult(is_finite=not self.fault(row))
        for position in range(row.start, row.start + row.num_tokens):
            # a draw whose step failed is fed back as garbage: its results are dropped by the scheduler
            begin_of_draft = row.start + row.num_tokens - len(row.draft)
            if position >= begin_of_draft:
                token = row.draft[position - begin_of_draft]
            else:
                token = self.drawn.get(row.row, 0) if row.is_fed_back else row.history[position]
            before = kv[table[position - 1]] if position else START
            kv[table[position]] = kv_entry(before, token, position) if result.is_finite else -1
            if position in row.score:
                result.scores.append(score_of(kv[table[position]], row.history[position + 1]))
                result.score_tops.append([(0, score_of(kv[table[position]], 0))] * min(1, row.score_top))
        self.num_computed += row.num_tokens
        if row.params is not None:
            first = row.start + row.num_tokens - 1 - len(row.draft)
            tokens = []
            for i, line in enumerate(lines_of(row)):
                allowed, state = self._allowed(line)
                tokens.append(draw(kv[table[first + i]], line, allowed))
                if line.tables is not None:
                    states[row.row] = line.tables.after(state, tokens[-1])
            result.token, *result.more = tokens
            drawn[row.row] = tokens[-1]
            if row.params.return_logprob:
                entry = kv[table[first]]
                result.logprob = score_of(entry, result.token)
                result.top = [(0, score_of(entry, 0))] * min(1, row.params.top_logprobs_num)
        return result

    def _allowed(self, line: Row) -> tuple[Collection[int] | None, int]:
        """What the grammar allows, by the tables if the row has any: then the host's matcher is not asked."""
        if line.tables is not None:
            (state,) = line.states
            state = self.states.get(line.row, 0) if state == -1 else state
            return line.tables.allowed(state), state
        if line.matcher is None:
            return None, 0
        words = np.zeros(1, np.uint32)
        line.matcher.fill_mask(words)
        return [token for token in range(len(VOCAB)) if words[0] >> token & 1], 0


@dataclass
class OracleResult:
    results: list[RowResult] | None

    def result(self) -> list[RowResult]:
        if self.results is None:
            raise StepOutOfMemory
        return self.results


def entries_of(tokens: Sequence[int]) -> list[int]:
    """The KV of a whole sequence, computed alone."""
    entries, before = [], START
    for position, token in enumerate(tokens):
        before = kv_entry(before, token, position)
        entries.append(before)
    return entries
