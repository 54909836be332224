"""What the scheduler counts, and rates over the last ten seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 10.0
_BUCKET_S = 0.5


class RateWindow:
    """Tokens per second over the last ten seconds, in buckets of half a second."""

    def __init__(self) -> None:
        self._buckets: deque[list[float]] = deque()  # [begin, prefill tokens, decode tokens]

    def add(self, now: float, prefill: int, decode: int) -> None:
        if not self._buckets or now - self._buckets[-1][0] >= _BUCKET_S:
            self._buckets.append([now, 0, 0])
            self._forget(now)
        self._buckets[-1][1] += prefill
        self._buckets[-1][2] += decode

    def rates(self, now: float) -> tuple[float, float]:
        """(prefill, decode) tokens per second."""
        self._forget(now)
        if not self._buckets:
            return 0.0, 0.0
        span = max(_BUCKET_S, min(WINDOW_S, now - self._buckets[0][0]))
        return sum(b[1] for b in self._buckets) / span, sum(b[2] for b in self._buckets) / span

    def _forget(self, now: float) -> None:
        while self._buckets and now - self._buckets[0][0] > WINDOW_S:
            self._buckets.popleft()


@dataclass(slots=True)
class Stats:
    """Counts since the engine's start."""

    steps: int = 0
    batches: int = 0
    last_step_s: float = 0.0
    prefill_computed: int = 0
    prefill_cached: int = 0
    decode_tokens: int = 0
    retractions: int = 0
    oom_shrinks: int = 0
    overruns: int = 0  # rows computed for a sequence that had ended
    numerical_errors: int = 0
    leaks_repaired: int = 0
    rates: RateWindow = field(default_factory=RateWindow)

    @property
    def hit_rate(self) -> float:
        total = self.prefill_cached + self.prefill_computed
        return self.prefill_cached / total if total else 0.0
