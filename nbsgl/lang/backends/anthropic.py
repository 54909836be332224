"""`Anthropic`: models behind Anthropic's messages API."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from nbsgl import structural_tags
from nbsgl.chat_templates import ChatTemplate
from nbsgl.errors import ApiError, Unsupported
from nbsgl.lang.backends.api import ApiBackend
from nbsgl.lang.backends.content import Message, Prompt
from nbsgl.lang.backends.http import HttpClient
from nbsgl.lang.backends.openai import key_missing
from nbsgl.lang.backends.openai_format import (
    call_as_text,
    choice_schema,
    chosen,
    finish_of,
    result,
    tool_schemas,
)
from nbsgl.lang.backends.remote import Piece, Say, Scores
from nbsgl.lang.backends.speculate import first_of
from nbsgl.protocol import Finish, Gen, GenResult, SamplingParams, Select

BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"
_TOOL = "choose"
_CHOICE_TOKENS = 1024  # for a choice as JSON


class Anthropic(ApiBackend):
    """A model of Anthropic's, or of a server with their protocol (`base_url=`).

    The key is taken from ANTHROPIC_API_KEY (or ANTHROPIC_AUTH_TOKEN), the place from ANTHROPIC_BASE_URL, unless they
    are given.  Leading system messages are sent as the request's system text.  Text without any role is sent as a
    user's message.  `n` results are n requests.  `select`: the model must name one of the choices (a forced tool).
    The service takes no seeds: a run's seed decides nothing here, and a gen's is refused.
    """

    service = "Anthropic"
    can = frozenset(("n", "top_p", "top_k", "tools"))
    takes_text = True

    def __init__(
        self,
        model_name: str,
        chat_template: ChatTemplate | str | None = None,
        *,
        api_key: str | None = None,
        auth_token: str | None = None,
        base_url: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 4,
        default_headers: Mapping[str, str] | None = None,
    ) -> None:
        url = (base_url or os.environ.get("ANTHROPIC_BASE_URL") or BASE_URL).rstrip("/")
        key = api_key or os.environ.get("ANTHROPIC_API_KEY")
        token = auth_token or os.environ.get("ANTHROPIC_AUTH_TOKEN")
        if not key and not token and url == BASE_URL:
            raise key_missing(self.service, "ANTHROPIC_API_KEY")
        headers = {"anthropic-version": VERSION}
        if key:
            headers["x-api-key"] = key
        elif token:
            headers["Authorization"] = f"Bearer {token}"
        hint = "Set ANTHROPIC_API_KEY, or pass api_key=..."
        self._http = HttpClient(
            self.service,
            url if url.endswith("/v1") else f"{url}/v1",
            {**headers, **(default_headers or {})},
            timeout=timeout,
            max_retries=max_retries,
            key_hint=hint,
        )
        super().__init__(model_name, "chat", chat_template or "claude", self._http.close)

    async def generate(self, prompt: Prompt, node: Gen, say: Say | None) -> list[GenResult]:
        body = self._body(prompt) | _sampling(node.params) | _tools(node)
        if say is not None and node.grammar is None:
            return [await self._stream(body, node.params, say)]
        answers = await asyncio.gather(*(self._http.post("messages", body) for _ in range(node.params.n)))
        results = [self._result(answer, node) for answer in answers]
        if say is not None:  # calls come whole
            say(Piece(text=results[0].text))
        return results

    async def choose(self, prompt: Prompt, node: Select) -> Scores:
        tool = {
            "name": _TOOL,
            "description": "Give the answer: one of the choices.",
            "input_schema": choice_schema(node.choices),
        }
        body = self._body(prompt) | {"max_tokens": _CHOICE_TOKENS, "temperature": node.temperature}
        body |= {"tools": [tool], "tool_choice": {"type": "tool", "name": _TOOL}}
        answer = await self._http.post("messages", body)
        used = [block for block in answer.get("content") or () if block.get("type") == "tool_use"]
        prompt_tokens, completion_tokens, _ = _usage(answer.get("usage") or {})
        self.bill(0, completion_tokens)
        return Scores(
            index=chosen(self.service, node, used[0].get("input") if used else _text(answer)),
            prompt_tokens=prompt_tokens,
        )

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        assert not isinstance(prompt, str)
        system, messages = split_system(self.service, prompt)
        return {"model": self.model_name, "messages": messages, **({"system": system} if system else {})}

    def _result(self, answer: Mapping[str, Any], node: Gen) -> GenResult:
        text, finish = _cut(_written(answer, node), _finish(answer, node.params), node.params)
        return result(text, finish, _usage(answer.get("usage") or {}))

    async def _stream(self, body: dict[str, Any], params: SamplingParams, say: Say) -> GenResult:
        usage: dict[str, Any] = {}
        end: dict[str, Any] = {}
        held = Held(_blank_stops(params))
        async for event in self._http.stream("messages", body | {"stream": True}):
            match event.get("type"):
                case "message_start":
                    usage |= (event.get("message") or {}).get("usage") or {}
                case "content_block_delta":
                    text = held.take((event.get("delta") or {}).get("text") or "")
                    if text:
                        say(Piece(text=text))
                case "message_delta":
                    end |= event.get("delta") or {}
                    usage |= event.get("usage") or {}
        if not end.get("stop_reason"):
            raise ApiError(
                f"{self.service}: the stream broke off.", service=self.service, reason="the stream broke off"
            )
        if rest := held.end():
            say(Piece(text=rest))
        text, finish = _cut(held.text, _finish(end, params), params)
        return result(text, finish, _usage(usage))


def split_system(service: str, messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """The leading system messages as one text, and the others as they are.  `Unsupported` for a later one."""
    first = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    if any(message["role"] == "system" for message in messages[first:]):
        raise Unsupported(f"{service} takes system messages at the beginning only.", hint="Put them first.")
    return "\n\n".join(message["content"] for message in messages[:first]), list(messages[first:])


def _sampling(params: SamplingParams) -> dict[str, Any]:
    found: dict[str, Any] = {"max_tokens": params.max_tokens}
    if params.temperature != 1.0:
        found["temperature"] = params.temperature
    if params.top_p != 1.0:
        found["top_p"] = params.top_p
    if params.top_k > 0:
        found["top_k"] = params.top_k
    stops = [stop for stop in params.stop if stop.strip()]
    if stops:
        found["stop_sequences"] = stops
    return found


def _blank_stops(params: SamplingParams) -> list[str]:
    """The service refuses stops of white space alone; these are met here."""
    return [stop for stop in params.stop if not stop.strip()]


def _cut(text: str, finish: Finish, params: SamplingParams) -> tuple[str, Finish]:
    met = first_of(text, _blank_stops(params))
    return (text, finish) if met is None else (text[: met[0]], Finish(type="stop", matched=met[1]))


class Held:
    """Streamed text up to a stop that the service does not know: what may yet be part of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.text, self._stops = "", stops
        self._said = 0

    def take(self, text: str) -> str:
        """What can be said now."""
        self.text += text
        met = first_of(self.text, self._stops)
        safe = met[0] if met is not None else len(self.text) - max((len(stop) - 1 for stop in self._stops), default=0)
        return self._say(safe)

    def end(self) -> str:
        met = first_of(self.text, self._stops)
        return self._say(met[0] if met is not None else len(self.text))

    def _say(self, end: int) -> str:
        said, self._said = self.text[self._said : end], max(self._said, end)
        return said


