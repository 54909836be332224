"""What a client and the front say to each other, and the one place where bytes become messages.

Bytes become typed structs or nothing (msgspec, closed tagged unions).  One frame per message, at most 8 MiB; what is
longer is cut by the sender (`submissions`, `deliveries`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from nbsgl.engine.segments import FromWorker, ToWorker
from nbsgl.errors import NbsglError, RequestTooLarge
from nbsgl.errors import encode as encode_error
from nbsgl.protocol import AnyEvent, AnyNode, BranchFailed, ModelInfo, Text, Tokens

logger = logging.getLogger("nbsgl")

MAX_MESSAGE_BYTES = 8 << 20
PART_BYTES = 4 << 20  # long submissions are cut into messages of about this size
_PART_CHARS = PART_BYTES // 4  # a character takes at most four bytes


class Message(msgspec.Struct, frozen=True, tag=True, kw_only=True, forbid_unknown_fields=True):
    """One frame."""


# ---- client -> front -------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag=True, kw_only=True):
    """The first message of a client.  `launch` is the number it gave the front if it started it, else empty."""

    protocol: int
    version: str
    token: bytes
    pid: int
    key: str
    keep: float
    launch: str = ""


class Submit(Message, frozen=True, tag=True, kw_only=True):
    run: int
    nodes: list[AnyNode]


class Abort(Message, frozen=True, tag=True, kw_only=True):
    run: int
    branches: list[int] | None
    by: str


class CloseRun(Message, frozen=True, tag=True, kw_only=True):
    run: int


class Ack(Message, frozen=True, tag=True, kw_only=True):
    """All `Events` up to `seq` were taken."""

    seq: int


class AskFront(Message, frozen=True, tag=True, kw_only=True):
    """A question with an `Answer`: start, snapshot, peek, flush, health, status, log, restart, stop."""

    ask: int
    what: str
    args: dict[str, Any] = {}


class Bye(Message, frozen=True, tag=True, kw_only=True):
    """The client leaves; answered by `Farewell`."""


ToFront = Hello | Submit | Abort | CloseRun | Ack | AskFront | Bye


# ---- front -> client -------------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, tag=True, kw_only=True):
    """The answer to `Hello`.  `state` is the engine's; `info` and `worker` are there while a worker serves."""

    pid: int
    version: str
    state: str
    epoch: int
    info: ModelInfo | None = None
    worker: int | None = None


class Refused(Message, frozen=True, tag=True, kw_only=True):
    """The front does not take this client."""

    error: dict[str, Any]


class Starting(Message, frozen=True, tag=True, kw_only=True):
    """The worker is in a phase of its start."""

    epoch: int
    phase: str
    progress: float | None = None
    note: str = ""


class Serving(Message, frozen=True, tag=True, kw_only=True):
    """The worker of this epoch serves."""

    epoch: int
    worker: int
    info: ModelInfo


class Events(Message, frozen=True, tag=True, kw_only=True):
    """Events of one run, in order; `seq` counts these messages and is what a client acknowledges."""

    seq: int
    epoch: int
    run: int
    events: list[AnyEvent]


class Answer(Message, frozen=True, tag=True, kw_only=True):
    ask: int
    value: Any = None
    error: dict[str, Any] | None = None


class Lost(Message, frozen=True, tag=True, kw_only=True):
    """The worker of this epoch is gone, or did not start; unfinished branches are told by `Events`.

    `is_final`: the front itself ends now.
    """

    epoch: int
    error: dict[str, Any]
    is_final: bool = False


class Farewell(Message, frozen=True, tag=True, kw_only=True):
    """The answer to `Bye`; `is_ending`: no client is left and the engine ends at once."""

    is_ending: bool


class Probe(Message, frozen=True, tag=True, kw_only=True):
    """Nothing; sending it tells the front whether the client is still connected."""


ToClient = Welcome | Refused | Starting | Serving | Events | Answer | Lost | Farewell | Probe


# ---- bytes -----------------------------------------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()


def encode(message: Message | ToWorker | FromWorker) -> bytes:
    """One frame; `RequestTooLarge` above 8 MiB, where the receiver would cut the connection in silence."""
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise RequestTooLarge(what="message", n=len(data), limit=MAX_MESSAGE_BYTES, hint="Submit it in parts.")
    return data


