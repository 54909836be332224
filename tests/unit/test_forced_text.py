"""Forced text as canonical tokens, with real tokenizers: what is proposed, and what no continuation changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as tokenizer_decoders

from nbsgl.engine.grammar import dfa, regex
from nbsgl.engine.grammar.forced import propose, tail_of
from nbsgl.engine.grammar.fsm import CompiledFsm, FsmMatcher
from nbsgl.engine.grammar.tokens import build_tables
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.engine.text import PlainEncoder
from nbsgl.engine.tokenizer_files import TokenizerFiles
from nbsgl.protocol import GrammarSpec
from tests.unit import tiny_tokenizers

TINY = Path(__file__).parents[2] / "nbsgl" / "engine" / "assets" / "tiny"
# As Llama 3 and o200k cut texts: contractions by themselves, or at the end of the word before.
LLAMA = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = r"[^\r\n\p{L}\p{N}]?\p{L}+(?i:'s|'t|'re)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def cut_by(folder: Path, pattern: str) -> Path:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = tokenizer_decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=460, initial_alphabet=alphabet, show_progress=False)
    extra = ["it's don't we're I'm", '{"a": "b", "c": [1, 22, 333]}\n\n', "a \n\n  b"] * 20
    tokenizer.train_from_iterator(tiny_tokenizers.CORPUS + extra, trainer)
    return tiny_tokenizers.save(folder, tokenizer, {}, {})


@pytest.fixture(scope="module", params=["tiny", "gpt2", "llama", "o200k", "sentence piece", "unigram"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenizerFiles:
    folder = tmp_path_factory.mktemp("tokenizer")
    made = {
        "tiny": lambda: TINY,
        "gpt2": lambda: tiny_tokenizers.byte_level(folder),
        "llama": lambda: cut_by(folder, LLAMA),
        "o200k": lambda: cut_by(folder, O200K),
        "sentence piece": lambda: tiny_tokenizers.sentence_piece(folder),
        "unigram": lambda: tiny_tokenizers.unigram(folder),
    }
    return TokenizerFiles.load(made[request.param]())


@pytest.fixture(scope="module")
def encode(files: TokenizerFiles) -> PlainEncoder:
    return PlainEncoder(files)


@pytest.fixture(scope="module")
def vocab(files: TokenizerFiles) -> TokenVocab:
    return TokenVocab.of_files(files)


def matcher_of(pattern: str, vocab: TokenVocab) -> FsmMatcher:
    spec = GrammarSpec(kind="regex", text=pattern)
    return CompiledFsm(spec, build_tables(dfa.build(regex.parse(pattern)), vocab)).matcher()


WORDS = st.sampled_from(
    ["name", "the", "it", "'", "s", "t", "'t", " ", "  ", "\n", '"', '": ', ", ", "{", "}", "1", "23", "é", "日本", "-"]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=8).map("".join)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, more=TEXTS)
@example(text="a \n ", more="\n")
@example(text="don'", more="t")
@example(text="don'r", more="e")
@example(text='{"a":', more='"')
def test_no_continuation_changes_what_is_sure(text: str, more: str, encode: PlainEncoder, vocab: TokenVocab) -> None:
    sure = text[: encode.sure_len(text)]
    ids, other = encode(text), encode(text + more)
    num_sure = next((n for n in range(len(ids) + 1) if vocab.bytes_of(ids[:n]) == sure.encode()), 0)
    assert other[:num_sure] == ids[:num_sure]


@settings(max_examples=40, deadline=None)
@given(before=st.sampled_from(["", ",", '"', "x", " "]), text=TEXTS, after=st.sampled_from(["", "[ab]", "[0-9]+"]))
def test_a_proposal_is_canonical_and_allowed(
    before: str, text: str, after: str, encode: PlainEncoder, vocab: TokenVocab
) -> None:
    matcher = matcher_of(re.escape(text) + after, vocab)
    ids = propose(matcher, before.encode(), vocab.tokens, encode, 32)
    spelt = vocab.bytes_of(ids)
    assert before or list(ids) == encode(text)[: len(ids)]
    assert text.encode().startswith(spelt)
    assert bool(spelt) <= (len(text.encode()) >= 2)
    if not after and not before and encode(text) and vocab.bytes_of(encode(text)) == text.encode():
        assert len(text.encode()) < 2 or list(ids) == encode(text)
    assert all(map(matcher.advance, ids))


def test_nothing_is_proposed_where_the_token_before_would_have_merged() -> None:
    files = TokenizerFiles.load(TINY)
    vocab, encode = TokenVocab.of_files(files), PlainEncoder(files)
    assert encode('", "age": ')[0] == encode('",')[0]
    matcher = matcher_of('x", "age": [0-9]', vocab)
    assert matcher.advance(vocab.byte_ids[ord("x")])
    assert vocab.bytes_of(propose(matcher, b"x", vocab.tokens, encode, 32)) == b'", "age":'
    assert matcher.advance(vocab.byte_ids[ord('"')])
    assert propose(matcher, b'"', vocab.tokens, encode, 32) == ()
    assert matcher.advance(vocab.byte_ids[ord(",")])
    assert vocab.bytes_of(propose(matcher, b",", vocab.tokens, encode, 32)) == b' "age":'


def test_characters_that_are_cut_are_spelt_whole_or_not_at_all() -> None:
    files = TokenizerFiles.load(TINY)
    vocab, encode = TokenVocab.of_files(files), PlainEncoder(files)
    matcher = matcher_of("é is a letter, (yes|no)", vocab)
    cut = [vocab.byte_ids[0xC3], vocab.byte_ids[0xA9]]
    assert matcher.advance(cut[0])
    proposed = vocab.bytes_of(propose(matcher, tail_of(cut[:1], vocab.tokens), vocab.tokens, encode, 32))
    assert proposed == (b"\xa9 is a letter," if encode("é") == cut else b"")
    assert matcher.advance(cut[1])
    assert vocab.bytes_of(propose(matcher, tail_of(cut, vocab.tokens), vocab.tokens, encode, 32)) == b" is a letter,"


def test_a_proposal_is_no_longer_than_asked() -> None:
    files = TokenizerFiles.load(TINY)
    vocab, encode = TokenVocab.of_files(files), PlainEncoder(files)
    matcher = matcher_of("one two three " * 40, vocab)
    whole = propose(matcher, b"", vocab.tokens, encode, 400)
    assert vocab.bytes_of(whole) == b"one two three " * 40
    assert propose(matcher, b"", vocab.tokens, encode, 5) == whole[:5]
