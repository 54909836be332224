"""The waist between scheduler and runner: what one forward pass computes, and what came out.  No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from nbsgl.protocol import SamplingParams


class ForwardMode(Enum):
    EXTEND = auto()  # compute KV of new tokens after a cached prefix (prefill, chunked prefill, forced runs)
    DECODE = auto()  # one new token per sequence
    MIXED = auto()  # extends and decodes in one pass


@dataclass(slots=True)
class Row:
    """One sequence's part in a batch: positions [start, start + num_tokens) are computed, maybe a token is drawn.

    `row` is its row of the page table.  Before the forward pass `slots` are written to the table at positions
    [slots_from, slots_from + len(slots)).  `history` is the sequence's token list as the host knows it (do not change
    it); `is_fed_back` says that the first token to compute is the one drawn for this row by the batch before, which the
    host may not know yet: the runner keeps it on the device.  Others, if there are any, are the draft's.
    `score` positions p in [start, end): wanted is the log-probability of token p + 1 (`history[p + 1]`).
    """

    row: int
    start: int
    num_tokens: int
    history: Sequence[int]
    slots_from: int = 0
    slots: Sequence[int] = ()
    is_fed_back: bool = False
    score: range = range(0)
    score_top: int = 0
    # sampling, when `params` is set: a token is drawn from the logits of the last position
    params: SamplingParams | None = None
    run_begin: int = 0  # history[run_begin:] are the tokens drawn in this run so far
    run_idx: int = 0  # how many tokens of this run were drawn before this one: the draw's place in its random stream
    is_run_start: bool = False  # first draw of a run on this row, or first after the row was granted anew
    matcher: Any = None  # grammar matcher (`fill_mask`), already advanced over all tokens known to the host
    ban_ids: Sequence[int] = ()  # ids that must not be drawn now (EOS before min_tokens)
    # The last tokens of `num_tokens` may be a draft: proposed, not drawn.  A token is drawn then at each of the last
    # len(draft) + 1 positions, with the random numbers of run_idx, run_idx + 1, ..., under the grammar's mask behind
    # the draft so far.  Draft tokens are in no history.  Rows with penalties have none, and log-probabilities are only
    # of the first draw.
    draft: Sequence[int] = ()
    # Of a grammar in tables: the tables (`grammar.tokens.TokenTables`) and its state before each draw.  states[0] is -1
    # if the host does not know it yet: then it is the one that the row's last draw has left on the device.
    tables: Any = None
    states: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Rows [begin, end) have the same slots at their first `length` positions, and each attends beyond them."""

    begin: int
    end: int
    length: int


@dataclass(slots=True)
class Batch:
    """The rows of one forward pass; rows that only extend and rows that decode may be mixed.

    `shared` (in order, disjoint; only where all rows decode) is known to be equal: whether to use it is the runner's.
    """

    rows: list[Row]
    step: int = 0
    shared: Sequence[SharedPrefix] = ()

    @property
    def mode(self) -> ForwardMode:
        decodes = sum(row.num_tokens == 1 and row.params is not None for row in self.rows)
        if decodes == len(self.rows):
            return ForwardMode.DECODE
        return ForwardMode.MIXED if decodes else ForwardMode.EXTEND

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)


@dataclass(slots=True)
class RowResult:
    """What came out for one row.  `token` is -1 where none was drawn; `is_finite` False: NaN or inf in its logits.

    `more` are the tokens drawn behind each token of the row's draft.

    `logprob`/`top` are of the drawn token, before mask, temperature and penalties, if the row's parameters ask for
    them; `scores[i]` and `score_tops[i]` belong to position `row.score[i]`.  Tops are (token id, log-probability)
    pairs, best first.
    """

    token: int = -1
    is_finite: bool = True
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)
    more: Sequence[int] = ()
    scores: list[float] = field(default_factory=list)
    score_tops: list[list[tuple[int, float]]] = field(default_factory=list)


class StepOutOfMemory(Exception):
    """The device had no memory for this batch; nothing of it was kept."""


class Launched(Protocol):
    """A batch on its way."""

    def result(self) -> list[RowResult]:
        """Wait for it; one entry per row, in order.  Raises StepOutOfMemory."""


class Runner(Protocol):
    """Carries batches out, in the order they are launched.  The oracle of the tests is one too."""

    has_device_grammars: bool  # rows may come with tables, and with a state that the host does not know yet

    def launch(self, batch: Batch) -> Launched:
        """Start the batch.  Raises StepOutOfMemory."""

    def forget(self) -> None:
        """All rows were taken away (flush after a fault): drop per-row state."""

    def prepare_next(self) -> bool:
        """Use an idle moment for one thing that steps may need; False when nothing is left to prepare."""
