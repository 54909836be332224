"""Tables in one block: they lie there as they are on the host, share it fairly, and never get in each other's way."""

from __future__ import annotations

import random

import numpy as np
import torch

from nbsgl.engine.grammar.arena import HEADER, STATE, TableArena, arena_bytes
from tests.unit.fake_tables import DEAD, FakeTables, make_tables

CPU = torch.device("cpu")
VOCAB = 101


def size_of(tables: FakeTables, vocab: int = VOCAB) -> int:
    """Bytes in an arena, found by trying."""
    sizes = range(16, 1 << 16, 16)
    return next(n for n in sizes if TableArena(CPU, vocab, n).place([tables]) == [0])


def assert_lies(arena: TableArena, tables: FakeTables, begin: int) -> None:
    """The piece at `begin` answers every question as the tables do."""
    words = arena.block.numpy().view(np.uint32)[begin:]
    halves = words.view(np.uint16)
    class_of = int(words[0])
    for state in range(tables.num_states):
        at, nexts, ends = words.view(np.int32)[HEADER + STATE * state :][:STATE].tolist()
        for token in range(min(arena.vocab_size, len(tables.class_of))):
            token_class = int(halves[class_of + token])
            is_in = ends & 0xFFFF <= token_class < ends >> 16
            assert (halves[nexts + token_class] if is_in else DEAD) == tables.behind(state, token)
        bits = np.unpackbits(words[at : at + arena.num_words].view(np.uint8), bitorder="little")
        known = np.zeros(len(bits), np.bool_)
        num = min(arena.vocab_size, len(tables.class_of))
        known[:num] = tables.allowed(state)[:num]
        assert bits.astype(bool).tolist() == known.tolist()


def test_tables_lie_as_on_the_host_whatever_the_width_of_the_logits() -> None:
    for vocab in (VOCAB, VOCAB + 40, VOCAB - 7):
        arena = TableArena(CPU, vocab, 1 << 16)
        several = [make_tables(i, VOCAB, states=4 + i, classes=3 + i % 3) for i in range(4)]
        begins = arena.place(several)
        assert len(set(begins)) == 4
        for tables, begin in zip(several, begins):
            assert begin % 4 == 0
            assert_lies(arena, tables, begin)


def test_the_same_tables_lie_once_and_stay_where_they_are() -> None:
    arena = TableArena(CPU, VOCAB, 1 << 16)
    one, other = make_tables(0, VOCAB), make_tables(1, VOCAB)
    begins = arena.place([one, other, one])
    assert begins[0] == begins[2] != begins[1]
    assert arena.place([other, one]) == [begins[1], begins[0]]
    assert len(arena) == 2


def test_the_least_recently_used_leaves() -> None:
    tables = [make_tables(i, VOCAB) for i in range(3)]
    arena = TableArena(CPU, VOCAB, size_of(tables[0]) + size_of(tables[1]) + 64)
    a, b, c = tables
    arena.place([a])
    arena.place([b])
    arena.place([a])
    assert arena.place([c])[0] >= 0
    assert (arena.begin_of(a) >= 0, arena.begin_of(b)) == (True, -1)
    assert_lies(arena, a, arena.begin_of(a))
    assert_lies(arena, c, arena.begin_of(c))


def test_what_a_step_needs_does_not_leave_for_the_rest_of_it() -> None:
    a, b, c = (make_tables(i, VOCAB) for i in range(3))
    arena = TableArena(CPU, VOCAB, size_of(a) + size_of(b) + 64)
    first = arena.place([a, b])
    # the new one comes first, and still finds no room: those that are there stay
    assert arena.place([c, a, b]) == [-1, *first]
    assert_lies(arena, a, first[0])
    assert arena.place([c])[0] >= 0


def test_what_can_never_fit_drives_nobody_out() -> None:
    small, large = make_tables(0, VOCAB), make_tables(1, VOCAB, states=400)
    arena = TableArena(CPU, VOCAB, size_of(small))
    begin = arena.place([small])
    assert arena.place([large]) == [-1]
    assert arena.place([small]) == begin
    assert TableArena(CPU, VOCAB, 0).place([small]) == [-1]


def test_holes_grow_together_again() -> None:
    rng = random.Random(0)
    several = [make_tables(i, VOCAB, states=rng.choice([4, 9, 30])) for i in range(12)]
    most = max(size_of(tables) for tables in several)
    arena = TableArena(CPU, VOCAB, 3 * most)
    for _ in range(300):
        wanted = rng.sample(several, rng.choice([1, 1, 2, 3]))
        begins = arena.place(wanted)
        # one always fits, by driving all others out
        assert max(begins) >= 0
        pieces = sorted((entry.begin, entry.begin + entry.size) for entry in arena._entries.values())
        assert all(end <= begin for (_, end), (begin, _) in zip(pieces, pieces[1:]))
        taken = sum(end - begin for begin, end in pieces)
        assert taken + sum(size for _, size in arena._holes) == 3 * most // 4
    for tables, begin in zip(wanted, begins):
        if begin >= 0:
            assert_lies(arena, tables, begin)


def test_a_small_card_gives_a_small_share() -> None:
    assert arena_bytes(150 * 10**9) == 256 << 20
    assert arena_bytes(8 << 30) == 64 << 20
