"""`trace`: a program's body run once with symbols for what is not known, and every step written down.

`TraceState` takes the place of `ProgramState`; a `Recorder` numbers branches, nodes and variables.  Nothing is sent.
"""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from nbsgl.errors import HoleError, NbsglError, ParameterError, ProgramError, RoleError, TraceError, UnknownVariable
from nbsgl.lang.default import default
from nbsgl.lang.group import Forks
from nbsgl.lang.growing import Growing, check_fork
from nbsgl.lang.ir import (
    Concat,
    Expr,
    GenExpr,
    RoleBegin,
    RoleEnd,
    SelectExpr,
    TextExpr,
    caller,
    parts,
    refuse_mark,
    shown_line,
)
from nbsgl.lang.program_graph import Demand, GraphNode, Op, Path, ProgramGraph, SubProgram
from nbsgl.lang.symbols import Mixed, Symbol, symbols_in

if TYPE_CHECKING:
    from nbsgl.lang.explain import Explanation
    from nbsgl.lang.program import SglFunction
    from nbsgl.protocol import Backend

_OPS: dict[str, Op] = {"gen": Op.GEN, "select": Op.SELECT, "image": Op.MEDIA, "video": Op.MEDIA}
_here = threading.local()  # the recorder of the trace that this thread is in


def current() -> Recorder | None:
    """The trace that this thread is in."""
    return getattr(_here, "recorder", None)


class Recorder:
    """Numbers and keeps what the states of one trace do."""

    def __init__(self, backend: Backend | None) -> None:
        self.backend = backend
        self.nodes: list[GraphNode] = []
        self.demands: list[Demand] = []
        self.stopped: TraceError | None = None
        self.block: int | None = None  # the `movable` block that is open
        self._branches, self._vars, self._blocks = itertools.count(), itertools.count(1), itertools.count(1)

    def new_branch(self) -> int:
        return next(self._branches)

    def new_var(self) -> int:
        return next(self._vars)

    def add(self, node: GraphNode) -> GraphNode | None:
        """Keep a node, with its number; nothing is kept any more when the trace has stopped."""
        if self.stopped is not None:
            return None
        node = replace(node, id=len(self.nodes), block=self.block)
        self.nodes.append(node)
        return node

    def demand(self, name: str, var: int) -> None:
        if self.stopped is None:
            self.demands.append(Demand(caller(), name, var, len(self.nodes)))

    def stop(self, error: TraceError) -> None:
        if self.stopped is None:
            self.stopped = error

    def symbol(self, name: str, var: int | None) -> Symbol:
        return Symbol(name, var, self.stop)

    @contextmanager
    def movable(self) -> Iterator[None]:
        if self.block is not None:
            raise ProgramError(f"movable() inside movable() ({caller()}): blocks cannot be nested.")
        self.block = next(self._blocks)
        try:
            yield
        finally:
            self.block = None

    @contextmanager
    def active(self) -> Iterator[None]:
        before, _here.recorder = current(), self
        try:
            yield
        finally:
            _here.recorder = before

    def root(self, value: SubProgram | None = None) -> TraceState:
        state = TraceState(self, self.new_branch())
        state._record(Op.ROOT, value=value)
        return state

    def call(
        self, program: SglFunction, args: Sequence[Any], kwargs: Mapping[str, Any], called: SubProgram
    ) -> TraceState:
        """A program called by the traced one: its body on a root of its own."""
        state = self.root(called)
        state.ret_value = program.func(state, *args, **program.merged(kwargs))
        return state


