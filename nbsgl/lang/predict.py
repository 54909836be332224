"""What a graph's prompts would cost: the tokens of each forced run, and how many the cache holds or siblings share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nbsgl.errors import NbsglError
from nbsgl.lang.ir import SelectExpr
from nbsgl.lang.program_graph import GraphNode, Op, ProgramGraph
from nbsgl.protocol import CacheProbe, ModelInfo, Prompt, unpack_ids

if TYPE_CHECKING:
    from nbsgl.protocol import Backend

Pieces = tuple[tuple[str, bool], ...]
History = int | None  # the last sampled node before a run; None: it begins its sequence


@dataclass(frozen=True, slots=True)
class Line:
    """Where a branch stands: its open run (None: it holds a value that is not known yet) and what came before."""

    run: Pieces | None = ()
    history: History = None
    role: str | None = None
    had_message: bool = False

    def add(self, text: str, is_special: bool) -> Line:
        return self if self.run is None or not text else replace(self, run=(*self.run, (text, is_special)))


@dataclass(frozen=True, slots=True)
class ForcedRun:
    """The text before a sampled node.  `texts` are what is encoded: one, or one per choice of a select."""

    node: int
    history: History
    texts: tuple[Pieces, ...] | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """Prefill tokens a run is expected to compute and to find; `unknown` counts runs that need a value first.

    A gen that ends by its limit leaves its last token to be computed with the next run: one more for each.

    `tokens`: those of each forced run, by the sampled node it ends in (of a select, without its choices).
    """

    cached: int = 0
    computed: int = 0
    unknown: int = 0
    tokens: dict[int, int] = field(default_factory=dict)


def predict(
    graph: ProgramGraph, backend: Backend | None, arguments: Mapping[str, Any], *, with_cache: bool = True
) -> Prediction | str:
    """Ask the backend's tokenizer and tree; a sentence that says why not, where it cannot tell.

    Without `with_cache` as if the cache were empty.
    """
    if backend is None:
        return "unknown: no engine is running (start one, or pass backend=...)"
    if not isinstance(backend, CacheProbe):
        return "unknown: this backend does not show its tokenizer and cache"
    try:
        runs = forced_runs(graph, backend.info, arguments)
        wanted = [(run, text) for run in runs for text in run.texts or ()]
        peeks = backend.peek([Prompt(pieces=list(text), is_first=run.history is None) for run, text in wanted])
    except NbsglError as error:
        return f"unknown: {error}"
    found = [(run, unpack_ids(p.ids), p.cached if with_cache else 0) for (run, _), p in zip(wanted, peeks, strict=True)]
    return _counted(runs, found)


def _counted(runs: list[ForcedRun], found: list[tuple[ForcedRun, list[int], int]]) -> Prediction:
    seen: dict[History, list[list[int]]] = {}
    heads = _lengths(found)
    cached = computed = 0
    for run, ids, in_tree in found:
        before = seen.setdefault(run.history, [])
        known = max([in_tree, *(_common(ids, other) for other in before)])
        known = min(known, max(0, heads[run.node] - 1))  # the last one is computed, for what follows it
        before.append(ids)
        computed += len(ids) - known
        cached += known
    unknown = sum(run.texts is None for run in runs)
    return Prediction(cached, computed, unknown, heads)


def _lengths(found: list[tuple[ForcedRun, list[int], int]]) -> dict[int, int]:
    """The tokens of each node's run; of a select, those that all its choices begin with."""
    shared: dict[int, list[int]] = {}
    for run, ids, _ in found:
        mine = shared.get(run.node)
        shared[run.node] = ids if mine is None else ids[: _common(ids, mine)]
    return {node: len(ids) for node, ids in shared.items()}


def _common(one: list[int], other: list[int]) -> int:
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


# ---- the runs of a graph ---------------------------------------------------------------------------------------------


def forced_runs(graph: ProgramGraph, info: ModelInfo, arguments: Mapping[str, Any]) -> list[ForcedRun]:
    """The text before each gen and select, as far as it is known before the program runs."""
    lines: dict[int, Line] = {}
    found: list[ForcedRun] = []
    for node in graph.nodes:
        if node.op is Op.ROOT:
            lines[node.branch] = Line()
        elif node.op is Op.FORK:
            assert node.parent is not None
            lines[node.branch] = lines[node.parent]
        elif node.is_sampled:
            lines[node.branch] = _sample(node, lines[node.branch], found)
        else:
            lines[node.branch] = _grown(node, lines[node.branch], info, arguments)
    return found


def _sample(node: GraphNode, line: Line, found: list[ForcedRun]) -> Line:
    if isinstance(node.expr, SelectExpr):
        texts = None if line.run is None else tuple((*line.run, (text, False)) for text in node.expr.choices)
        found.append(ForcedRun(node.id, line.history, texts))
        return replace(line, run=None)  # the winner is part of the run
    found.append(ForcedRun(node.id, line.history, None if line.run is None else (line.run,)))
    return replace(line, run=(), history=node.id)


def _grown(node: GraphNode, line: Line, info: ModelInfo, arguments: Mapping[str, Any]) -> Line:
    if node.op is Op.CONST:
        done = 0
        for mark in node.marks:
            line = _text(node, node.text[done : mark.at], line)
            line = _role(mark.node, line, info)
            done = mark.at
        return _text(node, node.text[done:], line)
    if node.op is Op.REF:
        value = arguments.get(str(node.name)) if node.is_argument else None
        return _text(node, value, line) if isinstance(value, str) else replace(line, run=None)
    if node.op is Op.JOIN and node.appends:
        return replace(line, run=None)
    return _role(node, line, info)


def _text(node: GraphNode, text: str, line: Line) -> Line:
    return line.add(text, node.is_raw or (line.role is None and node.name is None))


def _role(node: GraphNode, line: Line, info: ModelInfo) -> Line:
    name = str(node.name)
    if node.op is Op.ROLE_BEGIN and name in info.roles:
        if not line.had_message and name != "system" and info.default_system and "system" in info.roles:
            system = info.roles["system"]
            line = line.add(system.prefix, True).add(info.default_system, False).add(system.suffix, True)
        return replace(line.add(info.roles[name].prefix, True), role=name, had_message=True)
    if node.op is Op.ROLE_END and name in info.roles:
        return replace(line.add(info.roles[name].suffix, True), role=None)
    return line
