from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbsgl.engine.grammar import TokenVocab, regex
from nbsgl.engine.grammar.dfa import ByteDfa, build
from nbsgl.engine.grammar.mask_rows import expand
from nbsgl.engine.grammar.tokens import DEAD, DONE, FAR, START, TokenTables, TooLarge, Unsatisfiable, build_tables
from nbsgl.engine.grammar.trie import VocabTrie
from tests.unit.small_vocabs import hand_made, small_vocabs
from tests.unit.table_reference import Dense, bits, mask, step, whole

HAND_MADE = hand_made()
PATTERNS = [
    *(r"", r"a|ab", r"yes|no|maybe", r"(a|b)*abb", r"[^\n]{0,9}", r"(?s:.*)", r"(12|3)+-", r"[é-日🙂]{1,3}x?"),
    *(r'\{"name": "[^"\\]{0,5}"\}', r"-?(0|[1-9][0-9]{0,4})(\.[0-9]{1,3})?"),
    *(
        r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-f]{4})*"',
        r"the( \w+){0,2}\n\n",
        r"(?i:yes|true)",
        r"[\u4e00-\u9fff]+",
    ),
]


@pytest.fixture(scope="module")
def vocabs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenVocab]:
    return small_vocabs(tmp_path_factory.mktemp("vocabs"))


def automaton(pattern: str) -> ByteDfa:
    return build(regex.parse(pattern))


def check(dfa: ByteDfa, vocab: TokenVocab) -> None:
    """The tables are what sets of tokens and byte states are by definition, and nothing in them is there twice."""
    dense = Dense(dfa, vocab.tokens, vocab.eos_ids)
    if 1 not in dense.dist:
        with pytest.raises(Unsatisfiable):
            build_tables(dfa, vocab)
        return
    tables = build_tables(dfa, vocab)
    token_state = {int(state): number for number, state in enumerate(tables.byte_state) if state >= 0} | {"done": DONE}
    assert token_state[1] == START
    nexts = whole(tables)
    met, new = {1}, [1]
    while new:
        state = new.pop()
        number, wanted = token_state[state], dense.allowed(state)
        row = nexts[number][tables.class_of]
        assert row.tolist() == [tables.behind(number, token) for token in range(len(vocab))]
        assert {t: row[t] for t in np.flatnonzero(row).tolist()} == {t: token_state[to] for t, to in wanted.items()}
        assert tables.dist[number] == dense.dist[state]
        assert tables.accepting[number] == dfa.accepting[state]
        new += [to for to in set(wanted.values()) - met if to != "done"]
        met |= set(new)
    assert tables.num_states == len(met) + 2
    assert (tables.rows[tables.row_of] == mask(tables, np.arange(tables.num_states))).all()
    assert bits(tables.rows[tables.row_of[DONE]]) == set(vocab.eos_ids)
    assert not tables.rows[tables.row_of[DEAD]].any()
    assert (tables.dist[[DEAD, DONE]] == [FAR, 0]).all()
    check_forced(dfa, tables)
    for lines in (tables.rows, nexts.T):
        assert len({line.tobytes() for line in lines}) == len(lines)
    low, high = tables.low.astype(int), tables.high.astype(int)
    assert (low <= high).all()
    assert len(tables.next) == (high - low).sum(), "windows lie one after the other,"
    for state in np.flatnonzero(low < high):
        assert nexts[state, low[state]] != DEAD != nexts[state, high[state] - 1], "and none is wider than it must be"


def check_forced(dfa: ByteDfa, tables: TokenTables) -> None:
    for state, line in enumerate(dfa.next[:, dfa.byte_class].tolist()):
        onward = {byte: to for byte, to in enumerate(line) if to}
        is_forced = len(onward) == 1 and not dfa.accepting[state]
        wanted = next(iter(onward.items())) if is_forced else (-1, 0)
        assert (tables.forced_byte[state], tables.forced_next[state]) == wanted


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ["byte", "piece", "unigram", *HAND_MADE])
def test_tables_are_the_dense_automaton(name: str, pattern: str, vocabs: dict[str, TokenVocab]) -> None:
    check(automaton(pattern), vocabs[name])


@st.composite
def automata(draw: st.DrawFn) -> ByteDfa:
    """Any automaton at all: also with states that are dead, unreachable or equal."""
    states, classes = draw(st.integers(2, 7)), draw(st.integers(1, 4))
    target = st.integers(0, states - 1)
    nexts = draw(st.lists(st.lists(target, min_size=classes, max_size=classes), min_size=states, max_size=states))
    nexts[0] = [0] * classes
    byte_class = np.arange(256) % classes
    accepting = [False, *draw(st.lists(st.booleans(), min_size=states - 1, max_size=states - 1))]
    return ByteDfa(np.array(nexts, np.int32), byte_class.astype(np.uint8), np.array(accepting))


@st.composite
def vocabularies(draw: st.DrawFn) -> TokenVocab:
    data = st.binary(max_size=5).map(lambda text: bytes(byte % 4 for byte in text))
    tokens = draw(st.lists(st.none() | data, min_size=1, max_size=70))
    return TokenVocab(tokens, eos_ids=draw(st.sets(st.integers(0, len(tokens) - 1), max_size=3)))


@given(automata(), vocabularies())
@settings(max_examples=100, deadline=None)
def test_tables_of_any_automaton_for_any_vocabulary(dfa: ByteDfa, vocab: TokenVocab) -> None:
    check(dfa, vocab)


