"""The methods of `select`, with SGLang's names, call and result; users derive their own `ChoicesSamplingMethod`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nbsgl import scoring


@dataclass
class ChoicesDecision:
    """The chosen text, and what `get_meta_info` tells about the choice."""

    decision: str
    meta_info: dict[str, Any] | None = None


class ChoicesSamplingMethod(ABC):
    """Decides between choices from the log-probabilities of their tokens.

    Log-probability lists hold, per choice, triples (log-probability, token id, text or None).
    """

    @property
    def requires_unconditional_logprobs(self) -> bool:
        """Whether the choices are also scored without the prompt."""
        return False

    @abstractmethod
    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[list[Any]],
        output_token_logprobs: list[list[Any]],
        unconditional_token_logprobs: list[list[Any]] | None = None,
    ) -> ChoicesDecision: ...


class TokenLengthNormalized(ChoicesSamplingMethod):
    """The choice with the greatest mean log-probability."""

    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[list[Any]],
        output_token_logprobs: list[list[Any]],
        unconditional_token_logprobs: list[list[Any]] | None = None,
    ) -> ChoicesDecision:
        best = scoring.decide(normalized_prompt_logprobs)
        return ChoicesDecision(
            choices[best],
            {
                "normalized_prompt_logprobs": normalized_prompt_logprobs,
                "input_token_logprobs": input_token_logprobs,
                "output_token_logprobs": output_token_logprobs,
            },
        )


class GreedyTokenSelection(ChoicesSamplingMethod):
    """Token by token only the choices with the greatest log-probability stay, until one is left."""

    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[list[Any]],
        output_token_logprobs: list[list[Any]],
        unconditional_token_logprobs: list[list[Any]] | None = None,
    ) -> ChoicesDecision:
        rows = values(input_token_logprobs)
        best = scoring.decide(scoring.greedy_token_selection(rows))
        return ChoicesDecision(
            choices[best],
            {
                "normalized_prompt_logprobs": normalized_prompt_logprobs,
                "input_token_logprobs": input_token_logprobs,
                "output_token_logprobs": output_token_logprobs,
                "greedy_logprob_matrix": scoring.greedy_matrix(rows),
            },
        )


class UnconditionalLikelihoodNormalized(ChoicesSamplingMethod):
    """The choice that gains most from the prompt: mean log-probability minus that without the prompt."""

    @property
    def requires_unconditional_logprobs(self) -> bool:
        return True

    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[list[Any]],
        output_token_logprobs: list[list[Any]],
        unconditional_token_logprobs: list[list[Any]] | None = None,
    ) -> ChoicesDecision:
        base = None if unconditional_token_logprobs is None else values(unconditional_token_logprobs)
        scores = scoring.unconditional_likelihood_normalized(values(input_token_logprobs), base)
        return ChoicesDecision(
            choices[scoring.decide(scores)],
            {
                "normalized_prompt_logprobs": normalized_prompt_logprobs,
                "input_token_logprobs": input_token_logprobs,
                "output_token_logprobs": output_token_logprobs,
                "unconditional_token_logprobs": unconditional_token_logprobs,
                "normalized_unconditional_prompt_logprobs": scores,
            },
        )


token_length_normalized = TokenLengthNormalized()
greedy_token_selection = GreedyTokenSelection()
unconditional_likelihood_normalized = UnconditionalLikelihoodNormalized()

_BUILT_IN: dict[type[ChoicesSamplingMethod], str] = {
    TokenLengthNormalized: "token_length_normalized",
    GreedyTokenSelection: "greedy_token_selection",
    UnconditionalLikelihoodNormalized: "unconditional_likelihood_normalized",
}


def method_name(method: ChoicesSamplingMethod) -> str:
    """The name under which the engine knows the method; "ask" for a user's own."""
    return _BUILT_IN.get(type(method), "ask")


def values(rows: Sequence[Sequence[Any]]) -> list[list[float | None]]:
    """The bare log-probabilities of triples."""
    return [[triple[0] for triple in row] for row in rows]


def decide(
    method: ChoicesSamplingMethod,
    choices: Sequence[str],
    token_logprobs: Sequence[Sequence[Any]],
    unconditional: Sequence[Sequence[Any]] | None,
) -> ChoicesDecision:
    """Call a method as SGLang does."""
    return method(
        choices=list(choices),
        normalized_prompt_logprobs=[scoring.mean(row) for row in values(token_logprobs)],
        input_token_logprobs=[list(row) for row in token_logprobs],
        output_token_logprobs=[[] for _ in choices],
        unconditional_token_logprobs=None if unconditional is None else [list(row) for row in unconditional],
    )
