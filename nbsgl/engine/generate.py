"""`generate` and `async_generate`, with the arguments and answers of SGLang's offline engine, over a run's nodes."""

from __future__ import annotations

import asyncio
import difflib
import queue
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from nbsgl import errors
from nbsgl.engine.asked_grammar import GRAMMARS, grammar_of
from nbsgl.errors import ParameterError, Unsupported
from nbsgl.protocol import (
    SAME_IN_SGLANG,
    AnyEvent,
    AnyNode,
    BranchFailed,
    Chunk,
    Close,
    Finish,
    Gen,
    GenDone,
    GenResult,
    GrammarSpec,
    Listener,
    Logprobs,
    ModelInfo,
    Root,
    Run,
    SamplingParams,
    Text,
    TokenLogprob,
    Tokens,
    pack_ids,
    unpack_ids,
)

Answer = dict[str, Any]

TICK_S = 0.1
AT_ONCE = 16  # prompts in a message: 64 of 2,000 tokens take kernel, front and worker 3.6, 3.8 and 2.1 ms

# SGLang's name -> ours
NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
    "seed": "seed",
    **{name: name for name in SAME_IN_SGLANG},
}
# Known to SGLang and not to us: fine at the value that asks for nothing.
NEUTRAL: dict[str, Any] = {
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "no_stop_trim": False,
    "custom_params": None,
    "stream_interval": None,
}
NEUTRAL_ARGUMENTS: dict[str, Any] = {
    "image_data": None,
    "audio_data": None,
    "video_data": None,
    "lora_path": None,
    "custom_logit_processor": None,
    "return_hidden_states": False,
    "token_ids_logprob": None,
    "session_params": None,
    "input_embeds": None,
}


# ---- arguments to nodes ----------------------------------------------------------------------------------------------


def sampling(params: dict[str, Any] | None, **more: Any) -> tuple[SamplingParams, GrammarSpec | None]:
    """SGLang's dictionary as ours.  An unknown name is a `ParameterError` naming the known ones."""
    ours: dict[str, Any] = dict(more)
    for name, value in (params or {}).items():
        if name in NEUTRAL:
            if value != NEUTRAL[name]:
                raise Unsupported(f"{name}={value!r} is not something this engine can do.", name=name, value=value)
        elif name in GRAMMARS:
            continue
        elif name not in NAMES:
            close = difflib.get_close_matches(name, [*NAMES, *GRAMMARS], 1)
            raise ParameterError(
                f"sampling_params has no {name!r}; known are: {', '.join([*NAMES, *GRAMMARS])}.",
                name=name,
                value=value,
                hint=f"Did you mean {close[0]!r}?" if close else "",
            )
        elif value is not None:
            ours[NAMES[name]] = _converted(name, value)
    return SamplingParams(**ours), grammar_of(params or {})


def _converted(name: str, value: Any) -> Any:
    if name in ("stop", "stop_regex"):
        return (value,) if isinstance(value, str) else tuple(value)
    if name == "stop_token_ids":
        return tuple(value)
    if name == "logit_bias":
        try:
            return {int(token): bias for token, bias in value.items()}
        except (AttributeError, TypeError, ValueError):
            raise ParameterError(name=name, value=value, allowed="a dict of token id -> number") from None
    return value


@dataclass(slots=True)
class Request:
    """One prompt: its branch's nodes, and what has come back so far."""

    branch: int
    nodes: list[AnyNode]
    params: SamplingParams
    is_streaming: bool
    with_token_texts: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: Logprobs = field(default_factory=Logprobs)
    answers: list[Answer] | None = None

    def take(self, event: AnyEvent) -> Answer | None:
        """Take news in; the answer so far if the caller streams.  Raises what ended the branch."""
        if isinstance(event, BranchFailed):
            raise errors.decode(event.error)
        if isinstance(event, GenDone):
            self.answers = [self._answer(result) for result in event.results]
            return self.answers[0] if self.is_streaming else None
        if isinstance(event, Chunk):
            self.text += event.text
            self.ids += unpack_ids(event.ids)
            if event.logprobs is not None:
                self.logprobs.tokens.extend(event.logprobs.tokens)
                self.logprobs.top.extend(event.logprobs.top)
            return self._so_far()
        return None

    def _so_far(self) -> Answer:
        meta: Answer = {"id": self.id, "finish_reason": None, "completion_tokens": len(self.ids)}
        if self.params.return_logprob:
            meta |= self._logprobs("output", self.logprobs)
        return {"text": self.text, "output_ids": list(self.ids), "meta_info": meta}

    def _answer(self, result: GenResult) -> Answer:
        meta: Answer = {
            "id": self.id,
            "finish_reason": _reason(result.finish),
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "cached_tokens": result.cached_tokens,
            "e2e_latency": result.e2e_s,
        }
        if result.grammar is not None:
            meta |= {"complete": result.complete, "needed": result.needed}
            meta["grammar"] = msgspec.to_builtins(result.grammar)
        if self.params.return_logprob:
            meta |= self._logprobs("input", result.input_logprobs or Logprobs())
            meta |= self._logprobs("output", result.output_logprobs or Logprobs())
        return {"text": result.text, "output_ids": unpack_ids(result.ids), "meta_info": meta}

    def _logprobs(self, which: str, logprobs: Logprobs) -> Answer:
        """As SGLang names them; a token's text only on request."""

        def shown(tokens: Sequence[TokenLogprob]) -> list[TokenLogprob]:
            return [(value, token, text if self.with_token_texts else None) for value, token, text in tokens]

        meta: Answer = {f"{which}_token_logprobs": shown(logprobs.tokens)}
        if self.params.top_logprobs_num:
            meta[f"{which}_top_logprobs"] = [None if tops is None else shown(tops) for tops in logprobs.top]
        return meta


