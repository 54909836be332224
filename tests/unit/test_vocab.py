from __future__ import annotations

from pathlib import Path

import pytest

from nbsgl.engine.grammar.vocab import TokenVocab, byte_alphabet
from nbsgl.engine.tokenizer_files import TokenizerFiles
from tests.unit import tiny_tokenizers


def test_byte_alphabet_is_a_bijection() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert alphabet["Ġ"] == 0x20
    assert alphabet["Ċ"] == 0x0A


def test_byte_level_table(tmp_path: Path) -> None:
    vocab = TokenVocab.of_files(TokenizerFiles.load(tiny_tokenizers.byte_level(tmp_path)))
    assert vocab.tokens[:3] == [None, None, None]
    assert sorted(vocab.byte_ids) == list(range(256))
    assert b"<think>" in vocab.tokens
    assert any(data and len(data) > 2 and data.startswith(b" ") for data in vocab.tokens)


def test_special_tokens_are_shown_by_name(tmp_path: Path) -> None:
    vocab = TokenVocab([None, b"a", b"\xe6"], names={0: "<|im_start|>"})
    assert vocab.shown([0, 1, 2]) == "<|im_start|>a\ufffd"
    files = TokenizerFiles.load(tiny_tokenizers.byte_level(tmp_path))
    special = next(added for added in files.added if added.special)
    assert TokenVocab.of_files(files).shown([special.id]) == special.text


def test_sentence_piece_table(tmp_path: Path) -> None:
    vocab = TokenVocab.of_files(TokenizerFiles.load(tiny_tokenizers.sentence_piece(tmp_path)))
    assert vocab.tokens[3 + 0x41] == b"A"
    assert vocab.tokens[3 + 0xE6] == b"\xe6"
    assert any(data and len(data) > 1 and data.startswith(b" ") for data in vocab.tokens)


def test_eos_is_no_text_and_must_exist() -> None:
    assert TokenVocab([b"a", b"</s>"], eos_ids=[1]).tokens == [b"a", None]
    with pytest.raises(ValueError, match="eos id 2 outside 0..1"):
        TokenVocab([b"a", b"b"], eos_ids=[2])
    with pytest.raises(ValueError, match="0 tokens"):
        TokenVocab([])


def test_check_returns_the_first_text_that_is_not_exact() -> None:
    vocab = TokenVocab([b"a", b"b"])
    assert vocab.check(lambda text: [0] * len(text), ["", "aa", "ab", "b"]) == "ab"
    assert vocab.check(lambda text: [0] * len(text), ["a"]) is None


def test_fingerprint_tells_tables_apart() -> None:
    tables = [
        TokenVocab([b"a", b"b"]),
        TokenVocab([b"ab", b""]),
        TokenVocab([b"a", None]),
        TokenVocab([b"a", b"b"], [1]),
    ]
    assert tables[0].fingerprint == TokenVocab([b"a", b"b"]).fingerprint
    assert len({table.fingerprint for table in tables}) == len(tables)
