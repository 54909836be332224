"""The nouns of a running program: pieces of text, slots of sampled results, what names are bound to, branches, scopes.

Nothing here locks; the `Executor` that owns a branch does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from nbsgl.errors import BadValue, IncompleteOutput, ProgramError
from nbsgl.lang.choices import ChoicesSamplingMethod
from nbsgl.lang.types import Reader
from nbsgl.protocol import Gen, GenResult, Select, SelectDone, Status, TokenLogprob

if TYPE_CHECKING:
    import asyncio


@dataclass(slots=True, eq=False)
class Piece:
    """Known text; `is_markup`: the prefix or suffix of `role`."""

    text: str
    role: str | None = None
    is_markup: bool = False


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one sampled result, from the line that queues it to its end.  Times are `time.monotonic()`."""

    node: Gen | Select
    where: str
    role: str | None = None
    method: ChoicesSamplingMethod | None = None
    with_text: bool = False
    run_seed: int = 0
    reader: Reader | None = None
    status: Status = "queued"
    results: list[GenResult] = field(default_factory=list)
    choice: SelectDone | None = None
    chosen: int = -1
    chunks: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)  # what came of its thinking, which is not in its text
    chunk_logprobs: list[TokenLogprob] = field(default_factory=list)
    num_chunk_tokens: int = 0
    error: BaseException | None = None
    sent_at: float | None = None
    first_at: float | None = None
    ended_at: float | None = None

    @property
    def number(self) -> int:
        return self.node.slot

    @property
    def name(self) -> str | None:
        return self.node.name

    @property
    def is_final(self) -> bool:
        return self.status in ("done", "failed", "aborted")

    @property
    def text(self) -> str:
        """The text that stands in the branch; what has come so far of one that is not done."""
        if self.results:
            return self.results[0].text
        if isinstance(self.node, Select):
            return self.node.choices[self.chosen] if self.chosen >= 0 else ""
        return "".join(self.chunks)

    @property
    def value(self) -> str | list[str]:
        if isinstance(self.node, Gen) and self.node.params.n > 1:
            return [result.text for result in self.results]
        return self.text

    @property
    def reasoning(self) -> str | list[str]:
        """The thinking that was kept apart from the value."""
        if isinstance(self.node, Gen) and self.node.params.n > 1:
            return [result.reasoning for result in self.results]
        return self.results[0].reasoning if self.results else "".join(self.thoughts)

    @property
    def typed(self) -> Any:
        """The value as the type that was asked for; without one, the text.  `BadValue`, or its `IncompleteOutput`."""
        if not self.results:
            return self.value
        read = [self._read(result) for result in self.results]
        return read if isinstance(self.value, list) else read[0]

    def _read(self, result: GenResult) -> Any:
        if not result.complete:
            raise self._incomplete(result)
        if self.reader is None:
            return result.text
        try:
            return self.reader.read(self.name, result.text, f"The text itself is s[{self.name!r}].")
        except BadValue as error:
            if result.finish.type == "length":
                raise self._incomplete(result) from error
            raise

    def _incomplete(self, result: GenResult) -> IncompleteOutput:
        grammar = self.node.grammar if isinstance(self.node, Gen) else None
        shown = self.reader.shown if self.reader is not None else grammar.kind if grammar is not None else "text"
        limit = result.finish.length
        reason = "its grammar goes on" if limit is None else f"the limit of {limit} tokens was met"
        allow = f"Allow max_tokens={result.needed} at least" if result.needed else "Allow more tokens"
        return IncompleteOutput(
            "" if limit is not None else f"The variable {self.name!r} is no whole {shown}: {result.text!r}.",
            variable=self.name,
            text=result.text,
            expected=shown,
            reason=reason,
            limit=limit,
            needed=result.needed,
            hint=f'{allow}, or take on_limit="fit".  The text itself is s[{self.name!r}].',
        )

    @property
    def num_tokens(self) -> int:
        return sum(result.completion_tokens for result in self.results) or self.num_chunk_tokens

    def end(self, status: Status, error: BaseException | None = None) -> None:
        self.status, self.error, self.ended_at = status, error, time.monotonic()


