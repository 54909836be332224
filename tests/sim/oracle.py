"""The KV-oracle: a model in plain integers, as a `batch.Runner`.

The KV entry of a position is a hash of (token, position, KV entry of the position before, read through the page
table); the logits are a hash of the last entry.  So a wrong slot, a wrong position or a stale page changes what is
drawn.  Tests lean on exactly that, and on `reference`, which runs one sequence alone, without a table or a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nbsgl.engine.batch import Batch, Row, RowResult, StepOutOfMemory

VOCAB = [bytes([97 + i]) for i in range(14)] + [b"ab", b"bc", b"cab", b"\xc3", b"\xa9", None]
EOS = len(VOCAB) - 1
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


def draw(entry: int, row: Row) -> int:
    """The next token: a hash of the last entry, the seed and the draw's place; EOS about once in VOCAB."""
    params = row.params
    assert params is not None
    place = 0 if params.is_greedy else (params.seed or 0) * 1000 + row.run_idx + 1
    return pick(entry, place, row.ban_ids, row.matcher)


def pick(entry: int, place: int, ban_ids: Sequence[int], matcher: object = None) -> int:
    allowed = [token for token in range(len(VOCAB)) if token not in ban_ids]
    if matcher is not None:
        allowed = [token for token in allowed if token in matcher.allowed()]  # type: ignore[attr-defined]
    return allowed[(kv_entry(entry, place, 3) >> 7) % len(allowed)]


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
    num_computed: int = 0

    def __post_init__(self) -> None:
        self.kv = [0] * self.num_slots

    def launch(self, batch: Batch) -> OracleResult:
        self.watch(batch)
        if self.launch_fault(batch):
            raise StepOutOfMemory
        if self.result_fault(batch):  # its page table stands: the next batch may be launched already
            for row in batch.rows:
                self._write_table(row)
            self.drawn = {}
            return OracleResult(None)
        results: list[RowResult] = []
        drawn: dict[int, int] = {}
        for row in batch.rows:
            self._write_table(row)
            results.append(self._run(row, drawn))
        self.drawn = drawn
        return OracleResult(results)

    def prepare_next(self) -> bool:
        return False

    def forget(self) -> None:
        self.table, self.drawn = {}, {}

    def _write_table(self, row: Row) -> None:
        table = self.table.setdefault(row.row, [])
        if row.slots_from == 0 and row.slots:
            table.clear()
        assert row.slots_from <= len(table), "the page table has a hole"
        table[row.slots_from : row.slots_from + len(row.slots)] = row.slots
        assert row.start + row.num_tokens <= len(table), "no slot was granted for a token"

    def _run(self, row: Row, drawn: dict[int, int]) -> RowResult:
        table, kv = self.table[row.row], self.kv
        result = RowResult(is_finite=not self.fault(row))
        for position in range(row.start, row.start + row.num_tokens):
            # a draw whose step failed is fed back as garbage: its results are dropped by the scheduler
            token = self.drawn.get(row.row, 0) if row.is_fed_back else row.history[position]
            before = kv[table[position - 1]] if position else START
            kv[table[position]] = kv_entry(before, token, position) if result.is_finite else -1
            if position in row.score:
                result.scores.append(score_of(kv[table[position]], row.history[position + 1]))
                result.score_tops.append([(0, score_of(kv[table[position]], 0))] * min(1, row.score_top))
        self.num_computed += row.num_tokens
        if row.params is not None:
            entry = kv[table[row.start + row.num_tokens - 1]]
            result.token = drawn[row.row] = draw(entry, row)
            if row.params.return_logprob:
                result.logprob = score_of(entry, result.token)
                result.top = [(0, score_of(entry, 0))] * min(1, row.params.top_logprobs_num)
        return result


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
