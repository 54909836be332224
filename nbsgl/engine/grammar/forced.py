"""Forced text as tokens: what a grammar leaves no choice about, spelt as the tokenizer would spell it.

Forced text is not forced tokens (`name` may be spelt `n|ame`), so this is a proposal: which of its tokens are drawn is
the model's word (verified), or the definition of the mask (canonical).  Nothing here changes a sequence.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from typing import Protocol

from nbsgl.engine.grammar import Matcher

BYTES_PER_TOKEN = 16  # of forced text longer than `limit` tokens so much a token is looked at
LONGEST_CHAR = 4  # bytes
CONTINUATION = bytes(range(0x80, 0xC0))  # bytes that begin no character


class Encoder(Protocol):
    """Plain characters in the middle of a text to tokens."""

    def __call__(self, text: str) -> Sequence[int]: ...

    def sure_len(self, text: str) -> int:
        """How many of the characters are split off from whatever may follow the text."""


def tail_of(tokens: Sequence[int], vocab: Sequence[bytes | None]) -> bytes:
    """The bytes of the last token; of more if it begins inside a character.  Empty behind one that is no text."""
    tail = b""
    for token in tokens[: -1 - LONGEST_CHAR : -1]:
        piece = vocab[token] if token < len(vocab) else None
        if not piece:
            break
        tail = piece + tail
        if not 0x80 <= tail[0] < 0xC0:
            break
    return tail


def propose(
    matcher: Matcher, tail: bytes, vocab: Sequence[bytes | None], encode: Encoder, limit: int
) -> tuple[int, ...]:
    """At most `limit` canonical tokens of the text that is forced from here on; none where there is nothing to gain.

    `tail` is that of the tokens before.  Where it and the forced text would be spelt by one token, there is no
    proposal: the bytes up to the next token's beginning are drawn first.  Nor is the end of the text proposed where
    what follows might change its spelling, unless nothing can follow.  The matcher is where it was afterwards.
    """
    forced = matcher.forced_bytes()[: limit * BYTES_PER_TOKEN]
    tail = tail.lstrip(CONTINUATION)
    if len(forced) < 2:
        return ()
    try:
        text, size = utf_8_decode(tail + forced, "strict", False)  # up to the last whole character
    except UnicodeDecodeError:
        return ()
    ids = list(encode(text))
    begin = _boundary(ids, (tail + forced)[:size], len(tail), vocab)
    if begin < 0:
        return ()
    ids, is_end = _allowed(matcher, ids, begin)
    if not is_end:
        ids = ids[: _num_sure(text, ids, encode, vocab)]
    return tuple(ids[begin : begin + limit])


def _boundary(ids: Sequence[int], data: bytes, seam: int, vocab: Sequence[bytes | None]) -> int:
    """The index of the token that begins at the seam; -1 if none does, or if the tokens do not spell the bytes."""
    pieces = [vocab[token] or b"" if token < len(vocab) else b"" for token in ids]
    if b"".join(pieces) != data:
        return -1
    done = 0
    for i, piece in enumerate(pieces):
        if done >= seam:
            return i if done == seam else -1
        done += len(piece)
    return -1


def _allowed(matcher: Matcher, ids: list[int], begin: int) -> tuple[list[int], bool]:
    """The tokens up to the first that is not allowed, and whether the text must end behind them."""
    place = matcher.fork()
    for i in range(begin, len(ids)):
        if not place.advance(ids[i]):
            return ids[:i], False
    return ids, place.is_finished()


def _num_sure(text: str, ids: Sequence[int], encode: Encoder, vocab: Sequence[bytes | None]) -> int:
    """How many of the tokens stay the same whatever follows the text."""
    left = len(text[: encode.sure_len(text)].encode())
    for count, token in enumerate(ids):
        left -= len(vocab[token] or b"")
        if left < 0:
            return count
    return len(ids)
