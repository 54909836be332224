"""`CompiledProgram`: a program that runs from its graph.  `run` and `run_batch` are those of any program."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from nbsgl.errors import ProgramError
from nbsgl.lang.branch import Binding, Listed, Scope, Span, failure, flat, is_ready
from nbsgl.lang.default import default
from nbsgl.lang.executor import Executor
from nbsgl.lang.group import ProgramStateGroup
from nbsgl.lang.ir import Concat, RefExpr, RoleBegin, RoleEnd, TextExpr
from nbsgl.lang.optimize import chosen, optimized
from nbsgl.lang.program import SglFunction, begin, checked_seed
from nbsgl.lang.program_graph import GraphNode, Op, ProgramGraph, Shared, SubProgram
from nbsgl.lang.state import ProgramState
from nbsgl.lang.symbols import Symbol, replaced
from nbsgl.lang.trace import TraceGroup, TraceState

if TYPE_CHECKING:
    from nbsgl.lang.explain import Explanation


class CompiledProgram(SglFunction):
    """A traced program, optimised.  `graph` is what runs; the arguments it was compiled with are fixed."""

    def __init__(self, program: SglFunction, graph: ProgramGraph, passes: Any, backend: Any) -> None:
        super().__init__(program.func, program.num_api_spec_tokens, program.bind_arguments)
        self.program, self.backend, self.passes = program, backend, passes
        self.graph = optimized(graph, passes)
        # streams show everything that is sampled, so nothing is dead for them
        self._streamed = optimized(graph, [name for name in chosen(passes) if name != "dead"])
        self._signature = inspect.signature(program.func)
        self.func = self._replay

    def __repr__(self) -> str:
        return f"<CompiledProgram {self.name}: {len(self.graph.nodes)} nodes, {self.graph.num_submissions} submissions>"

    def bind(self, **kwargs: Any) -> SglFunction:
        """The same program with some arguments fixed, compiled anew."""
        again = self.program.bind(**kwargs)
        return again.compile(self.backend, passes=self.passes, outputs=self.graph.outputs, **self._fixed_for(again))

    def explain(self, *, analyze: bool = False, backend: Any = None, **args: Any) -> Explanation:
        """What runs, with these arguments filled in; see `SglFunction.explain`."""
        from nbsgl.lang.explain import explain_compiled

        return explain_compiled(self, self.backend if backend is None else backend, self.merged(args), analyze)

    def _fixed_for(self, program: SglFunction) -> dict[str, Any]:
        return {name: value for name, value in self.graph.known.items() if name not in program.bind_arguments}

    def _replay(self, state: ProgramState | TraceState, *args: Any, **kwargs: Any) -> Any:
        given = self._given(state, args, kwargs)
        if isinstance(state, TraceState):  # part of a larger trace: its passes see the program itself
            return self.program.func(state, **{**self.graph.known, **given})
        graph = self._streamed if state.branch.scope.stream else self.graph
        return Replay(graph, state, {**self.graph.known, **given}).run()

    def _given(self, state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The call's arguments by name; TypeError as from the body itself if one is missing or unknown."""
        missing = {name: value for name, value in self.graph.known.items() if name not in kwargs}
        positional = set(list(self._signature.parameters)[1 : 1 + len(args)])
        fill = {name: value for name, value in missing.items() if name not in positional}
        bound = self._signature.bind(state, *args, **fill, **kwargs).arguments
        given = {name: value for name, value in bound.items() if name in {*positional, *kwargs}}
        for name, value in given.items():
            known = self.graph.known.get(name, value)
            if known is not value and known != value:
                raise ProgramError(
                    f"{self.name} was compiled with {name}={known!r}; this call has {value!r}.",
                    hint=f"Compile it for that: compile({name}=...), or run the program itself.",
                )
        return given


