"""`RemoteBackend`: programs on a server that completes texts.  A branch is its text so far; a fork is a copy of it.

To make a backend for another kind of server, derive and write coroutines, which run on the loop's thread, never block,
and may be cancelled at any `await` (that is how a branch is aborted):

    class MyServer(RemoteBackend):
        def __init__(self, ...):
            http = HttpClient(...)
            super().__init__("my server", at_end=http.close, max_concurrent=64)

        async def describe(self) -> ModelInfo:
            "The model: asked for once, at the first use of `info`."

        async def complete(self, request: Completion, say: Say) -> list[GenResult]:
            "`params.n` results for one gen.  While a streaming one comes, `say(Piece(text=...))` its first result."

        async def score(self, request: Scoring) -> Scores:
            "Log-probabilities of each choice's tokens; or `index` alone, if the server decides by other means."

What a request holds: `request.prompt` (all text before it), `request.parts` (the same in pieces: whether special tokens
in one count, whether it was sampled, where messages begin and end), `request.node` (a `protocol.Gen` or `Select`),
`ahead` (the nodes that are queued behind it; it grows), `more` (a coroutine: wait until it has), `memo` (a dict
of the branch's own, empty in forks, to keep what was asked for in advance).  What must be waited for is waited for in
`prepare(request)`, where it holds no room.  What they raise (`Unsupported`, `ApiError`, ...) ends the branch with that
error.  The base class sets `seed`, `ttft_s` and `e2e_s` of results and counts `token_usage`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from nbsgl import errors, scoring
from nbsgl.errors import Aborted, EngineError, EngineNotRunning, NbsglError, ProgramError, Unsupported, WrongProcess
from nbsgl.lang.backends.loop_thread import LoopThread
from nbsgl.protocol import (
    AnyEvent,
    AnyNode,
    Append,
    BranchFailed,
    Choose,
    Chunk,
    Close,
    EngineSnapshot,
    Fork,
    Gen,
    GenDone,
    GenResult,
    Listener,
    Logprobs,
    ModelInfo,
    Ref,
    Role,
    Root,
    SamplingParams,
    Select,
    SelectDone,
    Text,
    TokenLogprob,
    Tokens,
    pack_ids,
)
from nbsgl.reasoning import Splitter

logger = logging.getLogger("nbsgl")

# ---- what a backend is asked, and what it answers --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a branch's text; with a `mark`, the place where a message of that role begins ("": where it ends)."""

    text: str
    parse_special: bool = False
    is_sampled: bool = False
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What stands before a gen or select, what is queued behind it, and where to keep notes about the branch."""

    parts: tuple[Part, ...]
    ahead: Sequence[AnyNode]
    memo: dict[str, Any]
    more: Callable[[], Awaitable[None]]

    @property
    def prompt(self) -> str:
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class Completion(Request):
    node: Gen

    @property
    def params(self) -> SamplingParams:
        return self.node.params


@dataclass(frozen=True, slots=True)
class Scoring(Request):
    node: Select


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of a streaming gen's first result."""

    text: str
    ids: Sequence[int] = ()
    logprobs: Logprobs | None = None


Say = Callable[[Piece], None]


@dataclass(frozen=True, slots=True)
class Scores:
    """Per choice its tokens' log-probabilities, and those of the same tokens as a sequence of their own if asked for.

    `index`: the server has chosen by other means, and there are none.
    """

    token_logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    unconditional: list[list[TokenLogprob]] | None = None
    prompt_tokens: int = 0
    index: int | None = None


class TokenUsage:
    """Token totals of a backend's finished requests."""

    def __init__(self) -> None:
        self.prompt_tokens = self.completion_tokens = 0

    def reset(self) -> None:
        self.prompt_tokens = self.completion_tokens = 0

    def __repr__(self) -> str:
        return f"TokenUsage(prompt_tokens={self.prompt_tokens:,}, completion_tokens={self.completion_tokens:,})"


# ---- the backend -----------------------------------------------------------------------------------------------------


