"""Greedy answers of every backend and every way of computing, in bfloat16, against the torch reference in float32.

64 prompts, 256 tokens each, on random models; what is printed (pytest -s) is the measured agreement.  Near ties are
frequent: a random model's best tokens lie 0.1 apart, rounding moves each by 0.01.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from nbsgl.engine.loader import LoadedModel
from nbsgl.errors import EngineStartFailed
from tests.gpu.compare import assert_agree, assert_greedy, assert_scores
from tests.gpu.harness import FLASHINFER, ON_CARD, ON_CPU, Answer, Ask, Server, load_model, load_reference, make_model

pytestmark = ON_CARD

VOCAB = 2000
NUM_SLOTS = 48_000
NUM, LENGTH, PROMPT = (6, 20, 60) if ON_CPU else (64, 256, 350)
NUM_LONG, LONG = (1, 130) if ON_CPU else (3, 1200)  # long enough to be attended without the cache
NUM_SHARING, SHARED = (10, 50) if ON_CPU else (224, 1000)  # enough to be attended as one prefix
FAMILIES = ("Llama", "Qwen3")
BACKENDS = (FLASHINFER, "triton")

Load = Callable[..., LoadedModel]
Reference = Callable[[str], LoadedModel]
Expected = Callable[[str], list[Answer]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make_model(tmp_path_factory.mktemp(family), family, vocab=VOCAB) for family in FAMILIES}


@pytest.fixture(scope="module")
def load_of(folders: dict[str, Path]) -> Load:
    """A model of a family with these settings, loaded once."""
    models: dict[tuple[Any, ...], LoadedModel] = {}

    def get(family: str, backend: str, **settings: Any) -> LoadedModel:
        key = (family, backend, *sorted(settings.items()))
        if key not in models:
            models[key] = load_model(folders[family], attention_backend=backend, num_slots=NUM_SLOTS, **settings)
        return models[key]

    return get


@pytest.fixture(scope="module")
def reference_of(folders: dict[str, Path]) -> Reference:
    return cache(lambda family: load_reference(folders[family], num_slots=NUM_SLOTS))


@pytest.fixture(scope="module")
def expected(reference_of: Reference) -> Expected:
    """The reference's answers to the questions of this file, computed once."""
    return cache(lambda family: Server(reference_of(family)).run(questions()))


def questions(*, with_logprobs: bool = False) -> list[Ask]:
    rng = random.Random(0)
    lengths = [rng.randint(5, PROMPT) for _ in range(NUM - NUM_LONG)] + [LONG + 37 * i for i in range(NUM_LONG)]
    prompts = [rng.choices(range(VOCAB), k=length) for length in lengths]
    return [Ask(prompt, max_tokens=LENGTH, with_logprobs=with_logprobs) for prompt in prompts]


def judge(name: str, reference: LoadedModel, asks: list[Ask], some: list[Answer], others: list[Answer]) -> None:
    """The same answers up to near ties, and behind those still the reference's best."""
    assert_agree(name, reference, asks, some, others)
    assert_greedy(name, reference, asks, others)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_backends_against_the_reference(
    load_of: Load, reference_of: Reference, expected: Expected, family: str, backend: str
) -> None:
    reference, loaded = reference_of(family), load_of(family, backend)
    assert ON_CPU or loaded.attention.startswith(backend)
    name = f"{family}, {backend}"
    judge(f"{name} and torch", reference, questions(), expected(family), Server(loaded).run(questions()))
    asks = questions(with_logprobs=True)
    assert_scores(name, reference, asks, Server(loaded).run(asks))


@pytest.mark.parametrize("backend", BACKENDS)
def test_graphs_against_kernel_by_kernel(
    load_of: Load, reference_of: Reference, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    loaded = load_of("Llama", backend)
    with_graphs = Server(loaded).run(questions())
    if not ON_CPU:
        assert loaded.runner.use_graphs
        assert len(loaded.runner.graphs) > 0
        monkeypatch.setattr(loaded.runner, "use_graphs", False)
    judge(
        f"{backend}, graphs or not",
        reference_of("Llama"),
        questions(),
        with_graphs,
        Server(loaded).run(questions()),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_cached_or_not(load_of: Load, reference_of: Reference, backend: str) -> None:
    reference, loaded = reference_of("Qwen3"), load_of("Qwen3", backend)
    server = Server(loaded)
    first, cached = server.run(questions()), server.run(questions())
    never = Server(loaded, disable_radix_cache=True).run(questions())
    assert [answer.num_cached for answer in cached] == [len(ask.prompt) - 1 for ask in questions()]
    assert all(answer.num_cached == 0 for answer in never)
    judge(f"{backend}, cached or not", reference, questions(), first, cached)
    judge(f"{backend}, no cache at all", reference, questions(), first, never)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at_once", [1, 6])
def test_few_or_many(load_of: Load, reference_of: Reference, family: str, at_once: int) -> None:
    """One token goes through own GEMVs, up to eight through one launch of attention a layer."""
    asks = questions()[-6:]
    loaded = load_of(family, "triton")
    many = Server(loaded).run(questions())[-6:]
    judge(
        f"{family}, {at_once} at once or {NUM}",
        reference_of(family),
        asks,
        many,
        Server(loaded, max_running=at_once).run(asks),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_pages_of_16(load_of: Load, reference_of: Reference, expected: Expected, backend: str) -> None:
    server = Server(load_of("Llama", backend, page_size=16))
    reference = reference_of("Llama")
    judge(f"{backend}, pages of 16", reference, questions(), expected("Llama"), server.run(questions()))
    cached = server.run(questions())
    assert all(0 <= len(ask.prompt) - 1 - answer.num_cached < 16 for ask, answer in zip(questions(), cached))
    judge(f"{backend}, cached pages of 16", reference, questions(), expected("Llama"), cached)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_that_share_a_prefix(
    load_of: Load, reference_of: Reference, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    loaded, rng = load_of("Llama", backend), random.Random(1)
    prefix = rng.choices(range(VOCAB), k=SHARED)
    tails = [rng.choices(range(VOCAB), k=rng.randint(1, 20)) for _ in range(NUM_SHARING)]
    asks = [Ask([*prefix, *tail], max_tokens=24, fork_at=SHARED, with_logprobs=True) for tail in tails]
    num_shared = []
    if not ON_CPU:
        chosen = loaded.runner._shared
        monkeypatch.setattr(loaded.runner, "_shared", lambda batch: num_shared.append(chosen(batch)) or num_shared[-1])
    answers = Server(loaded).run(asks)
    assert ON_CPU or any(num_shared), "no step attended to the prefix once"
    assert_scores(f"{backend}, {NUM_SHARING} with a shared prefix", reference_of("Llama"), asks, answers)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cache_in_fp8(load_of: Load, reference_of: Reference, family: str, backend: str) -> None:
    """e4m3 keeps 3 bits of a mantissa: log-probabilities move by 0.03 in the mean, by 0.05 in an answer's."""
    try:
        loaded = load_of(family, backend, kv_cache_dtype="fp8_e4m3")
    except EngineStartFailed as error:
        if error.stage != "attention":
            raise
        pytest.skip(str(error))  # kernels that are neither built ahead nor may be compiled here
    assert loaded.runner.cache.k[0].dtype == torch.float8_e4m3fn
    asks = [replace(ask, fork_at=len(ask.prompt) // 2) for ask in questions(with_logprobs=True)]
    answers = Server(loaded).run(asks)
    assert_scores(f"{family}, {backend}, e4m3 cache", reference_of(family), asks, answers, max_mean=0.1)
