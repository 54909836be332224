"""Draws under grammars in tables: those of the CPU sampler under the same masks; states step as tables say."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from nbsgl.engine.batch import Row
from nbsgl.engine.grammar.arena import TableArena
from nbsgl.engine.kernels.draw import DrawScratch, draw
from nbsgl.engine.kernels.tables import TableLines, gather_masks, step_states
from nbsgl.engine.rng import draw_keys
from nbsgl.engine.sampler import Sampler
from nbsgl.protocol import SamplingParams
from tests.unit.fake_tables import DEAD, START, FakeTables, TableMatcher, make_tables

CPU = torch.device("cpu")
VOCAB = 2_603  # neither whole blocks nor whole mask words
NUM_ROWS = 20


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


class Lines:
    """Lines at random states of random grammars, on rows of their own; the odd ones' states are on the device."""

    def __init__(self, num: int, seed: int) -> None:
        rng = random.Random(seed)
        several = [make_tables(seed + i, VOCAB - 40 * i, states=5 + 30 * i, classes=3 + 4 * i) for i in range(3)]
        self.arena = TableArena(CPU, VOCAB, 1 << 20)
        self.tables: list[FakeTables | None] = [rng.choice([None, *several]) for _ in range(num)]
        self.at = [0 if t is None else rng.randrange(START, t.num_states) for t in self.tables]
        self.rows = rng.sample(range(NUM_ROWS), num)
        self.arena.place(several)
        states = torch.full((NUM_ROWS,), -9, dtype=torch.int32)
        given = list(self.at)
        for i in range(1, num, 2):
            states[self.rows[i]], given[i] = self.at[i], -1
        begins = [-1 if t is None else self.arena.begin_of(t) for t in self.tables]
        self.on_device = TableLines(int32(*begins), int32(*given), states, self.arena.block)

    def matchers(self) -> list[TableMatcher | None]:
        return [None if t is None else TableMatcher(t, at) for t, at in zip(self.tables, self.at)]

    def states_behind(self, tokens: list[int]) -> list[int]:
        """What `states` should be on all rows."""
        states = self.on_device.states.tolist()
        for tables, at, row, token in zip(self.tables, self.at, self.rows, tokens):
            if tables is not None:
                states[row] = tables.behind(at, token)
        return states


def cpu_tokens(logits: Tensor, params: list[SamplingParams], matchers: list, bans: list[list[int]]) -> list[int]:
    rows = [
        Row(i, 0, 1, [], params=p, run_idx=i, matcher=m, ban_ids=b)
        for i, (p, m, b) in enumerate(zip(params, matchers, bans))
    ]
    sampler = Sampler(logits.shape[1], CPU, torch.zeros(len(rows), dtype=torch.int64))
    return sampler.draw(logits.float().clone(), rows).tokens.tolist()


def kernel_tokens(logits: Tensor, params: list[SamplingParams], lines: Lines | None) -> tuple[list[int], list[int]]:
    num = len(params)
    out, last = torch.full((2, num), -7, dtype=torch.int32), torch.full((NUM_ROWS,), -7, dtype=torch.int32)
    temperatures = torch.tensor([0.0 if p.is_greedy else p.temperature for p in params])
    keys = torch.tensor([draw_keys(p.seed or 0, i) for i, p in enumerate(params)], dtype=torch.int32)
    rows = torch.arange(num, dtype=torch.int32) if lines is None else int32(*lines.rows)
    given = (logits, temperatures, keys, rows, torch.ones(num, dtype=torch.int32), last, out, DrawScratch(num, CPU))
    draw(*given, lines=None if lines is None else lines.on_device, pdl=False)
    assert last[rows.long()].tolist() == out[0].tolist()
    return out[0].tolist(), out[1].tolist()


def some_params(num: int, seed: int) -> list[SamplingParams]:
    rng = random.Random(seed)
    return [SamplingParams(temperature=rng.choice([0.0, 0.3, 1.0, 4.0]), seed=rng.getrandbits(40)) for _ in range(num)]


@pytest.mark.parametrize("seed", range(6))
def test_masked_draw_is_that_of_the_cpus_sampler(seed: int) -> None:
    num = (1, 4, 17)[seed % 3]
    lines, params = Lines(num, seed), some_params(num, seed)
    logits = torch.randn(num, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    logits = logits.half() if seed % 2 else logits
    wanted = cpu_tokens(logits, params, lines.matchers(), [[]] * num)
    states = lines.states_behind(wanted)
    tokens, is_finite = kernel_tokens(logits, params, lines)
    assert tokens == wanted
    assert is_finite == [1] * num, "what a mask forbids is no fault of the logits"
    assert lines.on_device.states.tolist() == states, "other rows' states are not touched"
    for tables, at, token in zip(lines.tables, lines.at, tokens):
        assert tables is None or tables.allowed(at)[token]


def test_masked_draw_without_any_grammar_is_the_plain_one() -> None:
    lines, params = Lines(9, 0), some_params(9, 1)
    lines.on_device.grammars.fill_(-1)
    logits = torch.randn(9, VOCAB, generator=torch.Generator().manual_seed(2))
    before = lines.on_device.states.clone()
    assert kernel_tokens(logits, params, lines) == kernel_tokens(logits, params, None)
    assert torch.equal(lines.on_device.states, before)


def test_draws_follow_the_grammar_from_step_to_step() -> None:
    """The host gives the first state only."""
    tables = make_tables(3, VOCAB, states=40)
    lines, params = Lines(4, 0), some_params(4, 5)
    begin = lines.arena.place([tables])[0]
    lines.on_device.grammars.fill_(begin)
    lines.on_device.given.fill_(START)
    paths: list[list[int]] = [[] for _ in range(4)]
    for step in range(8):
        logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(step)) * 2
        for path, token in zip(paths, kernel_tokens(logits, params, lines)[0]):
            path.append(token)
        lines.on_device.given.fill_(-1)
    for path, row in zip(paths, lines.rows):
        states = tables.along(path)
        assert all(tables.allowed(state)[token] for state, token in zip(states, path))
        assert lines.on_device.states[row] == states[-1]


