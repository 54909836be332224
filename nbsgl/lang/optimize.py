"""The passes: pure functions from graph to graph, each with the condition under which it changes no greedy output.

What a pass has done stands in the graph's `notes`; `explain` prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from itertools import groupby
from typing import Any

from nbsgl.errors import ParameterError
from nbsgl.lang.ir import GenExpr
from nbsgl.lang.program_graph import MARKS, GraphNode, Mark, Op, ProgramGraph, Shared, is_greedy
from nbsgl.lang.symbols import symbols_in

Pass = Callable[[ProgramGraph], ProgramGraph]


def optimized(graph: ProgramGraph, passes: Any = "default") -> ProgramGraph:
    """The graph after the chosen passes: "default", "default+share", "none", or a list of names of `PASSES`."""
    for name in chosen(passes):
        graph = PASSES[name](graph)
    return graph


def chosen(passes: Any) -> tuple[str, ...]:
    """The names of the passes, in the order in which they are carried out."""
    named = {"default": DEFAULT, "default+share": (*DEFAULT, "share"), "none": ()}
    if isinstance(passes, str) and passes in named:
        wanted: Iterable[Any] = named[passes]
    elif isinstance(passes, (list, tuple, set, frozenset)) and all(name in PASSES for name in passes):
        wanted = passes
    else:
        raise ParameterError(
            name="passes", value=passes, allowed=f'"default", "default+share", "none", or a list of {list(PASSES)}'
        )
    return tuple(name for name in PASSES if name in wanted)


# ---- P3 --------------------------------------------------------------------------------------------------------------


def drop_dead(graph: ProgramGraph) -> ProgramGraph:
    """P3: drop what is sampled and nobody reads.

    Correct if outputs were declared, and the node is not among them, no reference or join uses it, and nothing live
    comes after it on its branch or on a fork of it: its tokens condition all that follows.
    """
    if graph.outputs is None:
        return graph.with_note("P3 dead variables", "not carried out: compile(outputs=[...]) declares what is read")
    live = _live(graph)
    dead = {node.id for node in graph.nodes if node.is_sampled and node.id not in live}
    said = f"dropped {_numbers(dead)}" if dead else "none is dead"
    return without(graph, dead).with_note("P3 dead variables", said)


def _live(graph: ProgramGraph) -> set[int]:
    """Nodes whose result is read, with all before them."""
    assert graph.outputs is not None
    used = {var for node in graph.nodes for var in node.uses}
    used |= {symbol.var for symbol in symbols_in(graph.ret_value) if symbol.var is not None}
    used |= {var for node in _with_marks(graph) for name, var in node.defines if name in graph.outputs}
    seeds = [graph.definers[var] for var in used if var in graph.definers]
    for node in graph.nodes:
        if node.op is Op.JOIN and node.appends:
            seeds += graph.joined_ends[node.id]
        if node.op is Op.ROOT and node.value is None and "text()" in graph.outputs:
            seeds.append(graph.branches[node.branch][-1].id)
    live: set[int] = set()
    while seeds:
        at: int | None = seeds.pop()
        while at is not None and at not in live:
            live.add(at)
            at = graph.before[at]
    return live


def _with_marks(graph: ProgramGraph) -> Iterable[GraphNode]:
    for node in graph.nodes:
        yield node
        yield from (mark.node for mark in node.marks)


def without(graph: ProgramGraph, gone: set[int]) -> ProgramGraph:
    """The graph without these nodes; forks after them begin after what is left before."""

    def left(at: int | None) -> int | None:
        while at is not None and at in gone:
            at = graph.before[at]
        return at

    kept = (node for node in graph.nodes if node.id not in gone)
    return replace(graph, nodes=tuple(replace(n, after=left(n.after)) if n.after is not None else n for n in kept))


# ---- P7 --------------------------------------------------------------------------------------------------------------

_PLAIN = frozenset({Op.CONST, Op.REF, Op.ROLE_BEGIN, Op.ROLE_END})


def share_requests(graph: ProgramGraph) -> ProgramGraph:
    """P7: of siblings that ask the same after the same text, one asks and the others are forked from it.

    Correct if both gens have the same history and parameters (so neither asks for other log-probabilities), and are
    greedy by themselves or have the same explicit seed.  Children of an appending join are left alone: their own text
    is what is appended.
    """
    appended = {child for node in graph.nodes if node.op is Op.JOIN and node.appends for child in node.children}
    groups: dict[Any, tuple[int, GraphNode]] = {}
    shared: list[str] = []
    for number, nodes in list(graph.branches.items()):
        head = _asking_head(graph, nodes)
        if head is None:
            continue
        gen = head[-1]
        key = (nodes[0].parent, nodes[0].after, tuple(_content(node) for node in head))
        if key not in groups:
            groups[key] = number, gen
        elif number not in appended:
            graph = _forked_from(graph, groups[key][1], nodes[0], head)
            shared.append(f"%{gen.id} takes the result of %{groups[key][1].id}")
    return graph.with_note("P7 same request once", "; ".join(shared) or "no two gens ask the same")


def _asking_head(graph: ProgramGraph, nodes: Sequence[GraphNode]) -> list[GraphNode] | None:
    """The branch's first nodes up to its first gen, if they can be another branch's too."""
    if nodes[0].op is not Op.FORK or nodes[0].value is not None:
        return None
    head: list[GraphNode] = []
    for node in nodes[1:]:
        head.append(node)
        if node.op is Op.GEN and isinstance(node.expr, GenExpr):
            same_again = is_greedy(node.expr) or node.expr.given.get("seed") is not None
            return head if same_again else None
        if node.op not in _PLAIN or node.id in graph.forked_after or nodes[0].id in graph.forked_after:
            return None
    return None


def _content(node: GraphNode) -> Any:
    """What the node adds to its branch, without line and name; equal for equal text and parameters."""
    if node.expr is not None:
        asked = [f.name for f in fields(node.expr) if f.name not in ("name", "where", "watch")]  # type: ignore[arg-type]
        return node.op, repr([(name, getattr(node.expr, name)) for name in sorted(asked)])
    name = node.name if node.op is not Op.REF or node.is_argument else None
    return node.op, node.text, node.is_raw, name, node.uses


def _forked_from(graph: ProgramGraph, gen: GraphNode, fork: GraphNode, head: list[GraphNode]) -> ProgramGraph:
    """The branch of `head` begins as a fork of the other's branch, right after its gen."""
    mine = head[-1]
    value = Shared(gen.id, (gen.name, mine.name))
    begun = replace(fork, parent=gen.branch, after=gen.id, value=value, defines=mine.defines)
    gone = {fork.id, *(node.id for node in head)}
    nodes: list[GraphNode] = []
    for node in graph.nodes:
        if node.id not in gone:
            nodes.append(replace(node, after=fork.id) if node.after == mine.id else node)
        if node.id == gen.id:
            nodes.append(begun)
    return replace(graph, nodes=tuple(nodes))


