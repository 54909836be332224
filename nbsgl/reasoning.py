"""Thinking and answer in one text: the markers that models write around their thinking, and the cut along them."""

from __future__ import annotations

import msgspec

THINK = ("<think>", "</think>")
TRIANGLES = ("◁think▷", "◁/think▷")


class Markers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands before and after the thinking; `is_open`: the text begins inside it.

    An `opening` of "" never comes.  With `keeps_end`, blanks at the end of an answer stay: they are part of a value.
    """

    opening: str
    closing: str
    is_open: bool = False
    keeps_end: bool = False


def _markers(pair: tuple[str, str], is_open: bool = False) -> Markers:
    return Markers(opening=pair[0], closing=pair[1], is_open=is_open)


# SGLang's names of `model_type`, with their markers.
MODEL_TYPES: dict[str, Markers] = {
    "deepseek-r1": _markers(THINK, is_open=True),
    "deepseek-v3": _markers(THINK),
    "glm45": _markers(THINK),
    "interns1": _markers(THINK),
    "kimi": _markers(TRIANGLES),
    "kimi_k2": _markers(THINK),
    "minimax": _markers(THINK, is_open=True),
    "qwen3": _markers(THINK),
    "qwen3-thinking": _markers(THINK, is_open=True),
    "step3": _markers(THINK, is_open=True),
}


def own_pair(text: str) -> tuple[str, str] | None:
    """The markers that a chat template or a list of tokens speaks of."""
    return next((pair for pair in (THINK, TRIANGLES) if pair[1] in text), None)


class Splitter:
    """Cuts a text as it comes.

    The thinking is given without blanks around it.  So is an answer after a thinking; a text without a thinking is
    an answer and given as it is.  What may still become a marker is held back until `finish`.
    """

    def __init__(self, markers: Markers) -> None:
        self._markers = markers
        self._held = ""
        self._is_inside = markers.is_open
        self._may_open = True
        self._thought = _Trimmed()
        self._answer: _Trimmed | None = None  # once a thinking has ended
        self.has_cut = markers.is_open

    def push(self, text: str) -> tuple[str, str]:
        """What is new of the thinking, and of the answer."""
        return self._read(self._held + text, is_end=False)

    def finish(self) -> tuple[str, str]:
        return self._read(self._held, is_end=True)

    def _read(self, text: str, is_end: bool) -> tuple[str, str]:
        thought, answer = "", ""
        while True:
            before, marker, text = self._next(text, is_end)
            if self._is_inside:
                thought += self._thought.push(before)
            else:
                answer += before if self._answer is None else self._answer.push(before)
            if not marker:
                self._held = text
                return thought, answer
            self._pass(marker)

    def _next(self, text: str, is_end: bool) -> tuple[str, str, str]:
        """The text up to the next marker, the marker, and what is behind; without one, what must be held back."""
        wanted = [self._markers.closing] if self._is_inside else []
        wanted += [self._markers.opening] if self._may_open and self._markers.opening else []
        found = [(text.find(marker), marker) for marker in wanted if marker in text]
        if found:
            at, marker = min(found)
            return text[:at], marker, text[at + len(marker) :]
        kept = 0 if is_end else max((_num_begun(text, marker) for marker in wanted), default=0)
        return text[: len(text) - kept], "", text[len(text) - kept :]

    def _pass(self, marker: str) -> None:
        self.has_cut = True
        self._may_open = False
        self._is_inside = marker == self._markers.opening
        if not self._is_inside:
            self._answer = _Trimmed(self._markers.keeps_end)


class _Trimmed:
    """A text without the blanks before it and, unless it keeps them, after it."""

    def __init__(self, keeps_end: bool = False) -> None:
        self._has_begun, self._keeps_end = False, keeps_end
        self._blanks = ""

    def push(self, text: str) -> str:
        text = self._blanks + text if self._has_begun else text.lstrip()
        bare = text if self._keeps_end else text.rstrip()
        self._blanks = text[len(bare) :]
        self._has_begun = self._has_begun or bool(bare)
        return bare


def _num_begun(text: str, marker: str) -> int:
    """Length of the longest end of the text that begins the marker."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:n])), 0)
