"""Structural tags, and grammars that begin behind a mark, as trees of regular languages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from nbsgl import structural_tags as noun
from nbsgl.engine.grammar.free_text import WHITESPACE, FreeText, first_occurrence, free_text
from nbsgl.engine.grammar.syntax import NotRegular, Syntax, concat, either, literal, optional, repeat
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.errors import BadGrammar
from nbsgl.protocol import GrammarSpec
from nbsgl.structural_tags import Tag, Tags

TreeOf = Callable[[GrammarSpec], Syntax | NotRegular]
"""The tree of a spec of any kind."""


def tree_of_tags(spec: GrammarSpec, tree_of: TreeOf) -> Syntax | NotRegular:
    """The tree of a spec of kind "tags", if every inner grammar is regular.  `BadGrammar` for tags that are wrong."""
    tags = noun.decode(spec.text)
    bodies: list[Syntax] = []
    for place, tag in enumerate(tags.tags):
        inner = _inner_tree(spec, place, tag, tree_of)
        if isinstance(inner, NotRegular):
            return NotRegular(f"the grammar of tag {place} ({tag.begin!r}): {inner.reason}")
        bodies.append(concat([inner, literal(tag.end)]))
    if not tags.free_text:
        one = either(concat([literal(tag.begin), body]) for tag, body in zip(tags.tags, bodies, strict=True))
        return _without_free_text(tags, one)
    free = free_of(tags)
    one = concat([repeat(free.around), either(_completed(tags, bodies, free))])
    if tags.stop_after_first:
        return one if tags.at_least_one else either([one, free.whole])
    return concat([repeat(one, 1 if tags.at_least_one else 0), free.whole])


def _inner_tree(spec: GrammarSpec, place: int, tag: Tag, tree_of: TreeOf) -> Syntax | NotRegular:
    """The tree of a tag's own grammar; what is wrong with it is told with the tag."""
    try:
        return tree_of(inner_spec(spec, tag))
    except BadGrammar as error:
        path = f"tag {place} ({tag.begin!r}), {error.path}"
        raise BadGrammar(kind=error.kind, path=path, reason=error.reason, hint=error.hint) from error


def _without_free_text(tags: Tags, one: Syntax) -> Syntax:
    if tags.stop_after_first:
        return one if tags.at_least_one else optional(one)
    return repeat(one, 1 if tags.at_least_one else 0)


def _completed(tags: Tags, bodies: list[Syntax], free: FreeText) -> Iterator[Syntax]:
    for marks, reached in free.to.items():
        rests = (concat([literal(rest), bodies[place]]) for place, rest in rests_of(tags, marks))
        yield concat([reached, either(rests)])


def rests_of(tags: Tags, marks: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Once these triggers are complete: the tags that begin with one of them, and what is left of their begins."""
    seen = set()
    for mark in marks:
        for place, tag in enumerate(tags.tags):
            if tag.begin.startswith(mark) and (place, rest := tag.begin[len(mark) :]) not in seen:
                seen.add((place, rest))
                yield place, rest


def free_of(tags: Tags) -> FreeText:
    try:
        return free_text(tags.triggers)
    except ValueError as error:
        raise noun.bad("/tags", str(error)) from error


def tree_after(mark: str, inner: Syntax) -> Syntax:
    """Any text up to the first occurrence of the mark, blanks or none, and then the grammar."""
    return concat([first_mark(mark), repeat(WHITESPACE), inner])


def first_mark(mark: str) -> Syntax:
    try:
        return first_occurrence(mark)
    except ValueError as error:
        raise BadGrammar(kind="after", path="after=", reason=str(error)) from error


def inner_spec(spec: GrammarSpec, tag: Tag) -> GrammarSpec:
    """The spec of a tag's own grammar; how JSON is written is that of the whole."""
    return msgspec.structs.replace(
        spec.language, kind=tag.kind, text=tag.text, prefix="", after="", max_think_tokens=None
    )


def refuse_special(spec: GrammarSpec, vocab: TokenVocab) -> None:
    """`BadGrammar` for a mark that has a special token of the vocabulary in it.

    A model writes such a mark as that token, which is no text: no grammar may draw it, and the output would lack it.
    """
    marks = [spec.after] if spec.after else []
    if spec.kind == "tags":
        marks += [text for tag in noun.decode(spec.text).tags for text in (tag.begin, tag.end)]
    for mark in marks:
        name = next((name for name in vocab.names.values() if name and name in mark), None)
        if name is not None:
            raise BadGrammar(
                kind="after" if mark == spec.after else "tags",
                path=repr(mark),
                reason=f"{name!r} is a special token of this model, which is no text and so in no grammar",
                hint="Take marks of ordinary text.",
            )
