"""`ProgramGraph`: a program as data.  What `trace` records, the passes of `optimize` change and `compile` carries out.

The wire's nodes (`protocol.Node`) carry slots and resolved sampling parameters; before a run these are not known, so
a graph has nodes of its own, which hold the expressions as the program wrote them.

Edges are not stored but follow from the nodes: *next* from the node before on the same branch, *fork* from the parent's
node after which a branch was forked, *value* from the node that defines a variable to those that use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any

from nbsgl.lang.ir import Expr, GenExpr, SelectExpr

Path = tuple[int, ...]  # of a branch: which fork of its parent, and so on up to the root


class Op(Enum):
    ROOT = "root"  # an empty branch: the program's, or that of a program it calls
    FORK = "fork"  # a branch that starts as a copy of its parent
    JOIN = "join"  # children end; their variables, or with `appends` their texts, come to the parent
    CONST = "const"  # known text
    REF = "ref"  # the value of an argument or variable, appended
    GEN = "gen"
    SELECT = "select"
    MEDIA = "media"
    REWRITE = "rewrite"  # any other expression: the state that takes it knows what to do
    ROLE_BEGIN = "role_begin"
    ROLE_END = "role_end"
    SCOPE_BEGIN = "scope_begin"
    SCOPE_END = "scope_end"
    SET = "set"  # a name is given a value
    TEXT = "text"  # the branch's text so far becomes a value


SAMPLED = frozenset({Op.GEN, Op.SELECT, Op.MEDIA, Op.REWRITE})
MARKS = frozenset({Op.ROLE_BEGIN, Op.ROLE_END, Op.SCOPE_BEGIN, Op.SCOPE_END})


@dataclass(frozen=True, slots=True)
class Mark:
    """A role or scope that begins or ends at character `at` of a merged constant."""

    at: int
    node: GraphNode


@dataclass(frozen=True, slots=True)
class SubProgram:
    """What a root of its own is begun with: a program called by the traced one."""

    title: str
    defaults: Mapping[str, Any]
    seed: int | None
    backend: Any = None  # None: the default


@dataclass(frozen=True, slots=True)
class Shared:
    """A branch that is forked from a sibling after its gen, because its own gen would be the same (P7).

    `path` is kept: later seeds depend on it.  `renamed`: (the sibling's name, this branch's name).
    """

    gen: int
    renamed: tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One step of one branch.  Variables are numbers: a name may be bound more than once."""

    id: int
    op: Op
    branch: int
    where: str = ""
    text: str = ""  # of a CONST
    is_raw: bool = False
    marks: tuple[Mark, ...] = ()
    expr: Expr | None = None  # of what is sampled
    name: str | None = None  # of a role, scope, argument or variable
    value: Any = None  # SET: what the name is given; ROOT: a SubProgram; FORK: Shared
    defines: tuple[tuple[str | None, int], ...] = ()
    uses: tuple[int, ...] = ()
    parent: int | None = None  # of a FORK
    after: int | None = None  # the parent's node a FORK follows
    path: Path = ()
    children: tuple[int, ...] = ()  # of a JOIN
    appends: bool = False
    mode: tuple[str, str] = ("gather_variable", "raise")  # of a JOIN
    is_linked: bool = False  # of a REF: the engine puts the value in, nobody waits for it
    block: int | None = None  # the `movable` block it stands in
    wave: int | None = None  # which submission it goes out with

    @property
    def is_sampled(self) -> bool:
        return self.op in SAMPLED

    @property
    def is_argument(self) -> bool:
        return self.op is Op.REF and not self.uses

    def __str__(self) -> str:
        return f"%{self.id} {self.op.value} {self.label}".rstrip()

    @property
    def label(self) -> str:
        """The node's content in a few words."""
        match self.op:
            case Op.CONST:
                return _shown(self.text)
            case Op.REF:
                return f"argument {self.name}" if self.is_argument else f"value of {self.name!r}"
            case Op.FORK:
                return f"of branch {self.parent}"
            case Op.JOIN:
                return f"branches {', '.join(map(str, self.children))}"
            case Op.ROOT:
                return self.value.title if isinstance(self.value, SubProgram) else ""
            case Op.SELECT if isinstance(self.expr, SelectExpr):
                return f"{self.name!r} of {len(self.expr.choices)}"
            case Op.TEXT:
                return ""
        return "" if self.name is None else repr(self.name)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:24]}…{text[-15:]}")


@dataclass(frozen=True, slots=True)
class Demand:
    """A read of a variable in the body: in a plain run the graph is cut there."""

    where: str
    name: str
    var: int
    at: int  # nodes made before it


