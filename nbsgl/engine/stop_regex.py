"""Stop patterns: a run ends right behind the first text in it that a pattern matches.

An automaton reads the tokens' bytes, so no text is decoded and no pattern can be slow: a step a byte.  The match stays
in the text and the cut is where it is complete, in the newest token; so nothing is ever held back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from nbsgl.engine.grammar import dfa, regex
from nbsgl.engine.grammar.dfa import DEAD, START
from nbsgl.engine.grammar.syntax import ANY_TEXT, concat
from nbsgl.engine.stop import StopMatch, Vocab
from nbsgl.errors import BadRegex, GrammarTooExpensive

MAX_STATES = 1_024

_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)


def check(patterns: Sequence[str]) -> None:
    """`BadRegex` or `GrammarTooExpensive` for a pattern that no automaton can look for.  Milliseconds: for the door."""
    for pattern in patterns:
        _search(pattern)


class _Search:
    """The automaton of "any text, then a match", and that of the match alone."""

    def __init__(self, pattern: str) -> None:
        if any(token in ("^", r"\A") for token in _TOKEN.findall(pattern)):
            raise BadRegex(
                kind="stop_regex",
                path="the pattern",
                reason="^ means the beginning of the text, and a stop pattern is met anywhere",
                hint=r"For the beginning of a line: \n.",
                pattern_text=pattern,
            )
        tree = regex.parse(pattern)
        try:
            self.match = dfa.build(tree, MAX_STATES)
            whole = dfa.build(concat([ANY_TEXT, tree]), MAX_STATES)
        except dfa.TooManyStates as error:
            raise GrammarTooExpensive(
                kind="stop_regex",
                path=repr(pattern),
                limit=f"{error.limit:,} states",
                hint="Lower its counts, or take a stop string.",
            ) from None
        if self.match.accepting[START] or self.match.is_empty:
            reason = "no text matches it" if self.match.is_empty else "it matches the empty text"
            raise BadRegex(kind="stop_regex", path="the pattern", reason=reason, pattern_text=pattern)
        self.rows: list[list[int]] = whole.next.tolist()
        self.byte_class = whole.byte_class.tobytes()
        self.accepting: list[bool] = whole.accepting.tolist()

    def step(self, state: int, byte: int) -> int:
        """Behind one more byte; bytes that are no character match nothing, and the search goes on behind them."""
        following = self.rows[state][self.byte_class[byte]]
        return following or self.rows[START][self.byte_class[byte]] or START

    def matched(self, text: bytes) -> bytes:
        """The longest end of the text that the pattern matches.  O(length)."""
        automaton = self.match
        alive = automaton.accepting.copy()  # states from which text[at:] leads to an accepting one
        start = len(text)
        for at in range(len(text) - 1, -1, -1):
            alive = alive[automaton.next[:, automaton.byte_class[text[at]]]]
            alive[DEAD] = False
            if alive[START]:
                start = at
            elif not alive.any():
                break
        return text[start:]


@lru_cache(maxsize=256)
def _search(pattern: str) -> _Search:
    return _Search(pattern)


class StopPatterns:
    """Stop patterns against the bytes of one run: fed as `StopStrings` are."""

    __slots__ = ("_searches", "_states", "_text", "_vocab", "num_seen")

    def __init__(self, patterns: Sequence[str], vocab: Vocab) -> None:
        self._searches = [(pattern, _search(pattern)) for pattern in patterns]
        self._states = [START] * len(patterns)
        self._vocab = vocab
        self._text = bytearray()
        self.num_seen = 0

    @property
    def num_released(self) -> int:
        """All tokens: what a match ends is not taken back."""
        return self.num_seen

    def feed(self, token: int, may_end: Callable[[int, bytes], bool]) -> StopMatch | None:
        """Take in the run's next token.  `may_end(kept, tail)` refuses a match, which is ordinary text from then on.

        Of several matches the one that is complete first counts; of those, the pattern that was given first.
        """
        new = (self._vocab[token] if 0 <= token < len(self._vocab) else None) or b""
        for at, byte in enumerate(new, 1):
            self._text.append(byte)
            pattern = self._step(byte)
            if pattern is None:
                continue
            is_whole = at == len(new)
            kept, tail = self.num_seen + is_whole, b"" if is_whole else new[:at]
            if may_end(kept, tail):
                self.num_seen += 1
                text = _search(pattern).matched(bytes(self._text)).decode("utf-8", "replace")
                return StopMatch(pattern, kept, tail, text)
        self.num_seen += 1
        return None

    def _step(self, byte: int) -> str | None:
        """The first pattern of which a match is complete with this byte."""
        found = None
        for place, (pattern, search) in enumerate(self._searches):
            state = self._states[place] = search.step(self._states[place], byte)
            if search.accepting[state] and found is None:
                found = pattern
        return found
