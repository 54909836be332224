"""Who waits for whom when sequences arrive together."""

import pytest

from nbsgl.engine.batch import Batch
from nbsgl.engine.bursts import HOLD_S
from tests.sim.helpers import Engine, forced, greedy


class Watched:
    """An engine that notes of each batch which sequences' rows decode and which extend."""

    def __init__(self, **limits: object) -> None:
        self.engine = Engine(token_budget=18, overlap=True, **limits)
        self.steps: list[tuple[int, int]] = []
        self.engine.runner.watch = self._note

    def _note(self, batch: Batch) -> None:
        extends = sum(row.num_tokens > 1 for row in batch.rows)
        self.steps.append((len(batch.rows) - extends, extends))

    def add(self, first: int, num: int, *, stream: bool = False) -> None:
        for seq in range(first, first + num):
            self.engine.add(seq, forced(*[seq] * 9), greedy(6, stream=stream))


def test_those_who_arrive_together_begin_to_decode_together() -> None:
    watched = Watched()
    watched.add(1, 6)
    watched.engine.run()
    assert watched.steps == [(0, 2)] * 3 + [(6, 0)] * 5
    assert all(len(watched.engine.ids(seq, 1)) == 6 for seq in range(1, 7))


def test_who_is_on_its_way_does_not_wait() -> None:
    watched = Watched()
    watched.add(1, 1)
    watched.engine.steps(3)
    watched.add(2, 4)
    watched.engine.steps(3)
    assert watched.steps == [(0, 1), (1, 0), (1, 0), (1, 2), (1, 2), (5, 0)]


@pytest.mark.parametrize("reason", ["a reader", "time"])
def test_nobody_waits_while_somebody_reads_along_or_for_long(reason: str) -> None:
    watched = Watched()
    watched.add(1, 2, stream=reason == "a reader")
    watched.engine.steps(1)
    if reason == "time":
        watched.engine.now += HOLD_S + 0.01
    watched.add(3, 2)
    watched.engine.steps(1)
    assert watched.steps == [(0, 2), (2, 2)]


def test_those_who_wait_go_on_when_nobody_else_can() -> None:
    """The pool has no slots for the other prompt."""
    watched = Watched(num_slots=32)
    watched.add(1, 3)
    watched.engine.add(4, forced(*range(20)), greedy(1))
    watched.engine.run()
    assert all(len(watched.engine.ids(seq, 1)) == 6 for seq in (1, 2, 3))
    assert len(watched.engine.ids(4, 1)) == 1


def test_news_waits_for_the_launch_that_a_device_without_work_needs_first() -> None:
    watched = Watched()
    watched.engine.add(1, forced(1, 2, 3), greedy(2), forced(4, 5), greedy(2))
    launched_at_news = []
    emit = watched.engine.updates.extend
    watched.engine.scheduler._emit = lambda updates: (launched_at_news.append(len(watched.steps)), emit(updates))
    watched.engine.run()
    assert watched.steps == [(0, 1), (1, 0), (0, 1), (1, 0)]
    assert launched_at_news == [2, 3, 4, 4]  # not 2 at the end of the first run
    assert [len(watched.engine.ids(1, segment)) for segment in (1, 3)] == [2, 2]
