"""Somebody reads along: what a step may compute beside decodes.  Times are those of a device that is only a clock."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from nbsgl.engine.batch import Batch, Launched, RowResult
from nbsgl.engine.pace import LEAST, MOST, Pace
from nbsgl.engine.scheduler import LAUNCH_S
from tests.sim.helpers import Engine, forced, greedy

LONG = 32_768
HOST_S = 1e-3  # to launch a step
CAPTURE_S = 0.5


class TimedRunner:
    """Runs the engine's batches one after the other, each for `cost` seconds; waiting for one moves the clock."""

    def __init__(self, engine: Engine, cost: Callable[[Batch], float]) -> None:
        self.engine, self.cost, self.runner = engine, cost, engine.runner
        self.free_at = 0.0
        self.has_device_grammars = self.runner.has_device_grammars

    def launch(self, batch: Batch) -> Launched:
        launched = self.runner.launch(batch)
        self.free_at = max(self.engine.now, self.free_at) + self.cost(batch)
        self.engine.now += HOST_S
        return TimedResult(self, launched, self.free_at)

    def forget(self) -> None:
        self.runner.forget()

    def prepare_next(self) -> bool:
        return False


class TimedResult:
    def __init__(self, runner: TimedRunner, launched: Launched, done_at: float) -> None:
        self.runner, self.launched, self.done_at = runner, launched, done_at

    def result(self) -> list[RowResult]:
        self.runner.engine.now = max(self.runner.engine.now, self.done_at)
        return self.launched.result()


def num_extended(batch: Batch) -> int:
    return sum(row.num_tokens for row in batch.rows if row.num_tokens > 1)


def cost_of(base: float) -> Callable[[Batch], float]:
    """`base` and 20 us a token, that is 40 us behind 32k tokens."""

    def cost(batch: Batch) -> float:
        chunks = (row for row in batch.rows if row.num_tokens > 1)
        return base + sum(row.num_tokens * 20e-6 * (1 + row.start / LONG) for row in chunks)

    return cost


class Bench:
    """An engine on a timed device: the times of sequence 1's tokens, and the known tokens of each step."""

    def __init__(self, cost: Callable[[Batch], float], **limits: Any) -> None:
        chosen = {"num_slots": 80_000, "token_budget": 8192, **limits}
        self.engine = Engine(context_length=70_000, strict=False, **chosen)
        self.engine.scheduler.runner = TimedRunner(self.engine, cost)
        self.chunks: list[int] = []
        self.engine.runner.watch = lambda batch: self.chunks.append(num_extended(batch))
        self.token_times: list[float] = []

    def step(self) -> None:
        before = len(self.engine.ids(1, 1))
        self.engine.steps(1)
        self.token_times += [self.engine.now] * (len(self.engine.ids(1, 1)) - before)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def prefill(self, seq: int, length: int = LONG, stream: bool = False) -> None:
        """Add a prompt and step until it has drawn a token; forgets what was recorded before."""
        self.chunks.clear()
        self.token_times = self.token_times[-1:]
        self.engine.add(seq, forced(*[seq % 14] * length), greedy(1, stream=stream))
        while not self.engine.ids(seq, 1):
            self.step()

    @property
    def longest_gap(self) -> float:
        return max(after - before for before, after in pairwise(self.token_times))


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("base", [6e-3, 15e-3])
def test_a_long_prompt_does_not_stall_a_stream_and_is_not_starved(base: float, overlap: bool) -> None:
    bench = Bench(cost_of(base), overlap=overlap)
    bench.engine.add(1, forced(1, 2, 3), greedy(1000, stream=True))
    bench.steps(20)
    bench.prefill(2)
    assert bench.longest_gap <= 3 * base
    chunks = [chunk for chunk in bench.chunks if chunk]
    assert sum(chunks) == LONG
    assert min(chunks[:-1]) >= LEAST


