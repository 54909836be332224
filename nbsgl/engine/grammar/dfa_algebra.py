"""Questions about byte automata and sets made of two: no limits are checked, a product is at most as large as both.

All of them take automata as `dfa.build` makes them, and those they make are minimal in the same form.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar.dfa import DEAD, START, ByteDfa
from nbsgl.engine.grammar.hashing import mix, random_words
from nbsgl.engine.grammar.spelling import Targets, join_columns

Bools = NDArray[np.bool_]


def matches(dfa: ByteDfa, data: bytes) -> bool:
    """The text is in the language."""
    state = START
    for byte in data:
        state = dfa.next[state, dfa.byte_class[byte]]
        if state == DEAD:
            return False
    return bool(dfa.accepting[state])


def intersects(left: ByteDfa, right: ByteDfa) -> bool:
    """Some text is in both languages."""
    return bool(_product(left, right, np.logical_and)[1].any())


def includes(left: ByteDfa, right: ByteDfa) -> bool:
    """Every text of `right` is in `left`."""
    return not _product(left, right, lambda a, b: b & ~a)[1].any()


def equal(left: ByteDfa, right: ByteDfa) -> bool:
    """The languages are the same."""
    return not _product(left, right, np.logical_xor)[1].any()


def intersection(left: ByteDfa, right: ByteDfa) -> ByteDfa:
    """Texts in both languages."""
    return _minimal(*_product(left, right, np.logical_and))


def union(left: ByteDfa, right: ByteDfa) -> ByteDfa:
    """Texts in one of the languages, or both."""
    return _minimal(*_product(left, right, np.logical_or))


def difference(left: ByteDfa, right: ByteDfa) -> ByteDfa:
    """Texts of `left` that are not in `right`."""
    return _minimal(*_product(left, right, lambda a, b: a & ~b))


def sample(dfa: ByteDfa, rng: Random, long: int = 64) -> bytes:
    """A text of the language, every class of bytes as likely; from `long` bytes on it takes the shortest way out.

    ValueError if the language is empty.
    """
    if dfa.is_empty:
        raise ValueError("the language is empty: there is nothing to sample")
    members = [np.flatnonzero(dfa.byte_class == k) for k in range(dfa.next.shape[1])]
    left = distances(dfa)
    state, out = START, bytearray()
    while True:
        onward = np.flatnonzero(dfa.next[state])
        if dfa.accepting[state] and (not len(onward) or len(out) >= long or rng.random() < 0.25):
            return bytes(out)
        if len(out) >= long:
            onward = onward[left[dfa.next[state, onward]] == left[dfa.next[state, onward]].min()]
        chosen = onward[rng.randrange(len(onward))]
        out.append(int(members[chosen][rng.randrange(len(members[chosen]))]))
        state = int(dfa.next[state, chosen])


def distances(dfa: ByteDfa) -> NDArray[np.int64]:
    """int64 [S]: fewest bytes from each state to an accepting one; S where there is none."""
    size = dfa.num_states
    found = np.where(dfa.accepting, 0, size)
    while True:
        closer = np.minimum(found, found[dfa.next].min(1) + 1)
        if (closer == found).all():
            return np.minimum(found, size)
        found = closer


# ---- products --------------------------------------------------------------------------------------------------------


def _product(
    left: ByteDfa, right: ByteDfa, accepts: Callable[[Bools, Bools], Bools]
) -> tuple[Targets, Bools, NDArray[np.intp]]:
    """`next`, `accepting` and the class of each byte of both at once: pair (DEAD, DEAD) is 0, (START, START) is 1."""
    keys = left.byte_class.astype(np.int64) * right.next.shape[1] + right.byte_class
    classes, column = np.unique(keys, return_inverse=True)
    left_class, right_class = np.divmod(classes, right.next.shape[1])
    width = right.num_states
    seen = np.array([DEAD, START * width + START], np.int64)
    rows = [seen[:0].repeat(0).reshape(0, len(classes))]
    fresh = seen
    while len(fresh):
        a, b = np.divmod(fresh, width)
        row = left.next[a][:, left_class].astype(np.int64) * width + right.next[b][:, right_class]
        rows.append(row)
        fresh = np.setdiff1d(row, seen)
        seen = np.concatenate([seen, fresh])
    order = np.argsort(seen)
    table = order[np.searchsorted(seen[order], np.concatenate(rows))].astype(np.int32)
    a, b = np.divmod(seen, width)
    return table, accepts(left.accepting[a], right.accepting[b]), column


def _minimal(table: Targets, accepting: Bools, column: NDArray[np.intp]) -> ByteDfa:
    """Moore's rounds on dense tables; then dead and double states are left out."""
    alive = accepting.copy()
    while (more := alive | alive[table].any(1)).sum() > alive.sum():
        alive = more
    table = np.where(alive[table], table, DEAD)
    table[DEAD] = DEAD
    weights = random_words(table.shape[1])
    value, blocks = mix(accepting.astype(np.uint64) + np.uint64(1)), 0
    value[~alive] = 0
    while (found := len(np.unique(value))) > blocks:
        blocks = found
        value = mix((value[table] @ weights) + mix(accepting.astype(np.uint64) + np.uint64(1)))
        value[~alive] = 0
    return _numbered(table, accepting, column, value)


def _numbered(table: Targets, accepting: Bools, column: NDArray[np.intp], value: NDArray[np.uint64]) -> ByteDfa:
    _, first, block = np.unique(value, return_index=True, return_inverse=True)
    block = block.ravel()
    dead = block[DEAD]
    number = {int(dead): DEAD}
    states = [DEAD]
    queue = [int(block[START])]
    if block[START] == dead:  # the empty language: START of its own
        return ByteDfa(np.zeros((2, 1), np.int32), np.zeros(256, np.uint8), np.zeros(2, bool))
    number[queue[0]] = START
    for current in queue:
        state = int(first[current])
        states.append(state)
        for target in dict.fromkeys(block[table[state]].tolist()):
            if target not in number:
                number[target] = len(queue) + 1
                queue.append(target)
    numbers = np.zeros(len(first), np.int32)
    numbers[list(number)] = list(number.values())
    return ByteDfa(*join_columns(numbers[block[table[states]]], column), accepting[states])
