"""`ApiBackend`: what the services of texts or messages have in common: what they refuse, and asking ahead."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any, Literal

import msgspec

from nbsgl import structural_tags
from nbsgl.chat_templates import ChatTemplate, get_chat_template, get_chat_template_by_model_path
from nbsgl.errors import ParameterError, SpeculationMissed, Unsupported
from nbsgl.lang.backends.content import Conversation, Prompt
from nbsgl.lang.backends.remote import Completion, RemoteBackend, Request, Say, Scores, Scoring
from nbsgl.lang.backends.speculate import Surplus, Term, asked_ahead, can_go_ahead, fit_message, is_drawn_alike, terms
from nbsgl.protocol import Finish, Gen, GenResult, GrammarSpec, ModelInfo, Role, SamplingParams, Select

TRIES = 3  # answers that may miss the form of a message

_USUAL = SamplingParams()
# fmt: off
_OPTIONAL = (
    "n", "min_tokens", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "stop_token_ids", "stop_regex", "ignore_eos", "logit_bias", "logprob_start_len", "top_logprobs_num",
    "return_logprob",
)
# fmt: on
_SCORED = ("ask", "unconditional_likelihood_normalized")  # methods that mean nothing without log-probabilities


class ApiBackend(RemoteBackend):
    """Runs programs on an API service, one request per gen; branches and programs go on at the same time.

    `can` are the optional parameters it keeps; any other is refused at the line that gives it.  `token_usage` counts
    what was billed.  With `@function(num_api_spec_tokens=k)` a completion service is asked for at least k tokens past a
    gen's stops, and what follows is matched against them; a chat service is asked for an assistant's whole message
    of at most k tokens when it ends, and its gens are found in the answer.
    """

    service = ""
    can: frozenset[str] = frozenset()
    takes_text = False  # whether a chat service may be sent text without roles
    scores_choices = False

    def __init__(
        self,
        model_name: str,
        kind: Literal["chat", "completions"],
        chat_template: ChatTemplate | str | None,
        at_end: Callable[[], Awaitable[None]],
    ) -> None:
        if not isinstance(model_name, str) or not model_name:
            raise ParameterError(name="model_name", value=model_name, allowed="a string")
        super().__init__(f"{self.service} ({model_name})", at_end=at_end, max_concurrent=256)
        self.model_name, self.kind = model_name, kind
        self.chat_template = _template(model_name, chat_template)

    # ---- what a service does -----------------------------------------------------------------------------------------

    @abstractmethod
    async def generate(self, prompt: Prompt, node: Gen, say: Say | None) -> list[GenResult]:
        """`node.params.n` results; `say` gets the first one's text as it comes."""

    @abstractmethod
    async def choose(self, prompt: Prompt, node: Select) -> Scores:
        """Score the choices, or draw one of them."""

    # ---- what a program is told --------------------------------------------------------------------------------------

    async def describe(self) -> ModelInfo:
        """Known without asking the service: its context and vocabulary are not (0)."""
        template = self.chat_template
        return ModelInfo(
            model=self.model_name,
            context_length=0,
            vocab_size=0,
            roles=template.roles,
            stop=() if self.kind == "chat" else template.stop_str,
            default_system=template.default_system_prompt,
            folds_system=template.folds_system,
            template=template.name,
            service=self.kind,
            device=self.service,
            dtype="",
        )

    def check(self, node: Gen | Select, given: Collection[str]) -> None:
        """`Unsupported` for a parameter or a select that the service cannot keep."""
        if isinstance(node, Select):
            if node.method in _SCORED and not self.scores_choices:
                raise Unsupported(
                    f"{self.service} tells no log-probabilities of choices, which this choices_method needs.",
                    name="choices_method",
                    value=node.method,
                    hint="With token_length_normalized the service picks one; nbsgl.Engine(...) has all methods.",
                )
            return
        for name, value in _wanted(node, given):
            if name not in self.can:
                raise Unsupported(
                    f"{self.service} cannot keep {name}={value!r}.", name=name, value=value, hint=_elsewhere(name)
                )

    def get_chat_template(self) -> ChatTemplate:
        """The template in which `s.text()` shows messages."""
        return self.chat_template

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_name!r})"

    # ---- gens and selects --------------------------------------------------------------------------------------------

    async def prepare(self, request: Completion) -> None:
        """A message that is asked for at once must have ended."""
        if self._asks_whole(request) and "message" not in request.memo:
            while not any(isinstance(node, Role) for node in request.ahead):
                await request.more()

    async def complete(self, request: Completion, say: Say) -> list[GenResult]:
        node = request.node
        if node.params.max_tokens == 0:
            return [_nothing()] * node.params.n
        if self._asks_whole(request):
            return [await self._of_message(request)]
        if node.lookahead and self.kind == "completions" and can_go_ahead(node):
            found = await self._ahead(request)
            if found is not None:
                return [found]
        return await self.generate(self._prompt(request), node, say if node.stream and node.params.n == 1 else None)

    async def score(self, request: Scoring) -> Scores:
        return await self.choose(self._prompt(request), request.node)

    def bill(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what no gen's result will."""
        self.token_usage.prompt_tokens += prompt_tokens
        self.token_usage.completion_tokens += completion_tokens

    def _prompt(self, request: Request) -> Prompt:
        if self.kind == "completions":
            return request.prompt
        return Conversation.of(request.parts).messages(self.service, takes_text=self.takes_text)

    # ---- asking ahead ------------------------------------------------------------------------------------------------

    async def _ahead(self, request: Completion) -> GenResult | None:
        """The gen's result from what was written past the one before, else from a new, longer answer.

        None if the service's answer cannot be cut at the gen's limits.
        """
        node, prompt = request.node, request.prompt
        surplus, at = request.memo.pop("surplus", (None, 0))
        found = surplus.take(node.params) if surplus is not None and surplus.follow(prompt[at:]) else None
        if found is None:
            wide = asked_ahead(node)
            [result] = await self.generate(prompt, wide, None)
            surplus = Surplus.of(result, wide.params)
            found = surplus.take(node.params) if surplus is not None else None
            if surplus is None or found is None:
                self.bill(result.prompt_tokens, result.completion_tokens)
                return None
            tokens = {"prompt_tokens": result.prompt_tokens, "completion_tokens": result.completion_tokens}
            found = msgspec.structs.replace(found, **tokens)
        request.memo["surplus"] = surplus, len(prompt) + len(found.text)
        return found

    def _asks_whole(self, request: Completion) -> bool:
        if not request.node.lookahead or self.kind != "chat" or not can_go_ahead(request.node):
            return False
        return "message" in request.memo or Conversation.of(request.parts).role == "assistant"

    async def _of_message(self, request: Completion) -> GenResult:
        """The gen's part of the message, which its first gen asks for."""
        found: deque[GenResult] = request.memo.get("message") or await self._ask_message(request)
        result = found.popleft()
        if found:
            request.memo["message"] = found
        else:
            request.memo.pop("message", None)
        return result

    async def _ask_message(self, request: Completion) -> deque[GenResult]:
        node, said = request.node, Conversation.of(request.parts)
        form = terms(said.open, node, request.ahead)
        self._check_alike(form, node)
        prompt = said.messages(self.service, may_be_open=True)
        answer = ""
        for attempt in range(TRIES):
            seed = (node.params.seed or 0) + attempt
            params = msgspec.structs.replace(node.params, max_tokens=node.lookahead, stop=(), seed=seed)
            [result] = await self.generate(prompt, msgspec.structs.replace(node, params=params, stream=False), None)
            texts = fit_message(form, result.text)
            if texts is not None:
                return deque(_parts_of(result, texts))
            answer = result.text
            self.bill(result.prompt_tokens, result.completion_tokens)
        raise SpeculationMissed(
            tries=TRIES,
            answer=answer,
            hint="Show the model the form of its message, or ask gen by gen: without num_api_spec_tokens.",
        )

    def _check_alike(self, form: list[Term], node: Gen) -> None:
        for term in form:
            if isinstance(term, Gen) and not (is_drawn_alike(term, node) and can_go_ahead(term)):
                raise Unsupported(
                    f"gen({term.name!r}): the gens of one message are asked for together with num_api_spec_tokens, so "
                    "only stop and max_tokens may differ.",
                    hint="Give them the same parameters, or put them into messages of their own.",
                )


def _parts_of(result: GenResult, texts: list[str]) -> Iterator[GenResult]:
    """One result per gen; the first bears the cost, the last ends as the answer did."""
    for i, text in enumerate(texts):
        finish = result.finish if i == len(texts) - 1 else Finish(type="stop")
        tokens = (result.prompt_tokens, result.completion_tokens) if i == 0 else (0, 0)
        yield msgspec.structs.replace(
            result, text=text, finish=finish, prompt_tokens=tokens[0], completion_tokens=tokens[1]
        )


def _nothing() -> GenResult:
    finish = Finish(type="length", length=0)
    return GenResult(text="", ids=b"", finish=finish, prompt_tokens=0, cached_tokens=0, completion_tokens=0)


def _template(model_name: str, asked: ChatTemplate | str | None) -> ChatTemplate:
    if asked is None:
        return get_chat_template_by_model_path(model_name)
    if isinstance(asked, ChatTemplate):
        return asked
    if isinstance(asked, str):
        return get_chat_template(asked)
    raise ParameterError(name="chat_template", value=asked, allowed="a ChatTemplate, or the name of one")


def _wanted(node: Gen, given: Collection[str]) -> Iterator[tuple[str, Any]]:
    """What a gen asks for beyond length, stops and temperature."""
    params = node.params
    for name in _OPTIONAL:
        value = getattr(params, name)
        if value != getattr(_USUAL, name):
            yield name, value
    if params.max_tokens == "fit" or (params.max_tokens == 0 and params.return_logprob):
        yield "max_tokens", params.max_tokens
    if "seed" in given:
        yield "seed", params.seed
    if node.grammar is not None:
        yield from _wanted_grammar(node.grammar)
    if node.heal:
        yield "heal", True


def _wanted_grammar(spec: GrammarSpec) -> Iterator[tuple[str, Any]]:
    """The gen's parameters that ask for it: its kind, and options other than the usual."""
    is_tools = spec.kind == "tags" and structural_tags.decode(spec.text).are_tools
    yield ("tools" if is_tools else spec.kind), spec.text
    usual = GrammarSpec(kind=spec.kind, text=spec.text)
    for name in ("after", "max_think_tokens", "on_limit", "on_unsupported", "whitespace", "jump", "engine"):
        value = getattr(spec, name)
        if value != getattr(usual, name):
            yield ("grammar" if name == "engine" else name), value


def _elsewhere(name: str) -> str:
    if name == "json_schema":
        return "OpenAI's chat models keep a schema, and so does nbsgl.Engine(...)."
    if name in ("json", "tools"):
        who = "OpenAI's chat models and nbsgl.Engine(...) write JSON without a schema."
        return who if name == "json" else "OpenAI's chat models, Anthropic and nbsgl.Engine(...) take tools."
    if name == "regex":
        return "(Also type= and dtype= ask for one.) nbsgl.Engine(...) keeps it."
    if name == "max_tokens":
        return "Give a number > 0; nbsgl.Engine(...) takes any."
    return "Leave it out, or run on nbsgl.Engine(...), which keeps it."
