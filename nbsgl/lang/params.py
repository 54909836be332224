"""Sampling parameters: SGLang's names, checked where they are written, resolved when a state takes a gen."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from nbsgl.errors import BadGrammar, BadRegex, ParameterError, Unsupported
from nbsgl.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR, refuse_mark
from nbsgl.protocol import GrammarSpec, SamplingParams

ALIASES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
FLAGS = ("ignore_eos", "return_logprob", "return_text_in_logprobs")
# fmt: off
NAMES = [
    "max_tokens", "min_tokens", "n", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p",
    "frequency_penalty", "presence_penalty", "repetition_penalty", "ignore_eos", "logit_bias", "return_logprob",
    "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs",
]
# fmt: on
DTYPES = {"int": REGEX_INT, "float": REGEX_FLOAT, "bool": REGEX_BOOL, "str": REGEX_STR}
_PROPERTY_CLASS = re.compile(r"\\[pP](\{[^}]*\}|\w)")


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are not None, under `SamplingParams`' names and types; `ParameterError` for a bad one."""
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
    if found.pop("stop_regex", None) is not None:
        raise Unsupported("stop_regex is not supported yet.", name="stop_regex", hint="Use stop=[...] or regex=...")
    for name in FLAGS:
        if name in found and not isinstance(found[name], bool):
            raise ParameterError(name=name, value=found[name], allowed="True or False")
    if "stop" in found:
        found["stop"] = _strings(found["stop"], "stop")
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


# ---- constraints -----------------------------------------------------------------------------------------------------


def constraint(regex: object, json_schema: object, dtype: object) -> tuple[GrammarSpec | None, tuple[str, ...]]:
    """The grammar of a gen and the stop strings that its type adds."""
    if dtype is not None:
        name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", "")
        if name not in DTYPES or not (isinstance(dtype, str) or dtype in (int, float, bool, str)):
            raise ParameterError(name="dtype", value=dtype, allowed="int, float, bool or str")
        return GrammarSpec(kind="regex", text=DTYPES[name]), (" ", "\n") if name in ("int", "float") else ()
    if regex is not None:
        if not isinstance(regex, str):
            raise ParameterError(name="regex", value=regex, allowed="a regular expression as a string")
        refuse_mark(regex, "regex=")
        check_regex(regex)
        return GrammarSpec(kind="regex", text=regex), ()
    if json_schema is not None:
        return GrammarSpec(kind="json_schema", text=_schema_text(json_schema)), ()
    return None, ()


@lru_cache(maxsize=256)
def check_regex(pattern: str) -> None:
    """`BadRegex` if the pattern is no regular expression.  Classes like `\\p{L}`, which `re` lacks, are let through."""
    try:
        re.compile(_PROPERTY_CLASS.sub(r"\\w", pattern))
    except (re.error, OverflowError, RecursionError) as error:
        at = getattr(error, "pos", None)
        raise BadRegex(
            f"regex={pattern!r} is not valid: {error}.",
            kind="regex",
            path=f"position {at}" if at is not None else "the pattern",
            reason=str(error),
            hint="Try it with re.compile(...).",
            pattern_text=pattern,
        ) from error


def _schema_text(schema: object) -> str:
    if isinstance(schema, Mapping):
        try:
            return json.dumps(schema, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise BadGrammar(kind="json_schema", path="json_schema=", reason=str(error)) from error
    if not isinstance(schema, str):
        raise ParameterError(name="json_schema", value=schema, allowed="a JSON schema as a dict or a JSON string")
    try:
        json.loads(schema)
    except ValueError as error:
        raise BadGrammar(
            kind="json_schema", path="json_schema=", reason=str(error), hint="Pass a dict: json_schema={...}."
        ) from error
    return schema
