"""Random grammars in tables: what device kernels and runners are tried with, by definition and without a compiler."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEAD, DONE, START = 0, 1, 2


@dataclass(frozen=True, eq=False)
class FakeTables:
    """The arrays of `grammar.tokens.TokenTables` that a device needs."""

    class_of: NDArray[np.uint16]
    next: NDArray[np.uint16]
    begin: NDArray[np.uint32]
    low: NDArray[np.uint16]
    high: NDArray[np.uint16]
    row_of: NDArray[np.uint16]
    rows: NDArray[np.uint32]
    whole: NDArray[np.uint16]  # [S, C], the state behind each state and class: what the others are held to

    @property
    def num_states(self) -> int:
        return len(self.whole)

    def behind(self, state: int, token: int) -> int:
        return int(self.whole[state, self.class_of[token]])

    def allowed(self, state: int) -> NDArray[np.bool_]:
        """bool `[vocab]`, from `whole` alone."""
        return self.whole[state][self.class_of] != DEAD

    def along(self, tokens: list[int], state: int = START) -> list[int]:
        """The states before each token, and behind the last."""
        states = [state]
        for token in tokens:
            states.append(self.behind(states[-1], token))
        return states


def make_tables(seed: int, vocab: int, *, states: int = 9, classes: int = 5, eos: int | None = None) -> FakeTables:
    """Each live state allows at least one class, leads on to live states, and ends with `eos` if there is one.

    Class 0 is of tokens that are allowed nowhere; the last one is EOS, allowed from odd states and in DONE.
    """
    rng = np.random.default_rng(seed)
    class_of = rng.integers(0, classes, vocab).astype(np.uint16)
    class_of[rng.permutation(vocab)[: classes + 1]] = [*range(classes), 1]
    nexts = rng.integers(START, states, (states, classes + 1)) * (rng.random((states, classes + 1)) < 0.6)
    nexts[np.arange(states), 1 + np.arange(states) % (classes - 1)] = START + np.arange(states) % (states - START)
    nexts[:, 0] = nexts[:, classes] = DEAD
    nexts[[DEAD, DONE]] = DEAD
    if eos is not None:
        class_of[eos] = classes
        nexts[START + 1 :: 2, classes] = nexts[DONE, classes] = DONE
    allowed = nexts[:, class_of] != DEAD
    padded = np.zeros((states, -(-vocab // 32) * 32), np.bool_)
    padded[:, :vocab] = allowed
    words = np.packbits(padded, axis=1, bitorder="little").view(np.uint32)
    rows, row_of = np.unique(words, axis=0, return_inverse=True)
    whole = nexts.astype(np.uint16)
    return FakeTables(class_of, *_windows(whole), row_of.reshape(-1).astype(np.uint16), rows, whole)


def _windows(whole: NDArray[np.uint16]) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """next, begin, low and high: of each state from its first class allowed to its last."""
    places = [np.flatnonzero(line) for line in whole]
    ends = np.array([(place[0], place[-1] + 1) if len(place) else (0, 0) for place in places])
    low, high = ends.T.astype(np.uint16)
    kept = [line[first:end] for line, (first, end) in zip(whole, ends)]
    begin = np.cumsum([0, *map(len, kept)][:-1]).astype(np.uint32)
    return np.concatenate(kept), begin, low, high


class TableMatcher:
    """The host's walk through the same tables."""

    def __init__(self, tables: FakeTables, state: int = START) -> None:
        self.tables, self.states = tables, [state]

    def fill_mask(self, words: NDArray[np.uint32]) -> None:
        row = self.tables.rows[self.tables.row_of[self.states[-1]]]
        words[:] = 0
        words[: len(row)] = row[: len(words)]

    def advance(self, token: int) -> bool:
        behind = self.tables.behind(self.states[-1], token)
        if behind == DEAD:
            return False
        self.states.append(behind)
        return True

    def rollback(self, num_tokens: int) -> None:
        del self.states[len(self.states) - num_tokens :]


def walk(tables: FakeTables, length: int, state: int = START, *, seed: int = 0) -> list[int]:
    """A random way of so many allowed tokens; EOS is not taken."""
    rng, tokens = random.Random(seed), []
    for _ in range(length):
        choices = [t for t in np.flatnonzero(tables.allowed(state)).tolist() if tables.behind(state, t) != DONE]
        tokens.append(rng.choice(choices))
        state = tables.behind(state, tokens[-1])
    return tokens
