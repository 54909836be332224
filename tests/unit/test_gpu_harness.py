"""The harness of the GPU tests, on a CPU: it gives right answers, and sees wrong ones."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nbsgl.engine.loader import LoadedModel
from tests.gpu.compare import assert_agree, assert_greedy, assert_scores, first_differences
from tests.gpu.harness import Answer, Ask, Server, load_model, make_model

VOCAB = 300
ON_CPU = {"device": "cpu", "dtype": "float32", "num_threads": 2, "num_slots": 3000, "max_running_requests": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "Qwen3", vocab=VOCAB, num_layers=2)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder, **ON_CPU)


def prompts(num: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [rng.choices(range(3, VOCAB), k=rng.randint(5, 60)) for _ in range(num)]


def test_alone_in_company_chunked_forked_and_retracted_are_the_same(loaded: LoadedModel) -> None:
    begin = prompts(1, seed=1)[0]
    asks = [Ask([*begin, *p], max_tokens=40, with_logprobs=True, fork_at=len(begin)) for p in prompts(8)]
    together = Server(loaded)
    answers = together.run(asks)
    assert together.scheduler.census() == []
    assert sum(answer.num_cached for answer in answers) >= 7 * len(begin)
    flat = [replace(ask, fork_at=0) for ask in asks]
    tight = Server(loaded, num_slots=200)
    runs = {
        "alone": [Server(loaded).run([ask])[0] for ask in flat],
        "chunked": Server(loaded, token_budget=16).run(flat),
        "streamed": Server(loaded).run(replace(ask, stream=True) for ask in flat),
        "retracted": tight.run(flat),
    }
    assert tight.scheduler.stats.retractions
    for name, others in runs.items():
        assert_agree(name, loaded, flat, answers, others, max_gap=1e-3)
        for one, other in zip(answers, others):
            assert len(other.logprobs) == 40
            if one.tokens == other.tokens:
                assert other.logprobs == pytest.approx(one.logprobs, abs=1e-3)


def test_scores_are_of_the_prompts_tokens(loaded: LoadedModel) -> None:
    ask = Ask(prompts(1)[0], max_tokens=5, with_logprobs=True)
    drawn = Server(loaded).run([ask])[0]
    known = [*ask.prompt, *drawn.tokens]
    scores = Server(loaded).run([Ask(known, score_from=len(ask.prompt))])[0].scores
    assert scores == pytest.approx(drawn.logprobs, abs=1e-4)


def test_a_wrong_token_is_seen(loaded: LoadedModel) -> None:
    asks = [Ask(p, max_tokens=6) for p in prompts(3)]
    right = Server(loaded).run(asks)
    wrong = [Answer(list(answer.tokens)) for answer in right]
    wrong[1].tokens[3] = (wrong[1].tokens[3] + 1) % VOCAB
    found = first_differences(loaded, asks, right, wrong)
    assert [(d.ask, d.at) for d in found] == [(1, 3)]
    assert found[0].tokens == (right[1].tokens[3], wrong[1].tokens[3])
    with pytest.raises(AssertionError, match="more than a near tie"):
        assert_agree("wrong", loaded, asks, right, wrong, max_gap=found[0].gap / 2)


def test_answers_are_judged_token_by_token(loaded: LoadedModel) -> None:
    asks = [Ask(p, max_tokens=20, with_logprobs=True, fork_at=3) for p in prompts(3)]
    right = Server(loaded).run(asks)
    assert_greedy("right", loaded, asks, right, max_gap=1e-3)
    assert_scores("right", loaded, asks, right, max_mean=1e-3)
    wrong = [Answer(list(answer.tokens), list(answer.logprobs)) for answer in right]
    wrong[2].tokens[7] = (wrong[2].tokens[7] + 1) % VOCAB
    with pytest.raises(AssertionError, match=r"\(ask, at, gap\): .*\(2, 7, "):
        assert_greedy("a token is not the best", loaded, asks, wrong, max_gap=0.01)
    other = [replace(ask, prompt=[*ask.prompt[:-1], 5]) if i == 1 else ask for i, ask in enumerate(asks)]
    with pytest.raises(AssertionError, match=r"1 answers were drawn from something else, \(ask, mean\): \[\(1,"):
        assert_scores("another prompt", loaded, other, right)


def test_scores_of_a_fork_begin_where_they_do_without(loaded: LoadedModel) -> None:
    ask = Ask(prompts(1)[0], score_from=4, with_best=True)
    flat, forked = Server(loaded).run([ask])[0], Server(loaded).run([replace(ask, fork_at=3)])[0]
    assert len(flat.scores) == len(flat.bests) == len(ask.prompt) - 4
    assert forked.scores == pytest.approx(flat.scores, abs=1e-3)
    assert forked.bests == pytest.approx(flat.bests, abs=1e-3)
    assert all(best >= score for best, score in zip(flat.bests, flat.scores))


def test_what_is_aborted_says_nothing_more(loaded: LoadedModel) -> None:
    server = Server(loaded)
    first, second = server.submit([Ask(p, max_tokens=8) for p in prompts(2)])
    server.scheduler.step()
    server.abort([first])
    while server.scheduler.has_work:
        server.scheduler.step()
    assert first not in server.answers
    assert len(server.answers[second].tokens) == 8
    assert server.answers[second].is_done


def test_a_hang_ends_the_process_and_is_named() -> None:
    code = """
import time
from tests.gpu.hang_guard import HangGuard
def works(guard):
    for _ in range(12):
        time.sleep(0.1)
        guard.beat()
def hangs():
    time.sleep(60)
with HangGuard(0.6) as guard:
    works(guard)
    print("worked", flush=True)
    hangs()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (found.returncode, found.stdout) == (1, "worked\n")
    assert "hangs" in found.stderr
    assert "works" not in found.stderr
