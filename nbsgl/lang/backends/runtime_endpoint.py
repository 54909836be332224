"""`RuntimeEndpoint`: programs on a server with SGLang's `/generate`: SGLang's own, or `python -m nbsgl serve`."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from nbsgl import structural_tags
from nbsgl.chat_templates import ChatTemplate, ChatTemplateStyle, get_chat_template, get_chat_template_by_model_path
from nbsgl.errors import ApiError, ParameterError, Unsupported
from nbsgl.lang.backends.http import HttpClient
from nbsgl.lang.backends.remote import Completion, Part, Piece, RemoteBackend, Request, Say, Scores, Scoring
from nbsgl.lang.backends.waves import Waves
from nbsgl.protocol import (
    SAME_IN_SGLANG,
    EngineSnapshot,
    Finish,
    Gen,
    GenResult,
    GrammarSpec,
    GrammarUse,
    Logprobs,
    ModelInfo,
    SamplingParams,
    Select,
    TokenLogprob,
    pack_ids,
)

Answer = dict[str, Any]

MERGED = 8  # most tokens at a prompt's end that a choice's first characters may change
MAX_CONCURRENT = 4096  # gens under way; those of a wave share one connection
MAX_CONNECTIONS = 128

# ours -> SGLang's, for parameters that differ from what a server takes without being told
_NAMES = {"min_tokens": "min_new_tokens"} | {
    name: name for name in SAME_IN_SGLANG if name not in ("temperature", "logit_bias")
}
_USUAL = SamplingParams()


class RuntimeEndpoint(RemoteBackend):
    """A server at `base_url`; asks it for its model when made (`ApiError` if it does not answer).

    `verify` is a file of certificates to trust.  `chat_template_name` replaces the template that the server tells, or
    that its model's path suggests.  Gens that are ready at the same time go out in one request; connection errors and
    answers that may pass are tried again `max_retries` times; `timeout` seconds without a byte end a request.

    A branch is sent as text, and its sampled parts are encoded anew there.  A server of nbsgl is told in which parts
    special tokens are text; in SGLang's they count wherever they stand.  Seeds reach servers of nbsgl, and SGLang's in
    its deterministic mode.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | None = None,
        chat_template_name: str | None = None,
        *,
        timeout: float = 600.0,
        max_retries: int = 4,
    ) -> None:
        if not isinstance(base_url, str):
            raise ParameterError(name="base_url", value=base_url, allowed="http://... or https://...")
        self.base_url, self.api_key = base_url.rstrip("/"), api_key
        self.owner: object | None = None  # what lives as long as this does: the `Runtime` behind it
        self.headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._template = None if chat_template_name is None else get_chat_template(chat_template_name)
        self.http = HttpClient(
            f"the server at {self.base_url}",
            self.base_url,
            self.headers,
            timeout=timeout,
            max_retries=max_retries,
            key_hint="Give its key: RuntimeEndpoint(base_url, api_key=...).",
            verify=True if verify is None else verify,
            max_connections=MAX_CONNECTIONS,
        )
        super().__init__(f"the server at {self.base_url}", at_end=self.http.close, max_concurrent=MAX_CONCURRENT)
        self._waves = Waves(_sender(self.http))
        try:
            self.model_info: Answer = self._asked("get_model_info", retries=0)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"RuntimeEndpoint({self.base_url!r})"

    # ---- what SGLang's has -------------------------------------------------------------------------------------------

    def get_model_name(self) -> str:
        return str(self.model_info.get("model_path", ""))

    def get_chat_template(self) -> ChatTemplate:
        """The template by which roles are written: the one asked for, the server's, or the model path's."""
        if self._template is None:
            told = self._told_info()
            self._template = get_chat_template_by_model_path(self.get_model_name()) if told is None else _template(told)
        return self._template

    def get_server_info(self) -> Answer:
        """What the server tells of itself."""
        return self._asked("get_server_info")

    def flush_cache(self) -> bool:
        """False if the server refuses: its cache is off, or requests are under way."""
        try:
            self.ask("flush_cache", {"empty_cache": True})
        except ApiError as error:
            if error.status == 400:
                return False
            raise
        return True

    def cache_prefix(self, prefix_str: str) -> None:
        """Have this text computed, so that prompts that begin with it find it."""
        self.ask("generate", {"text": prefix_str, "sampling_params": {"max_new_tokens": 0}})

    def start_profile(self) -> None:
        """SGLang's servers begin to record a profile; others answer with an `ApiError`."""
        self.ask("start_profile")

    def stop_profile(self) -> None:
        self.ask("stop_profile")

    def snapshot(self, *, tree: bool = False) -> EngineSnapshot:
        """The picture that a server of nbsgl gives of its engine; `Unsupported` of another."""
        told = self._asked("get_server_info?tree=true" if tree else "get_server_info").get("nbsgl")
        if told is None:
            raise Unsupported(f"{self.name} shows nothing of its inside.", hint="See get_server_info().")
        return msgspec.convert(told, EngineSnapshot)

    def ask(self, path: str, body: Answer | None = None, retries: int | None = None) -> Any:
        """Post a body, or GET without one, and wait for the JSON that comes; `ApiError` for a refusal."""
        self.check_open()
        return self._loop.wait(lambda: self.http.ask(path, body, retries=retries))

    def _asked(self, path: str, retries: int | None = None) -> Answer:
        answer = self.ask(path, retries=retries)
        if not isinstance(answer, dict):
            reason = "no JSON object: is this a server with SGLang's routes?"
            raise ApiError(f"{self.base_url}/{path} answers with {reason}", service=self.name, reason=reason)
        return answer

    # ---- the model ---------------------------------------------------------------------------------------------------

    def _told_info(self) -> ModelInfo | None:
        """What a server of nbsgl says of its model."""
        told = self.model_info.get("nbsgl")
        try:
            return None if told is None else msgspec.convert(told, ModelInfo)
        except msgspec.ValidationError:  # of another version
            return None

    async def describe(self) -> ModelInfo:
        told, template = self._told_info(), self.get_chat_template()
        if told is None:
            server = await self.http.ask("get_server_info")
            length = server.get("context_length") if isinstance(server, dict) else None
            told = ModelInfo(
                model=self.get_model_name(), context_length=length or 0, vocab_size=0, roles={}, device="remote"
            )
        return msgspec.structs.replace(
            told,
            roles=template.roles,
            stop=template.stop_str,
            default_system=template.default_system_prompt,
            folds_system=template.folds_system,
            template=template.name,
        )

    # ---- gens --------------------------------------------------------------------------------------------------------

    async def complete(self, request: Completion, say: Say) -> list[GenResult]:
        node, params = request.node, request.params
        body = {**self._texts(request), "sampling_params": self._sampling(node), **_logprob_fields(params)}
        if params.n > 1:
            answers = await self.http.ask("generate", body)
            return [_result(answer) for answer in _listed(answers, params.n)]
        if node.stream:
            return [await self._stream(body, say)]
        key = (params.max_tokens, *_logprob_fields(params).items())
        return [_result(await self._waves.ask(key, body, len(request.prompt)))]

    def _texts(self, request: Request, endings: Sequence[str] | None = None) -> Answer:
        """The prompt, or one with each ending, and where special tokens in it are text."""
        prompt, plain = request.prompt, _plain(request.parts)
        texts = [prompt] if endings is None else [prompt + ending for ending in endings]
        body: Answer = {"text": prompt if endings is None else texts}
        if "nbsgl" in self.model_info:
            body["plain_ranges"] = [[*plain, (len(prompt), len(text))] for text in texts]
        return body

    async def _stream(self, body: Answer, say: Say) -> GenResult:
        """Every event has all text so far; what is new is told."""
        last: Answer = {"text": "", "meta_info": {}}
        num_ids = num_logprobs = 0
        async for event in self.http.stream("generate", {**body, "stream": True}):
            ids, meta = event.get("output_ids") or [], event["meta_info"]
            logprobs = _logprobs(meta, "output")
            text = event["text"][len(last["text"]) :]
            new = None if logprobs is None else Logprobs(tokens=logprobs.tokens[num_logprobs:])
            if text or len(ids) > num_ids:
                say(Piece(text, ids[num_ids:], new))
            num_ids, num_logprobs = len(ids), len(logprobs.tokens) if logprobs else 0
            last = event
        if not last["meta_info"].get("finish_reason"):
            raise ApiError(service=self.name, reason="the stream ended before the text did")
        return _result(last)

    def _sampling(self, node: Gen) -> Answer:
        params = node.params
        is_ours = "nbsgl" in self.model_info
        most = params.max_tokens if params.max_tokens != "fit" or is_ours else None
        found: Answer = {"max_new_tokens": most, "temperature": params.temperature}
        for ours, theirs in _NAMES.items():
            value = getattr(params, ours)
            if value != getattr(_USUAL, ours):
                found[theirs] = value
        if params.logit_bias:
            found["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
        if params.seed is not None and (is_ours or self.model_info.get("enable_deterministic_inference")):
            found["sampling_seed"] = params.seed
        if node.grammar is not None and is_ours:
            found["grammar"] = msgspec.to_builtins(node.grammar)
        elif node.grammar is not None:
            found |= _asked_of_sglang(node.grammar)
        return found

    def check(self, node: Gen | Select, given: Collection[str]) -> None:
        """`Unsupported` for what servers of text cannot do; of SGLang's, grammars that it cannot be told."""
        super().check(node, given)
        if isinstance(node, Gen) and node.grammar is not None and "nbsgl" not in self.model_info:
            _asked_of_sglang(node.grammar)

    # ---- selects -----------------------------------------------------------------------------------------------------

    async def score(self, request: Scoring) -> Scores:
        """A choice's tokens are those from where prompt + choice and the prompt alone are encoded differently."""
        choices, prompt_len = request.node.choices, await self._num_tokens(request)
        start = max(prompt_len - MERGED - 1, 0)  # one before: servers may leave the first one's value out
        endings = [*([""] if prompt_len else []), *choices]
        tails = await self._scored({**self._texts(request, endings), "logprob_start_len": start})
        own = [token for _, token, _ in tails.pop(0)] if prompt_len else []
        rows = [tail[_common_len(own, [token for _, token, _ in tail]) :] for tail in tails]
        bare = None
        if request.node.needs_unconditional:
            bare = await self._scored({"input_ids": [[token for _, token, _ in row] for row in rows]})
        return Scores(rows, bare, prompt_len)

    async def _num_tokens(self, request: Request) -> int:
        """The prompt's length; it is in the server's cache afterwards."""
        if not request.prompt:
            return 0
        body = {**self._texts(request), "sampling_params": _NOTHING}
        answer = await self._waves.ask("prompt", body, len(request.prompt))
        return int(answer["meta_info"]["prompt_tokens"])

    async def _scored(self, what: Answer) -> list[list[TokenLogprob]]:
        body = {"logprob_start_len": 0, **what, "sampling_params": _NOTHING, "return_logprob": True}
        count = len(what.get("text") or what["input_ids"])
        answers = _listed(await self.http.ask("generate", {**body, "return_text_in_logprobs": True}), count)
        found = [_logprobs(answer["meta_info"], "input") for answer in answers]
        return [logprobs.tokens if logprobs else [] for logprobs in found]


def _asked_of_sglang(spec: GrammarSpec) -> Answer:
    """The sampling parameter that means this grammar; `Unsupported` names what SGLang has no word for."""
    usual = GrammarSpec(kind=spec.kind, text=spec.text)
    for name in ("after", "max_think_tokens", "on_limit", "on_unsupported", "whitespace", "jump", "engine"):
        value = getattr(spec, name)
        if value != getattr(usual, name):
            raise _unknown_there("grammar" if name == "engine" else name, value)
    if spec.kind == "json":
        return {"json_schema": "$$ANY$$"}
    if spec.kind == "choices":
        return {"regex": "|".join(map(re.escape, json.loads(spec.text)))}
    if spec.kind == "tags":
        form = structural_tags.to_sglang(structural_tags.decode(spec.text))
        if form is None:
            raise _unknown_there("tags", spec.text)
        return {"structural_tag": json.dumps(form)}
    if spec.kind == "lark":
        raise _unknown_there("lark", spec.text)
    return {spec.kind: spec.text}


def _unknown_there(name: str, value: Any) -> Unsupported:
    return Unsupported(
        f"SGLang's server has no word for {name}={value!r}.",
        name=name,
        value=value,
        hint="nbsgl.Engine(...) and `python -m nbsgl serve` keep it.",
    )


_NOTHING = {"max_new_tokens": 0, "temperature": 0}


def _sender(http: HttpClient) -> Any:
    """Sends one body as it is, several as one with lists; they differ in text and sampling parameters only."""

    async def send(bodies: list[Answer]) -> list[Any]:
        if len(bodies) == 1:
            return _listed(await http.ask("generate", bodies[0]), 1)
        lists = {name: [body[name] for body in bodies] for name in ("text", "sampling_params")}
        if "plain_ranges" in bodies[0]:
            lists["plain_ranges"] = [ranges for body in bodies for ranges in body["plain_ranges"]]
        return _listed(await http.ask("generate", {**bodies[0], **lists}), len(bodies))

    return send


def _plain(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """The ranges of characters in which special tokens are text: within messages, and in what was sampled."""
    found: list[tuple[int, int]] = []
    begin = 0
    for part in parts:
        end = begin + len(part.text)
        if not part.parse_special and end > begin:
            found.append((begin, end))
        begin = end
    return found


def _listed(answers: Any, count: int) -> list[Answer]:
    found = answers if isinstance(answers, list) else [answers]
    if len(found) != count or not all(isinstance(one, dict) and "meta_info" in one for one in found):
        reason = f"{len(found)} answers to {count} prompts, or not as SGLang's"
        raise ApiError(service="/generate", status=200, reason=reason)
    return found


def _logprob_fields(params: SamplingParams) -> Answer:
    if not params.return_logprob:
        return {}
    return {
        "return_logprob": True,
        "logprob_start_len": params.logprob_start_len,
        "top_logprobs_num": params.top_logprobs_num,
        "return_text_in_logprobs": True,
    }


def _result(answer: Answer) -> GenResult:
    meta = answer["meta_info"]
    finish = meta.get("finish_reason") or {}
    if finish.get("type") == "abort":
        raise ApiError(service="/generate", status=finish.get("status_code"), reason=finish.get("message", "aborted"))
    prompt, cached = meta.get("prompt_tokens", 0), meta.get("cached_tokens", 0)
    return GenResult(
        text=answer["text"],
        ids=pack_ids(answer.get("output_ids") or []),
        finish=Finish(
            type="length" if finish.get("type") == "length" else "stop",
            matched=finish.get("matched"),
            matched_text=finish.get("matched_text"),
            length=finish.get("length"),
        ),
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=meta.get("completion_tokens", 0),
        prefill_cached=cached,
        prefill_computed=prompt - cached,
        complete=meta.get("complete", True),
        needed=meta.get("needed"),
        grammar=_use(meta.get("grammar")),
        output_logprobs=_logprobs(meta, "output"),
        input_logprobs=_logprobs(meta, "input"),
    )


def _use(told: Any) -> GrammarUse | None:
    try:
        return None if told is None else msgspec.convert(told, GrammarUse)
    except msgspec.ValidationError:  # of another version
        return None


def _logprobs(meta: Answer, which: str) -> Logprobs | None:
    tokens = meta.get(f"{which}_token_logprobs")
    if tokens is None:
        return None
    tops = meta.get(f"{which}_top_logprobs") or []
    return Logprobs(tokens=_triples(tokens), top=[None if row is None else _triples(row) for row in tops])


def _triples(rows: list[Any]) -> list[TokenLogprob]:
    return [(row[0], row[1], row[2] if len(row) > 2 else None) for row in rows]


def _common_len(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _template(info: ModelInfo) -> ChatTemplate:
    pairs = {role: (form.prefix, form.suffix) for role, form in info.roles.items()}
    style = ChatTemplateStyle.LLAMA2 if info.folds_system else ChatTemplateStyle.PLAIN
    return ChatTemplate(info.template, info.default_system, pairs, info.stop, style=style)
