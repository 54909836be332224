"""Tools: functions and schemas as grammars of their calls, and the calls read back out of a text."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbsgl import structural_tags as noun
from nbsgl.errors import ParameterError
from nbsgl.lang.types import Constraint, Reader, of_schema, of_type, schema_and_reader
from nbsgl.protocol import GrammarSpec
from nbsgl.structural_tags import Tag, Tags

FORMATS = ("tool-call", "function-tag", "json")
_ALLOWED = (
    "functions, classes with fields, or dicts with name and parameters (a JSON schema), each with a name of its own"
)
_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model wrote: `tool(**call.arguments)` carries it out.

    `arguments` by name; those of a function with annotations have its types.  `span` is where in the text of the
    variable the call stands, marks included: what is outside of all spans is what the model said besides.
    """

    name: str
    arguments: dict[str, Any]
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tool:
    """What may be called: its name, what it is for, the schema of its arguments, and what reads their JSON."""

    name: str
    description: str
    schema: str
    read: Callable[[str], Any]


# ---- grammars --------------------------------------------------------------------------------------------------------


def tools_spec(tools: Any, tool_format: str) -> Constraint:
    """Text in which these tools may be called, in one of `FORMATS`; its value is a list of `ToolCall`.

    "tool-call": `<tool_call>` with a JSON object of name and arguments.  "function-tag": `<function=NAME>`, the
    arguments as JSON, `</function>`.  "json": nothing but one such JSON object.
    """
    found = _tools(tools)
    tags = Tags(
        tags=[_tag(tool, tool_format) for tool in found],
        free_text=tool_format != "json",
        at_least_one=tool_format == "json",
        stop_after_first=tool_format == "json",
    )
    readers = {tool.name: tool.read for tool in found}
    return Constraint(GrammarSpec(kind="tags", text=noun.encode(tags)), reader=calls_reader(tags, readers))


def _tag(tool: Tool, tool_format: str) -> Tag:
    call = f'{{"name": {json.dumps(tool.name)}, "arguments": '
    begin, end, trigger = {
        "tool-call": (f"<tool_call>\n{call}", "}\n</tool_call>", "<tool_call>"),
        "function-tag": (f"<function={tool.name}>", "</function>", "<function="),
        "json": (call, "}", ""),
    }[tool_format]
    return Tag(
        begin=begin,
        kind="json_schema",
        text=tool.schema,
        end=end,
        trigger=trigger,
        tool=tool.name,
        description=tool.description,
    )


def calls_reader(tags: Tags, readers: Mapping[str, Callable[[str], Any]]) -> Reader:
    """Makes the list of `ToolCall` of a text."""

    def make(text: str) -> list[ToolCall]:
        return [
            ToolCall(call.tag.tool, readers.get(call.tag.tool, json.loads)(call.inner), (call.start, call.end))
            for call in noun.calls(tags, text)
        ]

    return Reader("text with tool calls", make)


# ---- tools -----------------------------------------------------------------------------------------------------------


def _tools(tools: Any) -> list[Tool]:
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence) or not tools:
        raise _refused(tools, "It is a list: tools=[search].")
    found = [_tool(tool) for tool in tools]
    names = [tool.name for tool in found]
    for name in names:
        if names.count(name) > 1:
            raise _refused(name, f"Two of them are called {name!r}.")
        if not name or not set(name) <= _NAME_CHARS:
            raise _refused(name, "A name has letters, digits, _, - and dots.")
    return found


def _refused(value: object, hint: str) -> ParameterError:
    return ParameterError(name="tools", value=value, allowed=_ALLOWED, hint=hint)


def _tool(tool: Any) -> Tool:
    if isinstance(tool, Mapping):
        return _of_dict(tool)
    if isinstance(tool, type):
        made = of_schema(tool, "tools")
        assert made.grammar is not None
        return Tool(tool.__name__, _summary(tool), made.grammar.text, json.loads)
    if callable(tool) and hasattr(tool, "__name__"):
        return _of_function(tool)
    raise _refused(tool, "")