# ---- P6 --------------------------------------------------------------------------------------------------------------


def move_constants(graph: ProgramGraph) -> ProgramGraph:
    """P6: within neighbouring `movable` blocks, those that are the same in every call go first.

    This changes the prompt, so only where the program allows it.  A block with anything but text and references in it,
    or after which a branch is forked, stays and lets none past.
    """
    order: dict[int, GraphNode] = {}
    said: list[str] = []
    for nodes in graph.branches.values():
        for blocks in _neighbours(graph, nodes):
            moved = sorted(blocks, key=lambda block: any(node.op is Op.REF for node in block))
            if moved != blocks:
                said.append(f"branch {nodes[0].branch}: {_listed(blocks)} became {_listed(moved)}")
            old, new = ([node for block in some for node in block] for some in (blocks, moved))
            order |= {place.id: node for place, node in zip(old, new, strict=True)}
    done = replace(graph, nodes=tuple(order.get(node.id, node) for node in graph.nodes))
    return done.with_note("P6 reorder constants", "; ".join(said) or "nothing to move: only movable() blocks are moved")


def _neighbours(graph: ProgramGraph, nodes: Sequence[GraphNode]) -> Iterable[list[list[GraphNode]]]:
    run: list[list[GraphNode]] = []
    for block, members in groupby(nodes, key=lambda node: node.block):
        inside = list(members)
        is_text = all(node.op in (Op.CONST, Op.REF) and node.id not in graph.forked_after for node in inside)
        if block is not None and is_text:
            run.append(inside)
            continue
        yield run
        run = []
    yield run


