"""Where the seconds of a start go."""

from __future__ import annotations

import time
from collections.abc import Callable


class Timeline:
    """Consecutive parts with their seconds, from when this is made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self.seconds: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """The time since the last mark was spent on `part`; of several such times the sum is kept."""
        now = self._clock()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
