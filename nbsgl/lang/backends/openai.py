"""`OpenAI`: chat and completion services that speak OpenAI's protocol, Azure's too."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from typing import Any, Literal

from nbsgl.chat_templates import ChatTemplate
from nbsgl.errors import ApiError, ParameterError, Unsupported
from nbsgl.lang.backends import constrained, openai_format
from nbsgl.lang.backends.api import ApiBackend
from nbsgl.lang.backends.content import Prompt
from nbsgl.lang.backends.http import HttpClient, Transport
from nbsgl.lang.backends.remote import Piece, Say, Scores
from nbsgl.protocol import Gen, GenResult, Select

BASE_URL = "https://api.openai.com/v1"
_COMPLETES = re.compile(r"(-instruct(-\d+)?|davinci-002|babbage-002)$")  # OpenAI's own that are no chat models
SEEDS = 2**31  # servers keep a seed in 32 bits, signed or not
_NO_ECHO = (400, 404, 415, 422, 501)


class OpenAI(ApiBackend):
    """A model of OpenAI, of Azure (`is_azure=True`), or of any server with their protocol (`base_url=`).

    `is_chat_model=None` goes by the model's name.  Keys and places are taken from OPENAI_API_KEY, OPENAI_BASE_URL,
    OPENAI_ORG_ID and OPENAI_PROJECT_ID, for Azure from AZURE_OPENAI_API_KEY (or AZURE_OPENAI_AD_TOKEN),
    AZURE_OPENAI_ENDPOINT and OPENAI_API_VERSION, unless they are given.  A server of your own needs no key.

    `select`: a completion model that echoes log-probabilities scores the choices; another draws one token by token
    among the choices' (needs the package tiktoken); a chat model draws one as a JSON value of a schema.
    """

    service = "OpenAI"
    key_variable = "OPENAI_API_KEY"
    takes_seeds = True

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: ChatTemplate | str | None = None,
        is_azure: bool = False,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 4,
        default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, str] | None = None,
        azure_endpoint: str | None = None,
        azure_deployment: str | None = None,
        azure_ad_token: str | None = None,
        api_version: str | None = None,
    ) -> None:
        azure = {
            "azure_endpoint": azure_endpoint,
            "azure_deployment": azure_deployment,
            "azure_ad_token": azure_ad_token,
            "api_version": api_version,
        }
        if is_azure:
            url, headers, query = _azure(model_name, api_key, base_url, **azure)
        else:
            given = next((name for name, value in azure.items() if value is not None), None)
            if given is not None:
                raise ParameterError(name=given, value=azure[given], allowed="given only with is_azure=True")
            url, headers, query = _plain(api_key, base_url)
        for header, value, variable in (
            ("OpenAI-Organization", organization, "OPENAI_ORG_ID"),
            ("OpenAI-Project", project, "OPENAI_PROJECT_ID"),
        ):
            found = value or (os.environ.get(variable) if url.startswith(BASE_URL) else None)
            if found:
                headers[header] = found
        http = HttpClient(
            self.service,
            url,
            {**headers, **(default_headers or {})},
            timeout=timeout,
            max_retries=max_retries,
            query={**query, **(default_query or {})},
            key_hint=f"Set {'AZURE_OPENAI_API_KEY' if is_azure else self.key_variable}, or pass api_key=...",
        )
        is_chat = not _COMPLETES.search(str(model_name)) if is_chat_model is None else is_chat_model
        self._begin(model_name, "chat" if is_chat else "completions", chat_template, http)

    def _begin(
        self,
        model_name: str,
        kind: Literal["chat", "completions"],
        chat_template: ChatTemplate | str | None,
        transport: Transport,
    ) -> None:
        super().__init__(model_name, kind, chat_template, transport.close)
        self._transport = transport
        self._has_echo = True  # until a server says no
        self.can = openai_format.CAN_CHAT if kind == "chat" else openai_format.CAN_COMPLETIONS
        if not self.takes_seeds:
            self.can -= {"seed"}
        self.scores_choices = kind == "completions"

    # ---- gens --------------------------------------------------------------------------------------------------------

    async def generate(self, prompt: Prompt, node: Gen, say: Say | None) -> list[GenResult]:
        body = openai_format.body(self.model_name, prompt, node) | self._seed(node.params.seed)
        if say is None:
            answer = await self._transport.post(openai_format.path(self.kind), body)
            return openai_format.results(self.service, answer, node)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        gathered = openai_format.Gathered()
        async for event in self._transport.stream(openai_format.path(self.kind), body):
            text, logprobs = gathered.take(event)
            if text:
                say(Piece(text=text, logprobs=logprobs))
        if called := gathered.called(node):
            say(Piece(text=called))
        return [gathered.result(self.service, node.params)]

    def _seed(self, seed: int | None) -> dict[str, int]:
        return {"seed": seed % SEEDS} if seed is not None and self.takes_seeds else {}

    # ---- selects -----------------------------------------------------------------------------------------------------

    async def choose(self, prompt: Prompt, node: Select) -> Scores:
        if not isinstance(prompt, str):
            return await self._choose_json(prompt, node)
        if self._has_echo:
            found = await self._scored(prompt, node)
            if found is not None:
                return found
            self._has_echo = False
        if node.method in ("ask", "unconditional_likelihood_normalized"):
            raise Unsupported(
                f"{self.name} echoes no log-probabilities of prompts, which this choices_method needs.",
                name="choices_method",
                value=node.method,
                hint="Take token_length_normalized, or run on nbsgl.Engine(...).",
            )
        return await self._choose_tokens(prompt, node)

    async def _scored(self, prompt: str, node: Select) -> Scores | None:
        """Log-probabilities of the choices' tokens, echoed after the prompt; None if the server echoes none."""
        asked = [prompt + choice for choice in node.choices]
        if node.needs_unconditional:
            asked += node.choices
        # one new token, which is left out again: some servers take no max_tokens=0
        body = {"model": self.model_name, "prompt": asked, "max_tokens": 1, "temperature": 0.0}
        try:
            answer = await self._transport.post("completions", {**body, "echo": True, "logprobs": 1})
        except ApiError as error:
            if error.status in _NO_ECHO:
                return None
            raise
        self.bill(0, openai_format.usage(answer)[1])
        return constrained.echoed(answer, prompt, node)

    async def _choose_json(self, prompt: Prompt, node: Select) -> Scores:
        body = openai_format.head(self.model_name, prompt)
        body["response_format"] = openai_format.schema_format(openai_format.choice_schema(node.choices))
        body |= self._seed(node.seed)
        if not openai_format.thinks_first(self.model_name):
            body["temperature"] = node.temperature
        answer = await self._transport.post(openai_format.path(self.kind), body)
        prompt_tokens, completion_tokens, _ = openai_format.usage(answer)
        self.bill(0, completion_tokens)
        message = (answer.get("choices") or [{}])[0].get("message") or {}
        return Scores(
            index=openai_format.chosen(self.service, node, message.get("content")), prompt_tokens=prompt_tokens
        )

    async def _choose_tokens(self, prompt: str, node: Select) -> Scores:
        """Draw token by token, each among those with which a choice goes on."""
        encode, end = await asyncio.to_thread(constrained.tokenizer, self.model_name)
        race = constrained.Race([(*encode(choice), end) for choice in node.choices])
        prompt_tokens = 0
        text = prompt
        while race.winner is None:
            body: dict[str, Any] = {"model": self.model_name, "prompt": text, "max_tokens": 1}
            body |= {"temperature": node.temperature, "logit_bias": {str(token): 100 for token in race.candidates}}
            body |= self._seed(node.seed)
            answer = await self._transport.post("completions", body)
            asked, told, _ = openai_format.usage(answer)
            prompt_tokens += asked
            self.bill(0, told)
            said = (answer.get("choices") or [{}])[0].get("text") or ""
            if not race.take(encode(said)[0] if said else end):
                reason = f"asked for one of the tokens of {list(node.choices)}, it said {said!r}"
                raise ApiError(f"{self.name}: {reason}.", service=self.service, reason=reason)
            text += said
        return Scores(index=race.winner, prompt_tokens=prompt_tokens)