def test_dead_ends_by_tokens_are_left_out() -> None:
    vocab = TokenVocab([b"a", b"b", b"xy", None], eos_ids=[3])  # no "c", so "b" leads nowhere
    tables = build_tables(automaton("a(a|bc)|xyxz"), vocab)
    assert bits(tables.rows[tables.row_of[START]]) == {0}
    assert tables.class_of.tolist() == [1, 0, 0, 2]
    assert tables.byte_state[START] == 1
    with pytest.raises(Unsatisfiable, match="no tokens"):
        build_tables(automaton("bc"), vocab)
    with pytest.raises(Unsatisfiable):
        build_tables(automaton(r"[^\s\S]"), vocab)


def test_special_and_empty_tokens_are_never_allowed() -> None:
    for name, vocab in HAND_MADE.items():
        tables = build_tables(automaton(r"(?s:.*)") if name != "no single bytes" else automaton("[0-9]*"), vocab)
        none = [t for t, data in enumerate(vocab.tokens) if not data and t not in vocab.eos_ids]
        assert not tables.class_of[none].any()
        assert all(not set(none) & bits(row) for row in tables.rows)


def test_tokens_of_the_same_bytes_share_a_class() -> None:
    tables = build_tables(automaton("[ab]{1,3}"), TokenVocab([b"ab", b"a", b"b", b"ab", b"ba", b"c"]))
    assert tables.class_of.tolist() == [2, 1, 1, 2, 2, 0]


# ---- the vocabulary's tree -------------------------------------------------------------------------------------------


def spelt(trie: VocabTrie, node: int) -> bytes:
    found = []
    while node:
        found.append(int(trie.byte[node]))
        node = int(trie.parent[node])
    return bytes(reversed(found))


@given(st.lists(st.none() | st.binary(max_size=6), min_size=1, max_size=60))
def test_trie_spells_each_prefix_once(tokens: Sequence[bytes | None]) -> None:
    trie = VocabTrie.of(tokens)
    texts = [spelt(trie, node) for node in range(len(trie))]
    assert sorted(texts) == sorted({(data or b"")[:end] for data in tokens for end in range(len(data or b"") + 1)})
    assert [len(text) for text in texts] == [
        depth for depth, (low, high) in enumerate(zip(trie.levels, trie.levels[1:])) for _ in range(low, high)
    ]
    for token, data in enumerate(tokens):
        assert trie.node_of[token] == len(trie) if not data else texts[trie.node_of[token]] == data
    for node in range(len(trie)):
        children = range(trie.first_child[node], trie.first_child[node + 1])
        assert list(children) == [child for child in range(1, len(trie)) if trie.parent[child] == node]


def test_a_vocabulary_has_one_trie() -> None:
    vocab = HAND_MADE["bytes"]
    assert vocab.trie is vocab.trie
    assert vocab.trie.levels == (0, 1, 257)


# ---- rows, buffers, limits -------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(1, 700), st.integers(0, 2**32))
def test_expanded_rows_have_the_bits_of_their_classes(rows: int, vocab: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    allowed = rng.random((rows, 9)) < rng.choice([0.1, 0.6], (rows, 1))
    allowed[:, 0] = False
    class_of = (9 * rng.random(vocab) ** 8).astype(np.uint16)  # many of few classes, few of many
    packed = expand(allowed, class_of)
    assert packed.shape == (rows, -(-vocab // 32))
    assert [bits(row) for row in packed] == [set(np.flatnonzero(line[class_of]).tolist()) for line in allowed]


def test_one_buffer_holds_everything() -> None:
    tables = build_tables(automaton(r"(?:\d{1,3}, ){1,3}é"), HAND_MADE["mixed, three EOS"])
    buffer = bytes(tables.to_bytes())
    again = TokenTables.from_bytes(buffer)
    for one, other in zip(tables._arrays(), again._arrays(), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
        assert np.shares_memory(other, np.frombuffer(buffer, np.uint8))
        assert not other.flags.writeable
    assert again.nbytes == tables.nbytes < len(buffer)
    for bad in (b"", b"x" * 100, buffer[:-1], buffer + b"0"):
        with pytest.raises(ValueError, match="token tables"):
            TokenTables.from_bytes(bad)


def test_tables_past_their_limit_are_refused() -> None:
    dfa, vocab = automaton("[a-z]{1,40}"), HAND_MADE["bytes"]
    size = build_tables(dfa, vocab).nbytes
    assert build_tables(dfa, vocab, size).nbytes == size
    with pytest.raises(TooLarge, match=f"the limit is {size - 1:,}"):
        build_tables(dfa, vocab, size - 1)
    with pytest.raises(TooLarge, match=r"more than \d+ functions"):
        build_tables(automaton("(the|yes|no|maybe|aab)+"), HAND_MADE["no single bytes"], 64)


def test_reference_steps_as_the_tables_do() -> None:
    vocab = HAND_MADE["bytes"]
    tables = build_tables(automaton("ab*"), vocab)
    states: Any = np.array([START, START, START, START])
    assert step(tables, states, np.array([97, 98, 256, 999])).tolist() == [3, DEAD, DEAD, DEAD]
    assert step(tables, np.array([3, 3, DONE]), np.array([98, 256, 256])).tolist() == [3, DONE, DONE]
    assert [bits(row) for row in mask(tables, np.array([START, 3]))] == [{97}, {98, 256}]


def test_embedded_tokenizer_has_tables() -> None:
    folder = Path(regex.__file__).parents[1] / "assets" / "tiny"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the embedded model is not in this checkout")
    from nbsgl.engine.text import TextCodec

    check(automaton(r"\{\"a\": -?\d{1,3}, \"b\": (true|false)\}"), TextCodec.load(folder).vocab)