class RemoteBackend(ABC):
    """A `protocol.Backend` for a server; see above.  At most `max_concurrent` requests are under way at a time."""

    def __init__(self, name: str, *, at_end: Callable[[], Awaitable[None]], max_concurrent: int = 64) -> None:
        """`at_end` lets go of connections; it must not hold this object."""
        self.name = name
        self.token_usage = TokenUsage()
        self.is_closed = False
        self._max_concurrent = max_concurrent
        self._room: asyncio.Semaphore | None = None
        self._pid = os.getpid()
        self._loop = LoopThread(f"nbsgl: {name}", at_end)
        self._info: ModelInfo | None = None
        self._info_lock = threading.Lock()
        self._runs: set[RemoteRun] = set()  # with work left; on the loop's thread

    @abstractmethod
    async def describe(self) -> ModelInfo: ...

    @abstractmethod
    async def complete(self, request: Completion, say: Say) -> list[GenResult]: ...

    @abstractmethod
    async def score(self, request: Scoring) -> Scores: ...

    async def prepare(self, request: Completion) -> None:
        """Wait for what a request needs to know of its program; others go on meanwhile."""
        return

    def check(self, node: Gen | Select, given: Collection[str]) -> None:
        """`Unsupported`, at the program's line, for what a server of texts cannot do."""
        if isinstance(node, Gen) and node.heal:
            raise Unsupported(
                f"{self.name} takes text, so the last token of a prompt cannot be drawn again.",
                name="heal",
                value=True,
                hint="Leave heal out, or run it on an nbsgl.Engine.",
            )

    # ---- protocol.Backend --------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        """The model behind the server; the first use asks for it."""
        if self._info is None:
            with self._info_lock:
                if self._info is None:
                    self._info = self._loop.wait(self.describe)
        return self._info

    def open_run(self, listener: Listener) -> RemoteRun:
        """Begin a run; `listener` is called on the loop's thread."""
        self.check_open()
        return RemoteRun(self, listener)

    def snapshot(self, *, tree: bool = False) -> EngineSnapshot:
        """Raises `Unsupported`: only an engine shows its inside."""
        raise Unsupported(f"{self.name} shows nothing of its inside.", hint="An nbsgl.Engine has snapshots.")

    def flush_cache(self) -> bool:
        """False: there is no cache that could be flushed from here."""
        return False

    def close(self) -> None:
        """End what is under way (`Aborted`) and let go of connections.  Idempotent."""
        if not self.is_closed and self._pid == os.getpid():
            self.is_closed = True
            with contextlib.suppress(EngineError):
                self._loop.call(self._shut)
            self._loop.close()

    def check_open(self) -> None:
        """Raises `WrongProcess` in a forked child, `EngineNotRunning` after `close`."""
        if self._pid != os.getpid():
            raise WrongProcess(pid=self._pid, here=os.getpid(), hint="Make a backend of its own in the child.")
        if self.is_closed:
            raise EngineNotRunning(f"This backend ({self.name}) is closed.", hint="Make a new one.")

    # ---- on the loop's thread ----------------------------------------------------------------------------------------

    @property
    def room(self) -> asyncio.Semaphore:
        if self._room is None:
            self._room = asyncio.Semaphore(self._max_concurrent)
        return self._room

    def _shut(self) -> None:
        for run in list(self._runs):
            run.end_all(None, "close()")


# ---- one program -----------------------------------------------------------------------------------------------------


