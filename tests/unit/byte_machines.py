"""Byte automata written by hand: {state: {bytes: target}}; a key is one byte's text, a pair of bytes, or a set."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np


def machine(edges: dict[int, dict[Any, int]], accepting: set[int]) -> Any:
    """`ByteDfa`'s fields, each byte a class of its own unless two have the same column."""
    size = 1 + max([0, *edges, *(t for row in edges.values() for t in row.values())])
    full = np.zeros((size, 256), np.int32)
    for state, row in edges.items():
        for key, target in row.items():
            for byte in key.encode() if isinstance(key, str) else range(key[0], key[1] + 1):
                full[state, byte] = target
    columns, byte_class = np.unique(full, axis=1, return_inverse=True)
    accept = np.array([state in accepting for state in range(size)])
    return SimpleNamespace(
        next=columns.astype(np.int32), byte_class=byte_class.reshape(-1).astype(np.uint8), accepting=accept
    )


def words(*texts: str, loop: str = "") -> Any:
    """The minimal automaton of some texts; `loop`: characters that may follow the end, again and again."""
    data = [text.encode() for text in texts]
    numbers: dict[frozenset[bytes], int] = {}
    edges: dict[int, dict[Any, int]] = {}

    def state(left: frozenset[bytes]) -> int:
        if left not in numbers:
            number = numbers[left] = len(numbers) + 1
            heads = {word[:1] for word in left if word}
            edges[number] = {(h[0], h[0]): state(frozenset(w[1:] for w in left if w[:1] == h)) for h in sorted(heads)}
        return numbers[left]

    state(frozenset(data))
    end = numbers[frozenset([b""])]
    for char in loop:
        edges[end][char] = end
    return machine(edges, {number for left, number in numbers.items() if b"" in left})