def _plain(api_key: str | None, base_url: str | None) -> tuple[str, dict[str, str], dict[str, str]]:
    url = base_url or os.environ.get("OPENAI_BASE_URL") or BASE_URL
    key = api_key or os.environ.get("OPENAI_API_KEY")
    if not key and url.startswith(BASE_URL):
        raise key_missing("OpenAI", "OPENAI_API_KEY")
    return url, {"Authorization": f"Bearer {key}"} if key else {}, {}


def _azure(
    model_name: str,
    api_key: str | None,
    base_url: str | None,
    *,
    azure_endpoint: str | None,
    azure_deployment: str | None,
    azure_ad_token: str | None,
    api_version: str | None,
) -> tuple[str, dict[str, str], dict[str, str]]:
    endpoint = azure_endpoint or os.environ.get("AZURE_OPENAI_ENDPOINT")
    if not base_url and not endpoint:
        raise ParameterError(
            "Azure's endpoint is missing.",
            name="azure_endpoint",
            hint="Set AZURE_OPENAI_ENDPOINT, or pass azure_endpoint='https://<resource>.openai.azure.com'.",
        )
    version = api_version or os.environ.get("OPENAI_API_VERSION")
    if not version:
        raise ParameterError(
            "Azure's api_version is missing.",
            name="api_version",
            hint="Set OPENAI_API_VERSION, or pass api_version='2024-10-21'.",
        )
    key = api_key or os.environ.get("AZURE_OPENAI_API_KEY")
    token = azure_ad_token or os.environ.get("AZURE_OPENAI_AD_TOKEN")
    if not key and not token:
        raise key_missing("Azure", "AZURE_OPENAI_API_KEY")
    headers = {"api-key": key} if key else {"Authorization": f"Bearer {token}"}
    url = base_url or f"{str(endpoint).rstrip('/')}/openai/deployments/{azure_deployment or model_name}"
    return url, headers, {"api-version": version}


def key_missing(service: str, variable: str) -> ParameterError:
    return ParameterError(
        f"{service} needs a key.", name="api_key", hint=f"Set {variable} in the environment, or pass api_key=..."
    )
