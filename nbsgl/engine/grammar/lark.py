"""Specs printed as Lark for llguidance: a tree as one terminal, else rules.

Every grammar carries `no_forcing`: all tokens the language allows are in the mask, not only the canonical spelling of
forced text.
"""

from __future__ import annotations

import json

from nbsgl import structural_tags as noun
from nbsgl.engine.grammar import ebnf, tags, trees
from nbsgl.engine.grammar.rust import to_lark
from nbsgl.engine.grammar.syntax import EMPTY_TEXT, NotRegular, Syntax, concat, literal, repeat
from nbsgl.errors import BadGrammar
from nbsgl.protocol import GrammarSpec

MAX_LARK_BYTES = 256 << 10
MAX_NESTING = 128

_HEADER = '%llguidance {"no_forcing": true}\n'


def source_of(spec: GrammarSpec, tree: Syntax | NotRegular) -> str:
    """llguidance's text for a spec; raises `GrammarError`'s children."""
    writer = _Writer(spec)
    if isinstance(tree, NotRegular) or _has_json(spec):
        writer.whole()
    else:
        writer.terminal("start", tree)
    grammars = [{"name": "main", "lark_grammar": _HEADER + "\n".join(writer.lines)}, *writer.others]
    return json.dumps({"grammars": grammars})


class _Writer:
    """`lines` of the main grammar; `others` are those of users, which keep their own names."""

    def __init__(self, spec: GrammarSpec) -> None:
        self.spec = spec
        self.lines: list[str] = []
        self.others: list[dict[str, str]] = []

    def whole(self) -> None:
        """A grammar in rules, behind its prefix and its mark.

        Blanks behind the mark belong to the mark: a grammar of one's own that begins with some does not get them.
        """
        spec = self.spec
        before = [literal(spec.prefix)]
        if spec.after:
            before += [tags.first_mark(spec.after), repeat(tags.WHITESPACE)]
        head = concat(before)
        if head == EMPTY_TEXT:
            self.lines.append("start: value")
        else:
            self.lines += ["start: head value"]
            self.terminal("head", head)
        self.rule("value", spec)

    def terminal(self, name: str, tree: Syntax) -> None:
        self.lines += [f"{name}: {name.upper()}", f"{name.upper()}: {to_lark(tree)}"]

    def rule(self, name: str, spec: GrammarSpec) -> None:
        """The grammar of a spec (without its prefix and mark) as the rule `name`, and rules whose names begin so."""
        match spec.kind:
            case "json_schema" | "json":
                self.lines += trees.schema_of(spec).lark(name)
            case "ebnf":
                self.lines += ebnf.lark_of_ebnf(spec.text, name)
            case "lark":
                check_lark(spec.text)
                self.lines.append(f"{name}: @{name}_own")
                self.others.append({"name": f"{name}_own", "lark_grammar": spec.text})
            case "tags":
                self.tags(name, spec)
            case kind:
                raise AssertionError(f"a spec of kind {kind!r} has a tree")

    def tags(self, name: str, spec: GrammarSpec) -> None:
        """Free text in terminals that end with a trigger, and behind each the tags that it begins."""
        found = noun.decode(spec.text)
        for place, tag in enumerate(found.tags):
            self.inner(f"{name}_t{place}", tags.inner_spec(spec, tag))
        least = "+" if found.at_least_one else "*"
        if not found.free_text:
            one = [f"{_quoted(tag.begin)} {name}_t{i} {_quoted(tag.end)}" for i, tag in enumerate(found.tags)]
            self.lines.append(f"{name}_one: {' | '.join(one)}")
            times = {True: "", False: "?"}[found.at_least_one] if found.stop_after_first else least
            self.lines.append(f"{name}: {name}_one{times}")
            return
        free = tags.free_of(found)
        options = []
        for number, marks in enumerate(free.to):
            self.terminal(f"{name}_to{number}", free.up_to(marks))
            rests = [
                f"{_quoted(rest)} {name}_t{place} {_quoted(found.tags[place].end)}"
                for place, rest in tags.rests_of(found, marks)
            ]
            options.append(f"{name}_to{number} ({' | '.join(rests)})")
        self.lines.append(f"{name}_one: {' | '.join(options)}")
        self.terminal(f"{name}_free", free.not_empty)
        if found.stop_after_first:
            self.lines.append(f"{name}: {name}_one" + ("" if found.at_least_one else f" | {name}_free?"))
        else:
            self.lines.append(f"{name}: {name}_one{least} {name}_free?")

    def inner(self, name: str, spec: GrammarSpec) -> None:
        tree = NotRegular("JSON") if _is_json(spec) else trees.tree_of(spec)
        if isinstance(tree, NotRegular):
            self.rule(name, spec)
        else:
            self.terminal(name, tree)


def _has_json(spec: GrammarSpec) -> bool:
    """JSON goes as rules, regular or not: as one terminal it took up to 1 s to compile (twelve optional members), as
    rules 2 ms, with masks that are no slower."""
    if spec.kind == "tags":
        return any(_is_json(tags.inner_spec(spec, tag)) for tag in noun.decode(spec.text).tags)
    return _is_json(spec)


def _is_json(spec: GrammarSpec) -> bool:
    return spec.kind in ("json_schema", "json")


def check_lark(text: str) -> None:
    """What a user's grammar must not be, before a recursive reader of the library's sees it."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_LARK_BYTES:
        raise _bad_lark(f"{size:,} bytes, the limit is {MAX_LARK_BYTES:,}", "256 KiB of Lark")
    depth = deepest = 0
    for char in text:
        depth = depth + 1 if char in "([{" else max(0, depth - 1) if char in ")]}" else depth
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise _bad_lark(f"nested deeper than {MAX_NESTING}", f"nesting of {MAX_NESTING}")


def _bad_lark(reason: str, limit: str) -> BadGrammar:
    return BadGrammar(kind="lark", path="the grammar", reason=reason, limit=limit)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
