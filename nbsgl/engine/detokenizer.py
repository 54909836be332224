"""Token ids to text as they come: whole characters only, never a broken one."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from nbsgl.engine.grammar.vocab import TokenVocab


class Detokenizer:
    """One run's text.  What `push` returns, joined, and `finish` at the end, is the run's bytes decoded as a whole.

    A character whose bytes are not all there is held back; bytes that can no longer become one are U+FFFD.
    """

    def __init__(self, vocab: TokenVocab) -> None:
        self._vocab = vocab
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        return self._decoder.decode(self._vocab.bytes_of(ids))

    def push_bytes(self, data: bytes) -> str:
        """As `push`, for bytes that are no whole token (the part of one that a stop string left over)."""
        return self._decoder.decode(data)

    @property
    def pending(self) -> bytes:
        """The bytes of a character that is not whole yet."""
        return self._decoder.getstate()[0]

    def finish(self) -> str:
        """The end of the run: what was held back, as U+FFFD.  The detokenizer can begin anew."""
        return self._decoder.decode(b"", final=True)