def _listed(blocks: list[list[GraphNode]]) -> str:
    return " ".join("".join(f"%{node.id}" for node in block) for block in blocks)


# ---- P1 --------------------------------------------------------------------------------------------------------------


def merge_constants(graph: ProgramGraph) -> ProgramGraph:
    """P1: neighbouring constants of a branch become one; roles and scopes between them become offsets in it.

    Correct if no fork, reference or sampled node stands between: a forced run is encoded as one string anyway.
    """
    merged: dict[int, GraphNode | None] = {}
    for nodes in graph.branches.values():
        for run in _constant_runs(graph, nodes):
            if len(run) > 1 and any(node.op is Op.CONST for node in run):
                merged |= dict.fromkeys((node.id for node in run), None)
                merged[run[0].id] = _as_one(run)
    left = tuple(found for node in graph.nodes if (found := merged.get(node.id, node)) is not None)
    fewer = len(graph.nodes) - len(left)
    said = f"{fewer} nodes fewer" if fewer else "nothing to merge"
    return replace(graph, nodes=left).with_note("P1 merge constants", said)


def _constant_runs(graph: ProgramGraph, nodes: Sequence[GraphNode]) -> Iterable[list[GraphNode]]:
    run: list[GraphNode] = []
    for node in nodes:
        raws = {other.is_raw for other in run if other.op is Op.CONST}
        fits = node.op in MARKS or (node.op is Op.CONST and raws <= {node.is_raw})
        if not fits or (run and run[-1].id in graph.forked_after):
            yield run
            run = []
        if fits or node.op is Op.CONST:
            run.append(node)
    yield run


def _as_one(run: list[GraphNode]) -> GraphNode:
    """It stands where the first stood and has the last one's id, after which others may be forked."""
    text, marks = "", []
    for node in run:
        if node.op is Op.CONST:
            marks += [Mark(len(text) + mark.at, mark.node) for mark in node.marks]
            text += node.text
        else:
            marks.append(Mark(len(text), node))
    first = next(node for node in run if node.op is Op.CONST)
    return replace(first, id=run[-1].id, text=text, marks=tuple(marks))


# ---- P2 --------------------------------------------------------------------------------------------------------------


def share_prefixes(graph: ProgramGraph) -> ProgramGraph:
    """P2: say what is computed once for several users.

    The engine's scheduler does it by itself (the first of a group computes the common part); there is no edge to add,
    because one that is aborted must strand nobody.
    """
    said = []
    head = constant_head(graph)
    length = sum(len(node.text) for node in head)
    if length:
        said.append(f"{length:,} characters are the same in every call")
    users: dict[int, int] = {}
    for node in graph.nodes:
        if node.op is Op.FORK and node.after is not None:
            users[node.after] = users.get(node.after, 0) + 1
    said += [f"all up to %{at} is the same for {count} branches" for at, count in users.items() if count > 1]
    return graph.with_note("P2 shared prefix first", "; ".join(said) or "no prefix is shared within one call")


