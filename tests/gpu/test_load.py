"""Random load for a while, with a pool that is nearly always full (98 %): no leak, no wrong answer.

NBSGL_STRESS_S seconds (20) for each of three seeds.  A host that hangs is ended with its stacks (`hang_guard`).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.faulthandler import fault_handler_stderr_fd_key

from nbsgl.engine.admission import RoomEstimate
from nbsgl.engine.batch import Batch, Launched, StepOutOfMemory
from nbsgl.engine.loader import LoadedModel
from nbsgl.engine.request import Sequence
from tests.gpu.compare import MAX_MEAN, assert_agree, assert_greedy, assert_scores, mean_difference
from tests.gpu.hang_guard import HangGuard
from tests.gpu.harness import ON_CARD, ON_CPU, Answer, Ask, Server, load_model, load_reference, make_model
from tests.gpu.random_load import Kept, RandomLoad

STRESS_S = float(os.environ.get("NBSGL_STRESS_S", "4" if ON_CPU else "20"))
pytestmark = [*ON_CARD, pytest.mark.timeout(STRESS_S + 240, method="thread")]

VOCAB = 2000
HANG_S = 90.0  # without a token; the first steps compile kernels
ON_A_CPU, ON_A_CARD = (16, 40, 60, 150), (128, 150, 250, 1300)  # in flight; most tokens of prompts, answers, long ones
SIZES = dict(zip(("in_flight", "prompt", "answer", "long"), ON_A_CPU if ON_CPU else ON_A_CARD))
NUM_SLOTS = 608 if ON_CPU else 8_000
LEAK_BYTES = 4 << 20
HOST_LEAK_BYTES = 64 << 20
LOOK_EVERY = 20  # steps

HOG_S = 3.0
LEFT_BYTES = 32 << 20  # a step of 4,096 tokens takes 50 MB, one of 500 tokens 6 MB
HOG = """
import sys, time, torch
left, seconds = int(sys.argv[1]), float(sys.argv[2])
held, end = [], None
while end is None or time.monotonic() < end:
    free = torch.cuda.mem_get_info()[0] - left
    size = next((size for size in (1 << 30, 64 << 20, 2 << 20) if size <= free), 0)
    if size:
        try:
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            pass
    elif end is None:
        end = time.monotonic() + seconds
        print("full", flush=True)
    else:
        time.sleep(0.01)
"""


@pytest.fixture
def beat(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """To be called whenever something got forward."""
    with HangGuard(HANG_S, request.config.stash.get(fault_handler_stderr_fd_key, 2)) as guard:
        yield guard.beat


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "Llama", vocab=VOCAB)


@pytest.fixture(scope="module")
def reference(folder: Path) -> LoadedModel:
    return load_reference(folder)


@pytest.mark.parametrize(
    ("seed", "settings"), [(0, {}), (1, {"attention_backend": "triton"}), (2, {"page_size": 16})], ids=str
)
def test_random_load(
    folder: Path, reference: LoadedModel, beat: Callable[[], None], seed: int, settings: dict[str, Any]
) -> None:
    loaded = load_model(folder, num_slots=NUM_SLOTS, **settings)
    while loaded.runner.prepare_next():
        beat()
    server = Server(loaded)
    server.scheduler.room = NoForesight()
    load = RandomLoad(server, seed, vocab=VOCAB, on_step=beat, **SIZES)
    run_for(load, STRESS_S / 10)
    memory = Memory()
    run_for(load, STRESS_S * 9 / 10, memory.look)
    load.drain()
    print(f"seed {seed}, {loaded.attention}: {load.report()}; {memory.report()}")
    assert load.scheduler.stats.retractions > 10
    assert statistics.median(load.uses) >= 0.95
    assert_nothing_left(load)
    memory.assert_flat()
    assert_right(load, reference, loaded)


def test_another_process_takes_the_memory(folder: Path, reference: LoadedModel, beat: Callable[[], None]) -> None:
    """Steps for which there is no memory are tried again with fewer tokens; once there is some, budgets are full."""
    loaded = load_model(folder, num_slots=4 * NUM_SLOTS)
    squeezed = loaded if not ON_CPU else replace(loaded, runner=ScarceRunner(loaded.runner))
    load = RandomLoad(Server(squeezed), 3, vocab=VOCAB, on_step=beat, **{**SIZES, "in_flight": 2 * SIZES["in_flight"]})
    run_for(load, STRESS_S / 5)
    for _ in range(2):
        before = load.num_done
        with scarcity(squeezed, load):
            run_for(load, HOG_S)
        print(f"{load.num_done - before} answers without memory, budget {load.scheduler.budget.now}; {load.report()}")
        assert load.num_done > before
        for _ in range(300):
            load.step()
        assert load.scheduler.budget.now == load.scheduler.budget.full
    load.drain()
    assert_nothing_left(load)
    assert_right(load, reference, loaded)


# ---- the load's course ---------------------------------------------------------------------------------------------


class NoForesight(RoomEstimate):
    """Everybody is let in whose known tokens fit: the pool is full, and every few steps somebody is retracted."""

    def drawn_by(self, seq: Sequence) -> int:
        return 0


def run_for(load: RandomLoad, seconds: float, look: Callable[[], None] = lambda: None) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(LOOK_EVERY):
            load.step()
        look()


@contextmanager
def scarcity(loaded: LoadedModel, load: RandomLoad) -> Iterator[None]:
    """Meanwhile another process holds nearly all of the card's memory, what the allocator here had spare included."""
    if ON_CPU:
        loaded.runner.most_tokens = SIZES["long"] // 4
        yield
        loaded.runner.most_tokens = None
        return
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    hog = subprocess.Popen([sys.executable, "-c", HOG, str(LEFT_BYTES), "600"], stdout=subprocess.PIPE, text=True)
    try:
        assert hog.stdout is not None
        assert hog.stdout.readline() == "full\n"
        load.on_step()
        yield
        assert hog.poll() is None, "the other process gave up"
        print(f"{torch.cuda.mem_get_info()[0] >> 20} MB were free at the end")
    finally:
        hog.kill()
        hog.communicate()


