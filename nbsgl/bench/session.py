"""One run of `nbsgl bench`: engines are started, workloads measured, and each row is written as soon as it is known."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

import nbsgl
from nbsgl.bench import latency, mixed, peers, programs, start, tokenizer
from nbsgl.bench.cards import Card
from nbsgl.bench.clocks import Clocks, Nvml
from nbsgl.bench.drive import BenchError, drive
from nbsgl.bench.engines import ENGINES, Measured, Nbsgl, Setup, version
from nbsgl.bench.floors import Ceilings, Cost, count, floor_s, program_floor_s
from nbsgl.bench.models import Model
from nbsgl.bench.rows import FORMAT, Row, unit
from nbsgl.bench.workloads import WORKLOADS, cut, make_workload
from nbsgl.errors import ParameterError

PROGRAMS = tuple(programs.ARGUMENTS)
OURS_ONLY = (*PROGRAMS, "latency", "mixed")
ORDER = ("start", *WORKLOADS, "latency", "mixed", *PROGRAMS)
GROUPS = {"tokens": tuple(WORKLOADS), "programs": PROGRAMS, "all": tuple(n for n in ORDER if n != "mixed")}
ALONE = 5  # rows of a program that are run one by one too
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: settings of the command line, checked.  `budget_s`: no workload begins that will not fit."""

    model: Model
    card: Card
    ceilings: Ceilings
    dtype: str  # of weights and KV
    names: Sequence[str]
    scale: str = "full"
    repeat: int = 2
    device: str = "auto"
    tokenizer: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    minutes: float = 6.0
    budget_s: float | None = None
    say: Callable[[str], None] = lambda line: None


def expand(names: Sequence[str]) -> list[str]:
    """Names and groups as workloads in the order they are run in."""
    chosen = {name for one in names for name in GROUPS.get(one, (one,))}
    if unknown := sorted(chosen - set(ORDER)):
        raise ParameterError(name="WORKLOAD", value=unknown[0], allowed=", ".join([*GROUPS, *ORDER]))
    return [name for name in ORDER if name in chosen]


def _check_device(engine: Measured, card: Card) -> None:
    """BenchError if the engine runs elsewhere than the bounds are for."""
    if isinstance(engine, Nbsgl) and engine.info.device.startswith("cuda") != card.is_gpu:
        raise BenchError(
            f"The engine runs on {engine.info.device} ({engine.info.device_reason}), the driver shows {card.name}.",
            hint="Say which: --device cpu, or --device cuda.",
        )


