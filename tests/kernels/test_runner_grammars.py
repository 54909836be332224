"""Grammars in tables and drafts through the CUDA runner, in Triton's interpreter, against the plain runner's draws.

The plain runner is given matchers that know every token; the CUDA runner is given a run's first state only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from nbsgl.engine.batch import Batch, Row, RowResult
from nbsgl.engine.cuda.draws import Draws
from nbsgl.engine.cuda.runner import CudaRunner
from nbsgl.engine.cuda.sampling import KernelSampling
from nbsgl.engine.grammar.arena import TableArena
from nbsgl.engine.loader import LoadedModel
from nbsgl.engine.runner import ModelRunner
from nbsgl.protocol import SamplingParams
from tests.kernels.test_cuda_runner import NUM_SLOTS, Recorded, cuda_runner, unpack
from tests.unit.fake_tables import START, FakeTables, TableMatcher, make_tables, walk
from tests.unit.model_fakes import VOCAB, load_small, make_checkpoint

CPU = torch.device("cpu")
EOS = 2
GREEDY = SamplingParams(temperature=0.0)
DRAWN = SamplingParams(temperature=1.5, seed=7)
FILTERED = SamplingParams(temperature=1.2, seed=8, top_p=0.8, top_k=30)
PENALISED = SamplingParams(temperature=1.0, seed=9, frequency_penalty=1.5, repetition_penalty=1.3)
ASKING = SamplingParams(temperature=1.0, seed=9, return_logprob=True, top_logprobs_num=2)
SMALL, LARGE = make_tables(1, VOCAB, states=6, eos=EOS), make_tables(2, VOCAB, states=60, classes=9, eos=EOS)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("Llama")
    make_checkpoint(folder, "Llama")
    loaded = load_small(folder)
    unpack(loaded)
    return loaded


def with_kernels(loaded: LoadedModel, *, as_graphs: bool = False) -> CudaRunner:
    """The CUDA runner with the sampler that it has on a card."""
    runner = cuda_runner(loaded)
    sampler = runner.sampler
    sampler.kernels = KernelSampling(VOCAB, CPU, runner.last_tokens, sampler.penalties)
    sampler.kernels.grammars = runner.grammars
    if as_graphs:
        runner.use_graphs, runner.graphs = True, Recorded()
        runner.buffers = runner._make_buffers()
    return runner


@dataclass
class Run:
    """A sequence that draws under a grammar, or none; `kind` is where its masks come from on the device."""

    params: SamplingParams
    tables: FakeTables | None = None
    kind: str = "none"  # none | fsm | host
    min_tokens: int = 0
    tokens: list[int] = field(default_factory=list)

    def ban_ids(self) -> list[int]:
        return [EOS] if len(self.tokens) < self.min_tokens else []

    def matcher(self) -> TableMatcher | None:
        return None if self.tables is None else TableMatcher(self.tables, self.tables.along(self.tokens)[-1])


def answers(
    runner: ModelRunner | CudaRunner, runs: Sequence[Run], steps: int, takes_part: Callable[[int, int], bool]
) -> list[list[int]]:
    """A prompt each, then decodes; the runs that do not take part in a step sit it out."""
    rng = random.Random(3)
    prompts = [[rng.randrange(VOCAB) for _ in range(5 + i)] for i in range(len(runs))]
    order = rng.sample(range(NUM_SLOTS), NUM_SLOTS)
    slots = [[order.pop() for _ in range(40)] for _ in runs]
    for run in runs:
        run.tokens = []
    knows_all = not isinstance(runner, CudaRunner)
    for step in range(steps):
        part = [i for i in range(len(runs)) if takes_part(step, i)]
        rows = []
        for i in part:
            run, prompt, num = runs[i], prompts[i], len(runs[i].tokens)
            start, num_tokens = (len(prompt) + num - 1, 1) if num else (0, len(prompt))
            row = Row(i, start, num_tokens, [*prompt, *run.tokens], 0, () if num else slots[i], params=run.params,
                      is_fed_back=num > 0, run_begin=len(prompt), run_idx=num, is_run_start=num == 0,
                      ban_ids=run.ban_ids())  # fmt: skip
            if knows_all or run.kind == "host":
                row.matcher = run.matcher()
            elif run.kind == "fsm":
                row.tables, row.states = run.tables, [-1 if num else START]
            rows.append(row)
        for i, result in zip(part, runner.launch(Batch(rows)).result()):
            assert result.is_finite
            runs[i].tokens.append(result.token)
    for run in runs:
        if run.tables is not None:
            states = run.tables.along(run.tokens)
            assert all(run.tables.allowed(state)[token] for state, token in zip(states, run.tokens))
    return [run.tokens for run in runs]


def everybody(step: int, i: int) -> bool:
    return True


PLAIN_RUNS = [Run(GREEDY, SMALL, "fsm"), Run(DRAWN), Run(DRAWN, LARGE, "fsm"), Run(GREEDY), Run(DRAWN, SMALL, "fsm")]
OTHER_RUNS = [
    Run(FILTERED, LARGE, "fsm"),
    Run(DRAWN, SMALL, "host"),
    Run(PENALISED, LARGE, "fsm", min_tokens=4),
    Run(FILTERED),
    Run(GREEDY, SMALL, "fsm", min_tokens=2),
]


@pytest.mark.parametrize("as_graphs", [False, True])
@pytest.mark.parametrize("runs, kind", [(PLAIN_RUNS, Draws.MASKED), (OTHER_RUNS, Draws.OTHER)])
def test_rows_under_tables_draw_what_matchers_make_the_plain_runner_draw(
    loaded: LoadedModel, runs: list[Run], kind: Draws, as_graphs: bool
) -> None:
    loaded.runner.forget()
    expected = answers(loaded.runner, runs, 5, everybody)
    runner, noted = with_kernels(loaded, as_graphs=as_graphs), []
    note = runner.draws.note
    runner.draws.note = lambda lines: noted.append(note(lines)) or noted[-1]
    assert answers(runner, runs, 5, everybody) == expected
    assert set(noted) == {kind}, "the host is asked for nothing that the device knows"


@pytest.mark.parametrize("num_bytes", [0, 1_500, 4_000])
def test_tables_without_room_are_masked_from_the_host(loaded: LoadedModel, num_bytes: int) -> None:
    """No room at all, for the small one, for either of them; and what sits out a step may lose its place."""

    def in_turns(step: int, i: int) -> bool:
        return step < 2 or (step + i) % 3 != 0 or (step >= 6 and i != 2)

    loaded.runner.forget()
    expected = answers(loaded.runner, PLAIN_RUNS, 9, in_turns)
    runner = with_kernels(loaded)
    arena = runner.grammars.arena = TableArena(CPU, VOCAB, num_bytes)
    assert [arena.place([tables])[0] >= 0 for tables in (SMALL, LARGE)] == [num_bytes >= 1_500, num_bytes >= 4_000]
    assert -1 in arena.place([SMALL, LARGE]), "never both"
    assert answers(runner, PLAIN_RUNS, 9, in_turns) == expected


def test_without_memory_for_an_arena_masks_come_from_the_host(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from nbsgl.engine.cuda import grammars

    def refuse(device: torch.device, vocab_size: int, num_bytes: int) -> TableArena:
        if num_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return TableArena(device, vocab_size, num_bytes)

    monkeypatch.setattr(grammars, "TableArena", refuse)
    loaded.runner.forget()
    expected = answers(loaded.runner, PLAIN_RUNS, 3, everybody)
    assert answers(with_kernels(loaded), PLAIN_RUNS, 3, everybody) == expected
    assert "their masks come from the host" in caplog.text


def test_a_step_that_failed_may_be_launched_again(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the failed launch found out about rows without room is forgotten with it."""
    loaded.runner.forget()
    expected = answers(loaded.runner, PLAIN_RUNS, 3, everybody)
    runner = with_kernels(loaded)
    runner.grammars.arena = TableArena(CPU, VOCAB, 1_500)
    launch, hidden = runner.launch, type(runner.forward).hidden

    def twice(batch: Batch) -> object:
        with monkeypatch.context() as patched:
            patched.setattr(type(runner.forward), "hidden", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                launch(batch)
        assert type(runner.forward).hidden is hidden
        return launch(batch)

    monkeypatch.setattr(runner, "launch", twice)
    assert answers(runner, PLAIN_RUNS, 3, everybody) == expected


# ---- drafts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drafted:
    """A prompt with its draft; with a grammar the draft is one of its ways."""

    prompt: list[int]
    draft: list[int]
    params: SamplingParams
    tables: FakeTables | None = None
    kind: str = "none"
    known: int = 1  # tokens of the prompt that are computed with the draft


def drafts() -> list[Drafted]:
    rng = random.Random(4)
    prompts = [[rng.randrange(VOCAB) for _ in range(n)] for n in (9, 12, 8, 14, 6)]
    free = rng.sample(range(VOCAB), 4)
    return [
        Drafted(prompts[0], walk(LARGE, 5), GREEDY, LARGE, "fsm"),
        Drafted(prompts[1], walk(SMALL, 3), DRAWN, SMALL, "host", known=4),
        Drafted(prompts[2], walk(SMALL, 4, seed=1), DRAWN, SMALL, "fsm", known=8),
        Drafted(prompts[3], free, ASKING),
        Drafted(prompts[4], walk(LARGE, 3, seed=2), FILTERED, LARGE, "fsm", known=2),
    ]


def slots_of(i: int) -> range:
    return range(i * 60, i * 60 + 60)


def begin(runner: ModelRunner | CudaRunner, several: Sequence[Drafted]) -> None:
    """Compute all of the prompts but what comes with the drafts."""
    rows = [Row(i, 0, n, d.prompt, 0, slots_of(i)) for i, d in enumerate(several) if (n := len(d.prompt) - d.known)]
    runner.launch(Batch(rows)).result()


def one_by_one(runner: ModelRunner, several: Sequence[Drafted]) -> list[list[RowResult]]:
    """What is drawn behind each token of the drafts, by a runner that knows them as history."""
    begin(runner, several)
    found = []
    for i, d in enumerate(several):
        results, start = [], len(d.prompt) - d.known
        for n in range(len(d.draft) + 1):
            known = [*d.prompt, *d.draft[:n]]
            matcher = None if d.tables is None else TableMatcher(d.tables, d.tables.along(d.draft)[n])
            row = Row(i, start, len(known) - start, known, 0, slots_of(i), params=d.params, run_begin=len(d.prompt),
                      run_idx=n, is_run_start=True, matcher=matcher)  # fmt: skip
            results += runner.launch(Batch([row])).result()
        found.append(results)
    return found


def at_once(runner: CudaRunner, several: Sequence[Drafted]) -> list[RowResult]:
    begin(runner, several)
    rows = []
    for i, d in enumerate(several):
        row = Row(i, len(d.prompt) - d.known, d.known + len(d.draft), d.prompt, 0, slots_of(i), params=d.params,
                  run_begin=len(d.prompt), is_run_start=True, draft=d.draft)  # fmt: skip
        if d.kind == "fsm" and d.tables is not None:
            row.tables, row.states = d.tables, d.tables.along(d.draft)
        elif d.kind == "host" and d.tables is not None:
            row.matcher = TableMatcher(d.tables)
        rows.append(row)
    return runner.launch(Batch(rows)).result()


def assert_same(found: list[RowResult], expected: list[list[RowResult]]) -> None:
    for result, results in zip(found, expected, strict=True):
        assert [result.token, *result.more] == [one.token for one in results]
        assert result.is_finite
        assert (result.logprob is None) == (results[0].logprob is None)
        if result.logprob is not None:
            assert result.logprob == pytest.approx(results[0].logprob, abs=1e-3)
            assert [token for token, _ in result.top] == [token for token, _ in results[0].top]


@pytest.mark.parametrize("way", ["eagerly", "in parts", "as a graph", "in pieces"])
def test_drafts_are_drawn_as_if_their_tokens_were_known(
    loaded: LoadedModel, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbsgl.engine.cuda import runner as module

    several = drafts()
    loaded.runner.forget()
    expected = one_by_one(loaded.runner, several)
    runner = with_kernels(loaded, as_graphs=way.startswith(("as", "in pieces")))
    if way == "in parts":
        runner.max_drawn = 4
    if way == "in pieces":
        monkeypatch.setattr(module, "MAX_SMALL_READS", 0)
    assert_same(at_once(runner, several), expected)
    plain = [d for d in several if d.params in (GREEDY, DRAWN) and d.kind != "host"]
    runner = with_kernels(loaded)
    runner.max_drawn = 4 if way == "in parts" else runner.max_drawn
    assert_same(at_once(runner, plain), [results for d, results in zip(several, expected) if d in plain])


def test_a_draft_may_follow_a_token_that_the_host_has_not_seen(loaded: LoadedModel) -> None:
    prompt, draft = [5, 6, 7, 8], [11, 12, 13]
    loaded.runner.forget()
    first = loaded.runner.launch(Batch([Row(0, 0, 4, prompt, 0, slots_of(0), params=GREEDY)])).result()[0].token
    expected = one_by_one(loaded.runner, [Drafted([*prompt, first], draft, DRAWN)])
    runner = with_kernels(loaded)
    runner.launch(Batch([Row(0, 0, 4, prompt, 0, slots_of(0), params=GREEDY)])).result()
    row = Row(0, 4, 4, prompt, params=DRAWN, is_fed_back=True, run_begin=5, draft=draft, is_run_start=True)
    assert_same(runner.launch(Batch([row])).result(), expected)


@pytest.mark.parametrize("params", [DRAWN, FILTERED])
def test_a_draft_may_follow_a_state_that_the_host_does_not_know(loaded: LoadedModel, params: SamplingParams) -> None:
    """The first draw's state is on the device, and steps on there; the other draws are given theirs."""
    prompt, runner = [5, 6, 7, 8], with_kernels(loaded)
    first = Row(0, 0, 4, prompt, 0, slots_of(0), params=params, run_begin=4, tables=LARGE, states=[START])
    token = runner.launch(Batch([first])).result()[0].token
    behind = LARGE.behind(START, token)
    draft = walk(LARGE, 3, behind)
    states = LARGE.along(draft, behind)
    row = Row(0, 4, 4, prompt, params=params, is_fed_back=True, run_begin=4, run_idx=1, draft=draft, tables=LARGE,
              states=[-1, *states[1:]])  # fmt: skip
    found = runner.launch(Batch([row])).result()[0]
    assert runner.grammars.states[0] == LARGE.behind(behind, found.token)
    loaded.runner.forget()
    for i, drawn in enumerate([found.token, *found.more]):
        known = [*prompt, token, *draft[:i]]
        row = Row(0, 0, len(known), known, 0, slots_of(0), params=params, run_idx=1 + i,
                  matcher=TableMatcher(LARGE, states[i]))  # fmt: skip
        assert loaded.runner.launch(Batch([row])).result()[0].token == drawn
