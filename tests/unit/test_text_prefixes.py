"""Texts that begin like one seen before get the tokens that they would get alone."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nbsgl.engine.text import TextCodec
from nbsgl.engine.text_prefixes import TextPrefixes, common_length, sharing_of
from tests.unit import tiny_tokenizers

LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LETTERS = [*"aebtscdAEBTS", "é", "e\u0301", "日", "本", "\u0301", *"0123", *".,!?'/(", "'s", "'LL", "🙂", "\u00a0"]
SPACES = [" ", "  ", "\n", "\r\n", "\n\n", "\t", "   \n  \n", " " * 50, "\n" * 40]


def trained(folder: Path, split: str | None, normalizer: object = None) -> TextCodec:
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    draw = random.Random(3)
    lines = [text_of(draw, 60) for _ in range(300)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return TextCodec.load(folder)


def text_of(draw: random.Random, num_parts: int) -> str:
    return "".join(draw.choice(SPACES if draw.random() < 0.3 else LETTERS) for _ in range(num_parts))


@pytest.mark.parametrize(
    ("name", "split", "normalizer"),
    [("gpt2", None, None), ("llama", LLAMA, None), ("nfc", LLAMA, normalizers.NFC()), ("cased", CASED, None)],
)
def test_tokens_are_those_of_the_text_alone(tmp_path: Path, name: str, split: str | None, normalizer: object) -> None:
    codec, alone = (trained(tmp_path / f"{name}{i}", split, normalizer) for i in range(2))
    assert codec._may_share is not None
    alone._may_share = None
    draw, shared = random.Random(name), 0
    for _ in range(150):
        begin = unicodedata.normalize("NFC", text_of(draw, draw.randint(200, 500)))
        codec.encode(begin + text_of(draw, 20))
        for _ in range(8):
            text = begin[: draw.randint(150, len(begin))] + text_of(draw, draw.randint(0, 30))
            _, chars = codec._prefixes[False].find(text)
            shared += 2 * chars >= len(text)
            assert codec.encode(text) == alone.encode(text), repr(text)
    assert shared > 600


def test_which_tokenizers_share(tmp_path: Path) -> None:
    made = {
        "byte": tiny_tokenizers.byte_level(tmp_path / "byte"),
        "piece": tiny_tokenizers.sentence_piece(tmp_path / "piece", scheme="first"),
        "unigram": tiny_tokenizers.unigram(tmp_path / "unigram"),
    }
    texts = {name: json.loads((folder / "tokenizer.json").read_text()) for name, folder in made.items()}
    shares = {name: sharing_of(text) is not None for name, text in texts.items()}
    assert shares == {"byte": True, "piece": False, "unigram": False}


def test_what_is_kept_is_bounded() -> None:
    kept = TextPrefixes(max_chars=5_000)
    for i in range(200):
        text = f"{i % 7} " + "word " * 200
        kept.add(text, list(range(201)), list(range(201)), [(5 * k, 5 * k + 5) for k in range(201)])
        assert kept._num_chars <= 5_000
        assert kept._num_chars == sum(len(one.text) for known in kept._by_head.values() for one in known)


def test_common_length_is_that_of_a_walk() -> None:
    draw = random.Random(1)
    for _ in range(300):
        one, other = ("".join(draw.choices("ab", (50, 1), k=draw.randint(0, 3000))) for _ in range(2))
        if draw.random() < 0.5:
            other = one[: draw.randint(0, len(one))] + other
        walked = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
        assert common_length(one, other) == walked
