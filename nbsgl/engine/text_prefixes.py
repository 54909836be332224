"""Texts that begin alike are encoded once: what a new text shares with one seen before is taken from there.

Holds for tokenizers that cut a text into pieces by a pattern before they merge bytes within each piece (byte-level
BPE): then the tokens up to the end of a piece depend on the text up to there and a little beyond, and what follows is
encoded as if it stood alone.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nbsgl.engine.tokenizer_files import parts

LEAST_CHARS = 256  # shorter texts take less than 0.1 ms to encode
HEAD_CHARS = 64  # texts that differ within these are not compared
MAX_RIVALS = 8  # of one beginning
BEYOND = 32  # a pattern looks past the end of its piece: over white space, to the next character


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text and its tokens; the piece that ends at character `ends[i]` ends at token `counts[i]`."""

    text: str
    ids: list[int]
    ends: list[int]
    counts: list[int]


class TextPrefixes:
    """The last long texts, by how they begin; at most `max_chars` of them.  Not thread-safe."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._num_chars = 0
        self._by_head: OrderedDict[str, list[Encoded]] = OrderedDict()

    def find(self, text: str) -> tuple[list[int], int]:
        """The first tokens of a text and how many characters they stand for; ([], 0) if no known text begins alike."""
        head = text[:HEAD_CHARS]
        rivals = self._by_head.get(head, ())
        best: list[int] = []
        chars = 0
        for known in rivals:
            place = bisect_right(known.ends, _safe_until(text, common_length(text, known.text))) - 1
            if place >= 0 and known.ends[place] > chars:
                best, chars = known.ids[: known.counts[place]], known.ends[place]
        if rivals:
            self._by_head.move_to_end(head)
        return best, chars

    def add(self, text: str, ids: list[int], words: Sequence[int | None], offsets: Sequence[tuple[int, int]]) -> None:
        """Remember a text with its tokens, the piece of each token, and the characters of each."""
        last = [i for i in range(len(ids) - 1) if words[i] != words[i + 1]]
        known = Encoded(text, ids, [offsets[i][1] for i in last], [i + 1 for i in last])
        rivals = self._by_head.setdefault(text[:HEAD_CHARS], [])
        rivals.append(known)
        self._num_chars += len(text)
        if len(rivals) > MAX_RIVALS:
            self._num_chars -= len(rivals.pop(0).text)
        while self._num_chars > self._max_chars:
            _, gone = self._by_head.popitem(last=False)
            self._num_chars -= sum(len(one.text) for one in gone)


def common_length(one: str, other: str) -> int:
    """How many characters two texts share from their beginning.  Compares slices: 20 us for 100,000 characters."""
    low, high = 0, min(len(one), len(other))
    step = 256
    while low < high and one[low : low + step] == other[low : low + step]:
        low = min(low + step, high)
        step *= 2
    high = min(high, low + step)
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _safe_until(text: str, length: int) -> int:
    """Up to where the ends of pieces are those of any text with the same first `length` characters.

    Between such an end and `length` there is more than white space: patterns that look ahead stop there.
    """
    return len(text[: max(0, length - BEYOND)].rstrip())


def sharing_of(tokenizer: dict[str, Any]) -> Callable[[str], bool] | None:
    """Which texts a `tokenizer.json` may share: those its normalizer leaves as they are.  None: no text.

    Only byte-level BPE behind a pattern does.
    """
    model = tokenizer.get("model") or {}
    steps = parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = {step.get("type") for step in steps}
    has_pattern = "Split" in kinds or any(step.get("use_regex", True) for step in steps if step["type"] == "ByteLevel")
    if model.get("type") != "BPE" or not has_pattern or not {"ByteLevel"} <= kinds <= {"ByteLevel", "Split", "Digits"}:
        return None
    forms = [step.get("type") for step in parts(tokenizer.get("normalizer"), "normalizers")]
    if not forms:
        return lambda text: True
    if len(forms) == 1 and forms[0] in ("NFC", "NFKC"):
        return partial(unicodedata.is_normalized, forms[0])
    return None
