"""Grammars in tables on a card: what they draw is what masks from the host make it draw, however a step is launched.

The deterministic model's draws do not depend on the batch, so token for token; through graphs, where rounding may turn
a draw over, every answer is in its language and leaves the other way's only at a near tie.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch

from nbsgl.engine.batch import Batch, Row
from nbsgl.engine.grammar import dfa, regex
from nbsgl.engine.grammar.arena import TableArena
from nbsgl.engine.grammar.fsm import CompiledFsm, FsmMatcher
from nbsgl.engine.grammar.tokens import build_tables
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.engine.loader import LoadedModel
from nbsgl.protocol import GrammarSpec, SamplingParams
from tests.gpu.compare import assert_agree
from tests.gpu.harness import ON_CARD, ON_CPU, Answer, Ask, Grammars, Server, load_model, make_model
from tests.unit.fake_tables import START, make_tables

pytestmark = ON_CARD
NEEDS_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

VOCAB, EOS, LENGTH = 2000, 1, 40
# none of them ends within LENGTH tokens
NUMBERS = r"([0-9]{1,3}-[a-z]{1,6};){60}"
OBJECTS = r'(\{"name": "[a-z ]{1,12}", "count": [0-9]{1,4}\}, ){40}'
WORDS = r"(yes|no|maybe){120}"
SPELT = r"(#KEYS=[a-z]{1,6};){30}"  # capitals have single tokens only: drafts of them are always right
MANY = [rf"(x{i}[a-z]{{1,5}} ){{60}}" for i in range(6)]


@cache
def vocab() -> TokenVocab:
    """Single bytes and pieces of what the grammars say, of two to four bytes."""
    rng = random.Random(0)
    text = '{"name": "ada lovelace", "count": 1815}, 12-xyz;007-bond;yesnomaybeyes x1abc x2def x3'
    pieces = {text[i : i + n].encode() for i in range(len(text) - 4) for n in (2, 3, 4)}
    while len(pieces) < VOCAB - 300:
        pieces.add("".join(rng.choices("abcdefghij0123456789 ", k=rng.choice([2, 3, 4]))).encode())
    tokens = [b"", None, *(bytes([i]) for i in range(256)), *sorted(pieces)]
    return TokenVocab([*tokens, *[None] * (VOCAB - len(tokens))], eos_ids=[EOS])


@cache
def compiled(pattern: str) -> CompiledFsm:
    spec = GrammarSpec(kind="regex", text=pattern)
    return CompiledFsm(spec, build_tables(dfa.build(regex.parse(pattern)), vocab()))


@dataclass(frozen=True)
class OnHost:
    """The same grammar without tables to show: its masks come from the host."""

    spec: GrammarSpec
    inner: CompiledFsm
    engine: str = "host"
    num_states: int | None = None
    table_bytes: int = 0

    def matcher(self) -> FsmMatcher:
        return self.inner.matcher()


class Longest:
    """An encoder: the longest piece at each place."""

    def __init__(self) -> None:
        self.ids = {data: token for token, data in enumerate(vocab().tokens) if data}

    def __call__(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            size = next(n for n in (4, 3, 2, 1) if data[:n] in self.ids and n <= len(data))
            ids.append(self.ids[data[:size]])
            data = data[size:]
        return ids

    def sure_len(self, text: str) -> int:
        return max(0, len(text) - 4)


def on_tables(spec: GrammarSpec) -> CompiledFsm:
    return compiled(spec.text)


def on_host(spec: GrammarSpec) -> OnHost:
    return OnHost(spec, compiled(spec.text))


def mixed(spec: GrammarSpec) -> CompiledFsm | OnHost:
    return on_host(spec) if spec.text == WORDS else on_tables(spec)


def server(loaded: LoadedModel, compile: object = on_tables, *, jumps: bool = False) -> Server:
    return Server(loaded, Grammars(vocab(), compile, Longest() if jumps else None))


def asks(patterns: Sequence[str | None], *, temperature: float, top_p: float = 1.0, jump: str = "off") -> list[Ask]:
    rng = random.Random(5)
    return [
        Ask(
            [rng.randrange(VOCAB) for _ in range(rng.randrange(5, 90))],
            LENGTH,
            temperature,
            top_p,
            seed=i,
            grammar=None if pattern is None else GrammarSpec(kind="regex", text=pattern, jump=jump),
        )
        for i, pattern in enumerate(patterns)
    ]


def assert_in_language(given: Sequence[Ask], answers: Sequence[Answer]) -> None:
    for ask, answer in zip(given, answers, strict=True):
        assert len(answer.tokens) == LENGTH
        if ask.grammar is not None:
            matcher = compiled(ask.grammar.text).matcher()
            assert all(matcher.advance(token) for token in answer.tokens)


def tokens_of(answers: Sequence[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in answers]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("grammars"), "Llama", vocab=VOCAB)


@pytest.fixture(scope="module")
def exact(folder: Path) -> LoadedModel:
    return load_model(folder, deterministic=True)


@pytest.fixture(scope="module")
def fast(folder: Path) -> LoadedModel:
    return load_model(folder)


ALL = [NUMBERS, None, OBJECTS, WORDS, SPELT, OBJECTS, None, WORDS, SPELT, *MANY[:4]]


@pytest.mark.parametrize("temperature, top_p", [(0.0, 1.0), (0.9, 1.0), (0.9, 0.8)])
def test_tables_draw_what_the_hosts_masks_draw(exact: LoadedModel, temperature: float, top_p: float) -> None:
    given = asks(ALL, temperature=temperature, top_p=top_p)
    answers = server(exact).run(given)
    assert_in_language(given, answers)
    assert tokens_of(answers) == tokens_of(server(exact, on_host).run(given))
    assert tokens_of(answers) == tokens_of(server(exact, mixed).run(given)), "both ways in one batch"


@pytest.mark.parametrize("jumps", [False, True])
def test_a_run_draws_alone_what_it_draws_among_others(exact: LoadedModel, jumps: bool) -> None:
    given = asks(ALL, temperature=0.7, jump="verify")
    together = server(exact, jumps=jumps).run(given)
    assert tokens_of(together) == [server(exact, jumps=jumps).run([ask])[0].tokens for ask in given]


@pytest.mark.parametrize("temperature, top_p", [(0.0, 1.0), (0.9, 1.0), (0.9, 0.8)])
@pytest.mark.parametrize("compile", [on_tables, on_host, mixed])
def test_drafts_change_no_token(exact: LoadedModel, compile: object, temperature: float, top_p: float) -> None:
    given = asks(ALL, temperature=temperature, top_p=top_p, jump="verify")
    jumping = server(exact, compile, jumps=True)
    answers = jumping.run(given)
    jump = jumping.scheduler.jump
    assert jump.proposed >= jump.accepted >= 10
    assert_in_language(given, answers)
    assert tokens_of(answers) == tokens_of(server(exact, compile).run(given))


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("temperature, top_p", [(0.0, 1.0), (0.9, 1.0), (0.9, 0.8)])
def test_through_graphs_answers_stay_in_the_language(
    fast: LoadedModel, temperature: float, top_p: float, jumps: bool
) -> None:
    """Three waves, the last with all graphs at hand."""
    given = asks(ALL, temperature=temperature, top_p=top_p, jump="verify")
    for compile in (on_tables, mixed, on_tables):
        assert_in_language(given, server(fast, compile, jumps=jumps).run(given))


@NEEDS_CARD
def test_graphs_answer_as_steps_kernel_by_kernel(fast: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    given = asks(ALL, temperature=0.0)
    through_graphs = server(fast).run(given)
    monkeypatch.setattr(fast.runner, "use_graphs", False)
    assert_agree("grammars, graphs and eager", fast, given, server(fast).run(given), through_graphs)


@NEEDS_CARD
@pytest.mark.parametrize("num_fit", [0, 1, 2.5])
def test_tables_that_come_and_go_change_no_token(
    exact: LoadedModel, monkeypatch: pytest.MonkeyPatch, num_fit: float
) -> None:
    """Room for fewer grammars than run at once: some are masked from the host, and places change hands."""
    given = [replace(ask, max_tokens=LENGTH - 3 * i) for i, ask in enumerate(asks([*MANY, *MANY], temperature=0.8))]
    expected = tokens_of(server(exact).run(given))
    whole = TableArena(exact.runner.device, VOCAB, 64 << 20)
    whole.place([compiled(pattern).tables for pattern in MANY])
    size = 4 * max(entry.size for entry in whole._entries.values())
    arena = TableArena(exact.runner.device, VOCAB, int(num_fit * size))
    monkeypatch.setattr(exact.runner.grammars, "arena", arena)
    for limit in (12, 3):
        limited = Server(exact, Grammars(vocab(), on_tables), max_running=limit)
        assert tokens_of(limited.run(given)) == expected
        assert int(num_fit) <= len(arena) < len(MANY), "as many as fit"


@NEEDS_CARD
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_steps_under_tables_wait_for_nothing(fast: LoadedModel) -> None:
    """Decodes far ahead of the host, torch forbidden to synchronise: the answers of one step at a time."""
    fast.runner.forget()
    grammars = [compiled(pattern) for pattern in (NUMBERS, OBJECTS, *MANY)]
    prompts = [[7, 8, 9, 10 + i] for i in range(len(grammars))]
    params = SamplingParams(temperature=0.0)

    def rows(step: int) -> list[Row]:
        return [
            Row(i, 3 + step if step else 0, 1 if step else 4, prompt, 0, () if step else range(i * 50, i * 50 + 50),
                is_fed_back=step > 0, params=params, run_begin=4, run_idx=step, tables=one.tables,
                states=[-1 if step else START])
            for i, (one, prompt) in enumerate(zip(grammars, prompts))
        ]  # fmt: skip

    expected = [fast.runner.launch(Batch(rows(step))).result() for step in range(6)]
    first = fast.runner.launch(Batch(rows(0))).result()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [fast.runner.launch(Batch(rows(step))) for step in range(1, 6)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [first, *(step.result() for step in steps)]
    assert [[r.token for r in step] for step in found] == [[r.token for r in step] for step in expected]


# ---- kernels -------------------------------------------------------------------------------------------------------


@NEEDS_CARD
@pytest.mark.skipif(ON_CPU, reason="kernels only")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num", [1, 7, 64, 512])
def test_masked_draw_is_torchs_and_repeats_itself_in_a_graph(num: int, dtype: torch.dtype) -> None:
    from nbsgl.engine.kernels.draw import DrawScratch, draw
    from nbsgl.engine.kernels.tables import TableLines
    from nbsgl.engine.rng import draw_keys, exponentials

    wide, device = 128_256, torch.device("cuda")
    several = [make_tables(i, wide - 500 * i, states=200, classes=40, eos=i) for i in range(3)]
    arena = TableArena(device, wide, 32 << 20)
    begins = arena.place(several)
    rng = random.Random(num)
    chosen = [rng.randrange(4) for _ in range(num)]
    at = [rng.randrange(START, 200) for _ in range(num)]

    def int32(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    grammars = int32([begins[c] if c < 3 else -1 for c in chosen])
    given, states = int32([-1 if i % 2 else s for i, s in enumerate(at)]), int32(at)
    lines = TableLines(grammars, given, states, arena.block)
    logits = (torch.randn(num, wide, generator=torch.Generator("cuda").manual_seed(1), device=device) * 3).to(dtype)
    temperatures = torch.linspace(0.5, 1.5, num, device=device)
    temperatures[::3] = 0.0
    keys = torch.tensor([draw_keys(i, i) for i in range(num)], dtype=torch.int32, device=device)
    rows, out = int32(range(num)), torch.zeros((2, num), dtype=torch.int32, device=device)
    scratch, last = DrawScratch(num, device), int32([0] * num)

    def run() -> None:
        states.copy_(at_first)
        draw(logits, temperatures, keys, rows, ones, last, out, scratch, lines=lines, pdl=has_pdl)

    at_first, ones = states.clone(), torch.ones_like(rows)
    has_pdl = torch.cuda.get_device_capability()[0] >= 9
    run()
    torch.cuda.synchronize()
    tokens, behind = out[0].tolist(), states.tolist()
    assert out[1].all()
    ids = torch.arange(wide, dtype=torch.int32, device=device)
    for i, token in enumerate(tokens):
        scores = logits[i].float().clone()
        if temperatures[i] > 0:
            scores = scores / temperatures[i] - exponentials(keys[i : i + 1], ids)[0].log()
        if chosen[i] < 3:
            tables = several[chosen[i]]
            allowed = torch.zeros(wide, dtype=torch.bool)
            allowed[: len(tables.class_of)] = torch.from_numpy(tables.allowed(at[i]))
            assert allowed[token]
            scores[~allowed.to(device)] = float("-inf")
            assert behind[i] == tables.behind(at[i], token)
        else:
            assert behind[i] == at[i]
        assert scores.max() - scores[token] < 5e-5, "the best, or within rounding of it"
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    wanted, wanted_states = out.clone(), int32(behind)
    for _ in range(200):
        out.fill_(-1)
        graph.replay()
        wrong += (out != wanted).sum() + (states != wanted_states).sum()
    assert wrong.item() == 0
