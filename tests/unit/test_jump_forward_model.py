"""Jump-forward on the embedded model: token for token what one at a time gives; limits that are met exactly."""

from __future__ import annotations

import json
import queue
import re
from collections.abc import Iterator
from copy import copy
from functools import cache
from typing import Any

import pytest

from nbsgl.engine.grammar import dfa, regex
from nbsgl.engine.grammar.fsm import CompiledFsm
from nbsgl.engine.grammar.tokens import build_tables
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.engine.scheduler import Scheduler
from nbsgl.engine.segments import Forced, Sampled
from nbsgl.protocol import (
    BranchFailed,
    Close,
    Gen,
    GenDone,
    GenResult,
    GrammarSpec,
    Root,
    SamplingParams,
    Text,
    pack_ids,
    unpack_ids,
)
from tests.unit.in_process import InProcessEngine

KEYS = ("name", "capital", "continent", "language", "currency")
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {key: {"type": "string", "maxLength": 24} for key in KEYS},
        "required": list(KEYS),
        "additionalProperties": False,
    }
)
STATION = r"The station is open in winter and closed in summer, (yes|no|it depends)\."
PROMPT = "<|im_start|>user\nDescribe {} as JSON.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[InProcessEngine]:
    engine = InProcessEngine()
    yield engine
    engine.close()


def run(engine: InProcessEngine, gens: list[tuple[str, SamplingParams, GrammarSpec | None]]) -> list[list[GenResult]]:
    """All at once."""
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    talk = engine.open_run(lambda events: [done.put(e) for e in events if isinstance(e, GenDone | BranchFailed)])
    for i, (prompt, params, spec) in enumerate(gens):
        gen = Gen(branch=i, slot=i, params=params, grammar=spec, stream=bool(i % 2) and params.n == 1)
        talk.submit([Root(branch=i), Text(branch=i, text=prompt), gen, Close(branch=i)])
    found = {}
    for _ in gens:
        event = done.get(timeout=60)
        assert isinstance(event, GenDone), event
        found[event.branch] = event.results
    return [found[i] for i in range(len(gens))]


def country(jump: Any) -> GrammarSpec:
    return GrammarSpec(kind="json_schema", text=SCHEMA, jump=jump)


def station(jump: Any) -> GrammarSpec:
    return GrammarSpec(kind="regex", text=STATION, jump=jump)


def mix(jump: Any, temperature: float) -> list[tuple[str, SamplingParams, GrammarSpec | None]]:
    def params(**more: Any) -> SamplingParams:
        return SamplingParams(**{"max_tokens": 120, "temperature": temperature, **more})

    return [
        (PROMPT.format("France"), params(seed=1), country(jump)),
        (PROMPT.format("Peru"), params(seed=2, n=2), country(jump)),
        ("Ada is", params(seed=3), None),
        ("x", params(seed=4, top_p=0.8), station(jump)),
        ("y", params(seed=5, max_tokens=9), station(jump)),
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_verified_jumps_change_no_token(engine: InProcessEngine, temperature: float) -> None:
    one_by_one, jumping = (run(engine, mix(jump, temperature)) for jump in ("off", "verify"))
    assert [[r.ids for r in results] for results in jumping] == [[r.ids for r in results] for results in one_by_one]
    assert [r.finish for results in jumping for r in results] == [r.finish for results in one_by_one for r in results]
    uses = [r.grammar for results in jumping for r in results if r.grammar]
    assert sum(use.steps_saved for use in uses) > 10
    assert all(use.accepted <= use.proposed for use in uses)


def test_canonical_outputs_do_not_depend_on_how_they_are_computed(engine: InProcessEngine) -> None:
    """Appended, drawn one by one for their log-probabilities, or behind a stop string that is never met."""
    settings: list[dict[str, Any]] = [{}, {"return_logprob": True}, {"stop": ("never met",)}]
    params = [SamplingParams(max_tokens=120, temperature=0.5, seed=6, **more) for more in settings]
    results = [
        result for (result,) in run(engine, [(PROMPT.format("Italy"), one, country("canonical")) for one in params])
    ]
    assert len({result.ids for result in results}) == 1
    assert set(json.loads(results[0].text)) == set(KEYS)
    assert results[1].output_logprobs is not None
    assert len(results[1].output_logprobs.tokens) == results[1].completion_tokens


def test_agreeing_model_takes_far_fewer_steps(engine: InProcessEngine) -> None:
    def steps(jump: Any) -> int:
        before = engine.scheduler.stats.batches
        run(engine, [(PROMPT.format("France"), SamplingParams(max_tokens=120, temperature=0.0), country(jump))])
        return engine.scheduler.stats.batches - before

    assert steps("off") >= 1.5 * steps("verify")


# ---- on_limit="fit" --------------------------------------------------------------------------------------------------


@cache
def compiled_of(pattern: str, vocab: TokenVocab) -> CompiledFsm:
    spec = GrammarSpec(kind="regex", text=pattern)
    return CompiledFsm(spec, build_tables(dfa.build(regex.parse(pattern)), vocab))


def fitted(engine: InProcessEngine, pattern: str, limit: int, *, tables: bool = True, **how: Any) -> Any:
    """The last update of a run with on_limit="fit", on a scheduler of its own."""
    updates: list[Any] = []
    spec = GrammarSpec(kind="regex", text=pattern, on_limit="fit", **how)
    compiled = compiled_of(pattern, engine.codec.vocab)
    if not tables:
        compiled = copy(compiled)
        compiled.tables = None  # type: ignore[assignment]
    scheduler: Scheduler = engine.make_scheduler(True, {})
    scheduler._compile, scheduler._emit = lambda spec: compiled, updates.extend
    params = SamplingParams(max_tokens=limit, temperature=1.0, seed=limit)
    scheduler.open(1)
    prompt = Forced(ids=pack_ids(engine.codec.encode("The list:")))
    scheduler.extend(1, 0, 0, [prompt, Sampled(params=params, grammar=spec)])
    while scheduler.step():
        pass
    return updates[-1]


@pytest.mark.parametrize("jump", ["off", "verify", "canonical"])
@pytest.mark.parametrize("limit", [5, 11, 22])
def test_outputs_fit_their_limit(engine: InProcessEngine, limit: int, jump: Any) -> None:
    pattern = r"\[([a-z]+, )*[a-z]+ and the end\]"
    update = fitted(engine, pattern, 8 + limit, jump=jump)
    assert re.fullmatch(pattern, engine.codec.decode(unpack_ids(update.ids)))
    assert update.complete
    assert len(unpack_ids(update.ids)) <= 8 + limit


def test_a_limit_that_nothing_fits_is_an_error_at_the_door(engine: InProcessEngine) -> None:
    update = fitted(engine, r"[0-9]{40}", 5)
    assert update.error["cls"] == "ParameterError"
    assert "at least" in update.error["message"]


def test_fitting_without_tables_is_an_error_that_says_what_to_do(engine: InProcessEngine) -> None:
    update = fitted(engine, r"[0-9]{4}", 5, tables=False)
    assert update.error["cls"] == "Unsupported"
    assert "on_limit" in update.error["hint"]
