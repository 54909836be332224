"""Sampling parameters: SGLang's names, checked where they are written, resolved when a state takes a gen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nbsgl.errors import ParameterError
from nbsgl.lang.ir import refuse_mark
from nbsgl.lang.types import check_regex
from nbsgl.protocol import SamplingParams

ALIASES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
FLAGS = ("ignore_eos", "return_logprob", "return_text_in_logprobs")
# fmt: off
NAMES = [
    "max_tokens", "min_tokens", "n", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p",
    "frequency_penalty", "presence_penalty", "repetition_penalty", "ignore_eos", "logit_bias", "return_logprob",
    "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs",
]
# fmt: on


_good: dict[Any, dict[str, Any]] = {}  # what was checked before: a loop's gens are alike
_MAX_GOOD = 256


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are not None, under `SamplingParams`' names and types; `ParameterError` for a bad one."""
    key = tuple([(name, value.__class__, value) for name, value in given.items() if value is not None])
    try:
        found = _good.get(key)
    except TypeError:  # a list, say
        return _checked(given)
    if found is None:
        found = _checked(given)
        if len(_good) >= _MAX_GOOD:
            _good.clear()
        _good[key] = found
    return dict(found)


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for written, value in given.items():
        if value is None:
            continue
        name = ALIASES.get(written, written)
        if name in found:
            raise ParameterError(
                f"{written} and {name if name != written else 'its long form'} are the same parameter.",
                name=written,
                value=value,
            )
        found[name] = value
    for name in FLAGS:
        if name in found and not isinstance(found[name], bool):
            raise ParameterError(name=name, value=found[name], allowed="True or False")
    if "stop" in found:
        found["stop"] = _strings(found["stop"], "stop")
    if "stop_regex" in found:
        found["stop_regex"] = _strings(found["stop_regex"], "stop_regex")
        for pattern in found["stop_regex"]:
            _check_stop_regex(pattern)
    if "stop_token_ids" in found:
        ids = found["stop_token_ids"]
        if isinstance(ids, (str, bytes)) or not hasattr(ids, "__iter__"):
            raise ParameterError(name="stop_token_ids", value=ids, allowed="a list of token ids")
        found["stop_token_ids"] = tuple(ids)
    if "logit_bias" in found:
        if not isinstance(found["logit_bias"], Mapping):
            raise ParameterError(name="logit_bias", value=found["logit_bias"], allowed="a dict of token id to bias")
        found["logit_bias"] = dict(found["logit_bias"])
    SamplingParams(**{"max_tokens": "fit", **_plain(found)})
    return found


def _strings(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise ParameterError(name=name, value=value, allowed="a string or a list of strings")
    for text in value:
        refuse_mark(text, f"{name}=")
    return tuple(value)


def _check_stop_regex(pattern: str) -> None:
    check_regex(pattern, "stop_regex")
    if re.fullmatch(pattern, ""):
        raise ParameterError(
            "stop_regex matches the empty text, so nothing would be generated.",
            name="stop_regex",
            value=pattern,
            hint="Take + where there is *.",
        )


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "return_text_in_logprobs"}


def resolve(defaults: Mapping[str, Any], given: Mapping[str, Any], stops: Sequence[str], seed: int) -> SamplingParams:
    """The gen's value, else the run's; `stops` are added; log-probabilities that were asked for in detail are on."""
    merged = _plain({**defaults, **given})
    merged["stop"] = tuple(dict.fromkeys([*merged.get("stop", ()), *stops]))
    merged.setdefault("seed", seed)
    if merged.get("top_logprobs_num", 0) > 0 or merged.get("logprob_start_len", -1) >= 0:
        merged["return_logprob"] = True
    return SamplingParams(**merged)
