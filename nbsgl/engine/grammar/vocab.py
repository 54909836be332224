"""Token id -> the bytes the token adds: what detokenising, stop strings and grammars all rest on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from nbsgl.engine.tokenizer_files import MAX_VOCAB, TokenizerFiles, parts
from nbsgl.errors import BadConfig

if TYPE_CHECKING:
    from nbsgl.engine.grammar.cache import GrammarCache
    from nbsgl.engine.grammar.trie import VocabTrie

METASPACE = "\u2581"  # a space, in the vocabularies that came from SentencePiece
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenVocab:
    """The bytes of every token; None for special tokens and for ids that stand for nothing.

    Ids run from 0 to len(tokens) - 1; a model's logits may be wider, the rest is padding.
    """

    def __init__(
        self, tokens: Sequence[bytes | None], eos_ids: Iterable[int] = (), names: Mapping[int, str] | None = None
    ) -> None:
        self.tokens: list[bytes | None] = list(tokens)
        self.names = dict(names or {})  # of special tokens, for people
        self.eos_ids = tuple(sorted(set(eos_ids)))
        if not self.tokens or len(self.tokens) > MAX_VOCAB:
            raise ValueError(f"a vocabulary of {len(self.tokens):,} tokens; allowed are 1..{MAX_VOCAB:,}")
        for token in self.eos_ids:
            if not 0 <= token < len(self.tokens):
                raise ValueError(f"eos id {token} outside 0..{len(self.tokens) - 1}")
            self.tokens[token] = None  # no grammar may spell it

    @classmethod
    def of_files(cls, files: TokenizerFiles) -> TokenVocab:
        """Build the table from a `tokenizer.json`: byte-level through the byte alphabet, else SentencePiece's spelling.

        Added tokens that are not special are ordinary text; EOS and special ones are None.
        """
        vocab, to_bytes = files.vocab, _piece_bytes(files.tokenizer)
        size = 1 + max([*vocab.values(), *(token.id for token in files.added)], default=-1)
        if not 0 < size <= MAX_VOCAB:
            path = str(files.folder / "tokenizer.json")
            raise BadConfig(file=path, field="model.vocab", value=size, allowed=f"1..{MAX_VOCAB:,} tokens")
        tokens: list[bytes | None] = [None] * size
        for piece, token in vocab.items():
            tokens[token] = to_bytes(piece)
        for added in files.added:
            tokens[added.id] = None if added.special else added.text.encode()
        names = {added.id: added.text for added in files.added if added.special}
        return cls(tokens, (token for token in files.eos_ids if token < size), names)

    def __len__(self) -> int:
        return len(self.tokens)

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """The bytes of these tokens one after the other; special ones, and ids past the table, add none."""
        tokens, size = self.tokens, len(self.tokens)
        return b"".join([tokens[i] or b"" for i in ids if 0 <= i < size])

    def shown(self, ids: Iterable[int]) -> str:
        """The tokens' text for people: special ones by their names, half a character as U+FFFD."""
        return b"".join([self.names[i].encode() if i in self.names else self.bytes_of([i]) for i in ids]).decode(
            "utf-8", "replace"
        )

    @cached_property
    def byte_ids(self) -> dict[int, int]:
        """byte -> lowest id of the token that is just this byte."""
        found: dict[int, int] = {}
        for token, data in enumerate(self.tokens):
            if data is not None and len(data) == 1:
                found.setdefault(data[0], token)
        return found

    @cached_property
    def trie(self) -> VocabTrie:
        """The tokens as a tree: a fifth of a second at 128k, once."""
        from nbsgl.engine.grammar.trie import VocabTrie

        return VocabTrie.of(self.tokens)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal tables and EOS ids, whatever file they came from."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((len(self.tokens), self.eos_ids)).encode())
        for data in self.tokens:
            digest.update(b"-" if data is None else b"%d:" % len(data) + data)
        return digest.hexdigest()

    @cached_property
    def grammars(self) -> GrammarCache:
        """The grammars compiled for this table."""
        from nbsgl.engine.grammar.cache import GrammarCache

        return GrammarCache(self)

    def check(self, encode: Callable[[str], Sequence[int]], texts: Iterable[str]) -> str | None:
        """The first text whose tokens' bytes are not the text's own; None if all are.

        A tokenizer that fails this cannot serve grammars: they would mask by bytes that the text does not have.
        """
        return next((text for text in texts if self.bytes_of(encode(text)) != text.encode()), None)


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2): printable ones for themselves."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _piece_bytes(tokenizer: dict[str, Any]) -> Callable[[str], bytes]:
    decoders = parts(tokenizer.get("decoder"), "decoders")
    kinds = {step.get("type") for step in decoders}
    before = {step.get("type") for step in parts(tokenizer.get("pre_tokenizer"), "pretokenizers")}
    if "ByteLevel" in kinds | before:
        return _byte_level
    has_space = "Metaspace" in kinds | before or any(
        step.get("type") == "Replace" and step.get("pattern") == {"String": METASPACE} for step in decoders
    )
    has_bytes = "ByteFallback" in kinds or bool((tokenizer.get("model") or {}).get("byte_fallback"))
    return lambda piece: _sentence_piece(piece, has_space, has_bytes)


def _byte_level(piece: str) -> bytes:
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[char] for char in piece])
    except KeyError:  # a piece that is text, not spelt in the alphabet
        return piece.encode()


def _sentence_piece(piece: str, has_space: bool, has_bytes: bool) -> bytes:
    if has_bytes and (match := _BYTE_TOKEN.fullmatch(piece)):
        return bytes([int(match[1], 16)])
    return (piece.replace(METASPACE, " ") if has_space else piece).encode()
