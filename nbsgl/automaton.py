"""A grammar's automaton and a text's place in it, as data: what views draw, meta info tells and a notebook can save."""

from __future__ import annotations

import msgspec

MAX_NODES = 200


class AutomatonNode(msgspec.Struct, frozen=True, omit_defaults=True):
    """One state of the automaton.  `hidden`: how many of its edges lead to nodes that are not shown.

    `times` states that look alike for their next three steps are drawn as one: those of a count, `.{1,20}`.
    """

    id: int
    start: bool = False
    accepting: bool = False
    hidden: int = 0
    times: int = 1


class AutomatonEdge(msgspec.Struct, frozen=True, omit_defaults=True):
    r"""What leads from one node to another: a class of characters as a regex (`[0-9]{4}`), or a literal text.

    A literal's states in between are no nodes; nor, in a large automaton, are those of an escape (`\…`).  `forced`:
    nothing else can follow `source`.
    """

    id: int
    source: int
    target: int
    label: str
    literal: bool = False
    forced: bool = False


class Automaton(msgspec.Struct, frozen=True):
    """A compressed automaton; with more than `MAX_NODES` nodes, those nearest to what the view is about.

    `states` counts those of the byte automaton behind it, the dead one left out.  No nodes: the grammar has none
    (a host engine makes its states as it meets them).
    """

    nodes: list[AutomatonNode] = []
    edges: list[AutomatonEdge] = []
    hidden_nodes: int = 0
    states: int = 0


class Allowed(msgspec.Struct, frozen=True):
    """The tokens allowed next: how many of the vocabulary, and up to ten as (text, id, probability or None)."""

    count: int
    of: int
    top: list[tuple[str, int, float | None]] = []


class Place(msgspec.Struct, frozen=True):
    """Where a text stands in an automaton.

    At `node`, or (`edge` >= 0) `inside` bytes behind it on that edge.  `path`: edges in order with how often each was
    taken in a row.  `forced`: the stretches of the text, in characters, that the language left no choice about.
    `matched` characters were taken: fewer than the text has if the language does not begin with it.  `expected`: texts
    that may follow, where there is no automaton.
    """

    node: int = -1
    edge: int = -1
    inside: int = 0
    accepting: bool = False
    matched: int = 0
    path: list[tuple[int, int]] = []
    forced: list[tuple[int, int]] = []
    allowed: Allowed | None = None
    expected: list[str] = []


class GrammarPicture(msgspec.Struct, frozen=True):
    """A grammar, its automaton, and how far a text has come in it.  JSON-ready, so it can be saved."""

    kind: str
    text: str
    automaton: Automaton
    place: Place = Place()
    output: str = ""
    note: str = ""