def joined(messages: Iterable[bytes]) -> Iterator[bytes]:
    """Encoded messages to the worker in few frames, each a list of up to about PART_BYTES.

    A frame costs as much as its sending and receiving in Python, whatever is in it: 192 for a batch of 64 prompts took
    3 ms on either side.
    """
    part: list[bytes] = []
    size = 0
    for message in messages:
        if part and size + len(message) > PART_BYTES:
            yield _as_list(part)
            part, size = [], 0
        part.append(message)
        size += len(message)
    if part:
        yield _as_list(part)


def _as_list(messages: list[bytes]) -> bytes:
    """msgpack's array of 32-bit length: its items follow its head."""
    return b"".join((b"\xdd", len(messages).to_bytes(4, "big"), *messages))


class Decoder:
    """Frames of one direction; what is no message is counted in `num_bad` and dropped."""

    def __init__(self, kind: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self.num_bad = 0

    def __call__(self, frame: bytes | memoryview) -> Any:
        """The message, or None."""
        try:
            return self._decode(frame)
        except Exception as error:  # the only such place: not only DecodeError, also RecursionError and our own checks
            self.num_bad += 1
            if self.num_bad & (self.num_bad - 1) == 0:  # at powers of two: a flood does not fill the log
                logger.warning("bad message no. %d of %d bytes (%s)", self.num_bad, len(frame), type(error).__name__)
            return None


def submissions(run: int, nodes: Sequence[AnyNode]) -> Iterator[bytes]:
    """The frames that submit these nodes, each of about 4 MiB at most."""
    whole = _encoder.encode(Submit(run=run, nodes=list(nodes)))
    if len(whole) <= PART_BYTES:
        yield whole
        return
    part: list[AnyNode] = []
    size = 0
    for node in (piece for whole in nodes for piece in _pieces(whole)):
        num_bytes = _num_bytes(node)
        if part and size + num_bytes > PART_BYTES:
            yield encode(Submit(run=run, nodes=part))
            part, size = [], 0
        part.append(node)
        size += num_bytes
    if part:
        yield encode(Submit(run=run, nodes=part))


def _num_bytes(node: AnyNode) -> int:
    """What a node takes on the wire, roughly: exact where it can be large."""
    if isinstance(node, Text):
        return 4 * len(node.text) + 64
    if isinstance(node, Tokens):
        return len(node.ids) + 64
    return len(_encoder.encode(node))


def _pieces(node: AnyNode) -> Iterator[AnyNode]:
    """A long text or token run as several: how a run is cut changes no token."""
    if isinstance(node, Text) and len(node.text) > _PART_CHARS:
        for i in range(0, len(node.text), _PART_CHARS):
            yield msgspec.structs.replace(node, text=node.text[i : i + _PART_CHARS])
    elif isinstance(node, Tokens) and len(node.ids) > PART_BYTES:
        for i in range(0, len(node.ids), PART_BYTES):
            yield msgspec.structs.replace(node, ids=node.ids[i : i + PART_BYTES])
    else:
        yield node


def deliveries(events: list[AnyEvent]) -> Iterator[list[AnyEvent]]:
    """The same events in lists that fit a message each; one that is too large alone fails its branch."""
    if len(_encoder.encode(events)) <= PART_BYTES:
        yield events
        return
    if len(events) > 1:
        half = len(events) // 2
        yield from deliveries(events[:half])
        yield from deliveries(events[half:])
        return
    size = len(_encoder.encode(events))
    if size + 1024 <= MAX_MESSAGE_BYTES:
        yield events
        return
    error = RequestTooLarge(what="result", n=size, limit=MAX_MESSAGE_BYTES, hint="Ask for fewer log-probabilities.")
    slot = getattr(events[0], "slot", -1)
    yield [BranchFailed(branch=events[0].branch, slot=slot, error=encode_error(error))]


def failures(nodes: Iterable[AnyNode], error: NbsglError) -> list[AnyEvent]:
    """One failure per branch of these nodes, at its first slot if it has one."""
    slots: dict[int, int] = {}
    for node in nodes:
        slot = getattr(node, "slot", -1)
        if slots.get(node.branch, -1) < 0:
            slots[node.branch] = slot
    data = encode_error(error)
    return [BranchFailed(branch=branch, slot=slot, error=data) for branch, slot in slots.items()]
