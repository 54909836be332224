"""Run a workload on whoever can generate, and time it."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from nbsgl.bench.workloads import Ids, Workload
from nbsgl.errors import NbsglError

Generate = Callable[[list[Ids], list[int], float], list[Ids]]
"""(prompts, number of tokens of each, temperature) -> output ids of each."""


class BenchError(NbsglError, RuntimeError):
    """A measurement that cannot be taken, or that would not be one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds from the first submission to the last answer, and the tokens that went in and came out."""

    seconds: float
    prompt_tokens: int
    output_tokens: int


def drive(generate: Generate, workload: Workload) -> Outcome:
    """Run all rounds.  BenchError if an output is not as long as was asked: the work would not be the same."""
    told: dict[Hashable, Ids] = {}
    prompt_tokens = output_tokens = 0
    begin = time.perf_counter()
    for asks in workload.rounds:
        prompts = [told.get(ask.key, []) + ask.ids for ask in asks]
        outputs = generate(prompts, [ask.num_out for ask in asks], workload.temperature)
        for ask, prompt, output in zip(asks, prompts, outputs, strict=True):
            if len(output) != ask.num_out:
                raise BenchError(f"{workload.name}: {ask.num_out} tokens were asked for, {len(output)} came.")
            told[ask.key] = prompt + list(output)
            prompt_tokens += len(prompt)
            output_tokens += len(output)
    return Outcome(time.perf_counter() - begin, prompt_tokens, output_tokens)
