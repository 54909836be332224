"""The worker's side of branches: runs become segments, which are posted to sequences, and posted anew if need be."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from nbsgl.engine.branches import Branch, Cell, Piece, Posted
from nbsgl.engine.segments import AbortSeqs, CloseSeq, Extend, Forced, Open, Segment, ToWorker, Update
from nbsgl.engine.slots import Slot
from nbsgl.engine.text import TextCodec
from nbsgl.errors import UsageError
from nbsgl.protocol import pack_ids

Take = Callable[[Update], None]


class Sequences:
    """Opens, extends and drops the worker's sequences of all branches.

    `routes` says who takes the updates of a sequence: the branch it belongs to, and a function; those of a branch's own
    sequence go to `take`.
    """

    def __init__(
        self, codec: TextCodec | None, send: Callable[[ToWorker], None], take: Callable[[Branch, Update], None]
    ) -> None:
        self.codec, self._send, self._take = codec, send, take
        self._numbers = itertools.count()
        self.routes: dict[int, tuple[Branch, Take]] = {}

    def encode(self, branch: Branch, pieces: Sequence[Piece]) -> list[int]:
        if self.codec is None:
            raise UsageError("text needs a tokenizer.", hint="Pass input_ids, or start without skip_tokenizer_init.")
        if not pieces and not branch.lead and not branch.is_first:
            return []
        return self.codec.encode_run(pieces, is_first=branch.is_first, lead=branch.lead)

    def closed_run(self, branch: Branch) -> list[Posted]:
        """Encode the open run and close it; an empty one gives nothing."""
        if not branch.run and not branch.lead:
            return []
        pieces = tuple(branch.run)
        ids = self.encode(branch, pieces)
        branch.run, branch.lead = [], b""
        if not ids:
            return []
        cell = Cell(ids)
        branch.cells.append(cell)
        return [Posted(Forced(ids=pack_ids(ids)), cell, pieces=pieces)]

    def post_tokens(self, branch: Branch, ids: Sequence[int], *, packed: bytes | None = None) -> None:
        """Forced tokens after the open run; `packed` are the same, if they are there."""
        posted = self.closed_run(branch)
        cell = Cell(ids)
        branch.cells.append(cell)
        branch.own.append(cell)
        if ids:
            posted.append(Posted(Forced(ids=pack_ids(ids) if packed is None else packed), cell))
        if posted:
            self.post(branch, posted)

    def post(self, branch: Branch, posted: list[Posted]) -> None:
        """Give segments to the worker, opening the sequence first if it does not know it."""
        if branch.seq < 0 or branch.is_lost:
            new = {id(one.cell) for one in posted}
            self.open_anew(branch, [t for cell in branch.cells if id(cell) not in new for t in cell.ids or ()])
        first = branch.num_posted
        branch.posted.update(enumerate(posted, first))
        branch.num_posted += len(posted)
        segments = [one.segment for one in posted]
        self._send(Extend(seq=branch.seq, first=first, generation=branch.generation, segments=segments))

    def open_anew(self, branch: Branch, ids: list[int]) -> None:
        """A sequence the worker does not know (new, or lost with its worker) begins with the tokens it has."""
        self.open(branch)
        branch.is_lost = False
        branch.num_posted = branch.generation = 0
        if ids:
            branch.num_posted = 1
            branch.posted[0] = Posted(Forced(ids=pack_ids(ids)), Cell(ids))
            self._send(Extend(seq=branch.seq, first=0, segments=[Forced(ids=pack_ids(ids))]))

    def open(self, branch: Branch, parent: Branch | None = None) -> None:
        """Give the branch a sequence: an empty one, or a fork of the parent's as it will be after what is posted."""
        branch.seq = next(self._numbers)
        self.routes[branch.seq] = (branch, lambda update: self._take(branch, update))
        if parent is None:
            self._send(Open(seq=branch.seq))
        else:
            self._send(Open(seq=branch.seq, parent=parent.seq, after=parent.num_posted))

    def close(self, branch: Branch) -> None:
        """The worker may forget the branch's sequence when its queue is empty."""
        if branch.seq >= 0 and not branch.is_lost:
            self.routes.pop(branch.seq, None)
            self._send(CloseSeq(seq=branch.seq))

    def go_on_after_tail(self, branch: Branch, segment: int, cell: Cell, tail: bytes) -> None:
        """A stop string began inside a token: its kept bytes begin the next run.

        The worker has dropped the segments behind; they are posted anew, the first encoded after the tail.
        """
        branch.own.insert(next(i for i, item in enumerate(branch.own) if item is cell) + 1, tail)
        branch.generation += 1
        behind = [branch.posted.pop(number) for number in sorted(branch.posted) if number > segment]
        branch.num_posted = segment + 1
        branch.lead = tail
        if not behind:
            return
        assert self.codec is not None
        first = behind[0]
        ids = self.codec.encode_run(first.pieces or (), is_first=False, lead=tail)
        if first.pieces is not None:
            first.cell.ids, first.segment = ids, Forced(ids=pack_ids(ids))
        else:
            at = next(i for i, one in enumerate(branch.cells) if one is first.cell)
            branch.cells.insert(at, Cell(ids))
            behind.insert(0, Posted(Forced(ids=pack_ids(ids)), branch.cells[at]))
        branch.lead = b""
        self.post(branch, behind)

    def helper(
        self,
        branch: Branch,
        slot: Slot,
        segments: Sequence[Segment],
        take: Take,
        *,
        parent: int | None = None,
        after: int = 0,
    ) -> int:
        """A further sequence for one slot, which ends with its segments: empty before, or forked `after` so many."""
        seq = next(self._numbers)
        slot.helpers.append(seq)
        self.routes[seq] = (branch, take)
        self._send(Open(seq=seq, parent=parent, after=after))
        self._send(Extend(seq=seq, first=0, segments=list(segments)))
        self._send(CloseSeq(seq=seq))
        return seq

    def release(self, slot: Slot) -> None:
        for seq in slot.helpers:
            self.routes.pop(seq, None)
        slot.helpers.clear()

    def drop(self, branches: Iterable[Branch]) -> None:
        """Take everything these branches have from the worker."""
        seqs: list[int] = []
        for branch in branches:
            for source in branch.sources():
                source.readers -= 1
            slots = [posted.slot for posted in branch.posted.values()] + [branch.slot]
            mine = [seq for slot in slots if slot for seq in slot.helpers]
            if branch.seq >= 0 and not branch.is_lost:
                mine.append(branch.seq)
            for seq in mine:
                self.routes.pop(seq, None)
            seqs += mine
            branch.posted.clear()
            branch.nodes.clear()
            branch.run.clear()
            branch.slot, branch.seq = None, -1
        if seqs:
            self._send(AbortSeqs(seqs=seqs))
