"""Lower bounds: no engine on this card is faster than this, whatever its kernels.

    floor = prefill FLOP / matmul rate
          + per decode step: max(weight bytes / bandwidth, FLOP / matmul rate) + distinct KV bytes / bandwidth

The work is counted with a perfect prefix cache: no token that is in the cache, or twice in a round, is computed twice,
and KV that several sequences share is read once a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from nbsgl.bench.drive import drive
from nbsgl.bench.workloads import Ids, Workload
from nbsgl.engine.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a card can do at most.  `burst_flop_s` holds for a tenth of a second, then power limits it to `flop_s`."""

    bytes_s: float
    flop_s: float
    burst_flop_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What one token costs a model: FLOP counted as two per weight, bytes as they lie in memory."""

    linear_weights: int
    head_weights: int
    attention_flop: int  # per pair of a query's and a key's position, all layers
    weight_bytes: int  # read by each step: linears and head
    kv_bytes: int  # of one token, all layers

    @classmethod
    def of(cls, model: ModelConfig, weight_itemsize: int, kv_itemsize: int) -> Cost:
        q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        layer = model.hidden_size * (2 * q + 2 * kv + 3 * model.intermediate_size)
        head = model.vocab_size * model.hidden_size
        linear = layer * model.num_layers
        return cls(
            linear_weights=linear,
            head_weights=head,
            attention_flop=4 * q * model.num_layers,
            weight_bytes=(linear + head) * weight_itemsize,
            kv_bytes=2 * kv * model.num_layers * kv_itemsize,
        )


@dataclass(frozen=True, slots=True)
class Round:
    """The work of a round: new prompt tokens, the positions they attend to, and (rows, distinct KV tokens) per step."""

    num_requests: int
    new_tokens: int
    new_pairs: int
    steps: list[tuple[int, int]]


def distinct(sequences: Sequence[Ids]) -> tuple[int, int]:
    """(tokens, pairs) of the prefix tree of all sequences; a token at position p makes p + 1 pairs."""
    tokens = pairs = 0
    for before, ids in pairwise([[], *sorted(sequences)]):
        shared = _common(before, ids)
        tokens += len(ids) - shared
        pairs += (len(ids) * (len(ids) + 1) - shared * (shared + 1)) // 2
    return tokens, pairs


def _common(a: Ids, b: Ids) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:  # halving: the comparison of slices runs in C
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass
class Counter:
    """A `Generate` that computes nothing and counts what a perfect engine would have to.

    Its outputs are ids that occur nowhere else.
    """

    rounds: list[Round] = field(default_factory=list)
    _cached: list[Ids] = field(default_factory=list)
    _next_id: int = -1

    def __call__(self, prompts: list[Ids], lengths: list[int], temperature: float) -> list[Ids]:
        known, known_pairs = distinct(self._cached)
        tokens, pairs = distinct(self._cached + prompts)
        steps = list(_steps(prompts, lengths))
        self.rounds.append(Round(len(prompts), tokens - known, pairs - known_pairs, steps))
        outputs = []
        for length in lengths:
            outputs.append(list(range(self._next_id, self._next_id - length, -1)))
            self._next_id -= length
        self._cached += [prompt + output[:-1] for prompt, output in zip(prompts, outputs, strict=True)]
        return outputs


def _steps(prompts: list[Ids], lengths: list[int]) -> Iterator[tuple[int, int]]:
    """(rows, distinct KV tokens) of each decode step; the first token of each output comes from the prefill."""
    shared, running = 0, -1
    for step in range(1, max(lengths)):
        alive = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length > step]
        if len(alive) != running:
            shared, running = distinct(alive)[0], len(alive)
        yield running, shared + running * step


def count(workload: Workload) -> list[Round]:
    """The least work of each round."""
    counter = Counter()
    drive(counter, workload)
    return counter.rounds


def floor_s(rounds: Sequence[Round], cost: Cost, bytes_s: float, flop_s: float) -> float:
    """Seconds that the rounds take at least."""
    total = 0.0
    for work in rounds:
        flop = 2 * (cost.linear_weights * work.new_tokens + cost.head_weights * work.num_requests)
        flop += cost.attention_flop * work.new_pairs
        total += max(cost.weight_bytes / bytes_s, flop / flop_s)
        for rows, kv_tokens in work.steps:
            flop = 2 * rows * (cost.linear_weights + cost.head_weights)
            total += max(cost.weight_bytes / bytes_s, flop / flop_s) + kv_tokens * cost.kv_bytes / bytes_s
    return total


def program_floor_s(new_tokens: int, decoded: int, steps: float, cost: Cost, bytes_s: float, flop_s: float) -> float:
    """Seconds that programs take at least which compute `new_tokens` of prompt and draw `decoded` tokens.

    `steps` tokens of a program come one after another.  KV reads are not counted; steps are taken as equally full,
    which is the least that they can cost together (the cost of a step is convex in its rows).
    """
    weights = cost.linear_weights + cost.head_weights
    total = 2 * cost.linear_weights * new_tokens / flop_s
    if steps:
        total += steps * max(cost.weight_bytes / bytes_s, 2 * decoded / steps * weights / flop_s)
    return total
