"""OpenAI's requests and answers, of chat and of completions: bodies from gens, results from JSON.  Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from nbsgl import structural_tags
from nbsgl.errors import ApiError
from nbsgl.lang.backends.content import Prompt
from nbsgl.protocol import Finish, Gen, GenResult, GrammarSpec, Logprobs, SamplingParams, Select, TokenLogprob
from nbsgl.structural_tags import Tag

CAN_CHAT = frozenset(
    (
        "n top_p frequency_penalty presence_penalty logit_bias seed return_logprob top_logprobs_num "
        "json_schema json tools"
    ).split()
)
CAN_COMPLETIONS = CAN_CHAT - {"json_schema", "json", "tools"}

_REASONS = re.compile(r"^(.*/)?(o\d|gpt-5)")  # models that think first: they take `max_completion_tokens` only
_KEPT = ("top_p", "frequency_penalty", "presence_penalty")


def thinks_first(model: str) -> bool:
    return _REASONS.match(model) is not None


def path(kind: str) -> str:
    return "chat/completions" if kind == "chat" else "completions"


def body(model: str, prompt: Prompt, node: Gen) -> dict[str, Any]:
    """The request for a gen, all but its seed."""
    params = node.params
    found = head(model, prompt)
    found[_limit_name(model, prompt)] = params.max_tokens
    if params.max_tokens == "fit":
        del found[_limit_name(model, prompt)]
    if params.temperature != 1.0 or not thinks_first(model):
        found["temperature"] = params.temperature
    usual = SamplingParams()
    found |= {name: getattr(params, name) for name in _KEPT if getattr(params, name) != getattr(usual, name)}
    if params.n > 1:
        found["n"] = params.n
    if params.stop:
        found["stop"] = list(params.stop)
    if params.logit_bias:
        found["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    if params.return_logprob and isinstance(prompt, str):
        found["logprobs"] = params.top_logprobs_num
    elif params.return_logprob:
        found |= {"logprobs": True, "top_logprobs": params.top_logprobs_num}
    if node.grammar is not None:
        found |= _constraint(node.grammar)
    return found


def _constraint(spec: GrammarSpec) -> dict[str, Any]:
    """What asks for a schema, for JSON without one, or offers tools."""
    if spec.kind == "json":
        return {"response_format": {"type": "json_object"}}
    if spec.kind == "json_schema":
        return {"response_format": schema_format(json.loads(spec.text))}
    tags = structural_tags.decode(spec.text)
    choice = {"tool_choice": "required", "parallel_tool_calls": False} if tags.at_least_one else {}
    return {"tools": [_tool(*found) for found in tool_schemas(spec)], **choice}


def _tool(tag: Tag, schema: dict[str, Any]) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tag.tool, "parameters": schema}
    if tag.description:
        function["description"] = tag.description
    return {"type": "function", "function": function}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose whole is a reference, with what it refers to in its place: services want an object there."""
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    found = schema.get("$defs", {}).get(name)
    if found is None:
        return schema
    others = {key: value for key, value in schema["$defs"].items() if key != name}
    is_used = f'"#/$defs/{name}"' in json.dumps([found, others])
    defs = schema["$defs"] if is_used else others
    return {**found, "$defs": defs} if defs else found


def tool_schemas(spec: GrammarSpec) -> list[tuple[Tag, dict[str, Any]]]:
    """The tools of a grammar of tool calls, with the schemas of their arguments as objects."""
    return [(tag, resolved(json.loads(tag.text))) for tag in structural_tags.decode(spec.text).tags]


def calls_as_text(message: Mapping[str, Any], node: Gen) -> str:
    """What a message says, and behind it its tool calls as the gen's grammar writes them."""
    calls = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    texts = [call_as_text(call.get("name"), call.get("arguments") or "{}", node) for call in calls]
    return str(message.get("content") or "") + "".join(texts)


def call_as_text(name: Any, arguments: str, node: Gen) -> str:
    """A call as the gen's grammar writes it; `ApiError` for a tool that was not offered."""
    offered = structural_tags.decode(node.grammar.text).tags if node.grammar and node.grammar.kind == "tags" else []
    tag = next((tag for tag in offered if tag.tool == name), None)
    if tag is None:
        reason = f"it called {name!r}; the tools are {', '.join(tag.tool for tag in offered) or 'none'}"
        raise ApiError(f"The service is wrong: {reason}.", service="tools", reason=reason)
    return f"{tag.begin}{arguments}{tag.end}"


def head(model: str, prompt: Prompt) -> dict[str, Any]:
    return {"model": model, ("prompt" if isinstance(prompt, str) else "messages"): prompt}


