"""A spec's tree and graph for looking at: no vocabulary, no engine."""

from __future__ import annotations

import json

from nbsgl.engine.grammar import dfa, ebnf, json_syntax, regex, tags
from nbsgl.engine.grammar.syntax import NotRegular, Syntax, concat, either, literal
from nbsgl.engine.grammar.view import Graph
from nbsgl.protocol import GrammarSpec


def tree_of(spec: GrammarSpec) -> Syntax | NotRegular:
    """The spec's language as a tree, or why it has none; `BadGrammar` for what is no grammar."""
    tree = _of_kind(spec)
    if isinstance(tree, NotRegular):
        return tree
    if spec.prefix:
        tree = concat([literal(spec.prefix), tree])
    return tags.tree_after(spec.after, tree) if spec.after else tree


def _of_kind(spec: GrammarSpec) -> Syntax | NotRegular:
    if spec.kind == "regex":
        return regex.parse(spec.text)
    if spec.kind == "choices":
        return either(literal(text) for text in json.loads(spec.text))
    if spec.kind == "ebnf":
        return ebnf.tree_of_ebnf(spec.text)
    if spec.kind == "json_schema":
        try:
            return json_syntax.of_schema(spec.text, whitespace=spec.whitespace, on_unsupported=spec.on_unsupported).tree
        except json_syntax.NotRegular as error:
            return NotRegular(str(error))
    if spec.kind == "tags":
        return tags.tree_of_tags(spec, tree_of)
    return NotRegular(f"{spec.kind} grammars are read by a host engine")


def graph_of(tree: Syntax, max_states: int) -> Graph | NotRegular:
    """The compressed automaton, or that it would be too large."""
    try:
        return Graph(dfa.build(tree, max_states))
    except dfa.TooManyStates as error:
        return NotRegular(f"its automaton has more than {error.limit:,} states")
