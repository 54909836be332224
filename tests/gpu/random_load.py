"""Random load on a server: asks arrive, share beginnings, fork, go on where others ended, stream, and are aborted."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.gpu.harness import CONTEXT, Answer, Ask, Server

TIDE_STEPS = 200  # after so many steps another number of asks is in flight, and another kind arrives
NUM_BEGINS = 5  # beginnings that many asks share
KEEP = 24


@dataclass(slots=True)
class Kept:
    """A fair sample of what was offered: each with the same chance."""

    rng: random.Random
    items: list[tuple[Ask, Answer]] = field(default_factory=list)
    num_offered: int = 0

    def offer(self, ask: Ask, answer: Answer) -> None:
        self.num_offered += 1
        if len(self.items) < KEEP:
            self.items.append((ask, answer))
        elif (place := self.rng.randrange(self.num_offered)) < KEEP:
            self.items[place] = (ask, answer)


class RandomLoad:
    """Call `step` as long as the load is to last, then `drain`.  The same seed and steps make the same asks.

    `prompt`, `answer`, `long`: the most tokens of a usual prompt, of an answer, and of a rare long prompt.  `on_step`
    is called after each step that brought something forward.
    """

    def __init__(
        self,
        server: Server,
        seed: int,
        *,
        vocab: int,
        in_flight: int,
        prompt: int,
        answer: int,
        long: int,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.server, self.scheduler, self.rng = server, server.scheduler, random.Random(seed)
        self.vocab, self.in_flight, self.prompt, self.answer, self.long = vocab, in_flight, prompt, answer, long
        self.on_step = on_step
        self.begins = [self._ids(prompt // 2) for _ in range(NUM_BEGINS)]
        self.live: dict[int, Ask] = {}
        self.greedy, self.with_logprobs, self.scored = (Kept(self.rng) for _ in range(3))
        self.num_steps = self.num_done = self.num_aborted = 0
        self.uses: list[float] = []  # share of the pool that is held, after each step at high tide
        self.slowest_step_s = 0.0
        self._target, self._is_rich = in_flight, False
        self._progress = 0

    def step(self) -> None:
        """Let asks arrive and be aborted, then one step of the scheduler."""
        if self.num_steps % TIDE_STEPS == 0:
            is_low = self.num_steps > 0 and self.rng.random() < 0.25
            self._target = max(1, self.in_flight // 8) if is_low else self.in_flight
            self._is_rich = self.rng.random() < 0.5
        while len(self.live) < self._target and self.rng.random() < 0.7:
            asks = self._arrivals()
            self.live.update(zip(self.server.submit(asks), asks, strict=True))
        if self.live and self.rng.random() < 0.03:
            self._abort(self.rng.sample(sorted(self.live), 1))
        if self.rng.random() < 0.0003:
            self._abort(list(self.live))
        self._compute()
        if self._target == self.in_flight:
            self.uses.append(1 - self.scheduler.kv.num_available / self.scheduler.pool.num_slots)

    def drain(self) -> None:
        """Until everybody is answered; nobody arrives."""
        while self.scheduler.has_work:
            self._compute()
        assert not self.live, f"{len(self.live)} asks were never answered"

    def report(self) -> str:
        stats = self.scheduler.stats
        uses = sorted(self.uses)
        return (
            f"{self.num_steps} steps, {self.num_done} answers, {self.num_aborted} aborted, "
            f"{stats.retractions} retracted, "
            f"{stats.oom_shrinks} steps without memory, {self.scheduler.tree.evicted_tokens} tokens evicted, "
            f"{stats.hit_rate:.0%} cached; pool use {uses[len(uses) // 2]:.1%} median, {uses[-1]:.1%} most; "
            f"slowest step {self.slowest_step_s * 1e3:.0f} ms"
        )

    # ---- what arrives ----------------------------------------------------------------------------------------------

    def _arrivals(self) -> list[Ask]:
        kind = self.rng.choices(("fresh", "shared", "fork", "turn", "long"), (4, 4, 2, 3, 0.15))[0]
        if kind == "fork":
            begin = [*self.rng.choice(self.begins), *self._ids(20)]
            return [self._ask([*begin, *self._ids(30)], fork_at=len(begin)) for _ in range(self.rng.randint(2, 5))]
        if kind == "turn" and self.greedy.items:
            ask, answer = self.rng.choice(self.greedy.items)
            return [self._ask([*ask.prompt, *answer.tokens, *self._ids(40)])]
        if kind == "shared":
            return [self._ask([*self.rng.choice(self.begins), *self._ids(60)])]
        return [self._ask(self._ids(self.long if kind == "long" else self.prompt))]

    def _ids(self, most: int) -> list[int]:
        """A few tokens, or many; long prompts have at least three quarters of `most`."""
        least = most * 3 // 4 if most == self.long else 1
        return self.rng.choices(range(self.vocab), k=self.rng.randint(least, most))

    def _ask(self, prompt: list[int], fork_at: int = 0) -> Ask:
        rng = self.rng
        prompt = prompt[: CONTEXT - self.answer]
        if self._is_rich and rng.random() < 0.15:
            return Ask(prompt, score_from=max(fork_at, len(prompt) // 3, 1), fork_at=fork_at)
        is_greedy = rng.random() < 0.6
        return Ask(
            prompt,
            max_tokens=rng.randint(16, self.answer),
            temperature=0.0 if is_greedy else 0.8,
            top_p=0.9 if self._is_rich and rng.random() < 0.3 else 1.0,
            seed=rng.getrandbits(30),
            with_logprobs=self._is_rich and rng.random() < 0.5,
            stream=rng.random() < 0.5,
            fork_at=fork_at,
        )

    # ---- what becomes of it ----------------------------------------------------------------------------------------

    def _abort(self, seqs: list[int]) -> None:
        self.server.abort(seqs)
        self.num_aborted += len(seqs)
        for seq in seqs:
            del self.live[seq]

    def _compute(self) -> None:
        begin = time.perf_counter()
        self.scheduler.step()
        self.slowest_step_s = max(self.slowest_step_s, time.perf_counter() - begin)
        self.num_steps += 1
        for seq, answer in self.server.take_done():
            self._take(self.live.pop(seq), answer)
        assert not self.server.errors, self.server.errors
        stats = self.scheduler.stats
        progress = stats.prefill_computed + stats.decode_tokens + self.num_aborted
        if progress > self._progress:
            self._progress = progress
            self.on_step()

    def _take(self, ask: Ask, answer: Answer) -> None:
        self.num_done += 1
        assert len(answer.tokens) == ask.max_tokens
        assert len(answer.logprobs) == (ask.max_tokens if ask.with_logprobs else 0)
        assert len(answer.scores) == (len(ask.prompt) - ask.score_from if ask.score_from >= 0 else 0)
        assert all(map(math.isfinite, (*answer.logprobs, *answer.scores)))
        if ask.score_from >= 0:
            self.scored.offer(ask, answer)
            return
        if ask.temperature == 0:
            self.greedy.offer(ask, answer)
        if ask.with_logprobs:
            self.with_logprobs.offer(ask, answer)
