"""`ProgramState`: the running value of a program, the `s` of its body.

`s += ...` only queues.  A *demand* (`s["x"]`, `text()`, `messages()`, `sync()`, `error()`, `get_meta_info()`, a stream)
sends everything queued in the run and waits for what it asked for.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from nbsgl.errors import (
    Aborted,
    HoleError,
    ParameterError,
    ProgramError,
    RoleError,
    StateFailed,
    UnknownVariable,
    Unsupported,
)
from nbsgl.lang import choices
from nbsgl.lang.branch import (
    Binding,
    Branch,
    Gathered,
    Given,
    Link,
    Listed,
    Message,
    Piece,
    Sampled,
    Scope,
    Slot,
    Span,
    Thought,
    failure,
    flat,
    inside,
    is_ready,
)
from nbsgl.lang.executor import TICK_S, Executor
from nbsgl.lang.group import ProgramStateGroup
from nbsgl.lang.growing import Growing, check_fork
from nbsgl.lang.ir import (
    Expr,
    GenExpr,
    ImageExpr,
    RefExpr,
    RoleBegin,
    RoleEnd,
    SelectExpr,
    TextExpr,
    Thinking,
    VideoExpr,
    refuse_mark,
    taken,
)
from nbsgl.lang.janitor import janitor
from nbsgl.lang.meta import meta_info_of
from nbsgl.lang.params import resolve
from nbsgl.lang.streams import AsyncWaiter, Cursor
from nbsgl.lang.view import run_view
from nbsgl.protocol import Choose, Gen, GrammarSpec, ModelInfo, Ref, Role, RunView, Select, Text
from nbsgl.reasoning import MODEL_TYPES, Markers

if TYPE_CHECKING:
    from nbsgl.lang.explain import Explanation

_INSTEAD = {
    "stream_executor": "s.text(), s.messages(), s[name], s.get_meta_info(name)",
    "generate": 's += gen("x")',
}


class ProgramState(Growing):
    """One branch of a running program.

    Everything but a demand returns at once.  Safe to use from several threads.  When a segment has failed, reads of
    what it leaves undone raise `StateFailed`, always the same object; what was finished before stays readable.
    """

    def __init__(self, executor: Executor, branch: Branch) -> None:
        super().__init__()
        self.executor, self.branch = executor, branch
        janitor.start()
        janitor.watch(self, executor.lease.release, branch.number)

    # ---- growing -----------------------------------------------------------------------------------------------------

    def _add(self, items: Sequence[Expr]) -> None:
        info = None if all(isinstance(item, TextExpr) for item in items) else self.executor.info
        for item in items:
            with self.executor.lock:
                self._check_open()
                slot = self._queue(item, info)
            if slot is not None and isinstance(slot.node, Select) and slot.node.method == "ask":
                self._choose(slot)
        if self.branch.scope.eager:
            self.sync()

    def _check_open(self) -> None:
        if self.branch.error is not None:
            self._raise(self.branch.error)
        if self.branch.is_closed:
            raise ProgramError("This state was joined: it can be read, but takes nothing more.")

    def _queue(self, item: Expr, info: ModelInfo | None) -> Slot | None:
        if isinstance(item, TextExpr):
            self._add_text(item.text, is_special=item.raw or self.branch.role is None)
            return None
        if isinstance(item, RefExpr):
            self._add_ref(item)
            return None
        assert info is not None
        if isinstance(item, RoleBegin):
            self._begin_role(item.role, info)
        elif isinstance(item, RoleEnd):
            self._end_role(item.role, info)
        elif isinstance(item, GenExpr):
            taken(item)
            return self._add_gen(item, info)
        elif isinstance(item, SelectExpr):
            taken(item)
            return self._add_select(item)
        elif isinstance(item, (ImageExpr, VideoExpr)):
            raise Unsupported(
                f"{item!r}: {info.model} reads text only.",
                name=item.kind,
                hint="Describe it in words, or take a backend whose model sees.",
            )
        else:
            raise HoleError(f"A state cannot take {item!r}.")
        return None

    def _add_text(self, text: str, *, is_special: bool, is_markup: bool = False) -> None:
        if text:
            self.branch.items.append(Piece(text, self.branch.role, is_markup))
            number = self.branch.number
            self.executor.queue(self.branch, Text(branch=number, text=text, parse_special=is_special))

    def _add_ref(self, expr: RefExpr) -> None:
        if expr.owner is not self.executor:
            raise ProgramError(
                f"{expr!r} belongs to another run: only a value can go from one to the other.",
                hint=f"Write s += other[{expr.name!r}].",
            )
        branch = self.branch
        for atom in expr.atoms:
            if isinstance(atom, str) or atom.slot.status == "done":
                self._add_text(atom if isinstance(atom, str) else atom.text, is_special=False)
                continue
            if atom.slot.error is not None:
                self._raise(atom.slot.error)
            branch.items.append(Link(atom.slot, atom.sample, branch.role))
            self.executor.queue(branch, Ref(branch=branch.number, slot=atom.slot.number, sample=atom.sample))

    def _add_markup(self, text: str, info: ModelInfo, role: str | None) -> None:
        """A message of `role` begins, or one ends: services of messages are told that, all others the text."""
        if info.service != "chat":
            self._add_text(text, is_special=True, is_markup=True)
            return
        if text:
            self.branch.items.append(Piece(text, self.branch.role, is_markup=True))
        self.executor.queue(self.branch, Role(branch=self.branch.number, role=role))

    def _begin_role(self, role: str, info: ModelInfo) -> None:
        branch = self.branch
        if branch.role is not None:
            raise RoleError(
                f"{role} begins inside {branch.role}: roles cannot be nested.",
                hint=f"Close it first: s += {branch.role}_end().",
            )
        if role not in info.roles:
            raise RoleError(f"The template of {info.model} has no role {role!r}; it has {', '.join(info.roles)}.")
        if not branch.messages and role != "system" and info.default_system and "system" in info.roles:
            self._begin_role("system", info)
            self._add_text(info.default_system, is_special=False)
            self._end_role("system", info)
        branch.role = role
        self._add_markup(_prefix(role, info, branch.messages), info, role)
        branch.messages.append(Message(role, len(branch.items)))

    def _end_role(self, role: str, info: ModelInfo) -> None:
        branch = self.branch
        if branch.role != role:
            inside = f"inside {branch.role}" if branch.role else "outside of any role"
            raise RoleError(f"{role}_end() stands {inside}.", hint=f"Begin it first: s += {role}_begin().")
        branch.messages[-1].end = len(branch.items)
        self._add_markup(info.roles[role].suffix, info, None)
        branch.role = None

    def _add_gen(self, expr: GenExpr, info: ModelInfo) -> Slot:
        scope = self.branch.scope
        stops = (*expr.more_stop, *info.stop)
        params = resolve(scope.defaults, expr.given, stops, self._seed())
        if expr.heal and params.ignore_eos:
            raise ParameterError(
                name="ignore_eos", value=True, allowed="False with heal=True, which works by a grammar"
            )
        markers = self._markers(expr.thinking, info) if expr.thinking is not None else None
        grammar = expr.grammar
        if grammar is not None and grammar.after:
            grammar, markers = self._behind(grammar, info)
        node = Gen(
            branch=self.branch.number,
            slot=self.executor.next_number(),
            params=params,
            grammar=grammar,
            stream=scope.stream,
            heal=expr.heal,
            markers=markers,
            name=expr.name,
            lookahead=scope.lookahead if info.service is not None else 0,
        )
        self.executor.check(node, {**scope.defaults, **expr.given}.keys())
        with_text = bool({**scope.defaults, **expr.given}.get("return_text_in_logprobs", False))
        role, seed = self.branch.role, scope.seed
        slot = Slot(node, expr.where, role, with_text=with_text, run_seed=seed, reader=expr.reader)
        self._add_slot(slot, expr.list_append)
        if expr.thinking is not None:
            self.branch.bindings[f"{expr.name}_reasoning_content"] = Thought(slot)
        return slot

    def _behind(self, grammar: GrammarSpec, info: ModelInfo) -> tuple[GrammarSpec, Markers | None]:
        """What is cut out before the mark that a grammar begins behind; after text that ends in the mark, nothing."""
        last = self.branch.items[-1] if self.branch.items else None
        if isinstance(last, Piece) and last.text.rstrip().endswith(grammar.after):
            return msgspec.structs.replace(grammar, after="", max_think_tokens=None), None
        known = info.thinking is not None and info.thinking[1] == grammar.after
        opening = info.thinking[0] if known and info.thinking is not None else ""
        return grammar, Markers(opening=opening, closing=grammar.after, is_open=True, keeps_end=True)

    def _markers(self, thinking: Thinking, info: ModelInfo) -> Markers:
        """What stands around the thinking; after text that ends in the opening mark, the gen begins inside it."""
        if thinking.model_type is not None:
            markers = MODEL_TYPES[thinking.model_type]
        elif info.thinking is not None:
            markers = Markers(opening=info.thinking[0], closing=info.thinking[1])
        else:
            raise ParameterError(
                f"{info.model} has no marks of its own around its thinking.",
                name="model_type",
                value=None,
                allowed=", ".join(MODEL_TYPES),
                hint='Name its kind: separate_reasoning(..., model_type="qwen3").',
            )
        last = self.branch.items[-1] if self.branch.items else None
        is_open = isinstance(last, Piece) and last.text.rstrip().endswith(markers.opening)
        return msgspec.structs.replace(markers, is_open=True) if is_open else markers

    def _add_select(self, expr: SelectExpr) -> Slot:
        method = choices.method_name(expr.method)
        if method == "ask" and expr.temperature > 0:
            raise ParameterError(
                name="temperature", value=expr.temperature, allowed="0 with a choices_method of your own: it decides"
            )
        node = Select(
            branch=self.branch.number,
            slot=self.executor.next_number(),
            choices=expr.choices,
            method=method,
            needs_unconditional=expr.method.requires_unconditional_logprobs,
            temperature=expr.temperature,
            seed=self._seed() if expr.seed is None else expr.seed,
            name=expr.name,
        )
        self.executor.check(node, () if expr.seed is None else ("seed",))
        role, seed = self.branch.role, self.branch.scope.seed
        return self._add_slot(Slot(node, expr.where, role, method=expr.method, run_seed=seed), expr.list_append)

    def _add_slot(self, slot: Slot, list_append: bool) -> Slot:
        binding: Binding = Sampled(slot)
        if list_append:
            binding = Listed([*self._entries(slot), binding])
        self.executor.add_slot(self.branch, slot)
        self.branch.bindings[slot.name] = binding
        return slot

    def _entries(self, slot: Slot) -> list[Binding]:
        """What the list that the result is added to already has; a new one has nothing."""
        if isinstance(slot.node, Gen) and slot.node.params.n > 1:
            raise ParameterError(name="n", value=slot.node.params.n, allowed="1 with list_append=True")
        before = self.branch.bindings.get(slot.name)
        if before is None:
            return []
        if isinstance(before, Listed):
            return before.entries
        if isinstance(before, Gathered) and not before.keeps_errors:
            return [child for _, child in before.children]
        if isinstance(before, Given) and isinstance(before.given, list):
            return [Given(value) for value in before.given]
        raise ProgramError(
            f"list_append: {slot.name!r} is no list, but was bound to one value before.", hint="Use another name."
        )

    def _seed(self) -> int:
        """The same for the same place in the same program, whatever else runs: 63 bits."""
        branch, scope = self.branch, self.branch.scope
        place = (scope.seed, scope.instance, branch.path, branch.num_sampled, 0)
        return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "little") >> 1

    def _choose(self, slot: Slot) -> None:
        """Let the user's own method decide a select, here and now."""
        self._demand(lambda: slot.choice is not None or slot.is_final)
        done, node = slot.choice, slot.node
        assert isinstance(node, Select)
        if done is None or slot.is_final or slot.method is None:
            self._raise(slot.error or Aborted(by="the caller"))
        try:
            decision = choices.decide(slot.method, node.choices, done.token_logprobs, done.unconditional).decision
            if decision not in node.choices:
                raise ProgramError(f"{type(slot.method).__name__} chose {decision!r}, which is not among the choices.")
        except BaseException as error:
            self._abort(error)
            raise
        with self.executor.lock:
            slot.chosen = node.choices.index(decision)
            self.executor.settle(slot)
            self.executor.queue(self.branch, Choose(branch=node.branch, slot=node.slot, index=slot.chosen))

    # ---- demands -----------------------------------------------------------------------------------------------------

    def _demand(self, is_ready: Callable[[], bool]) -> None:
        """Send what is queued and wait; an interrupt aborts the whole program first."""
        if self._runs_in_this_loop():
            with self.executor.lock:
                if is_ready():
                    return
            raise ProgramError(
                f"{self.branch.scope.title} is an `async def` program: waiting here would stop the loop it needs.",
                hint='Write `await s.ready("x")` for a variable, `await s` for all that is queued.',
            )
        try:
            while True:
                self.executor.flush()
                self._refuse_standstill(is_ready)
                self.executor.wait(lambda: is_ready() or self.executor.has_queue)
                with self.executor.lock:
                    if is_ready():
                        return
        except BaseException as error:
            self.end_scope(error)
            raise

    def _refuse_standstill(self, is_ready: Callable[[], bool]) -> None:
        """With lookahead a chat service is asked at the message's end, so nothing inside can be waited for."""
        scope, role = self.branch.scope, self.branch.role
        if not scope.lookahead or role is None or self.is_growing() or self.executor.info.service != "chat":
            return
        with self.executor.lock:
            start = self.branch.messages[-1].start
            asked = [item for item in self.branch.items[start:] if isinstance(item, Slot) and not item.is_final]
            if asked and not is_ready():
                raise ProgramError(
                    f"{asked[0].where}: with num_api_spec_tokens a chat service is asked when the {role}'s message "
                    "ends, and it has not ended yet.",
                    hint=f"Close it first: s += {role}_end().",
                )

    def _raise(self, error: BaseException) -> NoReturn:
        self.branch.is_error_seen = True
        raise error.with_traceback(None) if isinstance(error, StateFailed) else error

    def wait_all(self) -> None:
        """Send what is queued and wait for it; raises nothing when it fails."""
        self._demand(lambda: self.branch.error is not None or (self.branch.is_done and not self.is_growing()))

    def _runs_in_this_loop(self) -> bool:
        """Whether the body is a coroutine of the event loop that runs in this thread."""
        scope = self.branch.scope
        if scope.loop is None or scope.is_over:
            return False
        import asyncio

        try:
            return asyncio.get_running_loop() is scope.loop
        except RuntimeError:
            return False

    def is_growing(self) -> bool:
        """Whether a body in a thread or task of its own may still add to this state, and this is not part of it."""
        scope = self.branch.scope
        if scope.loop is not None:
            return not scope.is_over and scope not in inside.get()
        return scope.thread != 0 and not scope.is_over and scope.thread != threading.get_ident()

    def sync(self) -> None:
        """Wait for everything queued; raises if this state has failed."""
        self.wait_all()
        if self.branch.error is not None:
            self._raise(self.branch.error)

    def text(self) -> str:
        """The whole text, prompt included."""
        self.sync()
        with self.executor.lock:
            return self.branch.text

    def messages(self) -> list[dict[str, str]]:
        """The closed roles as `{"role", "content"}`."""
        self.sync()
        with self.executor.lock:
            return [
                {"role": m.role, "content": "".join(item.text for item in self.branch.items[m.start : m.end]).lstrip()}
                for m in self.branch.messages
                if m.end is not None
            ]

    def error(self) -> BaseException | None:
        """Wait for everything queued; the cause of the failure, or None."""
        self.wait_all()
        error = self.branch.error
        if error is None:
            return None
        self.branch.is_error_seen = True
        return error.__cause__ or error if isinstance(error, StateFailed) else error

    def get_var(self, name: str | None) -> Any:
        """Wait for this variable.  `UnknownVariable` (a KeyError) at once if there is none of that name."""
        binding = self._awaited(name)
        with self.executor.lock:
            return binding.value()

    __getitem__ = get_var

    def value(self, name: str | None) -> Any:
        """`s[name]` as the type its gen asked for (`type=`, `dtype=`, `json_schema=`, `tools=`).

        Raises `BadValue`; where the run ended inside its grammar, `IncompleteOutput`.
        """
        binding = self._awaited(name)
        return binding.typed()

    def _awaited(self, name: str | None) -> Binding:
        with self.executor.lock:
            binding = self._find(name)
        if binding is None:  # the body, in its own thread, may still make it
            self._demand(lambda: name in self.branch.bindings or not self.is_growing() or self.branch.error is not None)
            with self.executor.lock:
                binding = self._find(name)
            assert binding is not None
        self._await_binding(binding)
        return binding

    async def ready(self, name: str | None) -> Any:
        """`s[name]` without blocking the event loop: `v = await s.ready("x")`.  Cancelling it cancels the wait only."""
        with self.executor.lock:
            found = self._find(name)
        if found is None:
            await self._async_wait(
                lambda: name in self.branch.bindings or not self.is_growing() or self.branch.error is not None
            )
            with self.executor.lock:
                found = self._find(name)
        assert found is not None
        binding = found
        await self._async_wait(lambda: failure(binding) is not None or is_ready(binding))
        self._raise_failure(binding)
        with self.executor.lock:
            return binding.value()

    def _find(self, name: str | None) -> Binding | None:
        binding = self.branch.bindings.get(name)
        if binding is None:
            if self.branch.error is not None:
                self._raise(self.branch.error)
            if self.is_growing():
                return None
            raise self.unknown(name)
        if isinstance(binding, Span) and binding.is_open and binding.thread == threading.get_ident():
            raise UnknownVariable(
                f"The variable {name!r} is what its `with s.var_scope(...)` block adds; it ends with the block.",
                name=name,
            )
        return binding

    def unknown(self, name: str | None) -> UnknownVariable:
        known = [key for key in self.branch.bindings if key is not None]
        return UnknownVariable(
            f"The state has no variable {name!r}; it has {', '.join(map(repr, known)) or 'none yet'}.",
            name=name,
            known=known,
        )

    def _await_binding(self, binding: Binding) -> None:
        self._demand(lambda: failure(binding) is not None or is_ready(binding))
        self._raise_failure(binding)

    def _raise_failure(self, binding: Binding) -> None:
        error = failure(binding)
        if error is not None:
            if isinstance(binding, Gathered):
                _note_failed(error, binding)
            self._raise(error)

    def ref(self, name: str | None, sep: str | None = None) -> Expr:
        """A hole for the text of this variable, which need not be there yet: `s += "Tip: " + f.ref("tip")` waits for
        nothing.  It may be added to any state of the same run.  A list's entries are joined with `sep`.
        """
        if sep is not None and not isinstance(sep, str):
            raise ParameterError(name="sep", value=sep, allowed="a string, or None")
        with self.executor.lock:
            binding = self.branch.bindings.get(name)
            if binding is None:
                raise self.unknown(name)
            error = failure(binding)
            if error is not None:
                self._raise(error)
            if binding.is_open:
                raise ProgramError(
                    f"The variable {name!r} is still being made: it ends with its `with s.var_scope(...)` block, "
                    "and a text cannot be a part of itself.",
                    hint="Refer to it after the block.",
                )
            atoms = binding.atoms()
        is_list = isinstance(binding, (Gathered, Listed)) or any(isinstance(atom, list) for atom in atoms)
        if is_list and sep is None:
            raise ParameterError(
                name="sep",
                value=sep,
                allowed=f"a string: {name!r} is a list",
                hint=f"s.ref({name!r}, sep=', ') joins its entries.",
            )
        return RefExpr(name, self.executor, tuple(flat(atoms, sep or "")))

    def set_var(self, name: str, value: Any) -> None:
        """Bind any object to a name."""
        if isinstance(value, Expr):
            raise HoleError(f"{value!r} is a hole, not a value.", hint=f"To fill it, write `s += gen({name!r})`.")
        refuse_mark(value, f"s[{name!r}]")
        with self.executor.lock:
            self.branch.bindings[name] = Given(value)

    __setitem__ = set_var

    def __contains__(self, name: object) -> bool:
        """Whether the name is queued or set and has not failed; waits for nothing."""
        with self.executor.lock:
            binding = self.branch.bindings.get(name) if isinstance(name, str) else None
            return binding is not None and failure(binding) is None

    def get_meta_info(self, name: str | None) -> Any:
        """Wait for this variable; how it came about, in SGLang's keys.  None if it is unknown, or not sampled.

        Of a gen with n > 1, and of a list made by `list_append`, a list.
        """
        if self.is_growing() and name not in self.branch.bindings:
            self._demand(lambda: name in self.branch.bindings or not self.is_growing())
        binding = self.branch.bindings.get(name)
        if not isinstance(binding, (Sampled, Listed)):
            return None
        self._await_binding(binding)
        return meta_info_of(self.executor.id, binding, self.executor.info.model)

    @property
    def ret_value(self) -> Any:
        """What the body returned."""
        if self.is_growing():
            self._demand(lambda: not self.is_growing())
            if self.branch.error is not None:
                self._raise(self.branch.error)
        return self.branch.scope.ret_value

    # ---- streams -----------------------------------------------------------------------------------------------------

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """The text of the state, or of one variable, as it comes (in pieces if the program runs with `stream=True`)."""
        cursor = Cursor(self, var_name, whole=var_name is None)
        while not cursor.is_at_end:
            found: list[str] = []
            self._demand(partial(cursor.has_news, found))
            yield from found
        if cursor.error is not None:
            self._raise(cursor.error)

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        """`text_iter` for `async for`; with `return_meta_data`, pairs of text and what is known of it so far."""
        if return_meta_data and var_name is None:
            raise ParameterError(name="return_meta_data", value=True, allowed="True only together with var_name")
        cursor = Cursor(self, var_name, whole=var_name is None)
        while not cursor.is_at_end:
            found: list[str] = []
            await self._async_wait(partial(cursor.has_news, found))
            for text in found:
                yield (text, cursor.meta()) if return_meta_data else text
        if cursor.error is not None:
            self._raise(cursor.error)

    async def _async_wait(self, is_ready: Callable[[], bool]) -> None:
        """Cancelling it cancels the wait only."""
        import asyncio

        event = asyncio.Event()
        waiter = AsyncWaiter(asyncio.get_running_loop(), event)
        try:
            while True:
                self.executor.flush()
                self._refuse_standstill(is_ready)
                if self.executor.is_ready_or_watch(is_ready, waiter):
                    return
                try:
                    await asyncio.wait_for(event.wait(), TICK_S)
                except TimeoutError:
                    continue
                event.clear()
        finally:
            self.executor.forget_waiter(waiter)

    def __await__(self) -> Generator[Any, None, ProgramState]:
        """Wait for everything queued without blocking the event loop."""
        yield from self._async_wait(
            lambda: self.branch.error is not None or (self.branch.is_done and not self.is_growing())
        ).__await__()
        if self.branch.error is not None:
            self._raise(self.branch.error)
        return self

    # ---- roles, scopes -----------------------------------------------------------------------------------------------

    @contextmanager
    def _role_block(self, role: str) -> Iterator[None]:
        self._add([RoleBegin(role)])
        try:
            yield
        except BaseException:
            if self.branch.error is None and self.branch.role == role:
                self._add([RoleEnd(role)])
            raise
        self._add([RoleEnd(role)])

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """The text added inside becomes the variable `name`."""
        with self.executor.lock:
            self._check_open()
            span = Span(self.branch.items, len(self.branch.items), threading.get_ident())
            self.branch.bindings[name] = span
        try:
            yield
        finally:
            with self.executor.lock:
                span.end = len(self.branch.items)
            self.executor.wake_all()

    @contextmanager
    def movable(self) -> Iterator[None]:
        """The text added inside may stand before or after that of neighbouring blocks of this kind.

        A plain run leaves it where it is; `compile` moves blocks that are the same in every call to the front, so that
        more of the prompt is shared.
        """
        yield

    # ---- fork, join --------------------------------------------------------------------------------------------------

    def fork(self, size: int = 1, position_ids_offset: Any = None) -> ProgramStateGroup:
        """`size` copies of this state as it will be when all that is queued so far is done.  Waits for nothing."""
        check_fork(size, position_ids_offset)
        states = []
        for _ in range(size):
            with self.executor.lock:
                self._check_open()
                child = self.executor.add_fork(self.branch)
            states.append(ProgramState(self.executor, child))
        return ProgramStateGroup(states, self)

    @contextmanager
    def copy(self) -> Iterator[ProgramState]:
        """A fork of one, joined when the block ends."""
        group = self.fork(1)
        try:
            yield group[0]
        finally:
            if self.branch.error is None:
                group.join()

    def fork_scope(self, scope: Scope) -> ProgramState:
        """A copy that belongs to another program."""
        with self.executor.lock:
            self._check_open()
            child = self.executor.add_fork(self.branch, scope)
        return ProgramState(self.executor, child)

    # ---- ending ------------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """End what this state and its forks still do; reads of what is undone raise `Aborted`.  Idempotent."""
        mine = self.branch
        running = not mine.scope.is_over
        self.executor.abort(
            lambda b: b.scope is mine.scope and _descends(b, mine), Aborted(by="state.abort()"), all_of_them=running
        )

    def _abort(self, error: BaseException) -> None:
        mine = self.branch
        self.executor.abort(lambda b: b is mine, error, all_of_them=True)

    def end_scope(self, error: BaseException) -> None:
        """Abort what the whole program still does."""
        scope = self.branch.scope
        self.executor.abort(lambda b: b.scope is scope, error, all_of_them=not scope.is_over)

    def end_body(self, error: BaseException | None = None, ret_value: Any = None) -> None:
        """The program's body has ended: send what is queued, or after an error end everything."""
        scope = self.branch.scope
        try:
            if error is None:
                scope.ret_value = ret_value
                self.executor.flush()
            else:
                own = isinstance(error, Exception)  # an interrupt is not the program's own error
                self.executor.abort(lambda b: b.scope is scope, error, all_of_them=own)
        finally:
            scope.is_over = True
            self.executor.wake_all()

    # ---- looking -----------------------------------------------------------------------------------------------------

    def explain(self) -> Explanation:
        """The program's graph as far as it has come, what it sent and computed, and what was to be expected."""
        from nbsgl.lang.explain import explain_state

        return explain_state(self)

    def run_view(self) -> RunView:
        """A picture of the whole program now; waits for nothing, and may be called from any thread."""
        with self.executor.lock:
            branches = self.branch.scope.branches
            return run_view(branches[0], branches)

    def __str__(self) -> str:
        return f"ProgramState({self.text()})"

    def __repr__(self) -> str:
        """Cheap: waits for nothing and asks nothing of the engine."""
        with self.executor.lock:
            names = [key for key in self.branch.bindings if key is not None]
            text = self.branch.text
            status = "failed" if self.branch.error else "done" if self.branch.is_done else "running"
        shown = text if len(text) <= 60 else f"{text[:29]}…{text[-30:]}"
        return f"<ProgramState of {self.branch.scope.title}: {status}, {shown!r}, variables {names}>"

    def __getattr__(self, name: str) -> Any:
        instead = f" Use {_INSTEAD[name]}." if name in _INSTEAD else ""
        raise AttributeError(f"ProgramState has no attribute {name!r}.{instead}")


def _prefix(role: str, info: ModelInfo, messages: Sequence[Message]) -> str:
    own = info.roles[role].prefix
    if info.folds_system and role == "system" and not messages:
        return info.roles["user"].prefix + own
    if info.folds_system and role == "user" and len(messages) == 1 and messages[0].role == "system":
        return ""
    return own


def _descends(branch: Branch | None, ancestor: Branch) -> bool:
    while branch is not None:
        if branch is ancestor:
            return True
        branch = branch.parent
    return False


def _note_failed(error: BaseException, binding: Gathered) -> None:
    failed = [i for i, child in binding.children if failure(child) is not None]
    note = f"Failed children of this join: {failed}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
