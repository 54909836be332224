"""The body of `/generate`: SGLang's request, checked before anything is run."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from nbsgl.errors import ParameterError, UsageError
from nbsgl.protocol import GrammarSpec


class Body(msgspec.Struct, forbid_unknown_fields=False):
    """The fields whose types matter here; the engine checks their values, and all others by name."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any] | None] | None = None
    stream: bool = False
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    return_text_in_logprobs: bool = False
    plain_ranges: list[list[tuple[int, int]]] | None = None
    rid: str | list[str] | None = None


class Sampling(msgspec.Struct, forbid_unknown_fields=False):
    max_new_tokens: int | Literal["fit"] | None = None
    min_new_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = None
    sampling_seed: int | None = None
    seed: int | None = None
    stop_regex: str | list[str] | None = None
    regex: str | None = None
    json_schema: str | bool | dict[str, Any] | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None
    grammar: GrammarSpec | None = None


IGNORED = ("log_metrics", "background")  # of SGLang's own bookkeeping


def parsed(data: bytes) -> tuple[Body, dict[str, Any]]:
    """The body and the arguments for `Engine.async_generate`.  `UsageError` for what is no such request."""
    try:
        raw = msgspec.json.decode(data)
        if not isinstance(raw, dict):
            raise UsageError(f"The body is a JSON object, not {type(raw).__name__}.")
        body = msgspec.convert(raw, Body)
        many = body.sampling_params if isinstance(body.sampling_params, list) else [body.sampling_params]
        for sampling in many:
            msgspec.convert(sampling or {}, Sampling)
    except msgspec.ValidationError as error:
        raise UsageError(f"The request is malformed: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"The body is no JSON: {error}.") from None
    others = {name: value for name, value in raw.items() if name not in Body.__struct_fields__ + IGNORED}
    if body.text is None and body.input_ids is None:
        raise ParameterError(name="text", value=None, allowed="a prompt, or input_ids")
    return body, {
        "prompt": body.text,
        "input_ids": body.input_ids,
        "sampling_params": body.sampling_params,
        "return_logprob": body.return_logprob,
        "logprob_start_len": _start(body),
        "top_logprobs_num": body.top_logprobs_num,
        "return_text_in_logprobs": body.return_text_in_logprobs,
        "plain_ranges": body.plain_ranges,
        **others,
    }


def _start(body: Body) -> int | list[int] | None:
    """A request for log-probabilities that draws nothing and names no start is about its whole prompt."""
    if body.logprob_start_len is not None or body.return_logprob is not True:
        return body.logprob_start_len
    sampling = body.sampling_params
    draws_nothing = isinstance(sampling, dict) and sampling.get("max_new_tokens") == 0
    return 0 if draws_nothing and not body.top_logprobs_num else None
