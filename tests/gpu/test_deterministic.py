"""Deterministic mode: tokens and log-probabilities do not depend on what else is computed, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nbsgl.engine.loader import LoadedModel
from nbsgl.errors import ParameterError
from tests.gpu.compare import assert_scores
from tests.gpu.harness import ON_CARD, ON_CPU, Answer, Ask, Server, load_model, load_reference, make_model

pytestmark = ON_CARD

VOCAB = 2000
NUM, LENGTH, PROMPT, LONG = (8, 20, 60, 100) if ON_CPU else (64, 48, 300, 1200)
NUM_ALONE = 3 if ON_CPU else 10
NUM_SHORT, GROWN, TIGHT_SLOTS = (12, 40, 200) if ON_CPU else (40, 160, 2000)  # what begins cannot all end
TOLERANCE = 1e-3 if ON_CPU else 0.0  # a CPU has no such mode; it only tries this file


@pytest.fixture(scope="module", params=["Llama", "Qwen3"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = make_model(tmp_path_factory.mktemp(request.param), request.param, vocab=VOCAB)
    return load_model(folder, deterministic=True)


@pytest.fixture(scope="module")
def together(loaded: LoadedModel) -> list[Answer]:
    return Server(loaded).run(questions())


def questions() -> list[Ask]:
    """Greedy, sampled and filtered draws by turns; the last prompt is long."""
    rng = random.Random(0)
    draws: list[dict[str, Any]] = [{}, {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9}]
    lengths = [*(rng.randint(5, PROMPT) for _ in range(NUM - 1)), LONG]
    return [
        Ask(rng.choices(range(VOCAB), k=length), max_tokens=LENGTH, seed=i, with_logprobs=True, **draws[i % len(draws)])
        for i, length in enumerate(lengths)
    ]


def assert_same(some: Sequence[Answer], others: Sequence[Answer]) -> None:
    """Equal tokens, equal log-probabilities of them and of the prompts."""
    for one, other in zip(some, others, strict=True):
        assert other.tokens == one.tokens
        assert other.logprobs == pytest.approx(one.logprobs, abs=TOLERANCE, rel=0)
        assert other.scores == pytest.approx(one.scores, abs=TOLERANCE, rel=0)


def test_alone_as_in_a_batch(loaded: LoadedModel, together: list[Answer]) -> None:
    asks = questions()[-NUM_ALONE:]
    assert_same(together[-NUM_ALONE:], [Server(loaded).run([ask])[0] for ask in asks])


def test_in_another_order_and_fewer_at_once(loaded: LoadedModel, together: list[Answer]) -> None:
    order = random.Random(2).sample(range(NUM), NUM)
    asks = [questions()[i] for i in order]
    expected = [together[i] for i in order]
    assert_same(expected, Server(loaded).run(asks))
    assert_same(expected, Server(loaded, max_running=7).run(asks))
    assert_same(expected, Server(loaded, overlap=False).run(asks))


@pytest.mark.parametrize("budget", [40, 333])
def test_in_other_chunks(loaded: LoadedModel, together: list[Answer], budget: int) -> None:
    assert_same(together, Server(loaded, token_budget=budget).run(questions()))


def test_cached_or_not(loaded: LoadedModel, together: list[Answer]) -> None:
    server = Server(loaded)
    assert_same(together, server.run(questions()))
    cached = server.run(questions())
    assert all(answer.num_cached for answer in cached)
    assert_same(together, cached)
    assert_same(together, Server(loaded, disable_radix_cache=True).run(questions()))


def test_retracted_and_computed_anew(loaded: LoadedModel) -> None:
    rng = random.Random(1)
    asks = [
        Ask(rng.choices(range(VOCAB), k=rng.randint(5, 15)), max_tokens=GROWN, seed=i, with_logprobs=True)
        for i in range(NUM_SHORT)
    ]
    tight = Server(loaded, num_slots=TIGHT_SLOTS)
    answers = tight.run(asks)
    assert tight.scheduler.stats.retractions, "the pool was not tight"
    assert_same(Server(loaded).run(asks), answers)


def test_scores_of_prompts(loaded: LoadedModel) -> None:
    asks = [Ask(ask.prompt, score_from=1) for ask in questions()]
    server = Server(loaded)
    expected = server.run(asks)
    assert [len(answer.scores) for answer in expected] == [len(ask.prompt) - 1 for ask in asks]
    assert_same(expected, server.run(asks))
    assert_same(expected, Server(loaded, token_budget=100).run(asks))
    assert_same(expected[-3:], [Server(loaded).run([ask])[0] for ask in asks[-3:]])


def test_it_is_still_the_model(loaded: LoadedModel, together: list[Answer]) -> None:
    reference = load_reference(loaded.folder)
    assert_scores("deterministic and torch", reference, questions(), together)


@pytest.mark.skipif(ON_CPU, reason="a CPU has no such mode")
def test_other_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="attention_backend"):
        load_model(make_model(tmp_path, "Llama"), deterministic=True, attention_backend="flashinfer")
