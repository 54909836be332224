"""The front's text room: what waits for a worker, and what of an older one is dropped."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from nbsgl.engine import text_room, wire
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.segments import Extend, Sampled, ToWorker, Update
from nbsgl.engine.templates import RoleFormats
from nbsgl.engine.text_room import EventsOf, Outputs, TextRoom
from nbsgl.errors import EngineDied, EngineStartFailed, NbsglError
from nbsgl.protocol import BranchFailed, Close, Finish, Gen, GenDone, Root, SamplingParams, Tokens, pack_ids
from tests.unit.ready import READY


class Room:
    """A text room whose orders are carried out here and now."""

    def __init__(self, **settings: object) -> None:
        self.failed: list[NbsglError] = []
        self.frames: list[tuple[int, object]] = []
        self.events: list[EventsOf] = []
        self.lost: list[NbsglError] = []
        outputs = Outputs(
            output=self._output,
            ready=lambda epoch, info: None,
            failed=lambda epoch, error: self.failed.append(error),
            lost=lambda epoch, error: self.lost.append(error),
        )
        self.room = TextRoom(EngineConfig.of(**{"skip_tokenizer_init": True, **settings}), outputs)

    def _output(self, epoch: int, frames: list[bytes], events: list[EventsOf]) -> None:
        decode = msgspec.msgpack.Decoder(list[ToWorker]).decode
        self.frames += [(epoch, message) for frame in frames for message in decode(frame)]
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


def seeds(random_seed: int | None) -> list[int | None]:
    """The seeds of ten runs that name none."""
    room = Room(random_seed=random_seed)
    room.room.worker_ready(1, READY)
    for run in range(10):
        room.submit(run)
    posted = [message for _, message in room.frames if isinstance(message, Extend)]
    return [part.params.seed for message in posted for part in message.segments if isinstance(part, Sampled)]


def test_random_seed_draws_the_runs_seeds() -> None:
    assert len(set(seeds(7))) == 10
    assert seeds(7) == seeds(7)
    assert seeds(7) != seeds(8)
    assert seeds(None) != seeds(None)


def read_texts(monkeypatch: pytest.MonkeyPatch, codec: object, formats: object) -> Room:
    room = Room(skip_tokenizer_init=False)
    monkeypatch.setattr(text_room.TextCodec, "load", lambda folder: codec)
    monkeypatch.setattr(text_room, "role_formats", lambda folder, template: formats)
    room.room.worker_ready(1, msgspec.structs.replace(READY, folder="/model"))
    room.work()
    return room


@pytest.mark.parametrize(
    ("writes_bos", "start_ids", "bos_id", "begins_with"),
    [(True, (), 1, (1,)), (False, (), 1, ()), (True, (5, 6), 1, (5, 6)), (True, (), None, ())],
)
def test_a_bos_that_only_the_template_writes_begins_each_sequence(
    monkeypatch: pytest.MonkeyPatch,
    writes_bos: bool,
    start_ids: tuple[int, ...],
    bos_id: int | None,
    begins_with: tuple[int, ...],
) -> None:
    codec = SimpleNamespace(start_ids=start_ids, bos_id=bos_id)
    read_texts(monkeypatch, codec, RoleFormats({}, None, "model", writes_bos=writes_bos))
    assert codec.start_ids == begins_with


def test_texts_that_cannot_be_read_are_a_failed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken in a way that no check foresaw: the front lives and says so."""
    codec = SimpleNamespace(start_ids=(), bos_id=None)
    room = read_texts(monkeypatch, codec, SimpleNamespace())  # no formats at all
    [error] = room.failed
    assert isinstance(error, EngineStartFailed)
    assert (error.stage, error.reason) == ("texts", "AttributeError in /model")


def test_a_fault_of_ours_ends_the_whole_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the run had submitted before is answered as well."""
    room = Room()
    room.room.worker_ready(1, READY)
    room.submit(1)
    room.submit(2)
    graph = room.room._graph
    assert graph is not None

    def broken(*args: object) -> None:
        raise AssertionError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(graph, "submit", broken)
        room.room.submit(1, 1, [Root(branch=3), Gen(branch=3, slot=9, params=SamplingParams())])
        room.work()
    events = [event for _, run, events in room.events if run == 1 for event in events]
    assert sorted((event.branch, event.slot) for event in events) == [(0, 7), (3, 9)]
    assert all(isinstance(event, BranchFailed) for event in events)
    assert [run for _, run, _ in room.events if run == 2] == []