class TraceState(Growing):
    """The `s` of a traced body: grows as a `ProgramState` does, and answers reads with symbols."""

    def __init__(self, recorder: Recorder, number: int, parent: TraceState | None = None, path: Path = ()) -> None:
        super().__init__()
        self.recorder, self.number, self.path = recorder, number, path
        self.variables: dict[str | None, Any] = dict(parent.variables) if parent else {}
        self.role: str | None = parent.role if parent else None
        self.ret_value: Any = None
        self._last: int | None = None  # our last node
        self._own: list[str | None] = []  # names bound since the fork
        self._num_children = 0
        self._is_closed = False
        self._open_scopes: set[str] = set()

    # ---- growing -----------------------------------------------------------------------------------------------------

    def _add(self, items: Sequence[Expr]) -> None:
        self._check_open()
        for item in items:
            self._take(item)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ProgramError("This state was joined: it can be read, but takes nothing more.")

    def _take(self, item: Expr) -> None:
        if isinstance(item, TextExpr):
            if item.text:
                self._record(Op.CONST, text=item.text, is_raw=item.raw)
        elif isinstance(item, Symbol):
            self._record(Op.REF, name=item.name, uses=() if item.var is None else (item.var,))
        elif isinstance(item, RoleBegin):
            self._begin_role(item.role)
        elif isinstance(item, RoleEnd):
            self._end_role(item.role)
        else:
            self._sample(item)

    def _sample(self, item: Expr) -> None:
        name = getattr(item, "name", None)
        var = self.recorder.new_var()
        where = item.where if isinstance(item, (GenExpr, SelectExpr)) else caller()
        op = _OPS.get(item.kind, Op.REWRITE)
        defines: list[tuple[str | None, int]] = [(name, var)]
        if isinstance(item, GenExpr) and item.thinking is not None:
            defines.append((f"{name}_reasoning_content", self.recorder.new_var()))
        self._record(op, where=where, expr=item, name=name, defines=tuple(defines))
        before = self.variables.get(name)
        for bound, number in defines:
            self._bind(bound, self.recorder.symbol(str(bound), number))
        if getattr(item, "list_append", False):
            self._bind(name, [*(before if isinstance(before, list) else []), self.variables[name]])

    def _record(self, op: Op, where: str = "", **facts: Any) -> GraphNode | None:
        node = self.recorder.add(GraphNode(0, op, self.number, where or caller(), **facts))
        self._last = node.id if node is not None else self._last
        return node

    def _bind(self, name: str | None, value: Any) -> None:
        self.variables[name] = value
        if name not in self._own:
            self._own.append(name)

    def _begin_role(self, role: str) -> None:
        if self.role is not None:
            raise RoleError(
                f"{role} begins inside {self.role}: roles cannot be nested.",
                hint=f"Close it first: s += {self.role}_end().",
            )
        backend = self.recorder.backend
        if backend is not None and role not in backend.info.roles:
            raise RoleError(f"The template of {backend.info.model} has no role {role!r}.")
        self.role = role
        self._record(Op.ROLE_BEGIN, name=role)

    def _end_role(self, role: str) -> None:
        if self.role != role:
            inside = f"inside {self.role}" if self.role else "outside of any role"
            raise RoleError(f"{role}_end() stands {inside}.", hint=f"Begin it first: s += {role}_begin().")
        self.role = None
        self._record(Op.ROLE_END, name=role)

    # ---- reading: symbols --------------------------------------------------------------------------------------------

    def get_var(self, name: str | None) -> Any:
        """The variable's symbol; of one that a join has gathered, the list of its children's."""
        value = self._variable(name)
        for symbol in symbols_in(value):
            if symbol.var is not None:
                self.recorder.demand(symbol.name, symbol.var)
        return value

    __getitem__ = get_var

    def ref(self, name: str | None, sep: str | None = None) -> Any:
        """The variable's symbol, without a demand; a list's are joined with `sep`."""
        value = self._variable(name)
        if not isinstance(value, (list, tuple)):
            return value
        if sep is None:
            raise ParameterError(name="sep", value=sep, allowed=f"a string: {name!r} is a list")
        found: list[Expr] = []
        for one in value:
            found += parts(sep) if found and sep else []
            found += parts(one if isinstance(one, Expr) else str(one))
        return Concat(found) if next(symbols_in(found), None) is None else Mixed(found)

    def _variable(self, name: str | None) -> Any:
        if name in self._open_scopes or name not in self.variables:
            known = [key for key in self.variables if key is not None]
            raise UnknownVariable(
                f"The state has no variable {name!r}; it has {', '.join(map(repr, known)) or 'none yet'}.",
                name=name,
                known=known,
            )
        return self.variables[name]

    def set_var(self, name: str, value: Any) -> None:
        """Bind any object to a name."""
        uses = tuple(symbol.var for symbol in symbols_in(value) if symbol.var is not None)
        if isinstance(value, Expr) and not isinstance(value, Symbol):
            raise HoleError(f"{value!r} is a hole, not a value.", hint=f"To fill it, write `s += gen({name!r})`.")
        refuse_mark(value, f"s[{name!r}]")
        self._record(Op.SET, name=name, value=value, uses=uses)
        self._bind(name, value)

    __setitem__ = set_var

    def __contains__(self, name: object) -> bool:
        return name in self.variables

    def text(self) -> Any:
        """The text so far, as a symbol."""
        var = self.recorder.new_var()
        self._record(Op.TEXT, defines=(("text()", var),))
        self.recorder.demand("text()", var)
        return self.recorder.symbol("text()", var)

    def sync(self) -> None:
        """Nothing to wait for."""

    def __str__(self) -> str:
        return f"ProgramState({self.text()})"

    def __repr__(self) -> str:
        return f"<TraceState: branch {self.number}, variables {list(self.variables)}>"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        self.recorder.symbol(f"s.{name}", 0).need("it tells about a run")

    # ---- roles, scopes -----------------------------------------------------------------------------------------------

    @contextmanager
    def _role_block(self, role: str) -> Iterator[None]:
        self._add([RoleBegin(role)])
        yield
        self._add([RoleEnd(role)])

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        self._check_open()
        var = self.recorder.new_var()
        self._record(Op.SCOPE_BEGIN, name=name)
        self._bind(name, self.recorder.symbol(name, var))
        self._open_scopes.add(name)
        try:
            yield
        finally:
            self._open_scopes.discard(name)
        self._record(Op.SCOPE_END, name=name, defines=((name, var),))

    def movable(self) -> Any:
        """The text added inside may be moved past neighbouring blocks of this kind (`optimize`, P6)."""
        return self.recorder.movable()

    # ---- fork, join --------------------------------------------------------------------------------------------------

    def fork(self, size: int = 1, position_ids_offset: Any = None) -> TraceGroup:
        if isinstance(size, Symbol):
            size._refuse("the size of a fork")
        check_fork(size, position_ids_offset)
        self._check_open()
        return TraceGroup([self._child() for _ in range(size)], self)

    def _child(self) -> TraceState:
        number, path = self.recorder.new_branch(), (*self.path, self._num_children)
        self._num_children += 1
        child = TraceState(self.recorder, number, self, path)
        child._record(Op.FORK, parent=self.number, after=self._last, path=path)
        return child

    @contextmanager
    def copy(self) -> Iterator[TraceState]:
        group = self.fork(1)
        yield group[0]
        group.join()


