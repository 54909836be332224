"""The engine's nouns: a sequence, the segments it grows by, and where its KV lies."""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from nbsgl.engine.radix_cache import Node
from nbsgl.engine.segments import Segment
from nbsgl.engine.stop import Ending, StopRules
from nbsgl.protocol import SamplingParams

if TYPE_CHECKING:
    from nbsgl.engine.constraint import Constraint


class SeqState(Enum):
    UNOPENED = auto()  # its parent has not reached the point of the fork: no tokens yet
    WAITING = auto()  # has something to compute; holds no slot, row or lock
    RUNNING = auto()  # holds a row of the page table, slots, and a locked path; rows of it may be in flight
    PARKED = auto()  # alive without a pending segment; holds nothing, but its path is marked in the tree
    FINISHED = auto()  # closed, failed or aborted: nothing is held, nothing more is said


@dataclass(slots=True)
class Queued:
    """A segment that has not begun.  `grammar` is compiled or pending; `error` is why it could not be."""

    number: int
    segment: Segment
    received: float
    grammar: Any = None
    error: Exception | None = None


@dataclass(slots=True)
class ForcedRun:
    """Known tokens [begin, end) of a sequence, being computed.

    With `score_begin` >= 0 the log-probabilities of the tokens from there to `end` are wanted.
    """

    number: int
    begin: int
    end: int
    received: float
    score_begin: int = -1
    top: int = 0
    launched_at: float | None = None
    logprobs: list[float | None] = field(default_factory=list)
    tops: list[list[tuple[int, float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.score_begin == 0 < self.end:  # nothing stands before a sequence's first token
            self.logprobs.append(None)
            self.tops.append([])

    @property
    def needed_logits(self) -> int | None:
        """The next position whose logits are wanted for a score; None if there is none."""
        if self.score_begin < 0:
            return None
        token = self.score_begin + len(self.logprobs)
        return token - 1 if token < self.end else None


@dataclass(slots=True)
class SampledRun:
    """Tokens being drawn: tokens[begin:] of the sequence.  Its state outlives a retraction."""

    number: int
    params: SamplingParams
    begin: int
    limit: int  # max_tokens as a number
    rules: StopRules
    received: float
    constraint: Constraint | None = None
    stream: bool = False
    num_pending: int = 0  # draws in flight: more than one behind a draft
    ending: Ending | None = None  # known before anything was drawn: the grammar left no choice
    is_fresh: bool = True  # not drawn yet on the row it has
    num_sent: int = 0  # ids reported
    logprobs: list[float | None] = field(default_factory=list)  # of each drawn token, if asked for
    tops: list[list[tuple[int, float]]] = field(default_factory=list)
    launched_at: float | None = None
    first_at: float | None = None

    @property
    def is_probe(self) -> bool:
        """max_tokens=0 with log-probabilities: one draw is computed for its candidates and thrown away."""
        return self.limit == 0


@dataclass(slots=True, eq=False)
class Sequence:
    """One branch inside the engine: its token ids, what it still has to do, and where its KV lies."""

    # [0, cached_len)           KV in slots of the locked path, shared with the tree
    # [cached_len, settled_len) KV in its own slots, known to be good
    # [settled_len, kv_len)     KV in its own slots, being written by the step in flight
    # [kv_len, len(slots))      slots granted ahead
    id: int
    arrival: int
    parent: int | None = None
    after: int = 0
    state: SeqState = SeqState.PARKED
    tokens: array[int] = field(default_factory=lambda: array("i"))
    ends: list[int] = field(default_factory=list)  # ends[k]: length when its first k segments were done
    # what it has to do
    queue: deque[Queued] = field(default_factory=deque)
    forced: deque[ForcedRun] = field(default_factory=deque)
    run: SampledRun | None = None
    generation: int = 0
    next_number: int = 0  # of the next segment to come
    is_closing: bool = False
    awaits_resend: bool = False  # segments behind a tail were dropped: they come again
    waiting_children: list[Sequence] = field(default_factory=list)
    # where its KV lies
    row: int = -1
    slots: array[int] = field(default_factory=lambda: array("i"))
    cached_len: int = 0
    settled_len: int = 0
    kv_len: int = 0
    table_len: int = 0  # slots[:table_len] are in the runner's page table
    node: Node | None = None  # locked; its path is tokens[:cached_len]
    parked_node: Node | None = None  # marked
    # in flight
    num_in_flight: int = 0
    epoch: int = 0  # results of rows launched in an older epoch are dropped
    # what a policy looks at
    comes_first: bool = False  # it was running already
    queued_step: int = 0
    match_len: int = 0
    match_node: Node | None = None
    match_version: int = -1
    has_gained: bool = True  # since it was admitted
    admitted_len: int = 0  # cached_len when it was admitted
    # what it cost
    credited_len: int = 0  # tokens[:credited_len] were counted as cached or computed
    prefill_cached: int = 0  # since its last finished segment
    prefill_computed: int = 0
    computed_for_run: int = 0  # since its last finished sampled run

    @property
    def num_done(self) -> int:
        """Finished segments."""
        return len(self.ends) - 1

    @property
    def has_work(self) -> bool:
        return bool(self.forced) or self.run is not None

    @property
    def num_drawn(self) -> int:
        return len(self.tokens) - self.run.begin if self.run else 0

    @property
    def room_for_run(self) -> int:
        """How many tokens the run may still draw."""
        return self.run.limit - self.num_drawn if self.run else 0

    def needed_from(self) -> int:
        """The first position that must be computed even if its KV is there, because its logits are wanted."""
        needed = len(self.tokens)
        if self.run is not None:
            needed -= 1
        for forced in self.forced:
            logits = forced.needed_logits
            if logits is not None:
                needed = min(needed, logits)
        return needed
