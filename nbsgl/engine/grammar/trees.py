"""A grammar spec as the tree of its language: what every engine is given, so that none means another one."""

from __future__ import annotations

import json
from functools import lru_cache

from nbsgl import structural_tags
from nbsgl.engine.grammar import ebnf, json_syntax, regex, tags
from nbsgl.engine.grammar.syntax import NotRegular, Syntax, concat, either, literal
from nbsgl.errors import BadGrammar
from nbsgl.protocol import GrammarSpec

MAX_CHOICES = 10_000
MAX_CHOICES_BYTES = 1 << 20


def tree_of(spec: GrammarSpec) -> Syntax | NotRegular:
    """The tree of a spec, with its `prefix` and what stands before `after`; or why there is none.

    `BadGrammar` and its kin for what is no grammar; `GrammarTooExpensive` past a limit.
    """
    inner = _tree_of_kind(spec)
    if isinstance(inner, NotRegular):
        return inner
    tree = tags.tree_after(spec.after, inner) if spec.after else inner
    return concat([literal(spec.prefix), tree]) if spec.prefix else tree


def _tree_of_kind(spec: GrammarSpec) -> Syntax | NotRegular:
    match spec.kind:
        case "regex":
            return regex.parse(spec.text)
        case "choices":
            return either(literal(text) for text in choices_of(spec.text))
        case "ebnf":
            return ebnf.tree_of_ebnf(spec.text)
        case "tags":
            return tags.tree_of_tags(spec, tree_of)
        case "json_schema" | "json":
            try:
                return schema_of(spec).tree
            except json_syntax.NotRegular as error:
                return NotRegular(str(error))
        case _:
            return NotRegular("Lark grammars are read by llguidance")


def schema_of(spec: GrammarSpec) -> json_syntax.SchemaGrammar:
    """The rules of a spec of kind "json_schema", or "json": any value."""
    text = spec.text if spec.kind == "json_schema" else "{}"
    return _read_schema(text, spec.whitespace, spec.on_unsupported)


@lru_cache(maxsize=4)
def _read_schema(text: str, whitespace: str, on_unsupported: str) -> json_syntax.SchemaGrammar:
    """Kept for what comes next: a tree, the rules in print, the notes."""
    return json_syntax.read(text, whitespace=whitespace, on_unsupported=on_unsupported)


def notes_of(spec: GrammarSpec) -> tuple[str, ...]:
    """What of a spec's schemas its language does not hold to."""
    if spec.kind == "json_schema":
        return schema_of(spec).notes
    if spec.kind == "tags":
        inner = (tags.inner_spec(spec, tag) for tag in structural_tags.decode(spec.text).tags)
        return tuple(dict.fromkeys(note for one in inner for note in notes_of(one)))
    return ()


def choices_of(text: str) -> list[str]:
    """The texts of a spec of kind "choices"."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_CHOICES_BYTES:
        raise _bad_choices(f"{size:,} bytes, the limit is {MAX_CHOICES_BYTES:,}", "1 MiB of choices")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad_choices(f"not JSON: {error}") from None
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise _bad_choices("expected a JSON list of at least one string")
    if len(found) > MAX_CHOICES:
        raise _bad_choices(f"{len(found):,} choices, the limit is {MAX_CHOICES:,}", f"{MAX_CHOICES:,} choices")
    for place, one in enumerate(found):
        structural_tags.refuse_half(one, "choices", f"#/{place}")
    return found


def _bad_choices(reason: str, limit: str | None = None) -> BadGrammar:
    return BadGrammar(kind="choices", path="#", reason=reason, limit=limit)
