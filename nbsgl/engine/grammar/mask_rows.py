"""From the classes allowed to the tokens allowed: rows of bits over the vocabulary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def expand(allowed: NDArray[np.uint8], class_of: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """`allowed` 0 or 1 `[R, C]`, `class_of` `[V]` -> packed bits `[R, ceil(V / 32)]`, those past V 0."""
    size = len(class_of)
    places = np.zeros(-(-size // 32) * 32, np.intp)  # class 0 is allowed nowhere
    places[:size] = class_of
    rows = np.empty((len(allowed), len(places) // 8), np.uint8)
    line = np.empty(len(places), np.uint8)
    for row, classes in zip(rows, allowed):
        classes.take(places, out=line, mode="clip")
        row[:] = np.packbits(line, bitorder="little")
    return rows.view(np.uint32)
