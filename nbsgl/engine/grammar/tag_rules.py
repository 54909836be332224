"""Tags as rules for llguidance, and which of their texts its greedy lexer would lose.

A lexeme goes on as long as it can, whatever would stand behind it.  So a tag's text must not be able to go on with what
may follow it, or what follows must be the same wherever it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from nbsgl import structural_tags as noun
from nbsgl.engine.grammar import dfa, json_syntax, tags, trees
from nbsgl.engine.grammar.free_text import FreeText
from nbsgl.engine.grammar.json import forms
from nbsgl.engine.grammar.syntax import Chars, Not, NotRegular, Syntax, concat, either, literal, post_order
from nbsgl.errors import BadGrammar
from nbsgl.protocol import GrammarSpec

_NUMBER_BEGINS = "-0123456789"
_NUMBER_GOES_ON = ".eE0123456789"
_JSON_BEGINS = '{["tfn' + _NUMBER_BEGINS
_OTHER_END = "Take an end whose first character its text cannot have, or leave that character out of its grammar."
_OTHER_BEGIN = "Take begins of which none begins another."


@dataclass(frozen=True, slots=True)
class Head:
    """A tag behind a trigger: what is `rest` of its begin, then `inner` (None: rules of its own), then its end."""

    place: int
    tag: noun.Tag
    rest: str
    spec: GrammarSpec
    inner: Syntax | None

    @property
    def body(self) -> Syntax:
        assert self.inner is not None
        return concat([self.inner, literal(self.tag.end)])

    @property
    def has_own_end(self) -> bool:
        """The end begins with a character that is nowhere before it, so it stands where that first comes."""
        assert self.inner is not None
        return bool(self.tag.end) and not _has_char(self.inner, self.tag.end[0])


@dataclass(frozen=True)
class TagRules:
    """Tags as they go into rules: `heads` with all of their begins, and in a group those behind one trigger.

    Without free text all are one group, whose rests are the begins.
    """

    found: noun.Tags
    free: FreeText | None
    heads: list[Head]
    groups: list[list[Head]]

    @classmethod
    @lru_cache(maxsize=2)  # asked whether they will do, then printed
    def of(cls, spec: GrammarSpec) -> TagRules:
        found = noun.decode(spec.text)
        inner = [tags.inner_spec(spec, tag) for tag in found.tags]
        trees_of = [_tree_in_tags(one) for one in inner]

        def head(place: int, rest: str) -> Head:
            return Head(place, found.tags[place], rest, inner[place], trees_of[place])

        heads = [head(place, tag.begin) for place, tag in enumerate(found.tags)]
        if not found.free_text:
            return cls(found, None, heads, [heads])
        free = tags.free_of(found)
        groups = [[head(place, rest) for place, rest in tags.rests_of(found, marks)] for marks in free.to]
        return cls(found, free, heads, groups)

    @cached_property
    def lost(self) -> BadGrammar | None:
        """The complaint about a tag of which rules would lose texts, if there is one."""
        for heads in self.groups:
            for head in heads:
                if not self._ends_where_it_should(head):
                    return _refusal(head, "its text may go on like what can stand behind it", _OTHER_END)
            for short, long in _nested(heads):
                if not self._are_told_apart(short, long):
                    return _refusal(short, f"it may go on like the tag {long.tag.begin!r}", _OTHER_BEGIN)
        return None

    def _ends_where_it_should(self, head: Head) -> bool:
        if head.inner is not None:
            return self.found.stop_after_first or head.has_own_end or self._is_cut_right(head.body)
        if not is_json(head.spec):
            return True  # characters one by one, or a user's Lark, in which lexemes are greedy by its own law
        following = [head.tag.end] if head.tag.end else self._behind
        goes_on = any(text[0] in _NUMBER_GOES_ON for text in following) if following is not None else True
        return not goes_on or not _may_be_number(trees.schema_of(head.spec))

    def _are_told_apart(self, short: Head, long: Head) -> bool:
        tail = long.rest[len(short.rest) :]
        if short.inner is not None and long.inner is not None:
            texts = either([short.body, concat([literal(tail), long.body])])
            return self.found.stop_after_first or self._is_cut_right(texts)
        if short.inner is not None:
            return bool(tail) and _cannot_begin(short.body, tail[0])
        if not is_json(short.spec):
            return False
        return tail[0] not in _JSON_BEGINS if tail else _are_alike(short, long)

    @property
    def _behind(self) -> list[str] | None:
        """How what stands behind a tag begins; None: in any way."""
        if self.found.stop_after_first:
            return []
        return [head.rest for head in self.heads] if self.free is None else None

    def _is_cut_right(self, tree: Syntax) -> bool:
        """A lexeme of these texts, as long as it can be, leaves the same texts to what follows as any shorter one.

        Free text may follow if the lexeme is complete wherever it could have been, and no trigger begins in what it
        took more.
        """
        try:
            found = dfa.build(tree)
        except dfa.TooManyStates:
            return False
        onward = found.next[found.accepting]
        if self.free is not None and not found.accepting[onward[onward != dfa.DEAD]].all():
            return False
        begins = self.found.triggers if self.free is not None else [head.rest for head in self.heads]
        return not any((onward[:, found.byte_class[text.encode()[0]]] != dfa.DEAD).any() for text in begins)


def _refusal(head: Head, reason: str, hint: str) -> BadGrammar:
    return BadGrammar(
        kind="tags",
        path=f"#/tags/{head.place} ({head.tag.begin!r})",
        reason=f"{reason}, which is told apart only where the grammars of all tags are regular",
        hint=hint,
    )


def _nested(heads: Iterable[Head]) -> Iterator[tuple[Head, Head]]:
    """Pairs of which the first one's rest is how the second one's begins; equal ones too."""
    around: list[Head] = []
    for head in sorted(heads, key=lambda head: head.rest):
        while around and not head.rest.startswith(around[-1].rest):
            around.pop()
        yield from ((short, head) for short in around)
        around.append(head)


def _are_alike(one: Head, other: Head) -> bool:
    """JSON behind equal begins: what is no number shows its own end, and the marks behind must be the same."""
    both = (one, other)
    if not all(is_json(head.spec) for head in both) or one.tag.end != other.tag.end:
        return False
    return not any(_may_be_number(trees.schema_of(head.spec)) for head in both)


def _tree_in_tags(spec: GrammarSpec) -> Syntax | None:
    """The tree that becomes a terminal."""
    tree = None if is_json(spec) else trees.tree_of(spec)
    return None if isinstance(tree, NotRegular) else tree


def _may_be_number(grammar: json_syntax.SchemaGrammar) -> bool:
    return any(not _cannot_begin(node, *_NUMBER_BEGINS) for node in _first_lexemes(grammar))


def _first_lexemes(grammar: json_syntax.SchemaGrammar) -> Iterator[Syntax]:
    """Those with which a value may begin; none of a sequence's first parts is empty."""
    waiting: list[forms.Form] = [grammar.start]
    seen: set[forms.Form] = set()
    while waiting:
        form = waiting.pop()
        if form in seen:
            continue
        seen.add(form)
        match form:
            case forms.Lexeme(node):
                yield node
            case forms.Rule(number):
                waiting.append(grammar.rules.bodies[number])
            case forms.Sequence(parts):
                waiting += parts[:1]
            case forms.Choice(options):
                waiting += options
            case forms.Times(inner, _, _):
                waiting.append(inner)


def _cannot_begin(tree: Syntax, *chars: str) -> bool:
    """No text is empty or begins like one of these characters; False too where that takes too long to tell."""
    try:
        found = dfa.build(tree)
    except dfa.TooManyStates:
        return False
    onward = found.next[dfa.START]
    return not found.accepting[dfa.START] and not any(onward[found.byte_class[char.encode()[0]]] for char in chars)


def _has_char(tree: Syntax, char: str) -> bool:
    """Whether some text may have the character in it, as far as the tree's parts tell."""
    return any(
        isinstance(node, Not) or (isinstance(node, Chars) and any(a <= ord(char) <= b for a, b in node.chars))
        for node in post_order(tree)
    )


def is_json(spec: GrammarSpec) -> bool:
    return spec.kind in ("json_schema", "json")