class Replay:
    """One run of a graph on real states, wave by wave."""

    def __init__(self, graph: ProgramGraph, state: ProgramState, arguments: Mapping[str, Any]) -> None:
        self.graph, self.arguments = graph, arguments
        self.root = state
        self.states: dict[int, ProgramState] = {}
        self._values: dict[int, tuple[ProgramState, Binding]] = {}  # by variable
        self._scopes: dict[tuple[int, str | None], list[tuple[AbstractContextManager[None], Binding]]] = {}

    def run(self) -> Any:
        """Carry out the nodes, sending at the end of each wave; return what the body returned."""
        try:
            for _, wave in groupby(self._in_order(), key=lambda pair: pair[0]):
                nodes = [node for _, node in wave]
                for node in nodes:  # first of all, so that what the wave queues is not sent piecemeal
                    if node.op is not Op.JOIN and not node.is_linked:
                        self._await([var for var in node.uses if var in self._values])
                for node in nodes:
                    self._carry_out(node)
                for executor in {id(state.executor): state.executor for state in self.states.values()}.values():
                    executor.flush()
            for state in self.states.values():
                if state.branch.scope is not self.root.branch.scope and state.branch.parent is None:
                    state.end_body()
            return replaced(self.graph.ret_value, self._known)
        finally:
            for scopes in self._scopes.values():
                for scope, _ in scopes:
                    scope.__exit__(None, None, None)

    def _in_order(self) -> list[tuple[int, GraphNode]]:
        """(number of submission, node): by wave, or without waves one for each sampled node."""
        if any(node.wave is None for node in self.graph.nodes):
            count, found = 0, []
            for node in self.graph.nodes:
                found.append((count, node))
                count += node.is_sampled
            return found
        return sorted(((node.wave or 0, node) for node in self.graph.nodes), key=lambda pair: pair[0])

    def _carry_out(self, node: GraphNode) -> None:
        match node.op:
            case Op.ROOT:
                self.states[node.branch] = self.root if node.value is None else self._called(node.value)
            case Op.FORK:
                self._fork(node)
            case Op.JOIN:
                children = [self.states[child] for child in node.children]
                ProgramStateGroup(children, self.states[node.branch]).join(*node.mode)
            case Op.CONST:
                self._const(node)
            case Op.REF:
                self._grow(node.branch, self._appended(node))
            case Op.SET:
                self.states[node.branch].set_var(str(node.name), replaced(node.value, self._known))
            case Op.TEXT:
                self._text_so_far(node)
            case Op.ROLE_BEGIN | Op.ROLE_END | Op.SCOPE_BEGIN | Op.SCOPE_END:
                self._mark(node)
            case _:
                self._grow(node.branch, node.expr)
                self._define(node)

    def _appended(self, node: GraphNode) -> Any:
        """An argument, a value, or of a linked one a hole that the engine fills."""
        if not node.uses:
            return self.arguments[str(node.name)]
        state, binding = self._values[node.uses[0]]
        if node.is_linked:
            with state.executor.lock:
                atoms = None if failure(binding) is not None else binding.atoms()
            if atoms is not None and not any(isinstance(atom, list) for atom in atoms):
                return RefExpr(node.name, state.executor, tuple(flat(atoms, "")))
        return self._value(node.uses[0])

    def _grow(self, branch: int, value: Any) -> None:
        state = self.states[branch]
        state += value

    def _called(self, called: SubProgram) -> ProgramState:
        scope = Scope(title=called.title, defaults=called.defaults, seed=checked_seed(called.seed))
        return begin(Executor(default.resolve(called.backend)), scope)

    def _fork(self, node: GraphNode) -> None:
        assert node.parent is not None
        parent = self.states[node.parent]
        (child,) = parent.fork(1)
        child.branch.path = node.path
        self.states[node.branch] = child
        if isinstance(node.value, Shared):
            theirs, mine = node.value.renamed
            slot = child.branch.bindings[theirs]
            child.branch.num_sampled = 1  # as if it had asked itself: later seeds are the same
            if mine != theirs:
                older = parent.branch.parent.bindings.get(theirs) if parent.branch.parent else None
                child.branch.bindings.pop(theirs)
                if older is not None:
                    child.branch.bindings[theirs] = older
                child.branch.bindings[mine] = slot
            self._define(node)

    def _define(self, node: GraphNode) -> None:
        state = self.states[node.branch]
        for name, var in node.defines:
            binding = state.branch.bindings[name]
            self._values[var] = (state, binding.entries[-1] if isinstance(binding, Listed) else binding)

    def _const(self, node: GraphNode) -> None:
        done = 0
        for mark in node.marks:
            self._text(node, node.text[done : mark.at])
            self._mark(mark.node)
            done = mark.at
        self._text(node, node.text[done:])

    def _text(self, node: GraphNode, text: str) -> None:
        if text:
            self._grow(node.branch, TextExpr(text, node.is_raw))

    def _mark(self, node: GraphNode) -> None:
        key = (node.branch, node.name)
        state = self.states[node.branch]
        if node.op is Op.ROLE_BEGIN:
            state += RoleBegin(str(node.name))
        elif node.op is Op.ROLE_END:
            state += RoleEnd(str(node.name))
        elif node.op is Op.SCOPE_BEGIN:
            begun = state.var_scope(str(node.name))
            begun.__enter__()
            self._scopes.setdefault(key, []).append((begun, state.branch.bindings[node.name]))
        else:
            scope, binding = self._scopes[key].pop()
            scope.__exit__(None, None, None)
            for _, var in node.defines:
                self._values[var] = (state, binding)

    def _text_so_far(self, node: GraphNode) -> None:
        state = self.states[node.branch]
        with state.executor.lock:
            items = state.branch.items
            span = Span(items, 0, threading.get_ident(), end=len(items))
        for _, var in node.defines:
            self._values[var] = (state, span)

    def _await(self, variables: Iterable[int]) -> None:
        """Wait for these values; raises what their branch failed with."""
        for var in variables:
            state, binding = self._values[var]
            with state.executor.lock:
                is_there = failure(binding) is None and is_ready(binding)
            if not is_there:  # a wait sends what is queued
                state._await_binding(binding)

    def _value(self, var: int) -> Any:
        self._await([var])
        state, binding = self._values[var]
        with state.executor.lock:
            return binding.value()

    def _known(self, leaf: Any) -> Any:
        """What stands behind a symbol, or a traced state, in a value that the body kept or returned."""
        if isinstance(leaf, Symbol):
            return self.arguments[leaf.name] if leaf.var is None else self._value(leaf.var)
        if isinstance(leaf, Concat) and all(isinstance(item, (Symbol, TextExpr)) for item in leaf.items):
            return "".join(str(self._known(item)) for item in leaf.items)
        if isinstance(leaf, TextExpr):
            return leaf.text
        if isinstance(leaf, TraceState):
            return self.states[leaf.number]
        if isinstance(leaf, TraceGroup):
            return ProgramStateGroup([self.states[s.number] for s in leaf.states], self.states[leaf.parent.number])
        return leaf


def compiled(
    program: SglFunction, backend: Any, passes: Any, outputs: Any, known: Mapping[str, Any]
) -> CompiledProgram:
    """Trace, check the outputs, optimise; see `SglFunction.compile`."""
    trace = program.trace(backend=backend, **known)
    graph = trace.graph
    if outputs is not None:
        names = {name for node in graph.nodes for name, _ in node.defines} | {"text()"} | set(trace.variables)
        if isinstance(outputs, str) or not all(name in names for name in outputs):
            shown = sorted(str(name) for name in names if name is not None)
            raise ProgramError(f"outputs={outputs!r}: allowed is a list of the program's variables {shown}.")
        graph = replace(graph, outputs=tuple(outputs))
    return CompiledProgram(program, graph, passes, backend)
