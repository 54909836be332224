"""The six token-level workloads.  Seeded: the same ids on every machine, so figures of different engines compare.

A workload is a list of rounds.  A round is submitted whole, and the next begins when it is done.  Where a key comes
back in a later round, its prompt is the earlier prompt + its output + the new ids: a conversation.  Every output runs
to its full length (end tokens ignored), so all engines do the same work whatever the weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass

Ids = list[int]

LOWEST_ID, SPECIAL_IDS = 100, 300  # ids are drawn from [LOWEST_ID, vocab - SPECIAL_IDS): no control tokens


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a round: `ids` are appended to what `key` has so far; `num_out` tokens are asked for."""

    key: Hashable
    ids: Ids
    num_out: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Rounds of requests; `note` says in a few words what they measure."""

    name: str
    rounds: list[list[Ask]]
    temperature: float = 0.0
    note: str = ""


def _draw(rng: random.Random, count: int, vocab: int) -> Ids:
    return [rng.randrange(LOWEST_ID, vocab - SPECIAL_IDS) for _ in range(count)]


def single(vocab: int, num_in: int = 512, num_out: int = 512) -> Workload:
    """One request alone."""
    prompt = _draw(random.Random(1), num_in, vocab)
    return Workload("single", [[Ask(0, prompt, num_out)]], note="latency of one request")


def prefill(vocab: int, count: int = 64, num_in: int = 4096) -> Workload:
    """Long prompts, one token each."""
    rng = random.Random(2)
    asks = [Ask(i, _draw(rng, num_in, vocab), 1) for i in range(count)]
    return Workload("prefill", [asks], note="prompt throughput")


def nano(vocab: int, count: int = 256, low: int = 100, high: int = 1024) -> Workload:
    """Random lengths of prompts and outputs at temperature 0.6: the bench of nano-vllm and mini-sglang."""
    rng = random.Random(0)
    asks = []
    for i in range(count):
        prompt = _draw(rng, rng.randint(low, high), vocab)
        asks.append(Ask(i, prompt, rng.randint(low, high)))
    return Workload("nano", [asks], 0.6, "continuous batching, nothing shared")


def prefix(
    vocab: int, groups: int = 16, per_group: int = 32, shared: int = 2048, own: int = 64, num_out: int = 32
) -> Workload:
    """Few-shot: groups of requests over one long prefix each, submitted at once, shuffled, on a cold cache."""
    rng = random.Random(3)
    asks = []
    for group in range(groups):
        head = _draw(rng, shared, vocab)
        asks += [Ask((group, i), head + _draw(rng, own, vocab), num_out) for i in range(per_group)]
    rng.shuffle(asks)
    return Workload("prefix", [asks], note="few-shot prefixes, cold cache")


def chat(vocab: int, talks: int = 64, turns: int = 6, num_in: int = 128, num_out: int = 128) -> Workload:
    """Conversations in step: each turn extends what was said before."""
    rng = random.Random(4)
    rounds = [[Ask(talk, _draw(rng, num_in, vocab), num_out) for talk in range(talks)] for _ in range(turns)]
    return Workload("chat", rounds, note="turns of a conversation, history reused")


def tree(
    vocab: int,
    roots: int = 8,
    branches: int = 4,
    depth: int = 4,
    trunk: int = 1024,
    own: int = 32,
    num_out: int = 64,
    widest: int = 512,
) -> Workload:
    """Tree of thought: every path forks into `branches` longer ones; of more than `widest`, an even choice goes on."""
    rng = random.Random(5)
    trunks = [_draw(rng, trunk, vocab) for _ in range(roots)]
    paths: list[tuple[tuple[int, ...], Ids]] = [((root,), ids) for root, ids in enumerate(trunks)]
    rounds = []
    for _ in range(depth):
        paths = [((*key, b), ids + _draw(rng, own, vocab)) for key, ids in paths for b in range(branches)]
        if len(paths) > widest:
            paths = paths[:: len(paths) // widest][:widest]
        rounds.append([Ask(key, ids, num_out) for key, ids in paths])
    return Workload("tree", rounds, note="search over forked paths")


WORKLOADS: dict[str, Callable[..., Workload]] = {f.__name__: f for f in (single, prefill, nano, prefix, chat, tree)}

SCALES: dict[str, dict[str, dict[str, int]]] = {
    "full": {},
    "tiny": {  # the same forms, seconds on a CPU with the embedded model
        "single": {"num_in": 32, "num_out": 32},
        "prefill": {"count": 4, "num_in": 128},
        "nano": {"count": 8, "low": 8, "high": 48},
        "prefix": {"groups": 2, "per_group": 4, "shared": 64, "own": 8, "num_out": 4},
        "chat": {"talks": 4, "turns": 3, "num_in": 12, "num_out": 8},
        "tree": {"roots": 2, "branches": 2, "depth": 2, "trunk": 48, "own": 8, "num_out": 8},
    },
}


def make_workload(name: str, vocab: int, scale: str = "full") -> Workload:
    """The workload for a vocabulary of `vocab` entries."""
    return WORKLOADS[name](vocab, **SCALES[scale].get(name, {}))


def cut(workload: Workload, divisor: int = 8) -> Workload:
    """The same prompts with outputs cut to 1/`divisor`, two tokens at least where there were two: for warming up.

    Requests still end one after another, so a warm-up meets the batch sizes that the run meets.
    """

    def shorter(ask: Ask) -> Ask:
        return Ask(ask.key, ask.ids, max(ask.num_out // divisor, min(2, ask.num_out)))

    rounds = [[shorter(ask) for ask in asks] for asks in workload.rounds]
    return Workload(workload.name, rounds, workload.temperature, workload.note)