def constant_head(graph: ProgramGraph) -> list[GraphNode]:
    """The program's first nodes that are the same in every call: constants and roles."""
    found: list[GraphNode] = []
    for node in graph.branches[graph.nodes[0].branch][1:]:
        if node.op is not Op.CONST and node.op not in (Op.ROLE_BEGIN, Op.ROLE_END, Op.SCOPE_BEGIN, Op.SCOPE_END):
            break
        found.append(node)
    return found


# ---- value references ------------------------------------------------------------------------------------------------


def refer(graph: ProgramGraph) -> ProgramGraph:
    """Let the engine put values in where they are only appended, as `s.ref` does.

    Correct within one run, for values that are texts.  The text counts as characters, also outside of roles: a special
    token that a model spells out stays text.  If the value fails, what refers to it fails, and the body goes on.
    """
    linked = {node.id for node in graph.nodes if node.op is Op.REF and node.uses and _is_own_text(graph, node)}
    nodes = tuple(replace(node, is_linked=True) if node.id in linked else node for node in graph.nodes)
    said = f"{_numbers(linked)} need not come back" if linked else "no value is appended"
    return replace(graph, nodes=nodes).with_note("value references", said)


def _is_own_text(graph: ProgramGraph, node: GraphNode) -> bool:
    """Whether the value is one text of the node's own run."""
    source = graph.by_id[graph.definers[node.uses[0]]]
    several = isinstance(source.expr, GenExpr) and source.expr.given.get("n", 1) > 1
    listed = getattr(source.expr, "list_append", False)
    return not several and not listed and graph.roots[source.branch] == graph.roots[node.branch]


def _numbers(ids: Iterable[int]) -> str:
    return ", ".join(f"%{i}" for i in sorted(ids))


# ---- P4, P5 ----------------------------------------------------------------------------------------------------------


def batch_independent(graph: ProgramGraph) -> ProgramGraph:
    """P4: what has no path from one to the other goes out in one submission.

    Always correct: seeds and texts of a branch do not depend on when it is sent.
    """
    return _in_waves(graph, rides=False).with_note("P4 batch independent gens", _counted(graph, rides=False))


def ride_along(graph: ProgramGraph) -> ProgramGraph:
    """P5: what follows a gen on its branch goes out with it, as the engine's next segment.

    Always correct: a new submission is needed only where a value has to come back first.
    """
    return _in_waves(graph, rides=True).with_note("P5 join constants into a wave", _counted(graph, rides=True))


def _counted(graph: ProgramGraph, *, rides: bool) -> str:
    count = _in_waves(graph, rides=rides).num_submissions
    return f"{count} submission{'s' if count != 1 else ''}"


def _in_waves(graph: ProgramGraph, *, rides: bool) -> ProgramGraph:
    """Each node goes out as early as what it follows and the values it needs allow."""
    wave: dict[int, int] = {}
    latest: dict[int, int] = {}  # of what a branch does or is forked into: a join ends it
    for node in graph.nodes:
        before = graph.before[node.id]
        at = 0 if before is None else wave[before] + (not rides and graph.by_id[before].is_sampled)
        if node.op is Op.JOIN:
            at = max([at, *(latest[child] for child in node.children)])
        else:
            waits = not (node.is_linked and rides)
            at = max([at, *(wave[graph.definers[var]] + waits for var in node.uses)])
        wave[node.id] = at
        for branch in (node.branch, node.parent):
            if branch is not None:
                latest[branch] = max(at, latest.get(branch, 0))
    number = {at: i for i, at in enumerate(sorted(set(wave.values())))}
    return replace(graph, nodes=tuple(replace(node, wave=number[wave[node.id]]) for node in graph.nodes))


PASSES: dict[str, Pass] = {
    "dead": drop_dead,
    "share": share_requests,
    "move": move_constants,
    "merge": merge_constants,
    "prefix": share_prefixes,
    "refer": refer,
    "batch": batch_independent,
    "ride": ride_along,
}
DEFAULT = ("dead", "move", "merge", "prefix", "refer", "batch", "ride")
