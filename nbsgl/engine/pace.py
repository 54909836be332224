"""What steps take, learnt from those before: how many known tokens one may compute while somebody reads along, and how
long the next one can be left open for arrivals."""

from __future__ import annotations

from collections import deque

LEAST, MOST = 96, 2048  # with fewer, weights are read for too few rows; 2,048 hold others up for 49 ms (H200, 8B)
SIZE_STEP = 32
STRETCH = 2.5  # a step may take so many times what it takes with its decodes alone
RECENT_STEPS, ENOUGH_STEPS = 8, 4
RECENT_COSTS = 3  # the cost grows with the context: an old one is a wrong one
LONG, SURE = 1024, 0.7  # tokens of a step that is foreseen, and the part of its time that is counted on


class Pace:
    """Bounds a step's known tokens, so that it takes at most STRETCH times as long as its decodes alone.

    The bound lies between `least` and `most`; it is twice the least until both times are known.
    """

    def __init__(self, least: int = LEAST, most: int = MOST) -> None:
        self.least, self.most = least, most
        self._steps: dict[int, deque[float]] = {}  # number of decodes, in powers of two -> seconds without extends
        self._costs: deque[float] = deque(maxlen=RECENT_COSTS)  # seconds per known token
        self._long: deque[float] = deque(maxlen=RECENT_STEPS)  # seconds per token of long steps

    def saw(self, seconds: float, num_decodes: int, num_extended: int) -> None:
        """A step of so many decodes and so many known tokens has taken that long."""
        if seconds <= 0:
            return
        if num_extended == 0:
            self._steps.setdefault(num_decodes.bit_length(), deque(maxlen=RECENT_STEPS)).append(seconds)
        elif 2 * num_extended >= self.least:  # what a few tokens cost is lost in what a step costs
            alone = self._alone(num_decodes) or 0.0
            self._costs.append(max(0.0, seconds - alone) / num_extended)
        if num_extended >= LONG:
            self._long.append(seconds / (num_decodes + num_extended))

    def at_least(self, num_decodes: int, num_extended: int) -> float:
        """Seconds that such a step will take, rather too few than too many; 0 where that is not known."""
        if num_extended < LONG or not self._long:
            return 0.0
        return SURE * min(self._long) * (num_decodes + num_extended)

    def limit(self, num_decodes: int) -> int:
        """Most known tokens beside so many decodes.

        In steps of SIZE_STEP, so that steps have few different sizes: each has its own launch plan or graph.
        """
        alone = self._alone(num_decodes)
        if alone is None or not self._costs:
            return 2 * self.least
        allowance = (STRETCH - 1) * alone
        cost = sorted(self._costs)[len(self._costs) // 2]
        tokens = int(allowance / cost) if cost * self.most > allowance else self.most
        return max(self.least, tokens - tokens % min(SIZE_STEP, self.least))

    def _alone(self, num_decodes: int) -> float | None:
        """Seconds of a step of that many decodes, or of the nearest fewer that are known.

        The lower quartile: captures and the host's pauses make steps long, and the step behind a late one short.
        """
        for size in range(num_decodes.bit_length(), 0, -1):
            steps = self._steps.get(size, ())
            if len(steps) >= ENOUGH_STEPS:
                return sorted(steps)[len(steps) // 4]
        return None
