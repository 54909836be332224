"""Batches in flight: a sequence's row and what the sequence is as soon as it is launched, and the ways back.

A row is launched as if it had been computed already, so that the next batch can be chosen behind it; each entry keeps
what to put back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nbsgl.engine.batch import Launched, Row
from nbsgl.engine.jump_forward import Draft
from nbsgl.engine.request import ForcedRun, SampledRun, Sequence

NO_TOKENS: range = range(0)


@dataclass(slots=True)
class Entry:
    """One row in flight, and what to put back if the step fails."""

    seq: Sequence
    row: Row
    epoch: int
    is_extend: bool
    scored: ForcedRun | None
    table_len: int
    draft: Draft | None


@dataclass(slots=True)
class Flight:
    """A launched batch: of its rows `num_decodes` compute one token, the others `num_extended` together."""

    step: int
    launched: Launched
    entries: list[Entry]
    launched_at: float
    num_decodes: int
    num_extended: int


def entry_of(seq: Sequence, num_tokens: int, draft: Draft | None, now: float, *, on_device: bool) -> Entry:
    """The sequence's row; the sequence is as if it had been computed.  `on_device`: grammars in tables are."""
    run, start, table_len = seq.run, seq.kv_len, seq.table_len
    end = start + num_tokens  # of what is known
    is_fed_back = run is not None and run.num_pending > 0
    is_extend = run is None or start < run.begin or num_tokens > 1
    scored, score = scores_of(seq, start, end)
    row = Row(
        row=seq.row,
        start=start,
        num_tokens=num_tokens,
        history=seq.tokens,
        slots_from=table_len,
        slots=seq.slots[table_len:],
        is_fed_back=is_fed_back,
        score=score,
        score_top=scored.top if scored else 0,
    )
    if run is not None and end >= len(seq.tokens):
        ask_for_draws(row, run, draft, on_device=on_device)
    if is_extend:
        _note_launch(seq, now)
    seq.table_len, seq.kv_len = len(seq.slots), start + row.num_tokens
    seq.num_in_flight += 1
    return Entry(seq, row, seq.epoch, is_extend, scored, table_len, draft)


def ask_for_draws(row: Row, run: SampledRun, draft: Draft | None, *, on_device: bool) -> None:
    """Fill in the row's part about drawing; the run counts the draws as pending."""
    row.params, row.run_begin = run.params, run.begin
    row.run_idx = len(row.history) - run.begin + run.num_pending
    row.is_run_start = run.is_fresh
    if row.run_idx < run.params.min_tokens:
        row.ban_ids = run.rules.ban_ids
    if draft is not None:
        row.draft = draft.ids
        row.num_tokens += len(draft.ids)
    constraint = row.matcher = run.constraint
    if constraint is not None and on_device and not constraint.needs_host(run.num_pending):
        row.tables = constraint.tables
        state = -1 if run.num_pending else constraint.matcher.state
        row.states = draft.states if draft is not None else (state,)
    run.is_fresh = False
    run.num_pending += 1 + len(row.draft)


def scores_of(seq: Sequence, start: int, end: int) -> tuple[ForcedRun | None, range]:
    """The first forced run with scores in [start, end), and the positions whose logits they need."""
    for forced in seq.forced:
        logits = forced.needed_logits
        if logits is not None and logits < end:
            return forced, range(max(start, logits), min(end, forced.end - 1))
    return None, NO_TOKENS


def _note_launch(seq: Sequence, now: float) -> None:
    for forced in seq.forced:
        if forced.launched_at is None:
            forced.launched_at = now
    if seq.run is not None and seq.run.launched_at is None:
        seq.run.launched_at = now


def take_back(entries: Iterable[Entry]) -> None:
    """The batch could not be launched: its sequences are as before.  The step in flight still counts."""
    for entry in entries:
        seq, row = entry.seq, entry.row
        seq.num_in_flight -= 1
        seq.kv_len, seq.table_len = row.start, entry.table_len
        if row.params is not None and seq.run is not None:
            seq.run.num_pending -= 1 + len(row.draft)
            seq.run.is_fresh = row.is_run_start


def undo(entries: Iterable[Entry]) -> None:
    """A launched step failed: its sequences go back to before it, and what was launched on top does not count."""
    for entry in entries:
        seq, row = entry.seq, entry.row
        seq.num_in_flight -= 1
        seq.table_len = min(seq.table_len, entry.table_len)  # what it wrote to the table may be lost as well
        if entry.epoch != seq.epoch:
            continue
        seq.epoch += 1
        seq.kv_len = row.start
        if seq.run is not None:
            seq.run.num_pending = 0
            seq.run.is_fresh = True
