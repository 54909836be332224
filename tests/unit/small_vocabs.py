"""Small vocabularies of every kind that grammars must bear: real tokenizers' and hand-made ones."""

from __future__ import annotations

import random
from pathlib import Path

from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.engine.text import TextCodec
from tests.unit import tiny_tokenizers

SINGLE = [bytes([byte]) for byte in range(256)]
WORDS = ' the ,"name": null}, true é日 日本 🙂 2024- 00 12 ab aab \n\n {" "} ": yes no maybe'.encode().split(b" ")


def small_vocabs(root: Path) -> dict[str, TokenVocab]:
    """Byte-level and SentencePiece-style tokenizers, and tables with holes, doubles, halves of characters."""
    folders = {
        "byte": tiny_tokenizers.byte_level(root / "byte"),
        "piece": tiny_tokenizers.sentence_piece(root / "piece"),
        "unigram": tiny_tokenizers.unigram(root / "unigram"),
    }
    return {name: TextCodec.load(folder).vocab for name, folder in folders.items()} | hand_made()


def hand_made() -> dict[str, TokenVocab]:
    rng = random.Random(0)
    halves = [text.encode()[i:j] for text in ("é", "日", "🙂x") for i in range(5) for j in range(i, 6)]
    mixed: list[bytes | None] = [*SINGLE, *WORDS, *WORDS, None, b"", *halves, None, b"", None]
    rng.shuffle(mixed)
    ends = [token for token, data in enumerate(mixed) if data is None]
    letters = [byte for byte in SINGLE if byte.isalnum() or byte in b'"-{}: ,']
    return {
        "bytes": TokenVocab([*SINGLE, None], eos_ids=[256]),
        "mixed, three EOS": TokenVocab(mixed, eos_ids=ends),
        "one special, one EOS": TokenVocab([None, *mixed, None], eos_ids=[0]),
        "no EOS": TokenVocab([*SINGLE, *WORDS, b"", None]),
        "bytes are missing": TokenVocab([None, *letters, *WORDS], eos_ids=[0]),
        "no single bytes": TokenVocab([*WORDS, b"12", b"3", b"-", None], eos_ids=[len(WORDS) + 3]),
        "padded to 64": TokenVocab([*SINGLE, *WORDS, *[None] * (-(256 + len(WORDS)) % 64)], eos_ids=[]),
    }