def _of_dict(tool: Mapping[str, Any]) -> Tool:
    """OpenAI's form of a tool, with or without the `function` around it, or Anthropic's."""
    inner = tool.get("function", tool) if tool.get("type", "function") == "function" else {}
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise _refused(tool, 'For example {"name": "search", "parameters": {"type": "object", ...}}.')
    schema = inner.get("parameters", inner.get("input_schema", {"type": "object", "properties": {}}))
    made = of_schema({} if schema is True else schema, "tools")  # services want an object
    assert made.grammar is not None
    return Tool(str(inner["name"]), str(inner.get("description", "")), made.grammar.text, json.loads)


def _of_function(tool: Callable[..., Any]) -> Tool:
    """The schema of a function's parameters: those with defaults may be left out; without annotation any JSON fits."""
    name = tool.__name__
    try:
        hints = typing.get_type_hints(tool, include_extras=True)
        parameters = inspect.signature(tool).parameters
    except (NameError, TypeError, ValueError) as error:
        raise _refused(tool, f"The signature of {name} cannot be read: {error}.") from error
    fields: dict[str, Any] = {}
    for key, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise _refused(tool, f"{name} takes {parameter}: a call gives its arguments one by one, by name.")
        has_default = parameter.default is not parameter.empty
        wanted = hints.get(key, _guessed(parameter.default) if has_default else Any)
        fields[key] = typing.NotRequired[wanted] if has_default else wanted
    made = typing.TypedDict(name, fields)  # type: ignore[misc]  # a name and fields of the caller's
    schema, read = schema_and_reader(made, "tools")
    return Tool(name, _summary(tool), json.dumps(schema), read)


def _guessed(default: Any) -> Any:
    """The type of a parameter that has a default and no annotation."""
    return type(default) if type(default) in (bool, int, float, str) else Any


def _summary(tool: Any) -> str:
    """The first paragraph of its docstring."""
    return " ".join((inspect.getdoc(tool) or "").split("\n\n")[0].split())


# ---- structural tags -------------------------------------------------------------------------------------------------


def tag(
    begin: str,
    end: str = "",
    *,
    trigger: str | None = None,
    regex: str | None = None,
    json_schema: Any = None,
    type: Any = None,
    ebnf: str | None = None,
    lark: str | None = None,
) -> Tag:
    """One marked part of a text, for `tags`: `begin`, one of the grammars, `end`.

    Once `trigger`, which is how `begin` begins (None: all of it), is complete, the text must go on as a tag.
    """
    for name, value in (("begin", begin), ("end", end), ("trigger", begin if trigger is None else trigger)):
        if not isinstance(value, str) or (not value and name != "end"):
            raise ParameterError(name=name, value=value, allowed="a string")
    kinds = {"regex": regex, "json_schema": json_schema, "type": type, "ebnf": ebnf, "lark": lark}
    given = [kind for kind, value in kinds.items() if value is not None]
    if len(given) != 1:
        raise ParameterError(f"a tag takes one of {', '.join(kinds)}; given were {given}.", name="regex")
    made = _inner(given[0], kinds[given[0]])
    if made.kind == "tags":
        raise ParameterError(name=given[0], value=kinds[given[0]], allowed="a grammar without tags of its own")
    return Tag(begin=begin, end=end, trigger=trigger or "", kind=made.kind, text=made.text)


def _inner(kind: str, value: Any) -> GrammarSpec:
    from nbsgl.lang.constrain import constraint

    found = of_type(value, "type") if kind == "type" else constraint(kind, {kind: value}, {})
    assert found.grammar is not None
    return found.grammar


def tags(*tags: Tag, at_least_one: bool = False, stop_after_first: bool = False) -> GrammarSpec:
    """Structural tags, for `gen(grammar=...)`: free text, with parts that begin and end with marks.

    The text may end in free text only; with `at_least_one` not before the first tag, with `stop_after_first` it ends
    with that.
    """
    for one in tags:
        if not isinstance(one, Tag):
            raise ParameterError(name="tags", value=one, allowed="what nbsgl.tag(...) makes")
    made = Tags(tags=list(tags), at_least_one=bool(at_least_one), stop_after_first=bool(stop_after_first))
    return GrammarSpec(kind="tags", text=noun.encode(made))
