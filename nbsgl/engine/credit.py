"""What a client is still to be told: at most `WINDOW` messages ahead of its last acknowledgement, the rest merged.

Without credit, chunks of a slot are joined, so what waits is bounded by the length of the outputs, and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator

from nbsgl.engine.wire import deliveries
from nbsgl.protocol import AnyEvent, Chunk, Logprobs

WINDOW = 256


class Joined:
    """Consecutive chunks of one slot as one."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunks = [chunk]

    def event(self) -> Chunk:
        first = self.chunks[0]
        if len(self.chunks) == 1:
            return first
        scored = [chunk.logprobs for chunk in self.chunks if chunk.logprobs is not None]
        logprobs = None
        if scored:
            logprobs = Logprobs(
                tokens=[one for part in scored for one in part.tokens], top=[one for part in scored for one in part.top]
            )
        return Chunk(
            branch=first.branch,
            slot=first.slot,
            text="".join(chunk.text for chunk in self.chunks),
            ids=b"".join(chunk.ids for chunk in self.chunks),
            logprobs=logprobs,
        )


class Pending:
    """Events of one run in order, neighbouring chunks of a branch's slot joined."""

    def __init__(self) -> None:
        self._items: list[AnyEvent | Joined] = []
        self._open: dict[int, Joined] = {}  # branch -> its last item, if that is a chunk

    def add(self, event: AnyEvent) -> bool:
        """True if it was joined to one that waits."""
        if not isinstance(event, Chunk):
            self._open.pop(event.branch, None)
            self._items.append(event)
            return False
        last = self._open.get(event.branch)
        if last is not None and last.chunks[0].slot == event.slot:
            last.chunks.append(event)
            return True
        self._open[event.branch] = joined = Joined(event)
        self._items.append(joined)
        return False

    def events(self) -> list[AnyEvent]:
        return [item.event() if isinstance(item, Joined) else item for item in self._items]


class Outbox:
    """One client's events; `sent` and `acked` count messages, and `sent - acked` never exceeds the window."""

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window
        self.sent = self.acked = self.num_merged = 0
        self._pending: dict[int, Pending] = {}
        self._parts: list[tuple[int, list[AnyEvent]]] = []

    def add(self, run: int, events: list[AnyEvent]) -> None:
        pending = self._pending.setdefault(run, Pending())
        self.num_merged += sum(map(pending.add, events))

    def ack(self, seq: int) -> None:
        """An old or forged number changes nothing."""
        if self.acked < seq <= self.sent:
            self.acked = seq

    def forget(self, run: int) -> None:
        self._pending.pop(run, None)

    def take(self) -> Iterator[tuple[int, int, list[AnyEvent]]]:
        """(seq, run, events) for as many messages as there is credit."""
        while self.sent - self.acked < self.window:
            if not self._parts:
                if not self._pending:
                    return
                run = next(iter(self._pending))
                self._parts = [(run, part) for part in deliveries(self._pending.pop(run).events())]
                continue
            run, part = self._parts.pop(0)
            self.sent += 1
            yield self.sent, run, part
