"""python -m tests.sim --seed N --steps K [--seeds M]: run seeds N .. N+M-1 of Sim A and say how fast it went."""

from __future__ import annotations

import argparse
import time

from tests.sim.simulation import simulate


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    begin = time.perf_counter()
    for seed in range(args.seed, args.seed + args.seeds):
        world = simulate(seed, args.steps)
        stats = world.scheduler.stats
        print(
            f"seed {seed}: {world.num_finished} segments, {stats.retractions} retractions, "
            f"{world.scheduler.tree.evicted_tokens} evicted, trace {world.trace.hexdigest()}"
        )
    rate = args.steps * args.seeds / (time.perf_counter() - begin) * 60
    print(f"{rate:,.0f} steps a minute")


if __name__ == "__main__":
    main()
