"""What `front` knows of one branch: its source, its tokens, and the segments the worker has not finished yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nbsgl.protocol import AnyNode, Append

if TYPE_CHECKING:
    from nbsgl.engine.segments import Segment
    from nbsgl.engine.slots import Slot

Piece = tuple[str, bool]  # text, and whether special tokens written in it count


@dataclass(slots=True)
class Run:
    """One program's branches.  `key` is (client, run number)."""

    key: tuple[object, int]
    branches: dict[int, Branch] = field(default_factory=dict)
    owners: dict[int, Branch] = field(default_factory=dict)  # of slots without a result
    texts: dict[int, list[str]] = field(default_factory=dict)  # of slots with results


@dataclass(slots=True)
class Cell:
    """A stretch of tokens: known (forced, or drawn), or still None while it is being drawn.  Shared by forks."""

    ids: Sequence[int] | None = None


@dataclass(slots=True)
class Posted:
    """A segment the worker has not finished, and what is needed to post it anew.

    `pieces` is the source of a forced run that was encoded from text (its cell changes if it is encoded again after
    the tail of a stop string).
    """

    segment: Segment
    cell: Cell
    slot: Slot | None = None
    pieces: tuple[Piece, ...] | None = None


@dataclass(slots=True, eq=False)
class Branch:
    """One branch.

    nodes     submitted, not carried out; the head may wait (`waits`)
    run       the open forced run: text that no sampled segment has closed yet
    lead      bytes a stop string left over from a cut token; they begin the open run
    posted    segments given to the worker and not finished, by number
    """

    number: int
    of: Run
    seq: int = -1
    parent: Branch | None = None
    depth: int = 0
    is_born: bool = True
    nodes: deque[AnyNode] = field(default_factory=deque)
    run: list[Piece] = field(default_factory=list)
    lead: bytes = b""
    cells: list[Cell] = field(default_factory=list)
    own: list[Piece | Cell | bytes] = field(default_factory=list)  # what it grew itself since the fork, in order
    num_posted: int = 0
    posted: dict[int, Posted] = field(default_factory=dict)
    generation: int = 0
    slot: Slot | None = None  # the select the branch waits for
    waits_for: Branch | None = None  # the source of an `Append`, or the owner of a `Ref`'s slot
    is_awaited: bool = False  # others wait for it (`waits_for`), or did since they were last looked for
    children: list[Branch] = field(default_factory=list)  # submitted forks, until they are born
    readers: int = 0  # Appends that still want this branch's text
    is_closed: bool = False
    is_lost: bool = False  # the worker died: the sequence must be opened anew
    error: dict[str, object] | None = None
    prefill_cached: int = 0
    prefill_computed: int = 0
    num_nodes: int = 0

    @property
    def is_first(self) -> bool:
        """Nothing stands before the open run: it begins the sequence."""
        return not self.cells and not self.lead

    @property
    def is_idle(self) -> bool:
        """Everything submitted so far has been carried out."""
        return self.is_born and not self.nodes and not self.posted and self.slot is None

    @property
    def may_be_cut(self) -> bool:
        """A run in flight has stop strings: its end may leave a tail, so what follows cannot be encoded for others."""
        return any(p.slot is not None and p.slot.has_stop_strings for p in self.posted.values())

    def ids(self) -> list[int]:
        """All tokens so far; those still being drawn are left out."""
        return [token for cell in self.cells for token in cell.ids or ()]

    @property
    def known_len(self) -> int:
        return sum(len(cell.ids or ()) for cell in self.cells)

    def sources(self) -> Iterator[Branch]:
        """Branches whose text this one's queue still wants."""
        for node in self.nodes:
            if isinstance(node, Append) and node.source in self.of.branches:
                yield self.of.branches[node.source]
