"""From the classes allowed to the tokens allowed: rows of bits over the vocabulary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Exchanging the halves of an 8 x 8 matrix of bits in one 64-bit word: (distance, the bits that move).
_EXCHANGES = tuple(
    (np.uint64(distance), np.uint64(moving))
    for distance, moving in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0))
)


def expand(allowed: NDArray[np.bool_], class_of: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """`allowed` `[R, C]` by class, `class_of` `[V]` -> packed bits `[R, ceil(V / 32)]` by token, those past V 0.

    Eight rows at a time: a byte for each token with its bit of each row, then each 8 x 8 bits are transposed.
    """
    places = np.zeros(-(-len(class_of) // 32) * 32, np.intp)  # class 0 is allowed nowhere
    places[: len(class_of)] = class_of
    rows = np.empty((len(allowed), len(places) // 8), np.uint8)
    by_token = np.empty(len(places), np.uint8)
    for begin, by_class in zip(range(0, len(rows), 8), np.packbits(allowed, axis=0, bitorder="little")):
        by_class.take(places, out=by_token, mode="clip")
        by_row = _transposed(by_token.view(np.uint64)).view(np.uint8).reshape(-1, 8).T
        rows[begin : begin + 8] = by_row[: len(rows) - begin]
    return rows.view(np.uint32)


def _transposed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bit 8 i + j of each word becomes bit 8 j + i."""
    for distance, moving in _EXCHANGES:
        differing = (words ^ (words >> distance)) & moving
        words = words ^ differing ^ (differing << distance)
    return words
