from __future__ import annotations

import random
import tracemalloc

import msgspec
import pytest

from nbsgl.engine import wire
from nbsgl.engine.credit import WINDOW, Outbox
from nbsgl.engine.segments import CloseSeq, ToWorker
from nbsgl.errors import Aborted, RequestTooLarge
from nbsgl.protocol import (
    BranchFailed,
    Chunk,
    Finish,
    Gen,
    GenDone,
    GenResult,
    Root,
    SamplingParams,
    Text,
    Tokens,
    pack_ids,
)


def chunk(branch: int, text: str, slot: int = 0) -> Chunk:
    return Chunk(branch=branch, slot=slot, text=text, ids=pack_ids(range(len(text))))


def done(branch: int, text: str = "") -> GenDone:
    result = GenResult(
        text=text, ids=b"", finish=Finish(type="stop"), prompt_tokens=1, cached_tokens=0, completion_tokens=0
    )
    return GenDone(branch=branch, slot=0, results=[result])


MESSAGES = [
    wire.Hello(protocol=1, version="0", token=b"t" * 32, pid=1, key="k", keep=1.0),
    wire.Submit(run=1, nodes=[Root(branch=0), Gen(branch=0, slot=0, params=SamplingParams())]),
    wire.Abort(run=1, branches=[1, 2], by="x"),
    wire.CloseRun(run=1),
    wire.Ack(seq=3),
    wire.AskFront(ask=1, what="status", args={"a": [1, {"b": None}]}),
    wire.Bye(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_wire(message: wire.Message) -> None:
    assert wire.Decoder(wire.ToFront)(wire.encode(message)) == message


def test_fuzz_wire() -> None:
    """Random and mutated messages are a message or nothing, and nothing stays behind."""
    rng = random.Random(7)
    decode = wire.Decoder(wire.ToFront)
    frames = [wire.encode(message) for message in MESSAGES]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for i in range(20_000):
        if i % 2:
            frame = rng.randbytes(rng.randrange(0, 64))
        else:
            mutated = bytearray(rng.choice(frames))
            for _ in range(rng.randrange(1, 4)):
                mutated[rng.randrange(len(mutated))] = rng.randrange(256)
            frame = bytes(mutated[: rng.randrange(1, len(mutated) + 1)])
        message = decode(frame)
        assert message is None or isinstance(message, wire.Message)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert decode.num_bad > 10_000
    assert after - before < 10 << 20


@pytest.mark.parametrize("tail", [b"\x91" * 100_000 + b"\x00", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_nesting_and_forged_lengths(tail: bytes) -> None:
    decode = wire.Decoder(wire.ToFront)
    frame = wire.encode(wire.AskFront(ask=1, what="x", args={"a": 0}))
    assert decode(frame[:-1] + tail) is None
    assert decode.num_bad == 1


def test_unknown_fields_are_refused() -> None:
    decode = wire.Decoder(wire.ToFront)
    assert decode(msgspec.msgpack.encode({"type": "Bye", "more": 1})) is None
    assert decode(msgspec.msgpack.encode({"type": "os.system"})) is None


def test_oversize_raises_at_sender() -> None:
    with pytest.raises(RequestTooLarge) as caught:
        wire.encode(wire.AskFront(ask=1, what="x" * (9 << 20)))
    assert caught.value.limit == wire.MAX_MESSAGE_BYTES


def test_long_submissions_travel_in_parts() -> None:
    text = "é" * (9 << 20)
    ids = pack_ids(range(3 << 20))
    nodes = [Root(branch=0), Text(branch=0, text=text, parse_special=True), Tokens(branch=0, ids=ids)]
    frames = list(wire.submissions(5, nodes))
    assert all(len(frame) <= wire.PART_BYTES + 1024 for frame in frames)
    back = [node for frame in frames for node in wire.Decoder(wire.ToFront)(frame).nodes]
    assert back[0] == Root(branch=0)
    assert "".join(node.text for node in back if isinstance(node, Text)) == text
    assert b"".join(node.ids for node in back if isinstance(node, Tokens)) == ids
    assert all(node.parse_special for node in back if isinstance(node, Text))


def test_a_result_too_large_fails_its_branch() -> None:
    small, large = done(1, "a"), done(2, "b" * (9 << 20))
    parts = list(wire.deliveries([small, large]))
    assert parts[0] == [small]
    failed = parts[1][0]
    assert isinstance(failed, BranchFailed)
    assert (failed.branch, failed.slot, failed.error["cls"]) == (2, 0, "RequestTooLarge")


def test_failures_name_the_first_slot_of_each_branch() -> None:
    nodes = [Root(branch=0), Gen(branch=0, slot=4, params=SamplingParams()), Root(branch=1)]
    failures = wire.failures([*nodes, Gen(branch=0, slot=5, params=SamplingParams())], Aborted(by="x"))
    assert [(f.branch, f.slot) for f in failures] == [(0, 4), (1, -1)]


# ---- credit ----------------------------------------------------------------------------------------------------------


def test_events_pass_unmerged_with_credit() -> None:
    box = Outbox()
    box.add(1, [chunk(0, "a")])
    assert list(box.take()) == [(1, 1, [chunk(0, "a")])]
    box.add(1, [chunk(0, "b")])
    assert list(box.take()) == [(2, 1, [chunk(0, "b")])]
    assert box.num_merged == 0


def test_chunks_merge_without_credit_and_nothing_is_lost() -> None:
    box = Outbox(window=1)
    box.add(1, [chunk(0, "x")])
    assert len(list(box.take())) == 1
    for _ in range(1000):
        box.add(1, [chunk(0, "ab"), chunk(1, "c")])
    box.add(1, [done(0), chunk(1, "d")])
    assert list(box.take()) == []
    box.ack(1)
    [(seq, run, events)] = box.take()
    assert (seq, run, box.num_merged) == (2, 1, 1999)
    assert [type(event).__name__ for event in events] == ["Chunk", "Chunk", "GenDone"]
    assert isinstance(events[0], Chunk)
    assert isinstance(events[1], Chunk)
    assert events[0].text == "ab" * 1000
    assert len(events[0].ids) == 4 * 2000
    assert events[1].text == "c" * 1000 + "d"


def test_chunks_of_two_slots_stay_apart() -> None:
    box = Outbox(window=0)
    box.add(1, [chunk(0, "a", slot=0), done(0), chunk(0, "b", slot=1), chunk(0, "c", slot=1)])
    box.window = 1
    [(_, _, events)] = box.take()
    assert [getattr(event, "text", "") for event in events] == ["a", "", "bc"]


def test_credit_never_exceeds_the_window() -> None:
    rng = random.Random(3)
    box = Outbox()
    told: list[str] = []
    said: list[str] = []
    for i in range(5_000):
        said.append(f"{i},")
        box.add(i % 3, [chunk(0, said[-1])])
        told += [event.text for _, _, events in box.take() for event in events if isinstance(event, Chunk)]
        assert 0 <= box.sent - box.acked <= WINDOW
        if rng.random() < 0.01:
            box.ack(rng.randrange(box.sent + 10))
    box.ack(box.sent)
    while box.sent - box.acked < WINDOW and (more := list(box.take())):
        told += [event.text for _, _, events in more for event in events if isinstance(event, Chunk)]
        box.ack(box.sent)
    assert sorted("".join(told).split(",")) == sorted("".join(said).split(","))


def test_forged_acks_change_nothing() -> None:
    box = Outbox()
    box.ack(10)
    box.ack(-1)
    assert box.acked == 0


def test_messages_to_the_worker_travel_together_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [CloseSeq(seq=i) for i in range(70_000)]
    encoded = [wire.encode(message) for message in messages]
    decode = wire.Decoder(list[ToWorker])
    frames = list(wire.joined(encoded))
    assert len(frames) == 1
    assert decode(frames[0]) == messages
    monkeypatch.setattr(wire, "PART_BYTES", 10 * len(encoded[0]))
    frames = list(wire.joined(encoded[:95]))
    assert len(frames) == 10
    assert [message for frame in frames for message in decode(frame)] == messages[:95]
    assert list(wire.joined([])) == []
