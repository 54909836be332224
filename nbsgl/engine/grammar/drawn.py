"""A spec's tree and graph for looking at: no vocabulary, no engine."""

from __future__ import annotations

import json

from nbsgl.engine.grammar import dfa, regex
from nbsgl.engine.grammar.syntax import Syntax, concat, either, literal
from nbsgl.engine.grammar.view import Graph
from nbsgl.protocol import GrammarSpec


class NotRegular(Exception):
    """There is no automaton to draw; the message says why."""


def tree_of(spec: GrammarSpec) -> Syntax:
    """The spec's language as a tree; `NotRegular`, or `BadGrammar` for what is no language."""
    if spec.kind == "regex":
        tree = regex.parse(spec.text)
    elif spec.kind == "choices":
        tree = either(literal(text) for text in json.loads(spec.text))
    else:
        raise NotRegular(f"{spec.kind} grammars are read by a host engine")
    return concat([literal(spec.prefix), tree]) if spec.prefix else tree


def graph_of(tree: Syntax, max_states: int) -> Graph:
    """The compressed automaton; `NotRegular` where it would be too large."""
    try:
        return Graph(dfa.build(tree, max_states))
    except dfa.TooManyStates as error:
        raise NotRegular(f"its automaton has more than {error.limit:,} states") from None
