"""What the tokens of a vocabulary do to a byte automaton: each is a function from states to states, and few differ.

The bytes w are the function f_w, and f_wb = (the step by b) after f_w.  So the tree of the vocabulary is walked once,
for all states together, and where two nodes are the same function one number stands for both (hash-consing).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar.dfa import ByteDfa
from nbsgl.engine.grammar.trie import Ints, VocabTrie

DEAD_FUNCTION, IDENTITY = 0, 1
_SPARSE = 0.4  # of a level: with fewer nodes alive, their children are looked up one by one
_AT_ONCE = 1 << 18  # images computed together: 2 MiB of indices


class TooManyFunctions(Exception):
    """The functions take more memory than allowed."""


class ByteFunctions:
    """The distinct functions met so far, and for each the one behind it by each class of bytes.

    `images` uint16 `[M, S]`.  `behind` intp `[M * K]`: at f * K + k, K times the function after f and a byte of class
    k, or -1 if nobody asked.
    """

    def __init__(self, dfa: ByteDfa, max_bytes: int) -> None:
        size, self.num_classes = dfa.next.shape
        self.max_functions = max(2, max_bytes // (2 * size))
        self._steps = np.ascontiguousarray(dfa.next.T, np.uint16).reshape(-1)  # at k * S + s
        self.images = np.zeros((64, size), np.uint16)
        self.images[IDENTITY] = np.arange(size)
        self._numbers = {self.images[f].tobytes(): f for f in (DEAD_FUNCTION, IDENTITY)}
        self.behind = np.full(64 * self.num_classes, -1, np.intp)
        self.behind[: self.num_classes] = DEAD_FUNCTION

    def __len__(self) -> int:
        return len(self._numbers)

    def follow(self, keys: Ints) -> Ints:
        """K times the function behind each key (f * K + k)."""
        found = self.behind.take(keys)
        if len(found) and found.min() < 0:
            missing = np.flatnonzero(found < 0)
            wanted = np.zeros(len(self.behind), np.bool_)
            wanted[keys[missing]] = True
            self._compose(np.flatnonzero(wanted))
            found[missing] = self.behind.take(keys[missing])
        return found

    def _compose(self, keys: Ints) -> None:
        size, numbers = self.images.shape[1], self._numbers
        rows = max(1, _AT_ONCE // size)
        for begin in range(0, len(keys), rows):
            part = keys[begin : begin + rows]
            before, byte_class = np.divmod(part, self.num_classes)
            images = self._steps.take(self.images[before] + (byte_class * size)[:, None])
            behind = np.full(len(part), DEAD_FUNCTION, np.intp)
            alive = np.flatnonzero(images.any(1))
            behind[alive] = [numbers.setdefault(image.tobytes(), len(numbers)) for image in images[alive]]
            if len(numbers) > self.max_functions:
                raise TooManyFunctions(f"more than {self.max_functions:,} functions of {size:,} states")
            self._grow()
            self.images[behind] = images
            self.behind[part] = behind * self.num_classes

    def _grow(self) -> None:
        room = len(self.images)
        if len(self) > room:
            more = max(len(self), 2 * room) - room
            self.images = np.concatenate([self.images, np.zeros((more, self.images.shape[1]), np.uint16)])
            self.behind = np.concatenate([self.behind, np.full(more * self.num_classes, -1, np.intp)])


def token_functions(dfa: ByteDfa, trie: VocabTrie, max_bytes: int) -> tuple[NDArray[np.uint16], Ints]:
    """The functions `[M, S]` of a vocabulary's tokens, DEAD's first, and which one each token is.

    Tokens without bytes are DEAD's.  `TooManyFunctions` if those of all prefixes take more than `max_bytes`.
    """
    functions = ByteFunctions(dfa, max_bytes)
    place = _walk(functions, dfa.byte_class.astype(np.intp), trie).take(trie.node_of)
    used = np.zeros(len(functions) * functions.num_classes, np.bool_)
    used[place] = used[DEAD_FUNCTION] = True
    kept = np.flatnonzero(used)
    number = np.cumsum(used, dtype=np.intp) - 1
    return functions.images[kept // functions.num_classes], number.take(place)


def _walk(functions: ByteFunctions, byte_class: Ints, trie: VocabTrie) -> Ints:
    """K times the function of each node, and DEAD's behind the last: level by level, and nothing below the dead."""
    found = np.full(len(trie) + 1, DEAD_FUNCTION, np.intp)
    found[0] = IDENTITY * functions.num_classes
    alive: Ints | None = None  # the nodes alive of the level before, once they are few
    for low, high in zip(trie.levels[1:], trie.levels[2:]):
        if alive is None:
            keys = found.take(trie.parent[low:high])
            keys += byte_class.take(trie.byte[low:high])
            level = found[low:high] = functions.follow(keys)
            if np.count_nonzero(level) < _SPARSE * len(level):
                alive = low + np.flatnonzero(level)
        else:
            nodes, above = _children(trie, alive)
            keys = found.take(above)
            keys += byte_class.take(trie.byte.take(nodes))
            behind = found[nodes] = functions.follow(keys)
            alive = nodes[behind != DEAD_FUNCTION]
    return found


def _children(trie: VocabTrie, nodes: Ints) -> tuple[Ints, Ints]:
    """The children of nodes, and for each the node it is a child of."""
    begin = trie.first_child.take(nodes)
    count = trie.first_child.take(nodes + 1) - begin
    ends = np.cumsum(count)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(begin - ends + count, count), np.repeat(nodes, count)
