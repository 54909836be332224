"""`prefetch`: have a prompt computed before a program needs it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbsgl.errors import Aborted, NbsglError, ParameterError, ProgramError
from nbsgl.lang.branch import Scope
from nbsgl.lang.default import default
from nbsgl.lang.executor import TICK_S, Executor
from nbsgl.lang.ir import Expr, GenExpr, RoleBegin, RoleEnd, TextExpr, caller, refuse_mark
from nbsgl.lang.program import SglFunction, begin
from nbsgl.lang.program_graph import GraphNode, Op, ProgramGraph

if TYPE_CHECKING:
    from nbsgl.lang.state import ProgramState
    from nbsgl.protocol import Backend, EngineSnapshot

PRESSURE = 0.1  # of the KV pool: with less than this free or evictable, what others need goes first


class Prefetch:
    """A prompt on its way into the prefix cache.  It goes on when this object is dropped."""

    def __init__(self, backend: Backend, items: Sequence[Expr], where: str) -> None:
        self._backend, self._items, self._where = backend, items, where
        self._over = threading.Event()
        self._is_cancelled = threading.Event()
        self._num_tokens = 0
        self._error: BaseException | None = None
        threading.Thread(target=self._work, name="nbsgl-prefetch", daemon=True).start()

    @property
    def is_done(self) -> bool:
        return self._over.is_set()

    def wait(self, timeout: float | None = None) -> int:
        """The number of tokens that were computed or found in the cache; 0 if it was cancelled.

        TimeoutError after `timeout` seconds (it goes on then); raises what went wrong otherwise.
        """
        left = timeout
        while not self._over.wait(TICK_S if left is None else max(0.0, min(TICK_S, left))):
            if left is not None:
                left -= TICK_S
                if left <= 0:
                    raise TimeoutError(f"the prefetch is not done after {timeout} s")
        if self._error is not None:
            raise self._error
        return self._num_tokens

    def cancel(self) -> None:
        """End it; what is computed by now stays in the cache."""
        self._is_cancelled.set()

    def __repr__(self) -> str:
        if not self.is_done:
            return "<Prefetch: under way>"
        return f"<Prefetch: {'failed' if self._error is not None else f'{self._num_tokens:,} tokens'}>"

    # ---- in the thread -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._num_tokens = self._compute()
        except Aborted:  # cancelled
            self._num_tokens = 0
        except BaseException as error:
            self._error = error
        finally:
            self._over.set()

    def _compute(self) -> int:
        before = _look(self._backend)
        if self._is_cancelled.is_set() or _is_pressed(before, before):
            return 0
        scope = Scope(title="prefetch", defaults={}, seed=0, where=self._where)
        state = begin(Executor(self._backend), scope)
        for item in [*self._items, GenExpr("prefetched", {"max_tokens": 0}, where=self._where)]:
            state += item
        state.executor.flush()
        scope.is_over = True
        while not state.branch.is_done:
            if self._is_cancelled.wait(TICK_S / 2) or _is_pressed(before, _look(self._backend)):
                state.abort()
        return _num_tokens(state)


def _num_tokens(state: ProgramState) -> int:
    tokens: int = state.get_meta_info("prefetched")["prompt_tokens"]
    return tokens


def _look(backend: Backend) -> EngineSnapshot | None:
    try:
        return backend.snapshot()
    except (NbsglError, RuntimeError, TimeoutError):  # it has none: then nothing tells of pressure
        return None


def _is_pressed(before: EngineSnapshot | None, now: EngineSnapshot | None) -> bool:
    """Whether the pool is nearly full, or somebody has had to give way since."""
    if before is None or now is None:
        return False
    room = now.slots_free + now.slots_evictable
    return room < PRESSURE * now.slots_total or now.retractions > before.retractions


def prefetch(what: str | SglFunction, /, *, backend: Any = None, **args: Any) -> Prefetch:
    """Have a text, or what a program with these arguments surely begins with, computed now.  Returns at once.

    A later prompt that begins the same finds it in the prefix cache.  It is cancelled when the engine's memory gets
    short.  `.wait()` gives the number of tokens.
    """
    if isinstance(what, str):
        refuse_mark(what, "prefetch(...)")
        if args:
            raise ParameterError(
                f"prefetch() of a text takes no {', '.join(args)}: arguments are for programs.", name=min(args)
            )
        items: list[Expr] = [TextExpr(what)]
    elif isinstance(what, SglFunction):
        items = known_start(what.trace(strict=False, **args).graph)
    else:
        raise ParameterError(name="what", value=what, allowed="a string or a program (@function)")
    if not any(isinstance(item, TextExpr) and item.text for item in items):
        raise ProgramError("There is nothing to prefetch: the prompt does not begin with known text.")
    return Prefetch(default.resolve(backend), items, caller())


def known_start(graph: ProgramGraph) -> list[Expr]:
    """What a program adds before its first gen, fork or unknown value."""
    items: list[Expr] = []
    for node in graph.branches.get(0, ()):
        found = _known(node)
        if found is None:
            break
        items += found
    return items


def _known(node: GraphNode) -> list[Expr] | None:
    match node.op:
        case Op.ROOT | Op.SCOPE_BEGIN | Op.SCOPE_END | Op.SET:
            return []
        case Op.CONST:
            return [TextExpr(node.text, node.is_raw)]
        case Op.ROLE_BEGIN:
            return [RoleBegin(str(node.name))]
        case Op.ROLE_END:
            return [RoleEnd(str(node.name))]
    return None
