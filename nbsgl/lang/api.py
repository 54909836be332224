"""What a program writes: `gen`, `select`, roles.  Every value is checked at the line it stands in."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from nbsgl.errors import ParameterError
from nbsgl.lang.choices import ChoicesSamplingMethod, token_length_normalized
from nbsgl.lang.constrain import constraint, one_kind
from nbsgl.lang.ir import (
    Concat,
    Expr,
    GenExpr,
    ImageExpr,
    RoleBegin,
    RoleEnd,
    SelectExpr,
    TextExpr,
    Thinking,
    VideoExpr,
    caller,
    parts,
    refuse_mark,
    watched,
)
from nbsgl.lang.params import checked
from nbsgl.reasoning import MODEL_TYPES

logger = logging.getLogger("nbsgl")
_warned: set[str] = set()  # call sites that were told once


def gen(
    name: str | None = None,
    max_tokens: Any = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: Any = None,
    stop_token_ids: Any = None,
    stop_regex: Any = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: Any = None,
    choices: Any = None,
    choices_method: ChoicesSamplingMethod | None = None,
    regex: str | None = None,
    json_schema: Any = None,
    *,
    seed: int | None = None,
    type: Any = None,
    repetition_penalty: float | None = None,
    logit_bias: dict[int, float] | None = None,
    list_append: bool = False,
    heal: bool = False,
    ebnf: str | None = None,
    lark: str | None = None,
    grammar: Any = None,
    after: str | None = None,
    max_think_tokens: int | None = None,
    tools: Any = None,
    tool_format: str | None = None,
    on_limit: str | None = None,
    on_unsupported: str | None = None,
    jump: str | None = None,
    whitespace: str | None = None,
) -> Expr:
    """A hole that the model fills; its text becomes the variable `name`.  None means the run's default.

    At most one of these constrains the text; `s.value(name)` gives it as a value:
    `type` (or `dtype`: int, float, bool, str, Literal, an Enum, dates, unions of these, a compiled regex, lists, dicts,
    classes with fields), `choices` (then it is a `select`), `regex`, `json_schema` (a dict, a JSON string, a class;
    True: any JSON), `ebnf` (GBNF), `lark` (as llguidance reads it), `tools` (functions, classes, dicts: the value is a
    list of `ToolCall`; `tool_format` "tool-call", "function-tag" or "json"), `grammar` (a ready `GrammarSpec`).

    As a string, `grammar` names the engine: "auto" (the default), "fsm", "llguidance", "xgrammar" or "outlines".
    `after`: the constraint begins behind the first such mark, usually the end of thinking; the variable is what comes
    after it, the thinking is in the meta info, and the mark is written at `max_think_tokens` if it has not come.
    `on_limit="fit"`: only tokens from which the end is in reach of max_tokens ("keep": the text as far as it came).
    `on_unsupported="loosen"` leaves out what no engine can hold of a schema, with a note ("error").  `whitespace` of
    JSON: "compact", "spaced" (the default), "flexible".  `jump`: forced text is proposed and verified ("verify"), spelt
    canonically ("canonical"), or not foreseen ("off").

    `max_tokens="fit"` means as many as fit the context.  With n > 1 the variable is a list and the program goes on with
    the first; with `list_append` the text is added to the list that `name` is, or becomes.
    `heal` draws the last token of the text before again, so that a word may go on over the line between them.
    Raises `ParameterError`, `BadRegex` or `BadGrammar` at once.
    """
    given = {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "n": n,
        "stop": stop,
        "stop_token_ids": stop_token_ids,
        "stop_regex": stop_regex,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "repetition_penalty": repetition_penalty,
        "ignore_eos": ignore_eos,
        "logit_bias": logit_bias,
        "return_logprob": return_logprob,
        "logprob_start_len": logprob_start_len,
        "top_logprobs_num": top_logprobs_num,
        "return_text_in_logprobs": return_text_in_logprobs,
        "seed": seed,
    }
    if not isinstance(heal, bool):
        raise ParameterError(name="heal", value=heal, allowed="True or False")
    kinds = {
        "type": type,
        "dtype": dtype,
        "choices": choices,
        "regex": regex,
        "json_schema": json_schema,
        "ebnf": ebnf,
        "lark": lark,
        "tools": tools,
        "grammar": grammar,
    }
    options = {
        "after": after,
        "max_think_tokens": max_think_tokens,
        "tool_format": tool_format,
        "on_limit": on_limit,
        "on_unsupported": on_unsupported,
        "jump": jump,
        "whitespace": whitespace,
    }
    kind = one_kind(kinds)
    where = caller()
    if choices is not None:
        unused = [key for key, value in given.items() if value is not None and key not in ("temperature", "seed")]
        unused += [
            name for name, value in {"heal": heal or None, "grammar": grammar, **options}.items() if value is not None
        ]
        if unused and where not in _warned:
            _warned.add(where)
            logger.warning("%s: %s mean(s) nothing to a gen with choices.", where, ", ".join(unused))
        checked(given)
        expr = _select(name, choices, temperature or 0.0, choices_method, seed, where, list_append)
        expr.ignored = tuple(unused)
        return expr
    if choices_method is not None:
        raise ParameterError(name="choices_method", value=choices_method, allowed="given only together with choices=")
    _check_name(name, list_append)
    found = constraint(kind, kinds, options)
    made = GenExpr(
        name,
        checked(given),
        found.grammar,
        found.stop,
        where,
        reader=found.reader,
        list_append=list_append,
        heal=heal,
    )
    watched(made)
    return made


def gen_int(*args: Any, **kwargs: Any) -> Expr:
    """`gen(..., dtype=int)`; the variable is a string of digits."""
    return _typed(int, args, kwargs)


def gen_string(*args: Any, **kwargs: Any) -> Expr:
    """`gen(..., dtype=str)`; the variable includes its quotes."""
    return _typed(str, args, kwargs)


# gen_int's positional slots are gen's without min_tokens, dtype, choices, choices_method, regex, json_schema
# fmt: off
_TYPED_SLOTS = [
    "name", "max_tokens", "n", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p",
    "frequency_penalty", "presence_penalty", "ignore_eos", "return_logprob", "logprob_start_len", "top_logprobs_num",
    "return_text_in_logprobs",
]
# fmt: on


def _typed(dtype: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Expr:
    if len(args) > len(_TYPED_SLOTS):
        raise TypeError(f"takes at most {len(_TYPED_SLOTS)} positional arguments, {len(args)} were given")
    given = dict(zip(_TYPED_SLOTS, args, strict=False))
    twice = given.keys() & kwargs.keys()
    if twice:
        raise TypeError(f"got several values for {', '.join(sorted(twice))}")
    return gen(dtype=dtype, **given, **kwargs)


def select(
    name: str | None = None,
    choices: Any = None,
    temperature: float = 0.0,
    choices_method: ChoicesSamplingMethod | None = token_length_normalized,
    *,
    seed: int | None = None,
) -> Expr:
    """A hole that becomes the best of `choices`; at a temperature > 0, drawn with softmax(score / temperature)."""
    return _select(name, choices, temperature, choices_method, seed, caller())


def _select(
    name: str | None,
    choices: Any,
    temperature: float,
    method: ChoicesSamplingMethod | None,
    seed: int | None,
    where: str,
    list_append: bool = False,
) -> SelectExpr:
    _check_name(name, list_append)
    allowed = "a list of different, non-empty strings"
    if isinstance(choices, str) or not hasattr(choices, "__iter__"):
        raise ParameterError(name="choices", value=choices, allowed=allowed)
    options = tuple(choices)
    if not options or not all(isinstance(text, str) and text for text in options):
        raise ParameterError(name="choices", value=list(options), allowed=allowed)
    if len(set(options)) < len(options):
        twice = sorted({text for text in options if options.count(text) > 1})
        raise ParameterError(f"choices has duplicates: {twice}.", name="choices", value=list(options), allowed=allowed)
    for text in options:
        refuse_mark(text, "choices=")
    checked({"temperature": temperature, "seed": seed})
    method = token_length_normalized if method is None else method
    if not isinstance(method, ChoicesSamplingMethod):
        raise ParameterError(
            name="choices_method",
            value=method,
            allowed="an object of a ChoicesSamplingMethod class",
            hint="For example: choices_method=nbsgl.greedy_token_selection.",
        )
    made = SelectExpr(name, options, float(temperature), method, seed, where, list_append)
    watched(made)
    return made


def _check_name(name: object, list_append: bool = False) -> None:
    if not isinstance(list_append, bool):
        raise ParameterError(name="list_append", value=list_append, allowed="True or False")
    if list_append and name is None:
        raise ParameterError(name="name", value=name, allowed="a string with list_append=True")
    if name is not None and not isinstance(name, str):
        raise ParameterError(name="name", value=name, allowed="a string, or None")
    refuse_mark(name, "name=")


# ---- text and roles --------------------------------------------------------------------------------------------------


def raw(text: str) -> Expr:
    """Text in which special tokens count, inside a role too."""
    if not isinstance(text, str):
        raise ParameterError(name="text", value=text, allowed="a string")
    refuse_mark(text, "raw(...)")
    return TextExpr(text, raw=True)


def role(name: str, expr: Any = None) -> Expr:
    """A whole message: prefix, content, suffix."""
    return Concat([RoleBegin(name), *([] if expr is None else parts(expr)), RoleEnd(name)])


def system(expr: Any = None) -> Expr:
    """A system message."""
    return role("system", expr)


def user(expr: Any = None) -> Expr:
    """A user's message."""
    return role("user", expr)