def test_broken_lines_are_told_and_get_a_valid_id() -> None:
    lines, params = Lines(3, 4), some_params(3, 4)
    lines.tables[1] = next(t for seed in range(99) if not (t := make_tables(seed, VOCAB)).class_of[0])
    lines.on_device.grammars[1] = lines.arena.place([lines.tables[1]])[0]
    lines.at[1] = lines.on_device.given[1] = START + 1
    logits = torch.zeros(3, VOCAB)
    logits[1] = float("nan")
    logits[2, 77] = float("inf")
    tokens, is_finite = kernel_tokens(logits, params, lines)
    assert is_finite == [1, 0, 0]
    assert all(0 <= token < VOCAB for token in tokens)
    assert lines.on_device.states.tolist() == lines.states_behind(tokens)
    assert lines.on_device.states[lines.rows[1]] == DEAD, "where no mask allows what was drawn"


def test_of_a_rows_lines_only_the_flagged_one_moves_its_state() -> None:
    tables, logits = make_tables(3, VOCAB, states=40), torch.randn(3, VOCAB)
    arena = TableArena(CPU, VOCAB, 1 << 20)
    begin, states = arena.place([tables])[0], torch.tensor([7, START, 7], dtype=torch.int32)
    rows, flags = int32(1, 1, 1), int32(1, 0, 0)
    out, last = torch.zeros((2, 3), dtype=torch.int32), int32(-7, -7, -7)
    lines = TableLines(int32(begin, begin, begin), int32(-1, 9, 30), states, arena.block)
    keys = torch.tensor([draw_keys(1, i) for i in range(3)], dtype=torch.int32)
    draw(logits, torch.ones(3), keys, rows, flags, last, out, DrawScratch(3, CPU), lines=lines, pdl=False)
    tokens = out[0].tolist()
    assert all(tables.allowed(state)[token] for state, token in zip((START, 9, 30), tokens))
    assert states.tolist() == [7, tables.behind(START, tokens[0]), 7]
    assert last.tolist() == [-7, tokens[0], -7]


def test_gathered_masks_are_the_matchers_less_their_bans() -> None:
    lines = Lines(12, 7)
    chosen = [i for i, tables in enumerate(lines.tables) if tables is not None]
    rng = random.Random(1)
    bans = []
    for i in chosen:
        allowed = np.flatnonzero(lines.tables[i].allowed(lines.at[i])).tolist()
        # nothing, some of what is allowed and what is not, or all of it: then the grammar wins
        bans.append(rng.choice([[], [allowed[0], 5, VOCAB - 1, allowed[-1]], allowed]))
    assert any(bans)
    assert not all(bans)
    begins = np.cumsum([0, *map(len, bans)]).tolist()
    out = torch.full((len(chosen), lines.arena.num_words), -7, dtype=torch.int32)
    flat = int32(*(token for some in bans for token in some))
    gather_masks(lines.on_device, int32(*lines.rows), int32(*chosen), int32(*begins), flat, out)
    for i, banned, words in zip(chosen, bans, out.numpy()):
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:VOCAB].astype(bool)
        allowed = np.zeros(VOCAB, np.bool_)
        allowed[: len(lines.tables[i].class_of)] = lines.tables[i].allowed(lines.at[i])
        less = allowed.copy()
        less[banned] = False
        assert bits.tolist() == (less if less.any() else allowed).tolist()


@pytest.mark.parametrize("is_allowed", [True, False])
def test_states_step_behind_other_draws(is_allowed: bool) -> None:
    """DEAD is behind what is not allowed, as a broken line may draw."""
    lines = Lines(15, 11)
    rng = random.Random(2)
    choices = [
        range(1) if t is None else np.flatnonzero(t.allowed(a) == is_allowed) for t, a in zip(lines.tables, lines.at)
    ]
    tokens = [int(rng.choice(some)) for some in choices]
    wanted = lines.states_behind(tokens)
    step_states(lines.on_device, int32(*lines.rows), int32(*tokens))
    assert lines.on_device.states.tolist() == wanted
