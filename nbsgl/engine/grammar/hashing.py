"""Random linear hashes: rows of tables are compared by the sums of their words' hashes, one numpy call for all rows.

The words are the same each time.  Of n rows, two different ones are taken for equal with a chance of n**2 / 2**65.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def mix(values: Words) -> Words:
    """Spread 64-bit words, 0 to 0 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def random_words(count: int) -> Words:
    """Odd words to multiply hashes by before they are added up."""
    return mix(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
