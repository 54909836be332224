"""`explain`: a program's graph in words and as a drawing, with what a run is expected to send and to compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nbsgl.lang.default import default
from nbsgl.lang.ir import GenExpr, SelectExpr
from nbsgl.lang.optimize import merge_constants, optimized
from nbsgl.lang.predict import Prediction, predict
from nbsgl.lang.program_graph import GraphNode, Op, ProgramGraph, SubProgram
from nbsgl.lang.run_graph import Measured, measured, places, run_graph

if TYPE_CHECKING:
    from nbsgl.lang.compiled import CompiledProgram
    from nbsgl.lang.program import SglFunction
    from nbsgl.lang.state import ProgramState
    from nbsgl.protocol import Backend

MAX_SHOWN = 400  # nodes in words


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns: `str()` is its text, a notebook draws it.

    `graph` is what is shown; submissions: `before` is what SGLang's frontend sends, `plain` what a run of the program
    as written sends, `after` what a compiled run sends, each None where it is not known before a run.  `prediction` is
    a sentence where there is none; `measured` has one entry per sampled node of a run that has happened.
    """

    graph: ProgramGraph
    prediction: Prediction | str
    before: int
    plain: int | None = None
    after: int | None = None
    sent: int | None = None
    measured: Mapping[int, Measured] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    is_over: bool = False

    def facts(self) -> list[str]:
        """The explanation's lines but for its nodes."""
        return [*self._submissions(), *self._prefill(), *self._passes(), *self._demands(), *self.warnings]

    def _submissions(self) -> list[str]:
        told = [f"{self.before} by SGLang's frontend (one per gen, k + 1 per select of k choices)"]
        if self.plain is not None:
            told.append(f"{self.plain} as written")
        if self.after is not None:
            told.append(f"{self.after} compiled")
        if self.sent is not None:
            told.append(f"{self.sent} measured")
        return [f"submissions: {', '.join(told)}"]

    def _prefill(self) -> list[str]:
        if isinstance(self.prediction, str):
            lines = [f"prefill expected: {self.prediction}"]
        else:
            more = f"; {self.prediction.unknown} prompts need a value first" if self.prediction.unknown else ""
            state = ", from an empty cache" if self.is_over else ""
            said = f"{self.prediction.cached:,} tokens cached, {self.prediction.computed:,} computed"
            lines = [f"prefill expected{state}: {said}{more}"]
        if self.measured:
            cached = sum(each.cached for each in self.measured.values())
            computed = sum(each.computed for each in self.measured.values())
            generated = sum(each.generated for each in self.measured.values())
            lines.append(f"measured: {cached:,} tokens cached, {computed:,} computed, {generated:,} generated")
        return lines

    def _passes(self) -> list[str]:
        return [f"{note.pass_name}: {note.text}" for note in self.graph.notes]

    def _demands(self) -> list[str]:
        lines = [
            f"{demand.where}: reading {demand.name!r} cuts the graph; where it is only appended, "
            f"s.ref({demand.name!r}) or compile() leaves it to the engine"
            for demand in {(demand.where, demand.name): demand for demand in self.graph.demands}.values()
            if demand.where != self.graph.stopped_at
        ]
        if self.graph.stopped_at is not None:
            lines.append(f"{self.graph.stopped_at}: the rest depends on a value; what follows is known in a run only")
        return lines

    def head(self) -> str:
        count = len(self.graph.nodes)
        sampled = sum(node.is_sampled for node in self.graph.nodes)
        unknown = f"({', '.join(self.graph.arguments)})" if self.graph.arguments else ""
        return f"{self.graph.title}{unknown}: {count} nodes, {sampled} sampled, {len(self.graph.branches)} branches"

    def columns(self) -> tuple[str, ...]:
        return (*COLUMNS, *(MEASURED if self.measured else ()))

    def rows(self) -> list[tuple[str, ...]]:
        """One row of text per node, under `columns`."""
        sources: dict[int, list[str]] = {}
        for source, target, kind in self.graph.edges():
            sources.setdefault(target, []).append(f"%{source}" if kind == "next" else f"{kind} %{source}")
        return [self._row(node, ", ".join(sources.get(node.id, ()))) for node in self.graph.nodes]

    def _row(self, node: GraphNode, after: str) -> tuple[str, ...]:
        wave = "" if node.wave is None else str(node.wave + 1)
        row = (
            f"%{node.id}",
            node.op.value,
            str(node.branch),
            wave,
            after,
            self._tokens(node),
            node.where,
            source(node),
        )
        if not self.measured:
            return row
        found = self.measured.get(node.id)
        if found is None:
            return (*row, "", "", "", "")
        seconds = "" if found.seconds is None else f"{found.seconds:.3f}"
        return (*row, f"{found.cached:,}", f"{found.computed:,}", f"{found.generated:,}", seconds)

    def _tokens(self, node: GraphNode) -> str:
        """Of a sampled node: its forced run's, and the most it draws."""
        if not node.is_sampled:
            return ""
        known = self.prediction.tokens.get(node.id) if isinstance(self.prediction, Prediction) else None
        prompt = "?" if known is None else f"{known:,}"
        if isinstance(node.expr, GenExpr):
            most = node.expr.given.get("max_tokens")
            return f"{prompt} + ≤{most}" if most is not None else f"{prompt} + gen"
        return prompt

    def table(self) -> str:
        """The nodes as lines of text."""
        table = [self.columns(), *self.rows()[:MAX_SHOWN]]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        left = len(self.graph.nodes) - MAX_SHOWN
        if left > 0:
            lines.append(f"… {left:,} more nodes (in .graph.nodes)")
        return "\n".join(lines)

    def __str__(self) -> str:
        return "\n".join([self.head(), self.table(), *self.facts()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from nbsgl.lang.explain_html import html

        return html(self)


COLUMNS = ("node", "op", "branch", "wave", "after", "tokens", "line", "source")
MEASURED = ("cached", "computed", "generated", "seconds")


def source(node: GraphNode) -> str:
    """What stands in the program, in a few words; of a merged constant, its roles too."""
    marks = " ".join(f"{mark.node.op.value} {mark.node.name}" for mark in node.marks)
    if isinstance(node.expr, SelectExpr):
        return f"select({node.name!r}) of {', '.join(map(repr, node.expr.choices[:4]))}"
    if node.is_sampled:
        return f"gen({node.name!r})"
    return f"{node.label} ({marks})" if marks else node.label


# ---- making one ------------------------------------------------------------------------------------------------------


def explain_program(program: SglFunction, backend: Any, known: Mapping[str, Any], analyze: bool) -> Explanation:
    """See `SglFunction.explain`."""
    found = default.resolve(backend) if analyze or backend is not None else default.get()
    trace = program.trace(strict=False, backend=backend, **known)
    shown = explain_graph(trace.graph, found)
    return _analyzed(program, shown, found, known) if analyze else shown


def explain_compiled(program: CompiledProgram, backend: Any, known: Mapping[str, Any], analyze: bool) -> Explanation:
    """Of the graph that runs."""
    found = default.resolve(backend) if analyze or backend is not None else default.get()
    shown = explain_graph(program.graph, found, known, is_final=True)
    return _analyzed(program, shown, found, known) if analyze else shown


def explain_graph(
    graph: ProgramGraph, backend: Backend | None, arguments: Mapping[str, Any] | None = None, *, is_final: bool = False
) -> Explanation:
    """Of a graph as traced (it is optimised here), or, `is_final`, as a compiled program has it."""
    after = graph if is_final else optimized(graph)
    return Explanation(
        graph=after,
        prediction=predict(after, backend, arguments or {}),
        before=graph.num_submissions_before,
        plain=None if is_final else _as_written(graph),
        after=after.num_submissions if graph.is_complete else None,
        warnings=(*_ignored(graph), *_movable(graph)),
    )


def explain_state(state: ProgramState) -> Explanation:
    """Of what has happened so far, against an empty cache."""
    executor, scope = state.executor, state.branch.scope
    with executor.lock:
        graph = run_graph(scope)
        done = measured(scope)
    where = places(graph)
    return Explanation(
        graph=replace(merge_constants(graph), notes=()),
        prediction=predict(graph, executor.backend, {}, with_cache=False),
        before=graph.num_submissions_before,
        sent=executor.num_submissions,
        measured={node: done[place] for node, place in where.items() if place in done},
        warnings=_ignored(graph),
        is_over=True,
    )


def _analyzed(program: SglFunction, shown: Explanation, backend: Any, known: Mapping[str, Any]) -> Explanation:
    """Run it and put what it took beside; of a program that cannot be traced to its end, what the run did is shown."""
    (state,) = program.run_batch([dict(known)], backend=backend)
    branches = state.branch.scope.branches
    state.executor.wait(lambda: all(branch.error is not None or branch.is_done for branch in branches))
    done = explain_state(state)
    if not shown.graph.is_complete:
        seen = shown.graph
        graph = replace(
            done.graph, notes=seen.notes, demands=seen.demands, is_complete=False, stopped_at=seen.stopped_at
        )
        expected: Prediction | str = shown.prediction
        if isinstance(expected, Prediction) and isinstance(done.prediction, Prediction):
            expected = replace(expected, tokens=done.prediction.tokens)
        return replace(done, graph=graph, prediction=expected, is_over=False)
    with state.executor.lock:
        found = measured(state.branch.scope)
    mine = {node: found[place] for node, place in places(shown.graph).items() if place in found}
    return replace(shown, measured=mine, sent=done.sent)


def _as_written(graph: ProgramGraph) -> int | None:
    """How often a plain run sends: at each demand with something queued, and at the end."""
    is_one_run = not any(isinstance(node.value, SubProgram) for node in graph.nodes)
    if not graph.is_complete or not is_one_run:
        return None
    cuts = [0, *sorted({demand.at for demand in graph.demands}), len(graph.nodes)]
    return sum(_sends(graph.nodes[start:end]) for start, end in zip(cuts, cuts[1:], strict=False))


def _sends(nodes: Sequence[GraphNode]) -> bool:
    return any(node.op not in (Op.SET, Op.TEXT, Op.SCOPE_BEGIN, Op.SCOPE_END) for node in nodes)


def _ignored(graph: ProgramGraph) -> tuple[str, ...]:
    return tuple(
        f"{node.where}: {', '.join(node.expr.ignored)} mean(s) nothing to a select"
        for node in graph.nodes
        if isinstance(node.expr, SelectExpr) and node.expr.ignored
    )


def _movable(graph: ProgramGraph) -> tuple[str, ...]:
    """Constants behind an argument, with nothing sampled between: in front of it they would be shared by all calls."""
    said: list[str] = []
    for nodes in graph.branches.values():
        after: GraphNode | None = None
        length = 0
        for node in [*nodes, None]:
            if node is not None and node.op is Op.CONST and after is not None and node.block is None:
                length += len(node.text)
            elif node is not None and node.is_argument and node.block is None:
                after = after or node
            else:
                if after is not None and length >= MIN_MOVABLE:
                    said.append(
                        f"{after.where}: {length:,} constant characters stand behind the argument {after.name!r}; "
                        "before it (moved by hand, or `with s.movable():` around both) every call would share them"
                    )
                after, length = None, 0
    return tuple(said)


MIN_MOVABLE = 64  # characters: some 16 tokens, less is not worth a second thought
