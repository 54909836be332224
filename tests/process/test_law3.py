"""No token is computed twice: what programs computed is what the tree holds afterwards, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import nbsgl as sgl
from nbsgl.bench import programs
from nbsgl.engine.handle import Engine

pytestmark = pytest.mark.process


@pytest.fixture
def engine(home: Path) -> Iterator[Engine]:
    engine = Engine(keep=0, num_slots=16_384, num_threads=1)
    yield engine
    engine.stop(force=True)


@sgl.function
def talk(s, topic):
    """A select behind a gen, and forks that share a few tokens only."""
    s += "Talk about " + topic + ": " + sgl.gen("first", max_tokens=6, ignore_eos=True)
    s += sgl.select("mood", choices=[" fine", " fair", " bad"])
    forks = s.fork(3)
    for fork, what in zip(forks, ("it", "them", "us"), strict=True):
        fork += f"A word on {what}: " + sgl.gen("word", max_tokens=3, ignore_eos=True)
    return list(forks)


NUM_GENS = {"select": 0, "judge": 5, "chain": 2 * programs.STEPS, "json": 1, "talk": 4}
NUM_CHOICES = {"select": len(programs.CHOICES), "talk": 3}


def test_all_that_was_computed_is_in_the_tree_once(engine: Engine) -> None:
    """A run's first token is drawn from an extend's logits, each further one from those of a decode.

    Twice computed is only the token before the choices of a select, for each choice's first logits.  Drafts of forced
    text count as far as they were drawn so.
    """
    for name, program in {**programs.programs(sgl), "talk": talk}.items():
        topics = [{"topic": topic} for topic in ("tea", "time", "the sea")]
        given = topics if name == "talk" else programs.arguments(name, "tiny")
        if name == "json":  # a prompt's last token is computed again where the grammar was not there yet
            program.run(name="the warmest one", backend=engine).sync()
        before = engine.snapshot()
        for state in program.run_batch(given, backend=engine, temperature=0):
            for branch in (state, *(state.ret_value or ())):
                branch.sync()
        after = engine.snapshot()
        extended = after.prefill_tokens_computed - before.prefill_tokens_computed
        decoded = after.decode_tokens - before.decode_tokens - NUM_GENS[name] * len(given)
        held = after.slots_in_tree - before.slots_in_tree
        again = (NUM_CHOICES.get(name, 1) - 1) * len(given)
        assert extended + decoded == held + again, name