class Session:
    """Measures a plan on one engine; iterate over `rows()`."""

    def __init__(self, plan: Plan, engine: str) -> None:
        self.plan, self.engine_name = plan, engine
        self.vocab = plan.model.config.vocab_size
        self.cost = Cost.of(plan.model.config, ITEM_BYTES[plan.dtype], ITEM_BYTES[plan.dtype])
        self._nvml = Nvml.open(plan.card.index) if plan.card.index else None
        self._begin = time.monotonic()

    def rows(self) -> Iterator[Row]:
        """One row after another.  An engine lives for the workloads that share it and is ended before the next."""
        names = [name for name in self.plan.names if self.engine_name == "nbsgl" or name not in OURS_ONLY]
        for name in [name for name in self.plan.names if name not in names]:
            self.plan.say(f"{name}: measured with nbsgl only")
        if "start" in names and self._fits("start"):
            yield self._start()
        yield from self._with_engine([n for n in names if n in WORKLOADS or n in ("latency", "mixed")], False)
        yield from self._with_engine([n for n in names if n in PROGRAMS], True)

    # ---- engines -----------------------------------------------------------------------------------------------------

    def _setup(self, with_text: bool) -> Setup:
        plan, path = self.plan, self.plan.tokenizer
        if with_text and path is None and not plan.model.has_tokenizer:
            path = tokenizer.cached()
        return Setup(
            model_path=plan.model.folder,
            load_format=plan.model.load_format,
            device=plan.device,
            dtype=plan.dtype,
            tokenizer_path=path if with_text else None,
            with_text=with_text,
            settings=plan.settings,
        )

    def _with_engine(self, names: list[str], with_text: bool) -> Iterator[Row]:
        if not names:
            return
        begin = time.perf_counter()
        with contextlib.closing(ENGINES[self.engine_name](self._setup(with_text))) as engine:
            _check_device(engine, self.plan.card)
            self.plan.say(f"{self.engine_name} started in {time.perf_counter() - begin:.1f} s")
            if isinstance(engine, Nbsgl):
                engine.generate([[1, 2, 3]], [2], 0.0)
                self.plan.say(f"graphs were captured for {engine.settle():.1f} s, in idle moments")
            for name in names:
                if self._fits(name):
                    yield self._measure(name, engine)

    def _measure(self, name: str, engine: Measured) -> Row:
        if name in WORKLOADS:
            return self._tokens(name, engine)
        assert isinstance(engine, Nbsgl), name
        if name in PROGRAMS:
            return self._program(name, engine)
        return self._latency(engine) if name == "latency" else self._mixed(engine)

    def _fits(self, name: str) -> bool:
        """Whether the workload will be over within the budget, by a rough guess: twice its bound for each run."""
        plan = self.plan
        if plan.budget_s is None:
            return True
        guess = {"start": 30.0 * (plan.repeat + 1), "mixed": 60.0 * plan.minutes + 30.0}.get(name, 20.0)
        if name in WORKLOADS:
            bound = floor_s(count(make_workload(name, self.vocab, plan.scale)), self.cost, *self._rates(False))
            guess = 2.0 * bound * (plan.repeat + 1) + 2.0
        left = plan.budget_s - (time.monotonic() - self._begin)
        if guess > left:
            plan.say(f"{name}: left out, about {guess:.0f} s needed and {left:.0f} s left of the budget")
        return guess <= left

    # ---- workloads ---------------------------------------------------------------------------------------------------

    def _start(self) -> Row:
        setup, found = self._setup(False), []
        with self._clocks() as clocks:
            for _ in self._runs("start"):  # the first fills the caches of kernels and files
                found.append(start.first_token(self.engine_name, setup, self.vocab))
        seconds, phases = min(found[1:] or found, key=lambda one: one[0])
        more = {"seconds": [round(one[0], 3) for one in found], "phases": phases}
        return self._row("start", round(seconds, 3), clocks, **more)

    def _tokens(self, name: str, engine: Measured) -> Row:
        workload = make_workload(name, self.vocab, self.plan.scale)
        rounds = count(workload)
        outcomes, runs = [], self._runs(name)
        next(runs)
        engine.flush()
        drive(engine.generate, cut(workload))
        with self._clocks() as clocks:
            for _ in runs:
                engine.flush()
                outcomes.append(drive(engine.generate, workload))
        best = min(outcomes, key=lambda outcome: outcome.seconds)
        rate = best.output_tokens / best.seconds
        more = {
            "seconds": [round(outcome.seconds, 4) for outcome in outcomes],
            "prompt_tokens": best.prompt_tokens,
            "output_tokens": best.output_tokens,
            "new_tokens": sum(work.new_tokens for work in rounds),
            "out_tok_s": round(rate, 1),
            "all_tok_s": round((best.prompt_tokens + best.output_tokens) / best.seconds, 1),
            "floor_s": round(floor_s(rounds, self.cost, *self._rates(False)), 6),
            "floor_burst_s": round(floor_s(rounds, self.cost, *self._rates(True)), 6),
        }
        figure = round(rate, 1) if unit(name) == "tok/s" else round(best.seconds, 4)
        return self._row(name, figure, clocks, **more)

    def _program(self, name: str, engine: Nbsgl) -> Row:
        program, given = programs.programs(nbsgl)[name], programs.arguments(name, self.plan.scale)
        seconds = []
        with self._clocks() as clocks:
            for _ in self._runs(name):
                engine.flush()
                before = engine.engine.snapshot()
                begin = time.perf_counter()
                states = program.run_batch(given, backend=engine.engine)
                for state in states:
                    state.text()  # waits for all that the program queued
                seconds.append(time.perf_counter() - begin)
        after = engine.engine.snapshot()
        computed = after.prefill_tokens_computed - before.prefill_tokens_computed
        decoded = after.decode_tokens - before.decode_tokens
        alone = [self._alone(program, arguments, engine) for arguments in given[:ALONE]]
        depth = programs.DEPTH[name]
        steps = decoded / len(given) if depth is None else float(depth)
        bounds = [program_floor_s(computed, decoded, steps, self.cost, *self._rates(burst)) for burst in (False, True)]
        best = min(seconds[1:] or seconds)
        more = {
            "seconds": [round(one, 4) for one in seconds[1:]],
            "alone_s": round(statistics.median(alone), 4),
            "programs": len(given),
            "computed_tokens": computed,
            "output_tokens": decoded,
            "floor_s": round(bounds[0], 6),
            "floor_burst_s": round(bounds[1], 6),
        }
        return self._row(name, round(best, 4), clocks, **more)

    def _alone(self, program: Any, arguments: dict[str, str], engine: Nbsgl) -> float:
        """Seconds of one program that nothing runs beside, with an empty cache."""
        engine.flush()
        begin = time.perf_counter()
        program.run(**arguments, backend=engine.engine).text()
        return time.perf_counter() - begin

    def _latency(self, engine: Nbsgl) -> Row:
        load = latency.SCALES[self.plan.scale]
        with self._clocks() as clocks:
            for _ in self._runs("latency", 2):  # the first warms up
                engine.flush()
                found = latency.measure(engine.engine.generate, self.vocab, load)
        return self._row("latency", found.pop("figure"), clocks, **found)

    def _mixed(self, engine: Nbsgl) -> Row:
        with self._clocks() as clocks:
            found = mixed.measure(engine.engine, 60.0 * self.plan.minutes, mixed.SCALES[self.plan.scale])
        used = self.cost.weight_bytes + found["slots"] * self.cost.kv_bytes
        total = self.plan.card.memory_bytes
        more = {"weights_and_kv_bytes": used, "memory_bytes": total, "minutes": self.plan.minutes, **found}
        return self._row("mixed", round(used / total, 4) if total else None, clocks, **more)

    # ---- what stands beside each figure ------------------------------------------------------------------------------

    def _rates(self, burst: bool) -> tuple[float, float]:
        ceilings = self.plan.ceilings
        return ceilings.bytes_s, ceilings.burst_flop_s if burst else ceilings.flop_s

    def _clocks(self) -> Clocks:
        return Clocks(self._nvml)

    def _runs(self, name: str, count: int | None = None) -> Iterator[int]:
        """A warm-up and the repeats, with a bar where somebody looks."""
        yield from tqdm(range(count or self.plan.repeat + 1), desc=name, leave=False, disable=None)

    def _row(self, name: str, figure: float | None, clocks: Clocks, **more: Any) -> Row:
        plan = self.plan
        known = peers.figures(plan.card.name, plan.model.name, name, plan.scale, plan.model.load_format)
        return {
            "format": FORMAT,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "engine": self.engine_name,
            "version": version(self.engine_name),
            "model": plan.model.name,
            "load_format": plan.model.load_format,
            "dtype": plan.dtype,
            "card": plan.card.name,
            "workload": name,
            "scale": plan.scale,
            "figure": figure,
            "unit": unit(name),
            **more,
            **clocks.summary(),
            **({"peers": known} if known else {}),
            "settings": plan.settings,
        }