def test_the_pace_follows_the_cost_both_ways() -> None:
    bench = Bench(cost_of(15e-3), overlap=True)
    bench.engine.add(1, forced(1, 2, 3), greedy(1000, stream=True))
    bench.steps(20)
    bench.prefill(2)
    chunks = [chunk for chunk in bench.chunks if chunk]
    assert max(chunks) == 1120  # 1.5 * 15 ms / 20 us, in steps of 32
    assert chunks[-2] == 576  # the same at nearly 40 us
    bench.prefill(3)
    assert max(bench.chunks) == 1088


@pytest.mark.parametrize("overlap", [False, True])
def test_without_a_stream_the_budget_is_full(overlap: bool) -> None:
    bench = Bench(cost_of(6e-3), overlap=overlap)
    bench.engine.add(1, forced(1, 2, 3), greedy(1000))
    bench.steps(20)
    bench.prefill(2)
    assert [chunk for chunk in bench.chunks if chunk] == [8191, 8191, 8191, LONG - 3 * 8191]


def test_a_stream_that_does_not_draw_yet_holds_nothing_up() -> None:
    bench = Bench(cost_of(6e-3))
    bench.prefill(1, stream=True)
    assert bench.chunks == [8192] * 4


def test_prompts_let_in_beside_a_stream_obey_the_same_bound() -> None:
    bench = Bench(cost_of(6e-3), max_running=64)
    bench.engine.add(1, forced(1, 2, 3), greedy(1000, stream=True))
    bench.steps(20)
    for seq in range(2, 42):
        bench.engine.add(seq, forced(*[seq % 14, seq // 14] * 150), greedy(1))
    while bench.engine.scheduler.waiting:
        bench.step()
    assert bench.chunks[20] == 2 * LEAST  # nothing learnt yet
    assert max(bench.chunks) <= 512 + 512 // 16


def test_a_masked_stream_that_sits_out_a_step_is_not_forgotten() -> None:
    bench = Bench(cost_of(6e-3), overlap=True, max_running=16)
    bench.engine.add(1, forced(1, 2, 3), greedy(1000, stream=True, size=1000, ignore_eos=True, min_tokens=1000))
    for seq in range(2, 10):
        bench.engine.add(seq, forced(seq, 1), greedy(1000))
    bench.steps(20)
    assert 8 <= len(bench.token_times) <= 10
    bench.prefill(20)
    assert max(bench.chunks) < 1024


def test_first_launches_of_every_size_do_not_spoil_the_pace() -> None:
    seen: set[int] = set()
    steady = cost_of(15e-3)

    def cost(batch: Batch) -> float:
        is_new = batch.num_tokens not in seen
        seen.add(batch.num_tokens)
        return steady(batch) + (CAPTURE_S if is_new else 0)

    bench = Bench(cost)
    bench.engine.add(1, forced(1, 2, 3), greedy(1000, stream=True))
    bench.steps(20)
    bench.prefill(2)
    bench.prefill(3)
    assert max(bench.chunks) == 1088
    late = sum(after - before > 3 * 15e-3 for before, after in pairwise(bench.token_times))
    assert late <= 3  # new last chunks


@pytest.mark.parametrize("overlap", [False, True])
def test_the_pace_is_told_each_steps_own_time_and_no_idle_time(overlap: bool) -> None:
    bench = Bench(cost_of(6e-3), overlap=overlap)
    told: list[tuple[float, int, int]] = []
    bench.engine.scheduler.pace.saw = lambda *step: told.append(step)  # type: ignore[method-assign]
    for seq in (1, 2):
        bench.engine.add(seq, forced(*range(10), *range(5), seq), greedy(5))
        bench.engine.run()
        bench.engine.now += 100.0
    expected = [(6e-3 + 16 * 20e-6, 0, 16), *[(6e-3, 1, 0)] * 4]
    second = [(6e-3, 1, 0)] * 5  # its prompt is cached but for the last token
    assert [step[1:] for step in told] == [step[1:] for step in expected + second]
    assert [step[0] for step in told] == pytest.approx([step[0] for step in expected + second], rel=1e-3)


def test_the_snapshot_shows_the_budget_in_force() -> None:
    bench = Bench(cost_of(6e-3))
    snapshot = bench.engine.scheduler.snapshot
    assert snapshot()["counters"]["budget"] == 8192
    bench.engine.add(1, forced(1, 2, 3), greedy(40, stream=True))
    bench.steps(20)
    assert snapshot()["counters"]["budget"] == 1 + 2 * LEAST
    bench.engine.run()
    assert snapshot()["counters"]["budget"] == 8192


def learnt(alone: float, cost: float, *, decodes: int = 1) -> Pace:
    pace = Pace()
    for _ in range(8):
        pace.saw(alone, decodes, 0)
    for _ in range(3):
        pace.saw(alone + 512 * cost, decodes, 512)
    return pace


def test_the_bound_is_what_stretches_a_step_two_and_a_half_times() -> None:
    assert learnt(10e-3, 20e-6).limit(1) == 736  # 750, in quarters of the least
    assert learnt(1e-3, 20e-6).limit(1) == LEAST
    assert learnt(1.0, 20e-6).limit(1) == MOST
    assert Pace().limit(1) == 2 * LEAST


def test_no_single_time_moves_the_bound() -> None:
    for seconds, extended in ((10.0, 0), (1e-6, 0), (10.0, 512), (1e-6, 512)):
        pace = learnt(10e-3, 20e-6)
        pace.saw(seconds, 1, extended)
        assert pace.limit(1) == 736


def test_slow_first_steps_are_not_trusted_and_outweighed_at_once() -> None:
    pace = Pace()
    pace.saw(0.1, 0, 8192)
    pace.saw(5.0, 1, 0)
    assert pace.limit(1) == 2 * LEAST
    for seconds in (2.0, 10e-3, 10e-3):
        pace.saw(seconds, 1, 0)
    for seconds in (8.0, 6.0):
        pace.saw(seconds, 1, 512)
    assert pace.limit(1) == LEAST
    for _ in range(2):
        pace.saw(10e-3 + LEAST * 20e-6, 1, LEAST)
    assert pace.limit(1) == 736


def test_other_batch_sizes_have_times_of_their_own_and_unknown_ones_that_of_fewer() -> None:
    pace = learnt(10e-3, 20e-6, decodes=8)
    assert pace.limit(200) == 736
    assert pace.limit(1) == 2 * LEAST  # more decodes say nothing about fewer
    for _ in range(8):
        pace.saw(20e-3, 200, 0)
    assert (pace.limit(200), pace.limit(8)) == (1472, 736)


def test_a_few_known_tokens_teach_nothing() -> None:
    pace = learnt(10e-3, 20e-6)
    for _ in range(10):
        pace.saw(15e-3, 1, 8)
    assert pace.limit(1) == 736


def test_a_step_waits_for_arrivals_no_longer_than_the_device_has_work() -> None:
    bench = Bench(cost_of(6e-3), overlap=True, token_budget=4096)
    scheduler = bench.engine.scheduler
    bench.engine.add(1, forced(*[1] * 4096), greedy(50))
    bench.steps(1)
    assert scheduler.patience() == 0  # nothing is known of such steps
    bench.prefill(2, length=40_000)
    for seq in range(3, 5):
        bench.engine.add(seq, forced(*[seq] * 3000), greedy(2))
        bench.step()
        patience = scheduler.patience()
        device_s = scheduler.runner.free_at - bench.engine.now
        assert 0.4 * device_s < patience < device_s - LAUNCH_S
        bench.engine.now += patience  # as the worker does
        bench.engine.add(seq + 10, forced(*[seq] * 5000), greedy(1))
        assert scheduler.patience() == 0  # enough is there for the next one
        bench.steps(8)
    bench.steps(5)
    assert scheduler.flight is None or scheduler.patience() == 0  # a decode
    assert len(bench.engine.ids(13, 1)) == 1