@dataclass(slots=True, eq=False)
class Link:
    """The text of another result, also while it is still to come."""

    slot: Slot
    sample: int = 0
    role: str | None = None
    is_markup: ClassVar[bool] = False

    @property
    def text(self) -> str:
        if self.sample:
            return self.slot.results[self.sample].text if self.slot.results else ""
        return self.slot.text if self.slot.is_final else ""


Item = Piece | Slot | Link


def slot_of(item: Item) -> Slot | None:
    """The result whose text the item is."""
    if isinstance(item, Link):
        return item.slot
    return item if isinstance(item, Slot) else None


def slots_of(items: Iterable[Item]) -> Iterator[Slot]:
    for item in items:
        if (slot := slot_of(item)) is not None:
            yield slot


Atoms = list[str | Link]
"""A text of which not all is known: what is, and the places of what is not."""


class Binding:
    """What a name is bound to."""

    def slots(self) -> Iterator[Slot]:
        """The results the value depends on."""
        yield from ()

    @property
    def is_open(self) -> bool:
        """More may still be added to it."""
        return False

    def value(self) -> Any:
        """The value, once all slots are final and none has failed."""
        raise AssertionError("no value")

    def typed(self) -> Any:
        """The value, as the type its gen asked for.  Raises `BadValue`."""
        return self.value()

    def atoms(self) -> Atoms | list[Atoms]:
        """The value as text; for a list, that of each entry."""
        raise AssertionError("no text")


@dataclass(slots=True, eq=False)
class Sampled(Binding):
    slot: Slot

    def slots(self) -> Iterator[Slot]:
        yield self.slot

    def value(self) -> str | list[str]:
        return self.slot.value

    def typed(self) -> Any:
        return self.slot.typed

    def atoms(self) -> Atoms | list[Atoms]:
        num = self.slot.node.params.n if isinstance(self.slot.node, Gen) else 1
        each: list[Atoms] = [[Link(self.slot, sample)] for sample in range(num)]
        return each if num > 1 else each[0]


@dataclass(slots=True, eq=False)
class Thought(Sampled):
    """The thinking of a gen whose own variable has the answer only."""

    def value(self) -> str | list[str]:
        return self.slot.reasoning

    def typed(self) -> Any:
        return self.slot.reasoning

    def atoms(self) -> Atoms | list[Atoms]:
        if self.slot.status != "done":
            raise ProgramError(
                "A thinking that is still to come cannot be referred to, as it is in no branch.",
                hint=f"Read it: s += s['{self.slot.name}_reasoning_content'].",
            )
        return Given(self.slot.reasoning).atoms()


@dataclass(slots=True, eq=False)
class Given(Binding):
    """A value that was set."""

    given: Any

    def value(self) -> Any:
        return self.given

    def atoms(self) -> Atoms | list[Atoms]:
        is_list = isinstance(self.given, (list, tuple))
        each: list[Atoms] = [[str(one)] for one in (self.given if is_list else [self.given])]
        return each if is_list else each[0]


@dataclass(slots=True, eq=False)
class Span(Binding):
    """The text that a `var_scope` added."""

    items: list[Item]
    start: int
    thread: int
    end: int | None = None

    @property
    def is_open(self) -> bool:
        return self.end is None

    def slots(self) -> Iterator[Slot]:
        yield from slots_of(self.items[self.start : self.end])

    def value(self) -> str:
        return "".join(item.text for item in self.items[self.start : self.end])

    def atoms(self) -> Atoms | list[Atoms]:
        found: Atoms = []
        for item in self.items[self.start : self.end]:
            found.append(Link(item) if isinstance(item, Slot) else item if isinstance(item, Link) else item.text)
        return found


@dataclass(slots=True, eq=False)
class Gathered(Binding):
    """The list that a join makes of one name: by child, without those that lack it."""

    children: list[tuple[int, Binding]]
    keeps_errors: bool = False

    def slots(self) -> Iterator[Slot]:
        for _, child in self.children:
            yield from child.slots()

    @property
    def is_open(self) -> bool:
        return any(child.is_open for _, child in self.children)

    def value(self) -> list[Any]:
        return [failure(child) or child.value() for _, child in self.children]

    def typed(self) -> list[Any]:
        return [failure(child) or child.typed() for _, child in self.children]

    def atoms(self) -> Atoms | list[Atoms]:
        return [flat(child.atoms()) for _, child in self.children]