class TraceGroup(Forks["TraceState"]):
    """The forks of a traced state."""

    def __init__(self, states: list[TraceState], parent: TraceState) -> None:
        super().__init__(states)
        self.parent = parent

    def join(self, mode: str = "gather_variable", on_error: str = "raise") -> None:
        """Gathered variables become lists of symbols: how many there are does not depend on a run."""
        if mode not in ("gather_variable", "concate_and_append"):
            raise ParameterError(name="mode", value=mode, allowed='"gather_variable" or "concate_and_append"')
        if on_error not in ("raise", "keep"):
            raise ParameterError(name="on_error", value=on_error, allowed='"raise" or "keep"')
        self.parent._check_open()
        parent, appends = self.parent, mode != "gather_variable"
        gathered: dict[str | None, list[Any]] = {}
        for state in self.states:
            if appends and state.role != parent.role:
                raise RoleError(f"A child ends inside {state.role}, the parent stands inside {parent.role}.")
            for name in state._own:
                if name not in parent.variables and not appends:
                    gathered.setdefault(name, []).append(state.variables[name])
            state._is_closed = True
        uses = tuple(symbol.var for symbol in symbols_in(list(gathered.values())) if symbol.var is not None)
        children = tuple(state.number for state in self.states)
        parent._record(Op.JOIN, children=children, appends=appends, mode=(mode, on_error), uses=uses)
        for name, values in gathered.items():
            parent._bind(name, values)