def _reason(finish: Finish) -> Answer:
    reason: Answer = {"type": finish.type}
    if finish.matched is not None:
        reason["matched"] = finish.matched
    if finish.matched_text is not None:
        reason["matched_text"] = finish.matched_text
    if finish.length is not None:
        reason["length"] = finish.length
    return reason


def requests(
    prompt: str | Sequence[str] | None,
    sampling_params: dict[str, Any] | Sequence[dict[str, Any]] | None,
    input_ids: Sequence[int] | Sequence[Sequence[int]] | None,
    stream: bool,
    others: dict[str, Any],
) -> tuple[list[Request], bool]:
    """The requests of one call, and whether the caller gave a single prompt."""
    if (prompt is None) == (input_ids is None):
        raise ParameterError(name="prompt", value=prompt, allowed="a prompt or input_ids, one of the two")
    logprob = {name: others.pop(name, None) for name in ("return_logprob", "logprob_start_len", "top_logprobs_num")}
    with_texts = bool(others.pop("return_text_in_logprobs", False))
    plain = others.pop("plain_ranges", None)
    for name, value in others.items():
        if name not in NEUTRAL_ARGUMENTS:
            raise ParameterError(f"generate() has no argument {name!r}.", name=name, value=value)
        if value is not None and value != NEUTRAL_ARGUMENTS[name]:
            raise Unsupported(f"generate({name}=...) is not something this engine can do.", name=name)
    prompts, is_single = _prompts(prompt, input_ids)
    count = len(prompts)
    settings = _spread("sampling_params", sampling_params, count)
    ranges = [()] * count if plain is None else _spread("plain_ranges", plain, count)
    per_prompt = {name: _spread(name, value, count) for name, value in logprob.items()}
    made = []
    for i, (start, own) in enumerate(zip(prompts, settings, strict=True)):
        more = {name: values[i] for name, values in per_prompt.items() if values[i] is not None}
        params, grammar = sampling(own, **more)
        if stream and params.n > 1:
            raise Unsupported("stream=True with n > 1 is not something this engine can do.", name="n", value=params.n)
        nodes: list[AnyNode] = [Root(branch=i)]
        if isinstance(start, str):
            nodes += _texts(i, start, ranges[i])
        else:
            nodes.append(Tokens(branch=i, ids=_packed(start)))
        nodes += [Gen(branch=i, slot=i, params=params, grammar=grammar, stream=stream), Close(branch=i)]
        made.append(Request(i, nodes, params, stream, with_texts))
    return made, is_single


def _prompts(prompt: Any, input_ids: Any) -> tuple[list[Any], bool]:
    if prompt is not None:
        if isinstance(prompt, str):
            return [prompt], True
        if not all(isinstance(one, str) for one in prompt):
            raise ParameterError(name="prompt", value=type(prompt).__name__, allowed="a str or a list of str")
        return list(prompt), False
    ids = list(input_ids)
    is_single = not ids or not isinstance(ids[0], Sequence)
    return ([ids], True) if is_single else (ids, False)


def _texts(branch: int, text: str, plain: Sequence[Sequence[int]]) -> list[AnyNode]:
    """The prompt in pieces: special tokens written in a plain range are characters only."""
    nodes: list[AnyNode] = []
    done = 0
    for begin, end in [*plain, (len(text), len(text))]:
        if not done <= begin <= end <= len(text):
            raise ParameterError(
                name="plain_ranges", value=[begin, end], allowed=f"[begin, end] in order, within 0..{len(text)}"
            )
        for piece, is_special in ((text[done:begin], True), (text[begin:end], False)):
            if piece or not text:
                nodes.append(Text(branch=branch, text=piece, parse_special=is_special))
        done = end
    return nodes