def _limit_name(model: str, prompt: Prompt) -> str:
    return "max_completion_tokens" if thinks_first(model) and not isinstance(prompt, str) else "max_tokens"


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def choice_schema(choices: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object whose only value is one of the choices."""
    return {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(choices)}},
        "required": ["choice"],
        "additionalProperties": False,
    }


def chosen(service: str, node: Select, said: Any) -> int:
    """Which choice an object of `choice_schema` names; `ApiError` if none."""
    if isinstance(said, str):
        try:
            said = json.loads(said)
        except ValueError:
            said = {"choice": said}
    choice = said.get("choice") if isinstance(said, Mapping) else None
    if choice not in node.choices:
        reason = f"it was to choose one of {list(node.choices)} and said {said!r}"
        raise ApiError(
            f"{service}: {reason}.",
            service=service,
            reason=reason,
            hint="It does not keep response_format: take another model, or nbsgl.Engine(...).",
        )
    return node.choices.index(choice)


# ---- answers ---------------------------------------------------------------------------------------------------------


def results(service: str, answer: Mapping[str, Any], node: Gen) -> list[GenResult]:
    """The results in order; the first bears the tokens of all.  `ApiError` for an answer that has none."""
    found = sorted(answer.get("choices") or [], key=lambda choice: choice.get("index") or 0)
    if len(found) < node.params.n:
        raise ApiError(
            f"{service} gave {len(found)} of {node.params.n} results.", service=service, reason="too few choices"
        )
    prompt, completion, cached = usage(answer)
    made = []
    for i, choice in enumerate(found[: node.params.n]):
        message = choice.get("message") or {}
        if message.get("refusal"):
            raise ApiError(f"{service} refused: {message['refusal']}", service=service, reason=message["refusal"])
        text = choice.get("text") if "text" in choice else calls_as_text(message, node)
        made.append(
            result(
                text or "",
                finish_of(choice.get("finish_reason"), node.params),
                (prompt, completion if i == 0 else 0, cached),
                logprobs_of(choice.get("logprobs")) if node.params.return_logprob else None,
            )
        )
    return made


def result(text: str, finish: Finish, tokens: tuple[int, int, int], logprobs: Logprobs | None = None) -> GenResult:
    """`tokens`: of the prompt, of the completion, of the prompt's those that were cached."""
    return GenResult(
        text=text,
        ids=b"",
        finish=finish,
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        cached_tokens=tokens[2],
        complete=finish.type == "stop",
        output_logprobs=logprobs,
    )


def usage(answer: Mapping[str, Any]) -> tuple[int, int, int]:
    found = answer.get("usage") or {}
    details = found.get("prompt_tokens_details") or {}
    return found.get("prompt_tokens") or 0, found.get("completion_tokens") or 0, details.get("cached_tokens") or 0


def finish_of(reason: str | None, params: SamplingParams) -> Finish:
    if reason in ("length", "max_tokens"):
        return Finish(type="length", length=None if params.max_tokens == "fit" else params.max_tokens)
    if reason in ("content_filter", "refusal"):
        return Finish(type="abort", matched=reason)
    return Finish(type="stop")


def logprobs_of(found: Any) -> Logprobs | None:
    """Of chat (`content`) or of completions (`tokens`); token ids are not told (-1)."""
    if not isinstance(found, Mapping):
        return None
    if found.get("content") is not None:
        rows = found["content"]
        top = [[_triple(one) for one in row.get("top_logprobs") or ()] for row in rows]
        return Logprobs(tokens=[_triple(row) for row in rows], top=list(top) if any(top) else [])
    tokens = found.get("tokens")
    if tokens is None:
        return None
    values = found.get("token_logprobs") or [None] * len(tokens)
    best = found.get("top_logprobs") or []
    return Logprobs(
        tokens=[(value, -1, token) for value, token in zip(values, tokens, strict=False)],
        top=[[(value, -1, token) for token, value in row.items()] if row else None for row in best],
    )


def _triple(row: Mapping[str, Any]) -> TokenLogprob:
    return row.get("logprob"), -1, row.get("token")


class Gathered:
    """The pieces of a streamed answer as one answer."""

    def __init__(self) -> None:
        self.text, self.reason, self.usage, self.refusal = "", None, None, ""
        self.calls: dict[int, dict[str, str]] = {}  # tool calls by index, as far as they have come
        self.tokens: list[TokenLogprob] = []
        self.top: list[list[TokenLogprob] | None] = []

    def take(self, event: Mapping[str, Any]) -> tuple[str, Logprobs | None]:
        """The event's new text, with its log-probabilities."""
        self.usage = event.get("usage") or self.usage
        choice = next(iter(event.get("choices") or ()), None)
        if choice is None:
            return "", None
        self.reason = choice.get("finish_reason") or self.reason
        delta = choice.get("delta") or {}
        self.refusal += delta.get("refusal") or ""
        for piece in delta.get("tool_calls") or ():
            self._take_call(piece)
        text = (choice.get("text") if "text" in choice else delta.get("content")) or ""
        logprobs = logprobs_of(choice.get("logprobs"))
        if logprobs is not None:
            self.tokens += logprobs.tokens
            self.top += logprobs.top
        self.text += text
        return text, logprobs

    def _take_call(self, piece: Mapping[str, Any]) -> None:
        call = self.calls.setdefault(piece.get("index") or 0, {"name": "", "arguments": ""})
        for name, value in (piece.get("function") or {}).items():
            if name in call and value:
                call[name] += value

    def called(self, node: Gen) -> str:
        """The tool calls as text, once all have come."""
        calls = [{"function": call} for _, call in sorted(self.calls.items())]
        text = calls_as_text({"tool_calls": calls}, node)
        self.text += text
        return text

    def result(self, service: str, params: SamplingParams) -> GenResult:
        if self.reason is None:
            raise ApiError(f"{service}: the stream broke off.", service=service, reason="the stream broke off")
        if self.refusal:
            raise ApiError(f"{service} refused: {self.refusal}", service=service, reason=self.refusal)
        logprobs = Logprobs(tokens=self.tokens, top=self.top) if params.return_logprob else None
        return result(self.text, finish_of(self.reason, params), usage({"usage": self.usage}), logprobs)
