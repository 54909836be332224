"""From the classes allowed to the tokens allowed: rows of bits over the vocabulary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.intp]
Bytes = NDArray[np.uint8]

_SPARSE = 64  # with fewer than one token in so many allowed, a row's bits are set one by one: 20 ns each, 40 us a row
# Exchanging the halves of an 8 x 8 matrix of bits in one 64-bit word: (distance, the bits that move).
_EXCHANGES = tuple(
    (np.uint64(distance), np.uint64(moving))
    for distance, moving in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0))
)


def expand(allowed: NDArray[np.bool_], class_of: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """`allowed` `[R, C]` by class, `class_of` `[V]` -> packed bits `[R, ceil(V / 32)]` by token, those past V 0.

    Class 0 must be allowed nowhere.
    """
    sizes = np.bincount(class_of, minlength=allowed.shape[1])
    is_sparse = allowed @ sizes < len(class_of) // _SPARSE
    rows = np.zeros((len(allowed), -(-len(class_of) // 32) * 4), np.uint8)
    _fill_dense(rows, np.flatnonzero(~is_sparse), allowed, class_of)
    _fill_sparse(rows, np.flatnonzero(is_sparse), allowed, class_of)
    return rows.view(np.uint32)


def _fill_dense(rows: Bytes, which: Ints, allowed: NDArray[np.bool_], class_of: NDArray[np.uint16]) -> None:
    """Eight rows at a time: a byte for each token with its bit of each row, then each 8 x 8 bits are transposed."""
    places = np.zeros(8 * rows.shape[1], np.intp)
    places[: len(class_of)] = class_of
    by_token = np.empty(len(places), np.uint8)
    for begin, by_class in zip(range(0, len(which), 8), np.packbits(allowed[which], axis=0, bitorder="little")):
        by_class.take(places, out=by_token, mode="clip")
        group = which[begin : begin + 8]
        rows[group] = _transposed(by_token.view(np.uint64)).view(np.uint8).reshape(-1, 8).T[: len(group)]


def _transposed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bit 8 i + j of each word becomes bit 8 j + i."""
    for distance, moving in _EXCHANGES:
        differing = (words ^ (words >> distance)) & moving
        words = words ^ differing ^ (differing << distance)
    return words


def _fill_sparse(rows: Bytes, which: Ints, allowed: NDArray[np.bool_], class_of: NDArray[np.uint16]) -> None:
    """Token by token, for rows that are still 0."""
    line, of_class = np.nonzero(allowed[which])
    is_used = np.zeros(allowed.shape[1], np.bool_)
    is_used[of_class] = True
    tokens = np.flatnonzero(is_used[class_of])
    tokens = tokens[np.argsort(class_of[tokens], kind="stable")]
    sizes = np.bincount(class_of[tokens], minlength=len(is_used))
    count = sizes[of_class]
    # The tokens of one pair (line, class) lie together: from the class's begin in `tokens` on, `count` of them.
    shift = (np.cumsum(sizes) - sizes)[of_class] - (np.cumsum(count) - count)
    token = tokens[np.arange(count.sum()) + np.repeat(shift, count)]
    place = np.repeat(which[line] * rows.shape[1], count) + (token >> 3)
    np.bitwise_or.at(rows.reshape(-1), place, np.left_shift(1, token & 7).astype(np.uint8))
