"""The formulas of `select`: from the log-probabilities of each choice's tokens to one score per choice.

Used by the engine for the built-in methods and by the language for the results it hands to the user.  In all of them
`logprobs[i]` are the log-probabilities of choice i's tokens; None stands for "unknown" and is skipped in means.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from nbsgl.errors import UsageError

Row = Sequence[float | None]


def mean(row: Row) -> float:
    """The plain mean of the known values; 0.0 for a row without any.

    SGLang's frontend also skips values equal to 0.0 and divides by what is left; that is not kept.
    """
    known = [x for x in row if x is not None]
    return sum(known) / len(known) if known else 0.0


def token_length_normalized(logprobs: Sequence[Row], unconditional: Sequence[Row] | None = None) -> list[float]:
    """Score = mean log-probability of the choice's tokens."""
    return [mean(row) for row in logprobs]


def greedy_matrix(logprobs: Sequence[Row]) -> list[list[float]]:
    """Each row padded with its own mean to the longest row's length; unknown values count as the mean too."""
    width = max((len(row) for row in logprobs), default=0)
    matrix = []
    for row in logprobs:
        fill = mean(row)
        matrix.append([fill if x is None else x for x in row] + [fill] * (width - len(row)))
    return matrix


def greedy_token_selection(logprobs: Sequence[Row], unconditional: Sequence[Row] | None = None) -> list[float]:
    """Score = in how many columns the row stays among those with the greatest value; the first best row wins.

    Column by column only the rows whose value is the greatest among those kept stay, until one is left.
    """
    matrix = greedy_matrix(logprobs)
    kept = list(range(len(matrix)))
    survived = [0.0] * len(matrix)
    for column in range(len(matrix[0]) if matrix else 0):
        if len(kept) == 1:
            break
        best = max(matrix[i][column] for i in kept)
        kept = [i for i in kept if matrix[i][column] == best]
        for i in kept:
            survived[i] += 1
    return survived


def unconditional_likelihood_normalized(
    logprobs: Sequence[Row], unconditional: Sequence[Row] | None = None
) -> list[float]:
    """Score = mean over tokens of (log-probability - its log-probability without the prompt), unknown counted as 0."""
    if unconditional is None:
        raise UsageError("unconditional_likelihood_normalized needs the unconditional log-probabilities.")
    scores = []
    for row, base in zip(logprobs, unconditional, strict=True):
        scores.append(mean([(x or 0.0) - (u or 0.0) for x, u in zip(row, base, strict=True)]))
    return scores


METHODS: dict[str, Callable[..., list[float]]] = {
    "token_length_normalized": token_length_normalized,
    "greedy_token_selection": greedy_token_selection,
    "unconditional_likelihood_normalized": unconditional_likelihood_normalized,
}


def decide(scores: Sequence[float], temperature: float = 0.0, seed: int | None = None) -> int:
    """The winner's index: the first greatest score; at a temperature > 0, a seeded draw from softmax(score / T)."""
    if temperature < 1e-6:
        return max(range(len(scores)), key=lambda i: (scores[i], -i))
    top = max(scores)
    weights = [math.exp((x - top) / temperature) for x in scores]
    return random.Random(seed).choices(range(len(scores)), weights)[0]
