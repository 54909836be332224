"""The front's text room: what waits for a worker, and what of an older one is dropped."""

from __future__ import annotations

import msgspec

from nbsgl.engine import wire
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.segments import Extend, Ready, ToWorker, Update
from nbsgl.engine.text_room import EventsOf, Outputs, TextRoom
from nbsgl.errors import EngineDied, EngineStartFailed, NbsglError
from nbsgl.protocol import BranchFailed, Close, Finish, Gen, GenDone, Root, SamplingParams, Tokens, pack_ids

READY = Ready(
    context_length=100,
    vocab_size=50,
    num_slots=100,
    device="cpu",
    device_reason="",
    dtype="float32",
    num_parameters=0,
    eos_ids=[],
    load_s=0.0,
)


class Room:
    """A text room whose orders are carried out here and now."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, object]] = []
        self.events: list[EventsOf] = []
        self.lost: list[NbsglError] = []
        outputs = Outputs(
            output=self._output,
            ready=lambda epoch, info: None,
            failed=lambda epoch, error: None,
            lost=lambda epoch, error: self.lost.append(error),
        )
        self.room = TextRoom(EngineConfig.of(skip_tokenizer_init=True), outputs)

    def _output(self, epoch: int, frames: list[bytes], events: list[EventsOf]) -> None:
        decode = msgspec.msgpack.Decoder(ToWorker).decode
        self.frames += [(epoch, decode(frame)) for frame in frames]
        self.events += events

    def work(self) -> None:
        while not self.room._orders.empty():
            function, args = self.room._orders.get()
            function(*args)
            self.room._flush()

    def submit(self, run: int) -> None:
        gen = Gen(branch=0, slot=7, params=SamplingParams(max_tokens=1))
        nodes = [Root(branch=0), Tokens(branch=0, ids=pack_ids([1])), gen, Close(branch=0)]
        self.room.submit(1, run, nodes)
        self.work()

    def update(self, epoch: int, seq: int) -> None:
        done = Update(seq=seq, segment=1, ids=pack_ids([2]), done=True, finish=Finish(type="length", length=1))
        self.room.updates(epoch, [done])
        self.work()


def test_submissions_wait_for_the_first_worker() -> None:
    room = Room()
    room.submit(1)
    assert room.frames == []
    room.room.worker_ready(1, READY)
    room.work()
    assert any(isinstance(message, Extend) for _, message in room.frames)
    room.update(1, 0)
    [(client, run, [done])] = room.events
    assert (client, run) == (1, 1)
    assert isinstance(done, GenDone)


def test_updates_of_an_older_worker_are_dropped() -> None:
    room = Room()
    room.room.worker_ready(1, READY)
    room.submit(1)
    room.room.worker_died(1, EngineDied(process="worker", phase="serve", lost=0))
    room.work()
    room.update(1, 0)
    [(_, _, [failed])] = room.events
    assert isinstance(failed, BranchFailed)
    assert (failed.slot, failed.error["fields"]["lost"]) == (7, 1)
    room.submit(2)
    assert {epoch for epoch, message in room.frames if isinstance(message, Extend)} == {1, 2}
    room.update(1, 1)
    assert len(room.events) == 1
    room.update(2, 1)
    assert isinstance(room.events[1][2][0], GenDone)


def test_a_failed_start_ends_each_run_once() -> None:
    room = Room()
    room.submit(1)
    room.room.worker_died(1, EngineStartFailed(stage="load", reason="x"))
    room.work()
    assert [type(event) for _, _, events in room.events for event in events] == [BranchFailed]
    assert len(room.lost) == 1
    room.room.submit(1, 1, [Gen(branch=0, slot=8, params=SamplingParams())])  # the run goes on: the same answer
    room.work()
    assert [event.slot for _, _, events in room.events for event in events] == [7, 8]
    room.submit(2)
    room.room.worker_ready(2, READY)
    room.work()
    assert {epoch for epoch, _ in room.frames} == {2}


def test_all_messages_are_of_the_closed_unions() -> None:
    assert set(wire.ToFront.__args__).isdisjoint(wire.ToClient.__args__)
