"""Specs printed as Lark for llguidance: a tree as one terminal, else rules.

llguidance's lexer is greedy: a lexeme goes on as long as it can, whatever would stand behind it.  So rules say the
same as a tree only where no lexeme can go on with what may follow it; `tag_rules` knows where they do not.

Every grammar carries `no_forcing`: all tokens the language allows are in the mask, not only the canonical spelling of
forced text.
"""

from __future__ import annotations

import json

from nbsgl import structural_tags as noun
from nbsgl.engine.grammar import ebnf, tags, trees
from nbsgl.engine.grammar.rust import UNBOUNDED, quoted, terminal
from nbsgl.engine.grammar.syntax import (
    EMPTY_TEXT,
    NOTHING,
    NotRegular,
    Syntax,
    concat,
    either,
    literal,
    repeat,
)
from nbsgl.engine.grammar.tag_rules import Head, TagRules, is_json
from nbsgl.errors import BadGrammar
from nbsgl.protocol import GrammarSpec

MAX_LARK_BYTES = 256 << 10
MAX_NESTING = 128

_HEADER = '%llguidance {"no_forcing": true}\n'
_BLANKS = "\t\n\r "


def source_of(spec: GrammarSpec, tree: Syntax | NotRegular) -> str:
    """llguidance's text for a spec; raises `GrammarError`'s children."""
    writer = _Writer(spec)
    if isinstance(tree, NotRegular) or (_has_json(spec) and _rules_say_it(spec)):
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
        self.lines += [f"{name}: {name.upper()}", *terminal(name.upper(), tree)]

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
                self.lines += [UNBOUNDED] if "&" in spec.text or "~" in spec.text else []
            case "tags":
                self.tags(name, spec)
            case kind:
                raise AssertionError(f"a spec of kind {kind!r} has a tree")

    def tags(self, name: str, spec: GrammarSpec) -> None:
        """Free text in terminals that end with a trigger, and behind each the tags that it begins.

        `BadGrammar` names a tag whose texts a greedy lexer would lose.
        """
        rules = TagRules.of(spec)
        if rules.lost is not None:
            raise rules.lost
        for head in rules.heads:
            if head.inner is None:
                self.rule(f"{name}_t{head.place}", head.spec)
        found, free = rules.found, rules.free
        least = "+" if found.at_least_one else "*"
        if free is None:
            self.lines.append(f"{name}_one: {self.options(name, 0, rules.groups[0])}")
            times = {True: "", False: "?"}[found.at_least_one] if found.stop_after_first else least
            self.lines.append(f"{name}: {name}_one{times}")
            return
        ways = []
        for number, (marks, heads) in enumerate(zip(free.to, rules.groups, strict=True)):
            self.terminal(f"{name}_to{number}", free.up_to(marks))
            ways.append(f"{name}_to{number} ({self.options(name, number, heads)})")
        self.lines.append(f"{name}_one: {' | '.join(ways)}")
        self.terminal(f"{name}_free", free.not_empty)
        if found.stop_after_first:
            self.lines.append(f"{name}: {name}_one" + ("" if found.at_least_one else f" | {name}_free?"))
        else:
            self.lines.append(f"{name}: {name}_one{least} {name}_free?")

    def options(self, name: str, number: int, heads: list[Head]) -> str:
        """What stands behind a trigger: the tags with a tree as one terminal, the others one by one."""
        found = [
            f"{quoted(head.rest)} {name}_t{head.place} {quoted(head.tag.end)}" for head in heads if head.inner is None
        ]
        own = either(concat([literal(head.rest), head.body]) for head in heads if head.inner is not None)
        if own != NOTHING or not found:
            self.terminal(f"{name}_own{number}", own)
            found.append(f"{name}_own{number}")
        return " | ".join(found)


def _rules_say_it(spec: GrammarSpec) -> bool:
    """The rules of a spec with JSON have the texts of its tree."""
    if spec.kind != "tags":
        return True
    rules = TagRules.of(spec)
    starts = rules.found.triggers if rules.free is not None else [head.rest for head in rules.heads]
    if spec.after and any(start[0] in _BLANKS for start in starts):  # the mark takes all blanks behind it
        return False
    return rules.lost is None


def _has_json(spec: GrammarSpec) -> bool:
    """JSON goes as rules, regular or not: as one terminal it took up to 1 s to compile (twelve optional members), as
    rules 2 ms, with masks that are no slower."""
    if spec.kind == "tags":
        return any(is_json(tags.inner_spec(spec, tag)) for tag in noun.decode(spec.text).tags)
    return is_json(spec)


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
