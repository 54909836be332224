"""Minutes of random load: lengths, streams, aborts and forks, with more asked for than the pool holds."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from nbsgl.bench.workloads import Ids
from nbsgl.errors import NbsglError

SETTLE_S = 20.0  # for the engine to take back what aborted requests held


@dataclass(frozen=True, slots=True)
class Load:
    """`clients` threads that each send a batch, wait for it and send the next; lengths are spread on a log scale."""

    clients: int = 96
    batch: int = 8
    longest_prompt: int = 16_384
    longest_output: int = 768


SCALES = {"full": Load(), "tiny": Load(clients=4, batch=3, longest_prompt=200, longest_output=24)}


class Client:
    """One thread's random requests, the same for the same number."""

    def __init__(self, engine: Any, load: Load, number: int, trunks: list[Ids], counts: Counter[str]) -> None:
        self.engine, self.load, self.trunks, self.counts = engine, load, trunks, counts
        self.rng = random.Random(number)
        self.vocab = engine.info.vocab_size

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            kind = self.rng.choices(("batch", "fork", "stream", "abort"), (5, 2, 2, 2))[0]
            try:
                getattr(self, kind)()
                self.counts[kind] += 1
            except NbsglError as error:
                self.counts[f"error {type(error).__name__}"] += 1

    def batch(self) -> None:
        prompts = [self._prompt() for _ in range(self.rng.randint(1, self.load.batch))]
        self.engine.generate(input_ids=prompts, sampling_params=[self._params() for _ in prompts])

    def fork(self) -> None:
        self.engine.generate(input_ids=self._prompt(), sampling_params={**self._params(), "n": 4})

    def stream(self) -> None:
        for _ in self.engine.generate(input_ids=self._prompt(), sampling_params=self._params(), stream=True):
            pass

    def abort(self) -> None:
        """Leave a stream after its first few chunks."""
        stream = self.engine.generate(input_ids=self._prompt(), sampling_params=self._params(), stream=True)
        for _ in zip(range(self.rng.randint(1, 20)), stream, strict=False):
            pass
        stream.close()

    def _length(self, longest: int) -> int:
        return round(8 * (longest / 8) ** self.rng.random())

    def _prompt(self) -> Ids:
        """Some tokens of a trunk that others share, then own ones."""
        trunk = self.rng.choice(self.trunks)
        length = self._length(self.load.longest_prompt)
        own = [self.rng.randrange(100, self.vocab - 300) for _ in range(length)]
        return trunk[: self.rng.randrange(len(trunk))] + own

    def _params(self) -> dict[str, Any]:
        tokens, temperature = self._length(self.load.longest_output), self.rng.choice((0.0, 0.6, 1.0))
        top_p, seed = self.rng.choice((1.0, 0.9)), self.rng.randrange(1 << 30)
        params = {"max_new_tokens": tokens, "ignore_eos": True, "sampling_seed": seed}
        return {**params, "temperature": temperature, "top_p": top_p}


def measure(engine: Any, seconds: float, load: Load) -> dict[str, Any]:
    """Run the load and say what came of it; `leaked` slots are those still owned when nothing runs any more."""
    rng = random.Random(8)
    vocab = engine.info.vocab_size
    trunks = [[rng.randrange(100, vocab - 300) for _ in range(load.longest_prompt // 4)] for _ in range(8)]
    counts: Counter[str] = Counter()
    until = time.monotonic() + seconds
    clients = [Client(engine, load, number, trunks, counts) for number in range(load.clients)]
    threads = [threading.Thread(target=one.run, args=(until,), daemon=True) for one in clients]
    for thread in threads:
        thread.start()
    pool_peak = 0.0
    while any(thread.is_alive() for thread in threads):
        now = engine.snapshot()
        pool_peak = max(pool_peak, 1 - now.slots_free / now.slots_total)
        threads[0].join(0.5)
        threads = [thread for thread in threads if thread.is_alive()] or threads[:1]
    end = _settled(engine)
    return {
        "requests": dict(sorted(counts.items())),
        "errors": sum(count for kind, count in counts.items() if kind.startswith("error")),
        "pool_peak": round(pool_peak, 4),
        "slots": end.slots_total,
        "leaked": end.slots_owned,
        "retractions": end.retractions,
        "worker_epoch": end.epoch,
    }


def _settled(engine: Any) -> Any:
    """The engine's picture when it has nothing to do any more, or after SETTLE_S."""
    until = time.monotonic() + SETTLE_S
    picture = engine.snapshot()
    while (picture.running or picture.waiting or picture.slots_owned) and time.monotonic() < until:
        time.sleep(0.1)
        picture = engine.snapshot()
    return picture
