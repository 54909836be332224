"""Seeded work for the simulation: configurations, prompts from a tree of shared prefixes, segments around the edges."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from nbsgl.engine.scheduler import Limits
from nbsgl.engine.segments import Forced, Sampled, Segment
from nbsgl.protocol import GrammarSpec, SamplingParams, pack_ids

PATTERNS = ("cabdegd?cabcab", "ddeg?aabbddeg??bcabcdfcab", "??ddef?", "ddefgh", "c", "de?fg?hd?dd?ee?ff?gg?hh?dddd")
TEXT_IDS = 14  # prompts use the single letters, so that a small tree is shared often


@dataclass
class SwarmConfig:
    """What one seed runs with."""

    limits: Limits
    context_length: int
    max_live: int
    rates: dict[str, float] = field(default_factory=dict)
    is_reckless: bool = False  # no room is kept for tokens to be drawn: the pool runs full, sequences are retracted

    @classmethod
    def draw(cls, rng: random.Random) -> SwarmConfig:
        page = rng.choice((1, 1, 4, 16))
        pages = rng.choice((32, 48, 96, 192, 384)) if page < 16 else rng.choice((8, 16, 32))
        limits = Limits(
            num_slots=page * pages,
            page_size=page,
            max_running=rng.choice((1, 2, 4, 8, 16)),
            token_budget=rng.choice((8, 16, 40, 64, 256)),
            policy=rng.choice(("fcfs", "lpm", "dfs-weight")),
            overlap=rng.random() < 0.5,
            disable_radix_cache=rng.random() < 0.05,
        )
        faults = ("abort", "refuse", "launch_oom", "result_oom", "nan", "evict", "flush", "retract", "policy")
        rates = {name: rng.choice((0.0, 0.0, 0.005, 0.03)) for name in faults}
        if rng.random() < 0.2:
            rates = dict.fromkeys(faults, 0.0)
        return cls(limits, rng.choice((60, 120)), rng.choice((4, 12, 30)), rates, rng.random() < 0.4)


class Workload:
    """Draws prompts and segments.  `rng` is its own, so faults do not change the work."""

    def __init__(self, rng: random.Random, config: SwarmConfig) -> None:
        self.rng, self.config = rng, config
        self.prefixes = [self._text(rng.choice((3, 17, 33, 48))) for _ in range(6)]
        for _ in range(6):  # a tree: longer prefixes begin with shorter ones
            self.prefixes.append(rng.choice(self.prefixes) + self._text(rng.choice((1, 5, 16, 33))))

    def _text(self, length: int) -> list[int]:
        return [self.rng.randrange(TEXT_IDS) for _ in range(length)]

    def prompt(self) -> list[int]:
        """A prefix, the first ones most often (Zipf), and an end of its own."""
        rank = min(int(self.rng.paretovariate(1.0)) - 1, len(self.prefixes) - 1)
        return self.prefixes[rank] + self._text(self.rng.choice((0, 0, 1, 2, 5, 12)))

    def segments(self, has_tokens: bool) -> list[Segment]:
        first: list[Segment] = [] if has_tokens else [Forced(ids=pack_ids(self.prompt()))]
        return first + [self.segment() for _ in range(self.rng.choice((0, 1, 1, 2, 4)))]

    def segment(self) -> Segment:
        return self.forced() if self.rng.random() < 0.4 else self.sampled()

    def forced(self) -> Forced:
        rng = self.rng
        page, budget = self.config.limits.page_size, self.config.limits.token_budget
        length = rng.choice((0, 1, 2, 3, page - 1, page, page + 1, budget, budget + 1, 6))
        if length > 40 and rng.random() < 0.9:
            length = 7
        if rng.random() < 0.01:
            length = self.config.context_length + 1
        score_from = rng.choice((-1, -1, 0, 0, 1, max(0, length - 1)))
        return Forced(ids=pack_ids(self._text(length)), score_from=score_from, top=rng.choice((0, 1)))

    def sampled(self) -> Sampled:
        rng = self.rng
        max_tokens: int | str = rng.choice((0, 1, 2, 5, 9, 20, 40))
        if rng.random() < 0.03:
            max_tokens = "fit"
        elif rng.random() < 0.01:
            max_tokens = self.config.context_length
        min_tokens = rng.choice((0, 0, 0, 1, 3))
        if max_tokens != "fit":
            min_tokens = min(min_tokens, max_tokens)
        params = SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            temperature=rng.choice((0.0, 1.0)),
            seed=rng.randrange(50),
            stop=tuple(rng.sample(("a", "bc", "cab", "abc", "hh", "dada", "é"), rng.choice((0, 0, 1, 3)))),
            stop_token_ids=tuple(rng.sample(range(TEXT_IDS), rng.choice((0, 0, 0, 1)))),
            ignore_eos=rng.random() < 0.3,
            return_logprob=rng.random() < 0.2,
            top_logprobs_num=rng.choice((0, 1)),
        )
        grammar = None
        if rng.random() < 0.3:
            grammar = GrammarSpec(kind="regex", text=rng.choice(("0", "1", "3", "7", "12", "12", "12", "bad")))
            if rng.random() < 0.6:
                text = rng.choice(PATTERNS)
                grammar = GrammarSpec(
                    kind="regex", text=text, jump=rng.choice(("off", "verify", "verify", "canonical"))
                )
        return Sampled(params=params, grammar=grammar, stream=rng.random() < 0.5)
