"""The simulation on every commit: seeds, determinism, the drill that shows it can find bugs."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nbsgl.engine.radix_cache import Node
from nbsgl.engine.request import Sequence
from tests.sim.mutations import MUTATIONS
from tests.sim.simulation import Violation, World, simulate

ROOT = Path(__file__).parents[2]
SEEDS_THAT_FAILED = (4, 6, 12, 15)  # the corpus
DRILL_SEEDS, DRILL_STEPS = (36, 56, 34), 1000


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="nbsgl")


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_hundred_seeds(first: int) -> None:
    for seed in range(first, first + 10):
        simulate(seed, 1000)


def test_seeds_that_failed_once() -> None:
    for seed in SEEDS_THAT_FAILED:
        simulate(seed, 500)


def test_same_seed_same_trace_under_another_hash_seed() -> None:
    script = "from tests.sim.simulation import simulate; print(simulate(34, 300).trace.hexdigest())"
    traces = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        traces.add(done.stdout.strip())
    assert len(traces) == 1


def test_nothing_is_left_after_a_run() -> None:
    def count() -> int:
        gc.collect()
        return sum(type(thing) in (Sequence, Node) for thing in gc.get_objects())

    before = count()
    world = simulate(2, 300)
    world.scheduler.flush_cache()
    held = [world.scheduler.tree.root]
    assert count() - before <= len(held)


@pytest.mark.parametrize("name", MUTATIONS)
def test_planted_bugs_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch)
    with pytest.raises(Violation):
        _simulate_all(DRILL_SEEDS, DRILL_STEPS)


def _simulate_all(seeds: tuple[int, ...], steps: int) -> None:
    for seed in seeds:
        simulate(seed, steps)


@pytest.mark.parametrize("refused", range(1, 38, 2))
def test_nth_alloc_fails(refused: int) -> None:
    """S6: the n-th grant is refused; all ends right all the same."""
    world = World(34)
    world.config.rates.clear()
    calls, alloc = 0, world.scheduler.pool.alloc

    def failing(num_pages: int) -> list[int] | None:
        nonlocal calls
        calls += 1
        return None if calls == refused else alloc(num_pages)

    world.scheduler.pool.alloc = failing  # type: ignore[method-assign]
    for _ in range(60):
        world.step()
    world.drain()
    assert calls >= refused