def assistant(expr: Any = None) -> Expr:
    """An assistant's message; usually `assistant(gen(...))`."""
    return role("assistant", expr)


def system_begin() -> Expr:
    return RoleBegin("system")


def system_end() -> Expr:
    return RoleEnd("system")


def user_begin() -> Expr:
    return RoleBegin("user")


def user_end() -> Expr:
    return RoleEnd("user")


def assistant_begin() -> Expr:
    return RoleBegin("assistant")


def assistant_end() -> Expr:
    return RoleEnd("assistant")


# ---- pictures, thinking ----------------------------------------------------------------------------------------------


def image(expr: Any) -> Expr:
    """A picture: a path, bytes, or an image object.  A state whose model reads text only raises `Unsupported`."""
    if expr is None:
        raise ParameterError(name="expr", value=expr, allowed="a path, bytes, or an image object")
    refuse_mark(expr, "image(...)")
    return ImageExpr(expr)


def video(path: Any, num_frames: int) -> Expr:
    """`num_frames` pictures of a film.  A state whose model reads text only raises `Unsupported`."""
    refuse_mark(path, "video(...)")
    if not isinstance(num_frames, int) or isinstance(num_frames, bool) or num_frames < 1:
        raise ParameterError(name="num_frames", value=num_frames, allowed="an int >= 1")
    return VideoExpr(path, num_frames)


def separate_reasoning(expr: Any = None, model_type: str | None = None) -> Expr:
    """`expr` with the thinking of its gens kept apart.

    The variable and the state's text have the answer only; the thinking is in `<name>_reasoning_content`.  None as
    `model_type` means the marks of the model itself.
    """
    if model_type is not None and model_type not in MODEL_TYPES:
        raise ParameterError(name="model_type", value=model_type, allowed=f"None, {', '.join(MODEL_TYPES)}")
    items = [] if expr is None else parts(expr)
    gens = [item for item in items if isinstance(item, GenExpr)]
    if not gens:
        raise ParameterError(
            name="expr", value=expr, allowed="an expression with gens", hint='separate_reasoning(gen("answer"))'
        )
    for one in gens:
        if one.name is None:
            raise ParameterError(name="name", value=None, allowed="a name for every gen of separate_reasoning")
        if one.grammar is not None:
            raise ParameterError(
                f"{one!r} is constrained, and the constraint would hold for its thinking too.",
                name="expr",
                value=one,
                allowed="gens without a constraint",
                hint='gen(..., after="</think>") constrains what comes after the thinking.',
            )
    return Concat(
        [replace(item, thinking=Thinking(model_type)) if isinstance(item, GenExpr) else item for item in items]
    )
