"""`VertexAI`: Google's models by the package vertexai."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from nbsgl.errors import UsageError
from nbsgl.lang.backends.anthropic import split_system
from nbsgl.lang.backends.api import ApiBackend
from nbsgl.lang.backends.content import Prompt
from nbsgl.lang.backends.litellm import missing, refused
from nbsgl.lang.backends.openai_format import chosen, finish_of, result
from nbsgl.lang.backends.remote import Piece, Say, Scores
from nbsgl.protocol import Finish, Gen, GenResult, SamplingParams, Select

_ROLES = {"user": "user", "assistant": "model"}
_ENDS = {"STOP": "stop", "MAX_TOKENS": "length"}


class VertexAI(ApiBackend):
    """A chat model of Google's.  Needs the package google-cloud-aiplatform (`vertexai`) and its credentials; the
    project is taken from GCP_PROJECT_ID, the place from GCP_LOCATION.

    Leading system messages are sent as the model's instruction; text without any role as a user's message.  `n` results
    are n requests.  `select`: the model must answer with one of the choices (a schema).  A run's seed decides nothing.
    """

    service = "VertexAI"
    can = frozenset(("n", "top_p", "top_k"))
    takes_text = True

    def __init__(self, model_name: str, safety_settings: Any = None) -> None:
        try:
            import vertexai
            from vertexai import generative_models
        except ImportError as error:
            raise missing("VertexAI", "google-cloud-aiplatform") from error
        project = os.environ.get("GCP_PROJECT_ID")
        if not project:
            raise UsageError("VertexAI needs a project.", name="GCP_PROJECT_ID", hint="Set GCP_PROJECT_ID.")
        vertexai.init(project=project, location=os.environ.get("GCP_LOCATION"))
        self._models, self._safety = generative_models, safety_settings
        super().__init__(model_name, "chat", "default", _nothing_to_close)

    async def generate(self, prompt: Prompt, node: Gen, say: Say | None) -> list[GenResult]:
        settings = _sampling(node.params)
        if say is not None:
            return [await self._stream(prompt, settings, node.params, say)]
        answers = await asyncio.gather(*(self._ask(prompt, settings) for _ in range(node.params.n)))
        return [result(_text(answer), _finish(answer, node.params), _usage(answer)) for answer in answers]

    async def choose(self, prompt: Prompt, node: Select) -> Scores:
        schema = {"type": "STRING", "enum": list(node.choices)}
        settings = {"temperature": node.temperature, "response_mime_type": "text/x.enum", "response_schema": schema}
        answer = await self._ask(prompt, settings)
        prompt_tokens, completion_tokens, _ = _usage(answer)
        self.bill(0, completion_tokens)
        return Scores(index=chosen(self.service, node, {"choice": _text(answer)}), prompt_tokens=prompt_tokens)

    async def _ask(self, prompt: Prompt, settings: dict[str, Any], **more: Any) -> Any:
        assert not isinstance(prompt, str)
        system, messages = split_system(self.service, prompt)
        model = self._models.GenerativeModel(self.model_name, **({"system_instruction": system} if system else {}))
        contents = [
            self._models.Content(role=_ROLES[m["role"]], parts=[self._models.Part.from_text(m["content"])])
            for m in messages
        ]
        try:
            return await model.generate_content_async(
                contents,
                generation_config=self._models.GenerationConfig(**settings),
                safety_settings=self._safety,
                **more,
            )
        except Exception as error:  # google's classes, which are not imported here
            raise refused(self.service, error) from error

    async def _stream(self, prompt: Prompt, settings: dict[str, Any], params: SamplingParams, say: Say) -> GenResult:
        text, last = "", None
        try:
            async for last in await self._ask(prompt, settings, stream=True):
                piece = _text(last)
                text += piece
                if piece:
                    say(Piece(text=piece))
        except Exception as error:
            raise refused(self.service, error) from error
        return result(text, _finish(last, params), _usage(last))


async def _nothing_to_close() -> None:
    """The package keeps its own connections."""


def _sampling(params: SamplingParams) -> dict[str, Any]:
    found: dict[str, Any] = {"max_output_tokens": params.max_tokens, "temperature": params.temperature}
    if params.top_p != 1.0:
        found["top_p"] = params.top_p
    if params.top_k > 0:
        found["top_k"] = params.top_k
    if params.stop:
        found["stop_sequences"] = list(params.stop)
    return found


def _text(answer: Any) -> str:
    """Empty for an answer without text: one that was cut before it began, or withheld."""
    found = answer.candidates[0].content.parts if answer.candidates else ()
    return "".join(part.text for part in found)


def _finish(answer: Any, params: SamplingParams) -> Finish:
    reason = answer.candidates[0].finish_reason if answer is not None and answer.candidates else None
    name = getattr(reason, "name", "SAFETY")
    return finish_of(_ENDS.get(name, "content_filter"), params)


def _usage(answer: Any) -> tuple[int, int, int]:
    found = getattr(answer, "usage_metadata", None)
    return getattr(found, "prompt_token_count", 0), getattr(found, "candidates_token_count", 0), 0