class RemoteBranch:
    """One branch's text and what it still has to do.  Lives on the loop's thread."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.parts: list[Part] = []
        self.num_inherited = 0  # parts that were there when it was forked
        self.queue: deque[AnyNode] = deque()
        self.memo: dict[str, Any] = {}
        self.error: dict[str, Any] | None = None
        self.task: asyncio.Task[None] | None = None
        self.waiting: list[asyncio.Future[None]] = []  # for it to be idle
        self.partial = ""  # of the gen under way
        self.readers = 0  # branches that will append it
        self.is_born = self.is_closed = False

    @property
    def is_idle(self) -> bool:
        return self.error is not None or (self.is_born and not self.queue)

    def wake(self) -> None:
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class Answered:
    """The place of one result: its texts once they are there."""

    def __init__(self, owner: RemoteBranch) -> None:
        self.owner = owner
        self.texts: list[str] | None = None
        self.chosen: int | None = None


class RemoteRun:
    """`protocol.Run`: walks each branch's nodes in a task of its own."""

    def __init__(self, backend: RemoteBackend, listener: Listener) -> None:
        self._backend, self._listener = backend, listener
        self._loop = backend._loop
        self._branches: dict[int, RemoteBranch] = {}
        self._slots: dict[int, Answered] = {}
        self._news: list[AnyEvent] = []
        self._is_closed = False

    def submit(self, nodes: Sequence[AnyNode]) -> None:
        self._backend.check_open()
        if not self._is_closed and nodes:
            self._loop.call(self._place_all, list(nodes))

    def abort(self, branches: Sequence[int] | None = None, by: str = "the caller") -> None:
        if not self._is_closed and not self._backend.is_closed:
            self._loop.call(self.end_all, None if branches is None else list(branches), by)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            with contextlib.suppress(EngineError):  # the backend is closed, and what it did with it
                self._loop.call(self.end_all, None, "close()")

    # ---- taking nodes in ---------------------------------------------------------------------------------------------

    def _place_all(self, nodes: list[AnyNode]) -> None:
        if self._backend.is_closed:
            closed = errors.encode(EngineNotRunning(f"{self._backend.name} is closed.", hint="Make a new backend."))
            for node in nodes:
                self._tell(BranchFailed(branch=node.branch, slot=getattr(node, "slot", -1), error=closed))
            return
        self._backend._runs.add(self)
        for node in nodes:
            self._place(node)
        for number in dict.fromkeys(node.branch for node in nodes):
            self._go_on(self._branches.get(number))

    def _place(self, node: AnyNode) -> None:
        if isinstance(node, Root | Fork):
            branch = self._branches[node.branch] = RemoteBranch(node.branch)
            parent = self._branches.get(node.parent) if isinstance(node, Fork) else None
            branch.is_born = isinstance(node, Root)
            if parent is not None and parent.error is None:
                parent.queue.append(node)
                self._go_on(parent)
            elif isinstance(node, Fork):
                branch.error = parent.error if parent is not None else _no_branch(node.parent)
            return
        found = self._branches.get(node.branch)
        if isinstance(node, Choose):
            if node.slot in self._slots and found is not None:
                self._slots[node.slot].chosen = node.index
                found.wake()
        elif found is None or found.error is not None:
            self._refuse(node, found)
        elif isinstance(node, Close):
            found.is_closed = True
        else:
            if isinstance(node, Gen | Select):
                self._slots[node.slot] = Answered(found)
            elif isinstance(node, Append) and (source := self._branches.get(node.source)) is not None:
                source.readers += 1
            found.queue.append(node)
            found.wake()

    def _refuse(self, node: AnyNode, branch: RemoteBranch | None) -> None:
        """The branch has failed, or was closed, before this node came."""
        if not isinstance(node, Close):
            error = _no_branch(node.branch) if branch is None else branch.error
            assert error is not None
            self._tell(BranchFailed(branch=node.branch, slot=getattr(node, "slot", -1), error=error))
        elif branch is not None:
            branch.is_closed = True

    # ---- walking -----------------------------------------------------------------------------------------------------

    def _go_on(self, branch: RemoteBranch | None) -> None:
        if branch is None or branch.task is not None or not branch.is_born or branch.error is not None:
            return
        if branch.queue:
            branch.task = asyncio.get_running_loop().create_task(self._walk(branch))
        else:
            self._forget_if_over(branch)

    async def _walk(self, branch: RemoteBranch) -> None:
        while branch.queue and branch.error is None:
            node = branch.queue.popleft()
            try:
                await self._carry_out(branch, node)
            except NbsglError as error:
                self._fail(branch, errors.encode(error), node)
            except Exception as error:
                logger.exception("%s: a request could not be carried out", self._backend.name)
                self._fail(branch, errors.encode(error), node)
        branch.task = None
        branch.wake()
        self._forget_if_over(branch)

    async def _carry_out(self, branch: RemoteBranch, node: AnyNode) -> None:
        match node:
            case Text():
                branch.parts.append(Part(node.text, node.parse_special))
            case Role():
                branch.parts.append(Part("", mark=node.role or ""))
            case Fork():
                child = self._branches[node.branch]
                child.parts = list(branch.parts)
                child.num_inherited = len(child.parts)
                child.is_born = True
                self._go_on(child)
            case Gen():
                await self._gen(branch, node)
            case Select():
                await self._select(branch, node)
            case Append():
                await self._append(branch, node)
            case Ref():
                await self._refer(branch, node)
            case Tokens():
                raise Unsupported(f"{self._backend.name} takes text, no token ids.", hint="Use an nbsgl.Engine.")

    async def _gen(self, branch: RemoteBranch, node: Gen) -> None:
        began = time.monotonic()
        first: list[float] = []
        branch.partial = ""
        cut = Splitter(node.markers) if node.markers else None

        def say(piece: Piece) -> None:
            if not first:
                first.append(time.monotonic() - began)
            self._tell(self._chunk(branch, node, piece, cut))

        request = Completion(tuple(branch.parts), branch.queue, branch.memo, lambda: self._news_of(branch), node)
        await self._backend.prepare(request)
        async with self._backend.room:
            results = await self._backend.complete(request, say)
        took = time.monotonic() - began
        seed, ttft_s = node.params.seed or 0, first[0] if first else took
        results = [_cut(one, node) for one in results]
        results = [msgspec.structs.replace(one, seed=seed, ttft_s=ttft_s, e2e_s=took) for one in results]
        if cut is not None and first:
            self._tell(self._rest(branch, node, cut))
        usage = self._backend.token_usage
        usage.prompt_tokens += results[0].prompt_tokens
        usage.completion_tokens += sum(one.completion_tokens for one in results)
        branch.parts.append(Part(results[0].text, is_sampled=True))
        branch.partial = ""
        self._tell(GenDone(branch=branch.number, slot=node.slot, results=results))
        self._keep(branch, node.slot, [one.text for one in results])

    def _chunk(self, branch: RemoteBranch, node: Gen, piece: Piece, cut: Splitter | None) -> Chunk:
        thought, text = ("", piece.text) if cut is None else cut.push(piece.text)
        branch.partial += text
        ids = pack_ids(piece.ids)
        place: dict[str, int] = {"branch": branch.number, "slot": node.slot}
        return Chunk(text=text, ids=ids, logprobs=piece.logprobs, reasoning=thought, **place)

    def _rest(self, branch: RemoteBranch, node: Gen, cut: Splitter) -> Chunk:
        """What was held back, as it might have become a marker."""
        thought, text = cut.finish()
        return Chunk(branch=branch.number, slot=node.slot, text=text, reasoning=thought)

    async def _select(self, branch: RemoteBranch, node: Select) -> None:
        began = time.monotonic()
        request = Scoring(tuple(branch.parts), branch.queue, branch.memo, lambda: self._news_of(branch), node)
        async with self._backend.room:
            found = await self._backend.score(request)
        self._backend.token_usage.prompt_tokens += found.prompt_tokens
        index, scores = decided(node, found)
        self._tell(
            SelectDone(
                branch=branch.number,
                slot=node.slot,
                index=index,
                scores=scores,
                token_logprobs=found.token_logprobs,
                unconditional=found.unconditional,
                prompt_tokens=found.prompt_tokens,
                e2e_s=time.monotonic() - began,
                seed=node.seed,
            )
        )
        if index < 0:
            index = await self._choice(branch, node)
        branch.parts.append(Part(node.choices[index]))
        self._keep(branch, node.slot, [node.choices[index]])

    async def _choice(self, branch: RemoteBranch, node: Select) -> int:
        """The caller's own decision."""
        answered = self._slots[node.slot]
        while answered.chosen is None:
            await self._news_of(branch)
        if not 0 <= answered.chosen < len(node.choices):
            raise ProgramError(f"slot {node.slot} has {len(node.choices)} choices, none with index {answered.chosen}")
        return answered.chosen

    async def _append(self, branch: RemoteBranch, node: Append) -> None:
        source = self._branches.get(node.source)
        if source is None:
            raise errors.decode(_no_branch(node.source))
        while not source.is_idle or source.task is not None:
            await self._news_of(source)
            if source.error is not None:
                break
        if source.error is not None:
            raise errors.decode(source.error)
        branch.parts += source.parts[source.num_inherited :]
        source.readers -= 1
        self._forget_if_over(source)

    async def _refer(self, branch: RemoteBranch, node: Ref) -> None:
        answered = self._slots.get(node.slot)
        if answered is None:
            raise ProgramError(f"slot {node.slot} was not submitted before the value that refers to it")
        while answered.texts is None:
            if answered.owner.error is not None:
                raise errors.decode(answered.owner.error)
            await self._news_of(answered.owner)
        if not 0 <= node.sample < len(answered.texts):
            raise ProgramError(f"slot {node.slot} has {len(answered.texts)} results, none with index {node.sample}")
        branch.parts.append(Part(answered.texts[node.sample]))

    async def _news_of(self, branch: RemoteBranch) -> None:
        future = asyncio.get_running_loop().create_future()
        branch.waiting.append(future)
        await future

    def _keep(self, branch: RemoteBranch, slot: int, texts: list[str]) -> None:
        if (answered := self._slots.get(slot)) is not None:
            answered.texts = texts
        branch.wake()

    # ---- ends --------------------------------------------------------------------------------------------------------

    def end_all(self, numbers: Sequence[int] | None, by: str) -> None:
        """Abort what these branches still do (None: all)."""
        error = errors.encode(Aborted(by=by))
        for number in list(self._branches) if numbers is None else numbers:
            branch = self._branches.get(number)
            if branch is not None and (branch.task is not None or not branch.is_idle):
                self._fail(branch, error, None)
        if self._is_closed:
            self._branches.clear()
            self._slots.clear()
            self._backend._runs.discard(self)

    def _fail(self, branch: RemoteBranch, error: dict[str, Any], node: AnyNode | None) -> None:
        if branch.error is not None:
            return
        branch.error = error
        under_way = next((slot for slot, one in self._slots.items() if one.owner is branch and one.texts is None), -1)
        slot = getattr(node, "slot", under_way)
        self._tell(BranchFailed(branch=branch.number, slot=slot, error=error, partial=branch.partial))
        unborn = [node.branch for node in branch.queue if isinstance(node, Fork)]
        branch.queue.clear()
        task = branch.task
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            branch.task = None
        branch.wake()
        for number in unborn:
            if (child := self._branches.get(number)) is not None:
                self._fail(child, error, None)
        self._forget_if_over(branch)

    def _forget_if_over(self, branch: RemoteBranch) -> None:
        is_over = branch.is_closed and branch.is_idle and branch.task is None and not branch.readers
        if is_over and self._branches.get(branch.number) is branch:
            del self._branches[branch.number]
        if not self._branches:
            self._backend._runs.discard(self)

    # ---- telling -----------------------------------------------------------------------------------------------------

    def _tell(self, event: AnyEvent) -> None:
        if not self._news:
            asyncio.get_running_loop().call_soon(self._flush)
        self._news.append(event)

    def _flush(self) -> None:
        news, self._news = self._news, []
        if self._is_closed or not news:
            return
        try:
            self._listener(news)
        except Exception:  # a listener must not raise; if it does, the other runs go on
            logger.exception("a listener of %s failed", self._backend.name)


def decided(node: Select, found: Scores) -> tuple[int, list[float]]:
    """The winner and all scores by the node's method; -1 if the caller decides."""
    if found.index is not None:
        return found.index, [float(i == found.index) for i in range(len(node.choices))]
    rows = [[value for value, _, _ in tokens] for tokens in found.token_logprobs]
    bare = None if found.unconditional is None else [[value for value, _, _ in row] for row in found.unconditional]
    scores = scoring.METHODS.get(node.method, scoring.token_length_normalized)(rows, bare)
    return (-1 if node.method == "ask" else scoring.decide(scores, node.temperature, node.seed)), scores


def _cut(result: GenResult, node: Gen) -> GenResult:
    """The answer without the thinking, if the gen asks for that."""
    if node.markers is None:
        return result
    splitter = Splitter(node.markers)
    (thought, answer), (last_thought, last) = splitter.push(result.text), splitter.finish()
    return msgspec.structs.replace(result, text=answer + last, reasoning=thought + last_thought)


def _no_branch(number: int) -> dict[str, Any]:
    return errors.encode(ProgramError(f"branch {number} is not there: it was never begun, or is closed"))
