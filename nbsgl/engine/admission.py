"""How much may run at once: the token budget of a step, and room for the tokens that will still be drawn."""

from __future__ import annotations

from collections.abc import Iterable

from nbsgl.engine.request import Sequence

GOOD_STEPS = 100  # after so many steps without a failure the budget is what it was
SLACK_SHARE = 16  # a step of 8,192 tokens may have 512 more
MAX_ESTIMATE = 4096  # nobody is expected to draw more tokens than this
RATIO_START, RATIO_LEAST, RATIO_MOST = 0.5, 0.1, 1.0
RATIO_UP = 0.2  # after a retraction: the guess was too low
RATIO_DOWN = 0.002  # per step without one


def most_tokens(budget: int) -> int:
    """Most tokens of a step under that budget."""
    return budget + budget // SLACK_SHARE


class TokenBudget:
    """Most new tokens in one step.  Halved when the device had no memory for a step."""

    def __init__(self, full: int) -> None:
        self.full = self.now = full
        self._good_steps = 0

    @property
    def most(self) -> int:
        """Most tokens of any step."""
        return most_tokens(self.full)

    def shrink(self, failed: int) -> None:
        """A step of `failed` tokens did not fit."""
        self.now = max(1, min(self.now, failed) // 2)
        self._good_steps = 0

    def good_step(self) -> None:
        if self.now < self.full:
            self._good_steps += 1
            if self._good_steps >= GOOD_STEPS:
                self.now = self.full


class RoomEstimate:
    """The share of its max_tokens that a sequence is expected to draw: learnt from retractions."""

    def __init__(self) -> None:
        self.ratio = RATIO_START

    def retracted(self) -> None:
        self.ratio = min(RATIO_MOST, self.ratio + RATIO_UP)

    def good_step(self) -> None:
        self.ratio = max(RATIO_LEAST, self.ratio - RATIO_DOWN)

    def promised(self, running: Iterable[Sequence]) -> int:
        """Slots that the running sequences are expected to ask for."""
        return sum(max(0, len(seq.tokens) - len(seq.slots)) + self.drawn_by(seq) for seq in running)

    def drawn_by(self, seq: Sequence) -> int:
        return int(min(seq.room_for_run, MAX_ESTIMATE) * self.ratio)
