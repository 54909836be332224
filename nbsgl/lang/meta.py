"""What `get_meta_info` tells about a finished variable, in SGLang's keys."""

from __future__ import annotations

from typing import Any

import msgspec

from nbsgl.lang import choices
from nbsgl.lang.branch import Binding, Listed, Sampled, Slot
from nbsgl.lang.default import default
from nbsgl.protocol import Finish, Gen, GenResult, GrammarSpec, Logprobs, Select, TokenLogprob


def meta_info_of(run_id: str, binding: Binding, model: str | None = None) -> Any:
    """Of a variable; for a list made by `list_append`, one for each sampled entry.  None if it was not sampled."""
    if isinstance(binding, Listed):
        return [meta_info_of(run_id, entry, model) for entry in binding.entries]
    return meta_info(run_id, binding.slot, model) if isinstance(binding, Sampled) else None


def meta_info(run_id: str, slot: Slot, model: str | None = None) -> dict[str, Any] | list[dict[str, Any]]:
    """A dict; for a gen with n > 1 a list of n.  `model` is whose vocabulary a grammar's allowed tokens are of."""
    if isinstance(slot.node, Select):
        return _of_select(run_id, slot)
    infos = [_of_gen(f"{run_id}-{slot.number}", slot, result, model) for result in slot.results]
    return infos if slot.node.params.n > 1 else infos[0]


class GrammarInfo(dict[str, Any]):
    """What a grammar did in a run; `["automaton"]` and `["place"]` are made when they are first asked for.

    They are `nbsgl.automaton`'s structs as plain data: the compressed automaton, and where the run's text ended in it.
    """

    def __init__(self, counters: dict[str, Any], spec: GrammarSpec, result: GenResult, model: str | None) -> None:
        super().__init__(counters)
        self._about = (spec, result, model)

    def __missing__(self, key: str) -> Any:
        if key not in ("automaton", "place") or default.draw_grammar is None:
            raise KeyError(key)
        spec, result, model = self._about
        picture = default.draw_grammar(spec, result.text, model, _last_step(result))
        self.update(automaton=msgspec.to_builtins(picture.automaton), place=msgspec.to_builtins(picture.place))
        return self[key]


def _last_step(result: GenResult) -> list[tuple[float | None, int]]:
    """The likeliest tokens where the text ended: known if a token that ends texts was drawn there."""
    logprobs = result.output_logprobs
    if logprobs is None or not logprobs.top or not isinstance(result.finish.matched, int):
        return []
    return [(logprob, token) for logprob, token, _ in logprobs.top[-1] or ()]


def _of_gen(request_id: str, slot: Slot, result: GenResult, model: str | None) -> dict[str, Any]:
    info: dict[str, Any] = {
        "id": request_id,
        "finish_reason": finish_reason(result.finish),
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "cached_tokens": result.cached_tokens,
        "e2e_latency": result.e2e_s,
        "ttft_s": result.ttft_s,
        "seed": result.seed,
        "run_seed": slot.run_seed,
        "complete": result.complete,
    }
    if isinstance(slot.node, Gen) and slot.node.markers is not None:
        info["reasoning"] = result.reasoning
    if result.grammar is not None:
        counters = msgspec.to_builtins(result.grammar)
        info["grammar_forced_tokens"] = result.grammar.accepted
        spec = slot.node.grammar if isinstance(slot.node, Gen) else None
        info["grammar"] = counters if spec is None else GrammarInfo(counters, spec, result, model)
    for side, logprobs in (("input", result.input_logprobs), ("output", result.output_logprobs)):
        if logprobs is not None:
            info |= _logprobs(side, logprobs, slot.with_text)
    return info


def finish_reason(finish: Finish) -> dict[str, Any]:
    reason: dict[str, Any] = {"type": finish.type}
    if finish.type == "stop":
        reason["matched"] = finish.matched
        if finish.matched_text is not None:
            reason["matched_text"] = finish.matched_text
    elif finish.type == "length":
        reason["length"] = finish.length
    return reason


def _logprobs(side: str, logprobs: Logprobs, with_text: bool) -> dict[str, Any]:
    info: dict[str, Any] = {f"{side}_token_logprobs": triples(logprobs.tokens, with_text)}
    if side == "output":
        info["output_token_logprobs_length"] = len(logprobs.tokens)
    if logprobs.top:
        info[f"{side}_top_logprobs"] = [None if row is None else triples(row, with_text) for row in logprobs.top]
    return info


def triples(rows: list[TokenLogprob], with_text: bool) -> list[TokenLogprob]:
    return [(logprob, token, text if with_text else None) for logprob, token, text in rows]


def _of_select(run_id: str, slot: Slot) -> dict[str, Any]:
    done = slot.choice
    assert done is not None
    assert slot.method is not None
    assert isinstance(slot.node, Select)
    scored: dict[str, Any] = {}
    if done.token_logprobs:  # else a service has chosen by other means
        scored = choices.decide(slot.method, slot.node.choices, done.token_logprobs, done.unconditional).meta_info or {}
    return {
        **scored,
        "id": f"{run_id}-{slot.number}",
        "scores": done.scores,
        "prompt_tokens": done.prompt_tokens,
        "e2e_latency": done.e2e_s,
        "seed": done.seed,
        "run_seed": slot.run_seed,
    }