def _packed(ids: Sequence[int]) -> bytes:
    try:
        return pack_ids(ids if isinstance(ids, list) else list(ids))
    except (TypeError, ValueError, OverflowError):
        raise ParameterError(name="input_ids", value=ids, allowed="lists of token ids") from None


def _spread(name: str, value: Any, count: int) -> list[Any]:
    """One value for all prompts, or a list with one for each."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ParameterError(name=name, value=f"{len(value)} entries", allowed=f"one, or one per prompt ({count})")
    return list(value)


# ---- the calls -------------------------------------------------------------------------------------------------------


class Generation:
    """SGLang's two calls for an engine.  Mixed into `Engine`."""

    info: ModelInfo
    open_run: Callable[[Listener], Run]

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        return_logprob: bool | Sequence[bool] | None = None,
        logprob_start_len: int | Sequence[int] | None = None,
        top_logprobs_num: int | Sequence[int] | None = None,
        stream: bool = False,
        **others: Any,
    ) -> Answer | list[Answer] | Iterator[Answer]:
        """Complete a prompt, or a list of them: {"text", "output_ids", "meta_info"} each.

        With `stream`, an iterator of such dictionaries, each with all text so far; those of a list have their "index".
        `plain_ranges` has for each prompt the ranges of characters in which special tokens do not count.
        An interrupt or a generator that is closed ends the requests.
        """
        others |= _logprob_arguments(return_logprob, logprob_start_len, top_logprobs_num)
        made, is_single = requests(prompt, sampling_params, input_ids, stream, others)
        _ = self.info  # shows the start's progress and raises what is wrong with the model
        answers = self._stream(made, is_single)
        if stream:
            return answers
        for _ in answers:
            pass
        return _gathered(made, is_single)

    async def async_generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        return_logprob: bool | Sequence[bool] | None = None,
        logprob_start_len: int | Sequence[int] | None = None,
        top_logprobs_num: int | Sequence[int] | None = None,
        stream: bool = False,
        **others: Any,
    ) -> Answer | list[Answer] | AsyncIterator[Answer]:
        """`generate` on an event loop; with `stream`, an asynchronous iterator."""
        others |= _logprob_arguments(return_logprob, logprob_start_len, top_logprobs_num)
        made, is_single = requests(prompt, sampling_params, input_ids, stream, others)
        answers = self._async_stream(made, is_single)
        if stream:
            return answers
        async for _ in answers:
            pass
        return _gathered(made, is_single)

    def _stream(self, made: list[Request], is_single: bool) -> Iterator[Answer]:
        news: queue.SimpleQueue[list[AnyEvent]] = queue.SimpleQueue()
        run = self.open_run(news.put)
        try:
            _submit(run, made)
            while any(request.answers is None for request in made):
                try:
                    events = news.get(timeout=TICK_S)
                except queue.Empty:
                    continue
                yield from _taken(made, events, is_single)
        finally:
            run.close()

    async def _async_stream(self, made: list[Request], is_single: bool) -> AsyncIterator[Answer]:
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[list[AnyEvent]] = asyncio.Queue()
        run = self.open_run(lambda events: loop.call_soon_threadsafe(news.put_nowait, events))
        try:
            _submit(run, made)
            while any(request.answers is None for request in made):
                try:
                    events = await asyncio.wait_for(news.get(), TICK_S)  # a tick: a kernel's interrupt needs one
                except TimeoutError:
                    continue
                for answer in _taken(made, events, is_single):
                    yield answer
        finally:
            run.close()


def _submit(run: Run, made: list[Request]) -> None:
    """A few at a time: the first ones are computed while the others are on their way."""
    for i in range(0, len(made), AT_ONCE):
        run.submit([node for request in made[i : i + AT_ONCE] for node in request.nodes])


def _logprob_arguments(return_logprob: Any, start_len: Any, top_num: Any) -> dict[str, Any]:
    return {"return_logprob": return_logprob, "logprob_start_len": start_len, "top_logprobs_num": top_num}


def _taken(made: list[Request], events: list[AnyEvent], is_single: bool) -> Iterator[Answer]:
    for event in events:
        answer = made[event.branch].take(event)
        if answer is not None:
            yield answer if is_single else {"index": event.branch, **answer}


def _gathered(made: list[Request], is_single: bool) -> Answer | list[Answer]:
    answers = [answer for request in made for answer in request.answers or ()]
    return answers[0] if is_single and len(answers) == 1 else answers