@dataclass(frozen=True, slots=True)
class Note:
    """What a pass did, or why it did nothing."""

    pass_name: str
    text: str


@dataclass(frozen=True)
class ProgramGraph:
    """Nodes in an order that respects all edges.  `known` are the arguments the body was run with."""

    title: str
    nodes: tuple[GraphNode, ...]
    arguments: tuple[str, ...] = ()  # unknown ones
    known: Mapping[str, Any] = field(default_factory=dict)
    ret_value: Any = None
    demands: tuple[Demand, ...] = ()
    is_complete: bool = True
    stopped_at: str | None = None
    outputs: tuple[str, ...] | None = None
    notes: tuple[Note, ...] = ()

    def with_note(self, pass_name: str, text: str) -> ProgramGraph:
        return replace(self, notes=(*self.notes, Note(pass_name, text)))

    @cached_property
    def by_id(self) -> dict[int, GraphNode]:
        return {node.id: node for node in self.nodes}

    @cached_property
    def branches(self) -> dict[int, list[GraphNode]]:
        """The nodes of each branch, in order; the first is its ROOT or FORK."""
        found: dict[int, list[GraphNode]] = {}
        for node in self.nodes:
            found.setdefault(node.branch, []).append(node)
        return found

    @cached_property
    def definers(self) -> dict[int, int]:
        """The node that defines each variable."""
        found = {}
        for node in self.nodes:
            for _, var in node.defines:
                found[var] = node.id
            for mark in node.marks:
                for _, var in mark.node.defines:
                    found[var] = node.id
        return found

    @cached_property
    def before(self) -> dict[int, int | None]:
        """The node before each on its branch (of a FORK: the parent's node it follows)."""
        found: dict[int, int | None] = {}
        for nodes in self.branches.values():
            last = nodes[0].after
            for node in nodes:
                found[node.id] = last
                last = node.id
        return found

    @cached_property
    def forked_after(self) -> frozenset[int]:
        """Nodes after which a branch was forked."""
        return frozenset(node.after for node in self.nodes if node.after is not None)

    @cached_property
    def joined_ends(self) -> dict[int, tuple[int, ...]]:
        """For each JOIN, the last node of each child before it (a joined branch can still be read)."""
        last: dict[int, int] = {}
        found = {}
        for node in self.nodes:
            last[node.branch] = node.id
            if node.op is Op.JOIN:
                found[node.id] = tuple(last[child] for child in node.children)
        return found

    def edges(self) -> list[tuple[int, int, str]]:
        """(from, to, "next" | "fork" | "value")."""
        found = []
        for node in self.nodes:
            last = self.before[node.id]
            if last is not None:
                found.append((last, node.id, "fork" if node.op is Op.FORK else "next"))
            sources = {self.definers[var] for var in node.uses if var in self.definers}
            if node.op is Op.JOIN:
                sources |= set(self.joined_ends[node.id])
            found += [(source, node.id, "value") for source in sorted(sources)]
        return found

    @cached_property
    def roots(self) -> dict[int, int]:
        """The branch each branch goes back to: that of the program, or of one that it calls."""
        found: dict[int, int] = {}
        for number, nodes in self.branches.items():
            parent = nodes[0].parent
            found[number] = number if parent is None else found[parent]
        return found

    def line(self, node: GraphNode) -> list[GraphNode]:
        """All nodes from the root of the node's branch down to it, itself included."""
        found = []
        at: int | None = node.id
        while at is not None:
            found.append(self.by_id[at])
            at = self.before[at]
        return found[::-1]

    @property
    def num_submissions_before(self) -> int:
        """What SGLang's frontend sends: one request per gen, k + 1 per select of k choices."""
        count = 0
        for node in self.nodes:
            if isinstance(node.expr, SelectExpr):
                count += len(node.expr.choices) + 1
            elif node.is_sampled:
                count += node.op in (Op.GEN, Op.REWRITE)
        return count

    @property
    def num_submissions(self) -> int:
        """What a compiled run of this graph sends: one per wave; without waves, one per sampled node."""
        waves = {node.wave for node in self.nodes}
        if None in waves:
            return max(1, sum(node.op in SAMPLED for node in self.nodes))
        return max(1, len(waves))


def is_greedy(expr: GenExpr) -> bool:
    """Whether the gen itself says so: a run's default may change from run to run."""
    temperature = expr.given.get("temperature")
    return temperature is not None and temperature < 1e-6
