"""The page table and the cache on the device against what the scheduler means, under random load.

At every launch: each row of the step reads the slots of its sequence.  Now and then: K and V in the slots of running
sequences and of cached prefixes are those of the same tokens computed afresh.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from nbsgl.engine.batch import Batch, Launched, Row
from nbsgl.engine.loader import LoadedModel
from nbsgl.engine.scheduler import Scheduler
from tests.gpu.harness import CONTEXT, FLASHINFER, ON_CARD, ON_CPU, Server, load_model, load_reference, make_model
from tests.gpu.random_load import RandomLoad

pytestmark = ON_CARD

VOCAB = 2000
NUM_STEPS, EVERY, NUM_LOOKS = (160, 50, 6) if ON_CPU else (900, 60, 12)
ON_A_CPU, ON_A_CARD = (16, 30, 80, 150), (96, 150, 250, 1300)  # in flight; most tokens of prompts, answers, long ones
LOAD = dict(zip(("in_flight", "prompt", "answer", "long"), ON_A_CPU if ON_CPU else ON_A_CARD))
NUM_SLOTS = 448 if ON_CPU else 8_000
# |K - K'| / |K'| of a token and layer.  bfloat16 against float32 makes at most 0.05, another token's K 1 or more.
MAX_ERROR = 0.15


class WatchedRunner:
    """The model's runner; after each launch the page table on the device must say what the scheduler says."""

    def __init__(self, runner: Any) -> None:
        self.runner, self.has_device_grammars = runner, runner.has_device_grammars
        self.scheduler: Scheduler | None = None
        self.num_compared = 0  # positions

    def launch(self, batch: Batch) -> Launched:
        launched = self.runner.launch(batch)
        assert self.scheduler is not None
        owners = {seq.row: seq for seq in self.scheduler.running.values()}
        table = self.runner.cache.table[[row.row for row in batch.rows]].tolist()
        for row, line in zip(batch.rows, table):
            end = row.start + row.num_tokens
            assert line[:end] == owners[row.row].slots[:end].tolist(), f"step {batch.step}, row {row.row}"
            self.num_compared += end
        return launched

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("backend", [FLASHINFER, "triton"])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_table_and_cache_are_as_meant(
    tmp_path_factory: pytest.TempPathFactory, family: str, backend: str, page_size: int
) -> None:
    folder = make_model(tmp_path_factory.mktemp(family), family, vocab=VOCAB)
    loaded = load_model(folder, attention_backend=backend, page_size=page_size, num_slots=NUM_SLOTS)
    reference = load_reference(folder, num_slots=CONTEXT)
    watched = WatchedRunner(loaded.runner)
    server = Server(replace(loaded, runner=watched))
    watched.scheduler = server.scheduler
    load, rng = RandomLoad(server, seed=page_size, vocab=VOCAB, **LOAD), random.Random(0)
    errors = []
    while load.num_steps < NUM_STEPS:
        load.step()
        if load.num_steps % EVERY == 0:
            assert server.scheduler.census() == []
            for tokens, slots in held(server.scheduler, rng):
                errors.append(difference(loaded, reference, tokens, slots))
    load.drain()
    cache = loaded.runner.cache
    assert bool((cache.table[cache.padding_row] == cache.padding_slot).all()), "the padding's row was written to"
    print(f"{family}, {backend}, pages of {page_size}: {load.report()}")
    print(f"{watched.num_compared} positions; {len(errors)} paths, K and V differ by {max(errors):.4f} at most")
    assert watched.num_compared > 10_000
    assert server.scheduler.stats.retractions > 0
    assert len(errors) >= NUM_LOOKS
    assert max(errors) < MAX_ERROR


def held(scheduler: Scheduler, rng: random.Random) -> list[tuple[list[int], list[int]]]:
    """Tokens and slots of some running sequences, as far as settled, and of some paths of the tree."""
    found = []
    for seq in scheduler.running.values():
        if end := min(seq.settled_len, len(seq.tokens)):
            found.append((seq.tokens[:end].tolist(), seq.slots[:end].tolist()))
    for leaf in scheduler.tree.nodes():
        if not leaf.children:
            path = list(leaf.path())[::-1]
            found.append(([t for node in path for t in node.key], [slot for node in path for slot in node.slots]))
    return rng.sample(found, min(NUM_LOOKS, len(found)))


def difference(loaded: LoadedModel, reference: LoadedModel, tokens: Sequence[int], slots: Sequence[int]) -> float:
    """The largest relative error of K or V of a token in a layer; infinite if one is not a number."""
    place, runner = range(len(tokens)), reference.runner
    runner.launch(Batch([Row(0, 0, len(tokens), list(tokens), 0, place)])).result()
    here, there = loaded.runner.cache.pool[:, :, list(slots)].float(), runner.cache.pool[:, :, list(place)].float()
    errors = (here - there).flatten(-2).norm(dim=-1) / there.flatten(-2).norm(dim=-1)
    return torch.nan_to_num(errors, nan=float("inf")).max().item()
