"""Structural tags: free text with marked parts, each under a grammar of its own.  Tool calls are such parts.

What both rooms need of them: their canonical JSON (the text of a grammar spec of kind "tags"), SGLang's JSON for the
same, and the calls that a finished text has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from nbsgl.errors import BadGrammar

MAX_TAGS = 1024

_HALF = re.compile("[\ud800-\udfff]")

InnerKind = Literal["regex", "json_schema", "json", "choices", "ebnf", "lark"]


class Tag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One marked part: `begin`, a text of the inner grammar (`kind` and `text` as in `GrammarSpec`), `end`.

    `trigger` is the head of `begin` from which on the text must go on as a tag ("": all of `begin`).  `tool` is the
    name of what the part calls: its JSON are the arguments; `description` is for services that take tools.
    """

    begin: str
    kind: InnerKind
    text: str
    end: str = ""
    trigger: str = ""
    tool: str = ""
    description: str = ""

    @property
    def head(self) -> str:
        return self.trigger or self.begin


class Tags(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Free text until a trigger is complete, then a tag that begins with it, then free text again.

    Without `free_text`: tags only, one behind the other.  `at_least_one` tag must come; `stop_after_first` ends the
    text with the first one.
    """

    tags: list[Tag]
    free_text: bool = True
    at_least_one: bool = False
    stop_after_first: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.tags) <= MAX_TAGS:
            raise bad("", f"{len(self.tags):,} tags; allowed are 1..{MAX_TAGS:,}")
        for place, tag in enumerate(self.tags):
            if not tag.begin:
                raise bad(f"/tags/{place}/begin", "it is empty: nothing would tell the tag from free text")
            if not tag.begin.startswith(tag.head):
                raise bad(f"/tags/{place}/trigger", f"{tag.trigger!r} is not how {tag.begin!r} begins")
            for name in ("begin", "text", "end", "tool", "description"):
                refuse_half(getattr(tag, name), "tags", f"#/tags/{place}/{name}")

    @property
    def triggers(self) -> list[str]:
        return list(dict.fromkeys(tag.head for tag in self.tags))

    @property
    def are_tools(self) -> bool:
        return all(tag.tool for tag in self.tags)


def bad(pointer: str, reason: str) -> BadGrammar:
    return BadGrammar(kind="tags", path=f"#{pointer}", reason=reason)


def refuse_half(text: str, kind: str, path: str) -> None:
    """`BadGrammar` for half a character (a lone surrogate): it has no UTF-8, so no text has it."""
    if half := _HALF.search(text):
        reason = f"it has half a character in it, {half[0]!r} at position {half.start()}"
        raise BadGrammar(kind=kind, path=path, reason=reason, hint="Join the two halves of a pair into one character.")


def escape_halves(text: str) -> str:
    """JSON text with the halves of characters as escapes: what it says is the same, and it has UTF-8."""
    return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def encode(tags: Tags) -> str:
    """The text of a grammar spec of kind "tags"."""
    return msgspec.json.encode(tags).decode()


def decode(text: str) -> Tags:
    """The inverse; `BadGrammar` names what is wrong with a text from elsewhere."""
    try:
        return msgspec.json.decode(text, type=Tags)
    except msgspec.DecodeError as error:
        if isinstance(error.__cause__, BadGrammar):
            raise error.__cause__ from None
        raise bad("", str(error)) from error


# ---- SGLang's form ---------------------------------------------------------------------------------------------------

_CONTENT: dict[str, tuple[str, InnerKind]] = {
    "json_schema": ("json_schema", "json_schema"),
    "regex": ("pattern", "regex"),
    "grammar": ("grammar", "ebnf"),
}


def of_sglang(value: str | Mapping[str, Any]) -> Tags:
    """SGLang's `structural_tag`, in its older form (`structures`, `triggers`) and its newer one (`format`)."""
    try:
        data = json.loads(value) if isinstance(value, str) else dict(value)
    except ValueError as error:
        raise bad("", f"not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("type") != "structural_tag":
        raise bad("/type", 'expected {"type": "structural_tag", ...}')
    if "structures" in data:
        triggers = _list(data, "triggers", "")
        found = [_of_structure(one, triggers, place) for place, one in enumerate(_list(data, "structures", ""))]
        return Tags(tags=found)
    form = data.get("format")
    if not isinstance(form, dict) or form.get("type") not in ("triggered_tags", "tag"):
        kind = form.get("type") if isinstance(form, dict) else form
        raise bad("/format/type", f"{kind!r}: triggered_tags and tag are supported")
    if form["type"] == "tag":
        return Tags(tags=[_of_tag(form, [], "/format")], free_text=False, at_least_one=True, stop_after_first=True)
    triggers = _list(form, "triggers", "/format")
    return Tags(
        tags=[_of_tag(one, triggers, f"/format/tags/{i}") for i, one in enumerate(_list(form, "tags", "/format"))],
        at_least_one=bool(form.get("at_least_one", False)),
        stop_after_first=bool(form.get("stop_after_first", False)),
    )


def to_sglang(tags: Tags) -> dict[str, Any] | None:
    """The same in SGLang's older form, which all its releases read; None where that cannot say it."""
    if not tags.free_text or tags.at_least_one or tags.stop_after_first:
        return None
    if any(tag.kind != "json_schema" for tag in tags.tags):
        return None
    structures = [{"begin": t.begin, "schema": json.loads(t.text), "end": t.end} for t in tags.tags]
    return {"type": "structural_tag", "structures": structures, "triggers": tags.triggers}


def _of_structure(one: Any, triggers: list[Any], place: int) -> Tag:
    here = f"/structures/{place}"
    begin = _text(one, "begin", here)
    schema = one.get("schema", {}) if isinstance(one, dict) else {}
    return Tag(
        begin=begin,
        kind="json_schema",
        text=_schema_text(schema),
        end=_text(one, "end", here),
        trigger=_trigger(begin, triggers, here),
    )


def _of_tag(one: Any, triggers: list[Any], here: str) -> Tag:
    begin = _text(one, "begin", here)
    content = one.get("content") if isinstance(one, dict) else None
    kind = content.get("type") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(kind, str) or kind not in _CONTENT:
        raise bad(f"{here}/content/type", f"{kind!r}: {', '.join(_CONTENT)} are supported")
    key, ours = _CONTENT[kind]
    if key not in content:
        raise bad(f"{here}/content/{key}", "it is missing")
    inner = content[key]
    text = _schema_text(inner) if ours == "json_schema" else str(inner)
    trigger = _trigger(begin, triggers, here) if triggers else ""
    return Tag(begin=begin, kind=ours, text=text, end=_text(one, "end", here), trigger=trigger)


def _trigger(begin: str, triggers: list[Any], here: str) -> str:
    fitting = [one for one in triggers if isinstance(one, str) and one and begin.startswith(one)]
    if not fitting:
        raise bad(f"{here}/begin", f"{begin!r} begins with none of the triggers {triggers}")
    return min(fitting, key=len)


def _schema_text(schema: Any) -> str:
    return escape_halves(schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False))


def _text(one: Any, key: str, here: str) -> str:
    value = one.get(key) if isinstance(one, dict) else None
    if not isinstance(value, str):
        raise bad(f"{here}/{key}", f"{value!r}: expected a string")
    return value


def _list(data: Mapping[str, Any], key: str, here: str) -> list[Any]:
    value = data.get(key)
    if not isinstance(value, list) or not value:
        raise bad(f"{here}/{key}", f"{value!r}: expected a list that is not empty")
    return value


# ---- the calls in a text ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """A tag in a finished text: which one, its inner text, and [start, end) of all of it."""

    tag: Tag
    inner: str
    start: int
    end: int


def calls(tags: Tags, text: str) -> Iterator[Call]:
    """The tags whose inner text is JSON, in the order in which they stand; ValueError for one that is broken off."""
    at = 0
    while (found := _next_begin(tags, text, at)) is not None:
        start, tag = found
        inner = start + len(tag.begin)
        blank = len(text) - inner - len(text[inner:].lstrip())
        _, length = json.JSONDecoder().raw_decode(text[inner + blank :])
        after = inner + blank + length
        close = text.find(tag.end, after)
        if close < 0 or text[after:close].strip():
            raise ValueError(f"{tag.begin!r} at character {start} has no {tag.end!r} behind its JSON")
        at = close + len(tag.end)
        yield Call(tag, text[inner + blank : after], start, at)


def _next_begin(tags: Tags, text: str, at: int) -> tuple[int, Tag] | None:
    """The first begin from there on; of several at one place the longest."""
    found = [(text.find(tag.begin, at), -len(tag.begin), place) for place, tag in enumerate(tags.tags)]
    hits = [hit for hit in found if hit[0] >= 0]
    if not hits:
        return None
    start, _, place = min(hits)
    return start, tags.tags[place]
