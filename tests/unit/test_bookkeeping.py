import subprocess
import sys

import pytest

from tests.sim.helpers import Engine, forced, greedy

PROMPT = tuple(range(10)) * 3


def test_bookkeeping_without_torch() -> None:
    script = (
        "import sys, nbsgl.engine.scheduler, nbsgl.engine.radix_cache, nbsgl.engine.kv_pool, nbsgl.engine.policy, "
        "nbsgl.engine.stop, nbsgl.engine.request, nbsgl.engine.census; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.fixture(name="engine")
def _engine() -> Engine:
    engine = Engine(strict=False)
    engine.add(1, forced(*PROMPT), greedy(20))
    engine.add(2, forced(*PROMPT[:7]), greedy(20))
    engine.steps(3)
    assert engine.scheduler.census() == []
    return engine


def test_census_finds_planted_leaks(engine: Engine) -> None:
    engine.scheduler.pool.alloc(2)
    assert [finding[:2] for finding in engine.scheduler.census()] == ["I1"]


def test_census_finds_a_forgotten_lock(engine: Engine) -> None:
    engine.scheduler.tree.lock(engine.scheduler.seqs[1].node)  # type: ignore[arg-type]
    assert any(finding.startswith("I4") for finding in engine.scheduler.census())


def test_census_finds_a_waiting_sequence_that_holds_slots(engine: Engine) -> None:
    seq = engine.scheduler.seqs[1]
    engine.scheduler.waiting[1] = engine.scheduler.running.pop(1)
    assert any(finding.startswith("I7") for finding in engine.scheduler.census())
    assert seq.slots


def test_leak_is_repaired(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    leaked = engine.scheduler.pool.alloc(2)
    assert leaked
    assert engine.scheduler.repair() == 2
    assert engine.scheduler.census() == []
    assert engine.scheduler.snapshot()["slots_quarantined"] == 2
    assert str(sorted(leaked)) in caplog.text
    engine.run()
    assert len(engine.ids(1, 1)) == len(engine.ids(2, 1)) == 20


@pytest.mark.parametrize("overlap", [False, True])
def test_a_slot_held_twice_ends_those_on_it_and_no_others(overlap: bool) -> None:
    engine = Engine(strict=False, overlap=overlap)
    engine.add(1, forced(*PROMPT), greedy(20))
    engine.add(2, forced(*PROMPT[:7]), greedy(20))
    engine.steps(3)
    undisturbed = Engine()
    undisturbed.add(2, forced(*PROMPT[:7]), greedy(20))
    undisturbed.run()
    first = engine.scheduler.seqs[1]
    engine.scheduler.pool.free(first.slots[first.cached_len :])
    engine.scheduler.repair()
    assert engine.scheduler.census() == []
    engine.run()
    assert engine.error(1) == "EngineError"
    assert engine.ids(2, 1) == undisturbed.ids(2, 1)
