"""Selects on completion services: log-probabilities out of an echo, and drawing among the choices' tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbsgl.errors import Unsupported
from nbsgl.lang.backends import openai_format
from nbsgl.lang.backends.remote import Scores
from nbsgl.protocol import Select, TokenLogprob


def echoed(answer: Mapping[str, Any], prompt: str, node: Select) -> Scores | None:
    """The scores in the answer to prompt + choice for each choice, then if needed the choices alone; None: no echo."""
    found = sorted(answer.get("choices") or [], key=lambda choice: choice.get("index") or 0)
    starts = [(prompt, choice) for choice in node.choices]
    if node.needs_unconditional:
        starts += [("", choice) for choice in node.choices]
    if len(found) != len(starts):
        return None
    rows = [_row(one.get("logprobs"), *start) for one, start in zip(found, starts, strict=True)]
    if any(row is None for row in rows):
        return None
    scored = [row for row in rows if row is not None]
    bare = None
    if node.needs_unconditional:
        scored, bare = scored[: len(node.choices)], scored[len(node.choices) :]
        bare = [_aligned(row, len(with_prompt)) for row, with_prompt in zip(bare, scored, strict=True)]
    return Scores(token_logprobs=scored, unconditional=bare, prompt_tokens=openai_format.usage(answer)[0])


def _row(logprobs: Any, prompt: str, choice: str) -> list[TokenLogprob] | None:
    """The tokens that hold a character of the choice: one that began in the prompt counts, a new one does not."""
    told = openai_format.logprobs_of(logprobs)
    if told is None:
        return None
    begin, end = len(prompt), len(prompt) + len(choice)
    at, row = 0, []
    for value, token, text in told.tokens:
        length = len(text or "")
        if at < end and at + length > begin:
            row.append((value, token, text))
        at += length
    is_whole = at >= end and bool(row)
    known = any(value is not None for value, _, _ in row) or not prompt
    return row if is_whole and known else None


def _aligned(row: list[TokenLogprob], length: int) -> list[TokenLogprob]:
    """Alone a choice may be cut into other tokens; unknown ones count as nothing."""
    unknown: TokenLogprob = (None, -1, None)
    return [unknown] * (length - len(row)) + row[max(0, len(row) - length) :]


class Race:
    """Choices as token sequences with an end; each token taken leaves those that go on with it."""

    def __init__(self, runners: Sequence[Sequence[int]]) -> None:
        self._runners, self._at = runners, 0
        self._alive = list(range(len(runners)))

    @property
    def winner(self) -> int | None:
        return self._alive[0] if len(self._alive) == 1 else None

    @property
    def candidates(self) -> list[int]:
        return list(dict.fromkeys(self._runners[i][self._at] for i in self._alive))

    def take(self, token: int) -> bool:
        """Whether any choice goes on so."""
        left = [i for i in self._alive if self._runners[i][self._at] == token]
        if not left:
            return False
        self._alive, self._at = left, self._at + 1
        return True


def tokenizer(model: str) -> tuple[Callable[[str], list[int]], int]:
    """A model's `encode` and its end-of-text token, by tiktoken; `Unsupported` if they cannot be known."""
    wanted = f"{model} tells no log-probabilities of prompts, so a select needs its tokens"
    try:
        import tiktoken
    except ImportError as error:
        raise Unsupported(
            f"{wanted}, and the package tiktoken is not there.", name="select", hint="%pip install tiktoken"
        ) from error
    try:
        found = tiktoken.encoding_for_model(model)
    except KeyError as error:
        raise Unsupported(
            f"{wanted}, and tiktoken does not know them.", name="select", hint="Run it on nbsgl.Engine(...)."
        ) from error
    return found.encode, found.eot_token