def _finish(answer: Mapping[str, Any], params: SamplingParams) -> Finish:
    if answer.get("stop_reason") == "stop_sequence":
        return Finish(type="stop", matched=answer.get("stop_sequence"))
    return finish_of(answer.get("stop_reason"), params)


def _text(answer: Mapping[str, Any]) -> str:
    return "".join(block.get("text") or "" for block in answer.get("content") or () if block.get("type") == "text")


def _written(answer: Mapping[str, Any], node: Gen) -> str:
    """The text with its tool calls, as the gen's grammar writes them."""
    blocks = [block for block in answer.get("content") or () if block.get("type") in ("text", "tool_use")]
    return "".join(
        call_as_text(block.get("name"), json.dumps(block.get("input") or {}), node)
        if block["type"] == "tool_use"
        else block.get("text") or ""
        for block in blocks
    )


def _tools(node: Gen) -> dict[str, Any]:
    if node.grammar is None:
        return {}
    found = tool_schemas(node.grammar)
    tools = [{"name": tag.tool, "description": tag.description, "input_schema": schema} for tag, schema in found]
    must = structural_tags.decode(node.grammar.text).at_least_one
    choice = {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}} if must else {}
    return {"tools": tools, **choice}


def _usage(found: Mapping[str, Any]) -> tuple[int, int, int]:
    """Of the prompt (which Anthropic tells without its cached part), of the completion, cached."""
    cached = found.get("cache_read_input_tokens") or 0
    made = found.get("cache_creation_input_tokens") or 0
    return (found.get("input_tokens") or 0) + cached + made, found.get("output_tokens") or 0, cached