class NodeView:
    """A node of a trace, with the graph it stands in."""

    def __init__(self, graph: ProgramGraph, node: GraphNode) -> None:
        self.graph, self.node = graph, node

    @property
    def node_id(self) -> int:
        return self.node.id

    @property
    def prev_node(self) -> NodeView | None:
        before = self.graph.before[self.node.id]
        return None if before is None else NodeView(self.graph, self.graph.by_id[before])

    def __repr__(self) -> str:
        return str(self.node)

    def print_graph_dfs(self) -> str:
        """The nodes that lead here, one per line, each after those it follows."""
        edges: dict[int, list[tuple[int, str]]] = {}
        for source, target, kind in self.graph.edges():
            edges.setdefault(target, []).append((source, kind))
        lines: list[str] = []
        seen: set[int] = set()
        todo = [(self.node.id, False)]
        while todo:
            at, is_ready = todo.pop()
            if is_ready:
                came = ", ".join(f"{kind} %{source}" for source, kind in edges.get(at, ()))
                node = self.graph.by_id[at]
                lines.append(f"{node} (branch {node.branch}{', ' + came if came else ''}; {node.where})")
            elif at not in seen:
                seen.add(at)
                todo.append((at, True))
                todo += [(source, False) for source, _ in edges.get(at, ())]
        return "\n".join(lines)


class Trace:
    """What `SglFunction.trace` returns: `graph` is it as data, `stopped_at` the line where a value was needed."""

    def __init__(self, graph: ProgramGraph, root: TraceState, backend: Backend | None) -> None:
        self.graph, self._root, self._backend = graph, root, backend
        self.variables: dict[str | None, Any] = dict(root.variables)
        self.ret_value: Any = root.ret_value
        self.complete, self.stopped_at = graph.is_complete, graph.stopped_at

    @property
    def nodes(self) -> list[NodeView]:
        """The nodes of the program's first branch."""
        return [NodeView(self.graph, node) for node in self.graph.branches[self._root.number]]

    @property
    def last_node(self) -> NodeView:
        return self.nodes[-1]

    def flatten_nodes(self) -> list[NodeView]:
        """The nodes of all branches, in the order they were made."""
        return [NodeView(self.graph, node) for node in self.graph.nodes]

    def explain(self) -> Explanation:
        """The graph with its edges and submissions, and what is expected of the cache."""
        from nbsgl.lang.explain import explain_graph

        return explain_graph(self.graph, self._backend or default.get())

    def _repr_html_(self) -> str:
        from nbsgl.lang.explain_html import html

        return html(self.explain())

    def __repr__(self) -> str:
        until = "" if self.complete else f", stopped at {self.stopped_at}"
        return f"<Trace of {self.graph.title}: {len(self.graph.nodes)} nodes{until}>"


def trace_program(program: SglFunction, backend: Backend | None, strict: bool, known: Mapping[str, Any]) -> Trace:
    """Run the body once; see `SglFunction.trace`."""
    recorder = Recorder(backend)
    arguments, unknown = program.traced_arguments(known)
    state = recorder.root()
    symbols = {name: recorder.symbol(name, None) for name in unknown}
    try:
        with recorder.active():
            state.ret_value = program.func(state, **arguments, **symbols)
    except Exception as error:
        stopped = recorder.stopped or _translated(error, program.func)
        if stopped is None:
            raise
        recorder.stop(stopped)
    stopped = recorder.stopped
    if stopped is not None and strict:
        raise stopped
    graph = ProgramGraph(
        title=program.name,
        nodes=tuple(recorder.nodes),
        arguments=tuple(unknown),
        known=arguments,
        ret_value=state.ret_value,
        demands=tuple(recorder.demands),
        is_complete=stopped is None,
        stopped_at=None if stopped is None else str(getattr(stopped, "where", "")),
    )
    return Trace(graph, state, backend)


def _translated(error: Exception, func: Callable[..., Any]) -> TraceError | None:
    """The error of a function that was given a symbol where it needs a value: json.loads(s["x"]), gen(choices=[x])."""
    given = getattr(error, "value", None) if isinstance(error, NbsglError) else None
    symbol = next(symbols_in(given), None)
    if symbol is None and not (isinstance(error, TypeError) and "Symbol" in str(error)):
        return None
    where = _line_of(error, func)
    what = f"`{symbol.name}`" if symbol is not None else "a value"
    translated = TraceError(f"{where}: control flow depends on {what}, which a trace does not know: {error}")
    translated.where = where  # type: ignore[attr-defined]
    translated.__cause__ = error
    return translated


def _line_of(error: Exception, func: Callable[..., Any]) -> str:
    """The last line of the traceback in the program's own file."""
    home = getattr(inspect.unwrap(func), "__code__", None)
    found, at = "", error.__traceback__
    while at is not None:
        path = at.tb_frame.f_code.co_filename
        if home is not None and path == home.co_filename:
            found = shown_line(path, at.tb_lineno)
        at = at.tb_next
    return found
