"""Judges answers of one way of computing by another, the reference: token ids and log-probabilities within rounding.

`tests/unit/test_gpu_harness.py` plants differences, which this file must find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nbsgl.engine.loader import LoadedModel
from tests.gpu.harness import Answer, Ask, Server

# What bfloat16 does to a log-probability of these models, which the reference computes in float32: a standard deviation
# of 0.0105 (16,384 tokens, four times as many far ones as a normal law has), so of 0.015 to the gap between two tokens;
# the largest gap seen is 0.059.  One wrong token among 15 to 200 moves an answer's mean by 0.05 to 0.25.
MAX_GAP = 0.1
MAX_MEAN = 0.025  # of an answer of at least 16 tokens; rounding alone gives 0.01


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two token lists differ, and the reference's log-probability of either token there."""

    ask: int
    at: int
    tokens: tuple[int, int]
    logprobs: tuple[float, float]

    @property
    def gap(self) -> float:
        return abs(self.logprobs[0] - self.logprobs[1])


def first_differences(
    reference: LoadedModel, asks: Sequence[Ask], some: Sequence[Answer], others: Sequence[Answer]
) -> list[Difference]:
    """Where the answers to the same asks differ first, judged by a reference that scores both continuations."""
    places, scored = [], []
    for i, (ask, one, other) in enumerate(zip(asks, some, others, strict=True)):
        assert len(one.tokens) == len(other.tokens) == ask.max_tokens, "every answer is as long as was asked"
        at = next((at for at, pair in enumerate(zip(one.tokens, other.tokens)) if pair[0] != pair[1]), None)
        if at is None:
            continue
        places.append((i, at, (one.tokens[at], other.tokens[at])))
        for token in places[-1][2]:
            known = [*ask.prompt, *one.tokens[:at], token]
            scored.append(Ask(known, score_from=len(known) - 1))
    values = [answer.scores[0] for answer in Server(reference).run(scored)]
    return [Difference(*place, (values[2 * n], values[2 * n + 1])) for n, place in enumerate(places)]


def assert_agree(
    name: str,
    reference: LoadedModel,
    asks: Sequence[Ask],
    some: Sequence[Answer],
    others: Sequence[Answer],
    *,
    max_gap: float = MAX_GAP,
) -> None:
    """Equal tokens, or at the first difference a near tie: beyond it the two histories are different questions."""
    differences = first_differences(reference, asks, some, others)
    total = sum(ask.max_tokens for ask in asks)
    common = total - sum(asks[d.ask].max_tokens - d.at for d in differences)
    worst = max((d.gap for d in differences), default=0.0)
    print(
        f"{name}: {len(asks) - len(differences)} of {len(asks)} answers equal, {common / total:.1%} of the tokens "
        f"before a difference; largest gap there {worst:.4f}"
    )
    wrong = [d for d in differences if d.gap > max_gap]
    assert not wrong, f"{name}: {len(wrong)} answers leave the reference by more than a near tie: {wrong[:4]}"


def scored_by(reference: LoadedModel, asks: Sequence[Ask], answers: Sequence[Answer]) -> list[Answer]:
    """`scores` and `bests` of the answers' tokens, each after what came before it."""
    known = [
        Ask([*ask.prompt, *answer.tokens], score_from=len(ask.prompt), with_best=True)
        for ask, answer in zip(asks, answers, strict=True)
    ]
    return Server(reference).run(known)


def assert_greedy(
    name: str, reference: LoadedModel, asks: Sequence[Ask], answers: Sequence[Answer], *, max_gap: float = MAX_GAP
) -> None:
    """Every token is, after what came before it, the reference's best or as good as that."""
    gaps = []
    for ask, answer, judged in zip(asks, answers, scored_by(reference, asks, answers), strict=True):
        assert len(answer.tokens) == len(judged.scores) == len(judged.bests) == ask.max_tokens
        gaps.append(torch.tensor(judged.bests) - torch.tensor(judged.scores))
    flat = torch.cat(gaps)
    print(
        f"{name}: {(flat == 0).float().mean():.2%} of {len(flat)} tokens are the reference's best; "
        f"largest gap {flat.max():.4f}"
    )
    wrong = [
        (i, at, gap[at].item()) for i, gap in enumerate(gaps) for at in (~(gap <= max_gap)).nonzero().flatten().tolist()
    ]
    assert not wrong, f"{name}: {len(wrong)} tokens are no near ties, (ask, at, gap): {wrong[:4]}"


def assert_scores(
    name: str, reference: LoadedModel, asks: Sequence[Ask], answers: Sequence[Answer], *, max_mean: float = MAX_MEAN
) -> None:
    """Every answer's own log-probabilities are those of the reference, in the mean."""
    found = []
    for answer, judged in zip(answers, scored_by(reference, asks, answers), strict=True):
        assert len(answer.logprobs) == len(answer.tokens) >= 16, "a mean of fewer says little"
        found.append(mean_difference(answer.logprobs, judged.scores))
    means, largest = zip(*found)
    mean = sum(means) / len(means)
    print(
        f"{name}: log-probabilities differ by {mean:.4f} in the mean, by {max(means):.4f} in the worst answer's, "
        f"at most by {max(largest):.3f}"
    )
    wrong = [(i, mean) for i, mean in enumerate(means) if not mean <= max_mean]
    assert not wrong, f"{name}: {len(wrong)} answers were drawn from something else, (ask, mean): {wrong[:4]}"


def mean_difference(some: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Mean and largest absolute difference."""
    found = (torch.tensor(some) - torch.tensor(others)).abs()
    return found.mean().item(), found.max().item()
