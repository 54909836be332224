"""A spec's tree and graph for looking at: no vocabulary, no engine."""

from __future__ import annotations

from nbsgl.engine.grammar import dfa
from nbsgl.engine.grammar.syntax import NotRegular, Syntax
from nbsgl.engine.grammar.view import Graph


def graph_of(tree: Syntax, max_states: int) -> Graph | NotRegular:
    """The compressed automaton, or that it would be too large."""
    try:
        return Graph(dfa.build(tree, max_states))
    except dfa.TooManyStates as error:
        return NotRegular(f"its automaton has more than {error.limit:,} states")