@dataclass(slots=True, eq=False)
class Listed(Binding):
    """The list that a name becomes by `list_append`."""

    entries: list[Binding]

    def slots(self) -> Iterator[Slot]:
        for entry in self.entries:
            yield from entry.slots()

    def value(self) -> list[Any]:
        return [entry.value() for entry in self.entries]

    def typed(self) -> list[Any]:
        return [entry.typed() for entry in self.entries]

    def atoms(self) -> Atoms | list[Atoms]:
        return [flat(entry.atoms()) for entry in self.entries]


def flat(atoms: Atoms | list[Atoms], sep: str = "") -> Atoms:
    """A list's entries as one text, with `sep` between them."""
    found: Atoms = []
    for place, atom in enumerate(atoms):
        if isinstance(atom, list):
            found += [sep] if place else []
            found += atom
        else:
            found.append(atom)
    return found


def failure(binding: Binding) -> BaseException | None:
    """The error that makes the value impossible."""
    if isinstance(binding, Gathered) and binding.keeps_errors:
        return None
    return next((slot.error for slot in binding.slots() if slot.error is not None), None)


def is_ready(binding: Binding) -> bool:
    return not binding.is_open and all(slot.is_final for slot in binding.slots())


@dataclass(slots=True, eq=False)
class Message:
    """One role's part of a branch: its items are `[start, end)`."""

    role: str
    start: int
    end: int | None = None


@dataclass(slots=True, eq=False, weakref_slot=True)
class Scope:
    """One program at work: what its branches have in common."""

    title: str
    defaults: Mapping[str, Any]
    seed: int
    instance: int = 0
    stream: bool = False
    lookahead: int = 0  # tokens that services are asked for ahead
    eager: bool = False
    deadline_s: float | None = None
    where: str = ""
    thread: int = 0  # of the body, if it runs in one of its own
    loop: asyncio.AbstractEventLoop | None = None  # of the body, if it is a coroutine
    branches: list[Branch] = field(default_factory=list)  # all it made, also those nobody can reach
    is_over: bool = False  # the body has ended
    ret_value: Any = None
    began: float = field(default_factory=time.monotonic)


inside: ContextVar[tuple[Scope, ...]] = ContextVar("nbsgl_inside", default=())
"""The `async def` programs whose body this code is part of."""


@dataclass(slots=True, eq=False)
class Branch:
    """One line of growth; a child begins with its parent's items, bindings and open role."""

    number: int
    scope: Scope
    parent: Branch | None = None
    path: tuple[int, ...] = ()
    items: list[Item] = field(default_factory=list)
    inherited: int = 0  # of items
    forked_at: int = 0  # items of its own that the parent had
    bindings: dict[str | None, Binding] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    role: str | None = None
    num_children: int = 0
    num_sampled: int = 0
    num_sent: int = 0  # items the backend knows
    is_known: bool = False  # to the backend
    is_closed: bool = False  # joined: takes nothing more
    error: BaseException | None = None
    is_error_seen: bool = False

    def fork(self, number: int, scope: Scope | None = None) -> Branch:
        """A child; in another scope it counts its seeds anew."""
        path = (*self.path, self.num_children) if scope is None else ()
        if scope is None:
            self.num_children += 1
        return Branch(
            number,
            scope or self.scope,
            parent=self,
            path=path,
            items=list(self.items),
            inherited=len(self.items),
            forked_at=len(self.items) - self.inherited,
            bindings=dict(self.bindings),
            messages=[Message(m.role, m.start, m.end) for m in self.messages],
            role=self.role,
        )

    def slots(self) -> Iterator[Slot]:
        """The results its text depends on."""
        return slots_of(self.items)

    def own_slots(self) -> Iterator[Slot]:
        """Those it grew itself."""
        return (item for item in self.items if isinstance(item, Slot) and item.node.branch == self.number)

    @property
    def is_done(self) -> bool:
        return all(slot.is_final for slot in self.slots())

    @property
    def text(self) -> str:
        return "".join(item.text for item in self.items)
