"""Where a sampled run ends: EOS, stop tokens, stop strings and patterns, limits, a grammar that is finished.

Stop strings are matched on the bytes of the tokens, so no text is decoded.  What may still become part of a stop
string is held back: an id is released when no stop string can reach into it any more, and never taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from nbsgl.protocol import Finish, SamplingParams

Vocab = Sequence[bytes | None]  # token id -> its bytes; None for special tokens


@dataclass(slots=True)
class StopMatch:
    """A stop string or pattern was met: `kept` tokens of the run stay whole, `tail` is the kept part of the next.

    `matched` is what in the text a pattern matched.
    """

    text: str
    kept: int
    tail: bytes
    matched: str | None = None


class StopStrings:
    """Stop strings against the tail of one run's bytes."""

    __slots__ = ("_lengths", "_pending", "_stops", "_vocab", "num_released", "num_seen")

    def __init__(self, stops: Sequence[str], vocab: Vocab) -> None:
        self._stops = [(text, text.encode()) for text in stops]
        self._vocab = vocab
        self._pending = b""  # bytes of the tokens held back
        self._lengths: list[int] = []  # how many bytes each of them has
        self.num_seen = 0
        self.num_released = 0  # tokens no stop string can reach into

    def feed(self, token: int, may_end: Callable[[int, bytes], bool]) -> StopMatch | None:
        """Take in the run's next token.  `may_end(kept, tail)` refuses a match, which is ordinary text from then on.

        Of several matches the one that begins first counts.  O(stop strings * their length).
        """
        new = (self._vocab[token] if 0 <= token < len(self._vocab) else None) or b""
        old_len = len(self._pending)
        self._pending += new
        self._lengths.append(len(new))
        self.num_seen += 1
        for start, text in self._matches(old_len):
            kept, tail = self._cut(start)
            if may_end(kept, tail):
                return StopMatch(text, kept, tail)
        self._release(len(self._pending) - self._num_held())
        return None

    def _matches(self, old_len: int) -> list[tuple[int, str]]:
        """Occurrences that end in the bytes after `old_len`, the earliest first."""
        found = []
        for text, stop in self._stops:
            start = self._pending.find(stop, max(0, old_len - len(stop) + 1))
            while start >= 0:
                found.append((start, text))
                start = self._pending.find(stop, start + 1)
        return sorted(found, key=lambda match: match[0])

    def _cut(self, start: int) -> tuple[int, bytes]:
        kept, begin = self.num_released, 0
        for length in self._lengths:
            if begin + length > start:
                break
            begin += length
            kept += 1
        return kept, self._pending[begin:start]

    def _num_held(self) -> int:
        """Length of the longest end of the bytes that begins a stop string."""
        longest = 0
        for _, stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._pending)), longest, -1):
                if self._pending.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _release(self, num_bytes: int) -> None:
        count = size = 0
        while count < len(self._lengths) and size + self._lengths[count] <= num_bytes:
            size += self._lengths[count]
            count += 1
        del self._lengths[:count]
        self._pending = self._pending[size:]
        self.num_released += count


@dataclass(slots=True)
class Ending:
    """A run is over: its first `kept` tokens count, the rest are dropped."""

    finish: Finish
    kept: int
    tail: bytes = b""
    complete: bool = True
    needed: int | None = None  # the least limit at which it could have been complete, if known


class Refused(Exception):
    """The grammar does not allow the drawn token."""


class StopRules:
    """All ways one sampled run can end.  Feed it every drawn token, in order."""

    __slots__ = ("_bytes_of", "_limit", "_matcher", "_min", "_num", "_patterns", "_stop_ids", "_strings", "ban_ids")

    def __init__(
        self, params: SamplingParams, limit: int, eos_ids: Collection[int], vocab: Vocab, matcher: Any = None
    ) -> None:
        """`limit` is max_tokens as a number.  A grammar decides about EOS itself: `ignore_eos` does not apply to it."""
        eos = set(eos_ids) if matcher is not None or not params.ignore_eos else set()
        self._stop_ids = eos | set(params.stop_token_ids)
        self._min, self._limit, self._matcher, self._bytes_of = params.min_tokens, limit, matcher, vocab
        self._strings = StopStrings(params.stop, vocab) if params.stop else None
        self._patterns: Any = None
        if params.stop_regex:
            from nbsgl.engine.stop_regex import StopPatterns

            self._patterns = StopPatterns(params.stop_regex, vocab)
        # A grammar's mask may leave nothing but a stop token, so only EOS is banned then (the mask has another token
        # wherever the run has not ended).
        self.ban_ids = tuple(sorted(eos if matcher is not None else self._stop_ids)) if self._min else ()
        self._num = 0

    @property
    def num_released(self) -> int:
        """How many tokens of the run are sure to stay."""
        return self._strings.num_released if self._strings else self._num

    def at_start(self) -> Ending | None:
        """The end of a run that needs no token at all."""
        if self._matcher is not None and self._matcher.is_finished():
            return Ending(Finish(type="stop"), 0)
        if self._limit == 0:
            return self._at_limit()
        return None

    def feed(self, token: int) -> Ending | None:
        """Take in a drawn token.  Raises Refused if the grammar does not allow it."""
        if token in self._stop_ids and self._num >= self._min:
            return Ending(Finish(type="stop", matched=token), self._num, complete=self._is_complete())
        if self._matcher is not None and not self._matcher.advance(token):
            raise Refused
        self._num += 1
        if (match := self._match(token)) is not None:
            finish = Finish(type="stop", matched=match.text, matched_text=match.matched)
            return Ending(finish, match.kept, match.tail)
        if self._matcher is not None and self._matcher.is_finished():
            return Ending(Finish(type="stop"), self._num)
        if self._num >= self._limit:
            return self._at_limit()
        return None

    def _match(self, token: int) -> StopMatch | None:
        """The stop string or pattern that the token completes; of two, the one that leaves less of the text."""
        found = [one.feed(token, self._may_end) for one in (self._strings, self._patterns) if one is not None]
        return min(filter(None, found), key=lambda match: (match.kept, len(match.tail)), default=None)

    def _at_limit(self) -> Ending:
        ending = Ending(Finish(type="length", length=self._limit), self._num, complete=self._is_complete())
        distance = getattr(self._matcher, "distance", None)
        if not ending.complete and distance is not None and (left := distance()) is not None:
            ending.needed = self._num + left
        return ending

    def _is_complete(self) -> bool:
        return self._matcher is None or bool(self._matcher.is_accepting())

    def _may_end(self, kept: int, tail: bytes) -> bool:
        """Whether a stop string may end the run after `kept` tokens and `tail`: there the text is in the language."""
        if self._num < self._min:
            return False
        if self._matcher is None:
            return True
        at_cut = self._matcher.fork()
        at_cut.rollback(self._num - kept)
        spelt = self._spell(tail)
        return spelt is not None and all(map(at_cut.advance, spelt)) and bool(at_cut.is_accepting())

    def _spell(self, tail: bytes) -> list[int] | None:
        """Tokens of one byte each that spell the tail; None if a byte has none.  O(vocabulary), but a match is rare."""
        if not tail:
            return []
        wanted = {bytes([byte]) for byte in tail}
        ids: dict[bytes, int] = {}
        for token, piece in enumerate(self._bytes_of):
            if piece in wanted and piece not in ids:
                ids[piece] = token
                if len(ids) == len(wanted):
                    break
        return [ids[bytes([byte])] for byte in tail] if len(ids) == len(wanted) else None
