"""The graph of a run that has happened, from its branches: what `s.explain()` shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nbsgl.lang.branch import Branch, Item, Link, Scope, Slot
from nbsgl.lang.choices import token_length_normalized
from nbsgl.lang.ir import Expr, GenExpr, SelectExpr
from nbsgl.lang.program_graph import GraphNode, Op, Path, ProgramGraph
from nbsgl.protocol import Select

Place = tuple[Path, int]  # a sampled node: the path of its branch, and its number among those of the branch


@dataclass(frozen=True, slots=True)
class Measured:
    """What one sampled node came to: tokens found, computed and generated, and seconds from its sending to its end."""

    cached: int
    computed: int
    generated: int
    seconds: float | None


def run_graph(scope: Scope) -> ProgramGraph:
    """Constants are what was said, markup included; call with the executor's lock held."""
    root = scope.branches[0]
    children: dict[int, list[Branch]] = {}
    for branch in scope.branches[1:]:
        if branch.parent is not None:
            children.setdefault(branch.parent.number, []).append(branch)
    times = sorted({slot.sent_at for branch in scope.branches for slot in branch.slots() if slot.sent_at is not None})
    waves = {time: i for i, time in enumerate(times)}
    nodes = tuple(_grow(root, None, None, children, itertools.count(), waves))
    return ProgramGraph(scope.title, nodes, is_complete=True)


def _grow(
    branch: Branch,
    after: int | None,
    parent: int | None,
    children: dict[int, list[Branch]],
    ids: Iterator[int],
    waves: dict[float, int],
) -> Iterator[GraphNode]:
    op = Op.ROOT if parent is None else Op.FORK
    last = next(ids)
    yield GraphNode(last, op, branch.number, branch.scope.where, parent=parent, after=after, path=branch.path)
    first = branch.inherited if parent is not None else 0
    forks = children.get(branch.number, [])
    for i, item in enumerate([*branch.items[first:], None]):
        for child in (fork for fork in forks if fork.forked_at == i):
            yield from _grow(child, last, branch.number, children, ids, waves)
        if item is not None:
            last = next(ids)
            sent = item.sent_at if isinstance(item, Slot) else None
            yield replace(_node(last, branch, item), wave=None if sent is None else waves[sent])


def _node(number: int, branch: Branch, item: Item) -> GraphNode:
    if not isinstance(item, Slot):
        if isinstance(item, Link):  # a value that the engine put in: characters only
            return GraphNode(number, Op.CONST, branch.number, text=item.text, name="value")
        return GraphNode(number, Op.CONST, branch.number, text=item.text, is_raw=item.is_markup, name=item.role)
    if item.node.branch != branch.number:  # appended from a child, as it was
        return GraphNode(number, Op.REF, branch.number, item.where, name=item.name, uses=(item.number,))
    if isinstance(item.node, Select):
        chosen = item.node
        method = item.method or token_length_normalized
        expr: Expr = SelectExpr(chosen.name, chosen.choices, chosen.temperature, method, where=item.where)
        return GraphNode(number, Op.SELECT, branch.number, item.where, expr=expr, name=item.name)
    gen = GenExpr(item.name, {"max_tokens": item.node.params.max_tokens}, where=item.where)
    return GraphNode(number, Op.GEN, branch.number, item.where, expr=gen, name=item.name)


def measured(scope: Scope) -> dict[Place, Measured]:
    """By place, what is done; call with the executor's lock held."""
    found: dict[Place, Measured] = {}
    for branch in scope.branches:
        for i, slot in enumerate(branch.own_slots()):
            done = slot.results[0] if slot.results else slot.choice
            if done is not None:
                ended = None if slot.ended_at is None or slot.sent_at is None else slot.ended_at - slot.sent_at
                cached = sum(r.prefill_cached for r in slot.results) or done.prefill_cached
                computed = sum(r.prefill_computed for r in slot.results) or done.prefill_computed
                found[branch.path, i] = Measured(cached, computed, slot.num_tokens, ended)
    return found


def places(graph: ProgramGraph) -> dict[int, Place]:
    """The place of each sampled node of the program's own branches."""
    found: dict[int, Place] = {}
    own = {graph.nodes[0].branch}
    for nodes in graph.branches.values():
        if nodes[0].parent in own or nodes[0].branch in own:
            own.add(nodes[0].branch)
            sampled = (node for node in nodes if node.is_sampled and node.op is not Op.MEDIA)
            found |= {node.id: (nodes[0].path, i) for i, node in enumerate(sampled)}
    return found