class ScarceRunner:
    """Has no memory for steps of more than `most_tokens`: what tries this file on a CPU."""

    def __init__(self, runner: Any) -> None:
        self.runner, self.most_tokens = runner, None
        self.has_device_grammars = runner.has_device_grammars

    def launch(self, batch: Batch) -> Launched:
        if self.most_tokens is not None and batch.num_tokens > self.most_tokens:
            raise StepOutOfMemory("scarce")
        return self.runner.launch(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)


class Memory:
    """What this process holds on the card and on the host, looked at again and again.  Bytes."""

    def __init__(self) -> None:
        self.on_card: list[int] = []
        self.on_host: list[int] = []

    def look(self) -> None:
        self.on_card.append(torch.cuda.memory_allocated() if not ON_CPU else 0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.on_host.append(pages * os.sysconf("SC_PAGESIZE"))

    @property
    def growth(self) -> tuple[float, float]:
        """On the card from the first looks to the last; on the host, where libraries fill caches, from the middle."""
        tenth, middle = max(1, len(self.on_card) // 10), len(self.on_card) // 2
        card = statistics.median(self.on_card[-tenth:]) - statistics.median(self.on_card[:tenth])
        host = statistics.median(self.on_host[-tenth:]) - statistics.median(self.on_host[middle : middle + tenth])
        return card, host

    def report(self) -> str:
        card, host = (growth / 2**20 for growth in self.growth)
        return f"grew by {card:.1f} MB on the card, {host:.1f} MB on the host ({len(self.on_card)} looks)"

    def assert_flat(self) -> None:
        assert len(self.on_card) >= 10
        card, host = self.growth
        assert card <= LEAK_BYTES, self.report()
        assert host <= HOST_LEAK_BYTES, self.report()


# ---- what is left, and whether it was right ------------------------------------------------------------------------


def assert_nothing_left(load: RandomLoad) -> None:
    """Nobody holds anything; every slot is free or cached, and free once the cache is dropped."""
    scheduler = load.scheduler
    pool, tree = scheduler.pool, scheduler.tree
    assert scheduler.census() == []
    assert not scheduler.seqs
    assert (tree.num_locked, pool.num_free_rows) == (0, pool.num_rows)
    assert pool.num_free + tree.num_tokens == pool.num_slots
    scheduler.flush_cache()
    assert pool.num_free == pool.num_slots
    stats = scheduler.stats
    assert (stats.numerical_errors, stats.leaks_repaired) == (0, 0)


def assert_right(load: RandomLoad, reference: LoadedModel, loaded: LoadedModel) -> None:
    """A sample of the answers: what the same model says to one ask at a time, and what the reference's scores allow."""
    asks, answers = unzipped(load.greedy)
    plain = [replace(ask, fork_at=0, stream=False, with_logprobs=False) for ask in asks]
    alone = [Server(loaded).run([ask])[0] for ask in plain]
    assert_agree("under load and alone", reference, plain, answers, alone)
    assert_greedy("under load", reference, plain, answers)
    assert_scores("drawn under load", reference, *unzipped(load.with_logprobs))
    asks, answers = unzipped(load.scored)
    judged = Server(reference).run([replace(ask, fork_at=0) for ask in asks])
    means = [
        mean_difference(one.scores, other.scores)[0] for one, other in zip(answers, judged) if len(one.scores) >= 16
    ]
    assert means
    assert max(means) <= MAX_MEAN, "prompts were scored otherwise"


def unzipped(kept: Kept) -> tuple[list[Ask], list[Answer]]:
    assert kept.items, "the load was too short"
    asks, answers = zip(*kept.items)
    return list(asks), list(answers)
