"""`FakeBackend`: answers programs from a function, on a thread of its own, as the engine would.

Tests lean on: nodes of a branch are carried out in order; a fork is born when its parent has come that far; texts and
results are kept per branch; `submissions` has every `Run.submit`; `alive` is the number of branches with work left.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from nbsgl import errors, scoring
from nbsgl.protocol import (
    AnyEvent,
    AnyNode,
    Append,
    BranchFailed,
    Choose,
    Chunk,
    Close,
    EngineSnapshot,
    Finish,
    Fork,
    Gen,
    GenDone,
    GenResult,
    Listener,
    Logprobs,
    ModelInfo,
    Ref,
    RoleFormat,
    Root,
    Select,
    SelectDone,
    Text,
    pack_ids,
)
from nbsgl.reasoning import Splitter

CHAT = {role: RoleFormat(f"<|{role}|>", "<|end|>") for role in ("system", "user", "assistant")}

Answer = Callable[[str, Gen], Any]


def info(**changes: Any) -> ModelInfo:
    known: dict[str, Any] = {
        "model": "fake",
        "context_length": 4096,
        "vocab_size": 256,
        "roles": CHAT,
        "stop": ("<|end|>",),
    }
    return ModelInfo(**{**known, **changes})


def named(prompt: str, node: Gen) -> str:
    """The default answer: the variable's name in brackets."""
    return f"[{node.name}]"


@dataclass
class FakeBranch:
    number: int
    nodes: deque[AnyNode] = field(default_factory=deque)
    text: str = ""
    own: str = ""
    is_born: bool = True
    is_closed: bool = False
    waits_for: int | None = None  # slot of a select that asked
    chosen: dict[int, int] = field(default_factory=dict)
    failed: dict[str, object] | None = None

    @property
    def is_idle(self) -> bool:
        return self.failed is not None or (self.is_born and not self.nodes)


class FakeRun:
    def __init__(self, backend: FakeBackend, listener: Listener) -> None:
        self.backend, self.listener = backend, listener
        self.branches: dict[int, FakeBranch] = {}
        self.all_nodes: list[AnyNode] = []
        self.owners: dict[int, FakeBranch] = {}
        self.texts: dict[int, list[str]] = {}
        self.aborted: list[int] = []
        self.is_closed = False

    def submit(self, nodes: Sequence[AnyNode]) -> None:
        if self.backend.dead is not None:
            raise self.backend.dead
        with self.backend.lock:
            self.backend.submissions.append(list(nodes))
            self.all_nodes += nodes
            for node in nodes:
                self._place(node)
        self.backend.wake.set()

    def _place(self, node: AnyNode) -> None:
        if isinstance(node, Root):
            self.branches[node.branch] = FakeBranch(node.branch)
        elif isinstance(node, Fork):
            parent = self.branches[node.parent]
            child = self.branches[node.branch] = FakeBranch(node.branch, is_born=False, failed=parent.failed)
            if child.failed is None:
                parent.nodes.append(node)
        elif isinstance(node, Choose):
            self.branches[node.branch].chosen[node.slot] = node.index
        elif isinstance(node, Close):
            self.branches[node.branch].is_closed = True
        else:
            branch = self.branches[node.branch]
            assert not branch.is_closed, f"{node} after Close"
            if isinstance(node, (Gen, Select)):
                self.owners[node.slot] = branch
            if branch.failed is not None:
                event = BranchFailed(branch=node.branch, slot=getattr(node, "slot", -1), error=branch.failed)
                self.backend.told.append((self, event))
            else:
                branch.nodes.append(node)

    def abort(self, branches: Sequence[int] | None = None, by: str = "the caller") -> None:
        with self.backend.lock:
            chosen = list(self.branches) if branches is None else list(branches)
            self.aborted += chosen
            for number in chosen:
                branch = self.branches.get(number)
                if branch is not None and not branch.is_idle:
                    self.fail(branch, errors.encode(errors.Aborted(by=by)))
        self.backend.wake.set()

    def fail(self, branch: FakeBranch, error: dict[str, object], slot: int = -1, partial: str = "") -> None:
        if branch.failed is not None:
            return
        branch.failed = error
        forks = [node.branch for node in branch.nodes if isinstance(node, Fork)]
        branch.nodes.clear()
        self.backend.told.append((self, BranchFailed(branch=branch.number, slot=slot, error=error, partial=partial)))
        for number in forks:
            self.fail(self.branches[number], error)

    def close(self) -> None:
        self.is_closed = True
        with self.backend.lock:
            if self in self.backend.runs:
                self.backend.runs.remove(self)


class FakeBackend:
    """`answer(prompt, node)` gives a text, a list of chunks, or an exception to fail with; `delay_s` per gen."""

    def __init__(
        self,
        answer: Answer = named,
        *,
        delay_s: float = 0.0,
        scores: Callable[[str, str], list[float]] | None = None,
        **facts: Any,
    ) -> None:
        self.answer, self.delay_s = answer, delay_s
        self.scores = scores or (lambda prompt, choice: [-float(len(choice))])
        self._info = info(**facts)
        self.lock = threading.RLock()
        self.wake = threading.Event()
        self.runs: list[FakeRun] = []
        self.all_runs: list[FakeRun] = []
        self.submissions: list[list[AnyNode]] = []
        self.told: list[tuple[FakeRun, AnyEvent]] = []
        self.dead: errors.EngineError | None = None
        self.gate: threading.Event | None = None  # when set to an Event, gens wait for it
        self.num_flushes = 0
        self.is_closed = False
        self._began: dict[tuple[int, int], float] = {}
        self._ids = itertools.count(1)
        self._thread = threading.Thread(target=self._work, daemon=True, name="fake-backend")
        self._thread.start()

    # ---- the waist ---------------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        return self._info

    def open_run(self, listener: Listener) -> FakeRun:
        if self.dead is not None:
            raise self.dead
        run = FakeRun(self, listener)
        with self.lock:
            self.runs.append(run)
            self.all_runs.append(run)
        return run

    def snapshot(self, *, tree: bool = False) -> EngineSnapshot:
        words = "slots_total slots_free slots_in_tree slots_owned running waiting parked steps decode_tokens"
        zeros = dict.fromkeys([*words.split(), "prefill_tokens_computed", "prefill_tokens_cached"], 0)
        return EngineSnapshot(
            time=time.time(), uptime_s=1.0, info=self._info, epoch=1, health=True, policy="fcfs", hit_rate=0.0, **zeros
        )

    def flush_cache(self) -> bool:
        self.num_flushes += 1
        return True

    def close(self) -> None:
        self.is_closed = True
        self.wake.set()

    # ---- for tests ---------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[AnyNode]:
        return [node for submission in self.submissions for node in submission]

    @property
    def alive(self) -> int:
        with self.lock:
            return sum(not branch.is_idle for run in self.runs for branch in run.branches.values())

    def die(self, error: errors.EngineError) -> None:
        """Fail everything unfinished, as a dead engine does."""
        with self.lock:
            self.dead = error
            for run in self.runs:
                for branch in run.branches.values():
                    if not branch.is_idle:
                        run.fail(branch, errors.encode(error))
        self.wake.set()

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self.is_closed:
            with self.lock:
                progress = self._step()
                told, self.told = self.told, []
            for run, event in told:
                if not run.is_closed:
                    run.listener([event])
            if not progress and not told:
                self.wake.wait(0.002 if self._began or self.alive else 0.05)
                self.wake.clear()

    def _step(self) -> bool:
        progress = False
        for run in list(self.runs):
            for branch in list(run.branches.values()):
                while branch.nodes and branch.is_born and branch.failed is None and self._carry_out(run, branch):
                    progress = True
        return progress

    def _carry_out(self, run: FakeRun, branch: FakeBranch) -> bool:
        node = branch.nodes[0]
        if isinstance(node, Text):
            self._grow(branch, node.text)
        elif isinstance(node, Fork):
            child = run.branches[node.branch]
            child.text, child.is_born = branch.text, True
        elif isinstance(node, Append):
            source = run.branches[node.source]
            if source.failed is not None:
                run.fail(branch, source.failed)
                return True
            if not source.is_idle:
                return False
            self._grow(branch, source.own)
        elif isinstance(node, Ref):
            owner, texts = run.owners[node.slot], run.texts.get(node.slot)
            if texts is None:
                if owner.failed is not None:
                    run.fail(branch, owner.failed)
                return owner.failed is not None
            self._grow(branch, texts[node.sample])
        elif isinstance(node, Gen):
            if not self._is_due(run, node.slot):
                return False
            if not self._gen(run, branch, node):
                return True
        elif isinstance(node, Select) and not self._select(run, branch, node):
            return False
        branch.nodes.popleft()
        return True

    def _grow(self, branch: FakeBranch, text: str) -> None:
        branch.text += text
        branch.own += text

    def _is_due(self, run: FakeRun, slot: int) -> bool:
        if self.gate is not None and not self.gate.is_set():
            return False
        key = (id(run), slot)
        began = self._began.setdefault(key, time.monotonic())
        if time.monotonic() < began + self.delay_s:
            return False
        del self._began[key]
        return True

    def _gen(self, run: FakeRun, branch: FakeBranch, node: Gen) -> bool:
        results = []
        for sample in range(node.params.n):
            said = self.answer(branch.text, node)
            if isinstance(said, errors.NbsglError):
                run.fail(branch, errors.encode(said), node.slot, "par")
                return False
            chunks = [said] if isinstance(said, str) else list(said)
            if node.params.n > 1:
                chunks = [f"{chunk}{sample}" for chunk in chunks]
            thoughts = [""] * len(chunks)
            if node.markers:
                splitter = Splitter(node.markers)
                cut = [*map(splitter.push, chunks), splitter.finish()]
                chunks, thoughts = [answer for _, answer in cut], [thought for thought, _ in cut]
            result = self._result(branch.text, "".join(chunks), node)
            results.append(msgspec.structs.replace(result, reasoning="".join(thoughts)))
            if node.stream and sample == 0:
                for chunk, thought in zip(chunks, thoughts):
                    ids = pack_ids(list(chunk.encode()))
                    logprobs = _logprobs(chunk) if node.params.return_logprob else None
                    where: dict[str, Any] = {"branch": branch.number, "slot": node.slot, "reasoning": thought}
                    event = Chunk(text=chunk, ids=ids, logprobs=logprobs, **where)
                    self.told.append((run, event))
        self._grow(branch, results[0].text)
        run.texts[node.slot] = [result.text for result in results]
        self.told.append((run, GenDone(branch=branch.number, slot=node.slot, results=results)))
        return True

    def _result(self, prompt: str, text: str, node: Gen) -> GenResult:
        return GenResult(
            text=text,
            ids=pack_ids(list(text.encode())),
            finish=Finish(type="stop", matched=2),
            prompt_tokens=len(prompt.encode()),
            cached_tokens=1,
            completion_tokens=len(text.encode()),
            prefill_cached=1,
            prefill_computed=2,
            seed=node.params.seed or 0,
            ttft_s=0.01,
            e2e_s=0.02,
            output_logprobs=_logprobs(text) if node.params.return_logprob else None,
            input_logprobs=_logprobs(prompt[:2]) if node.params.logprob_start_len >= 0 else None,
        )

    def _select(self, run: FakeRun, branch: FakeBranch, node: Select) -> bool:
        if branch.waits_for == node.slot:
            if node.slot not in branch.chosen:
                return False
            branch.waits_for = None
            self._grow(branch, node.choices[branch.chosen[node.slot]])
            run.texts[node.slot] = [node.choices[branch.chosen[node.slot]]]
            return True
        if not self._is_due(run, node.slot):
            return False
        rows = [self.scores(branch.text, choice) for choice in node.choices]
        bare = [[-1.0] * len(row) for row in rows] if node.needs_unconditional else None
        method = scoring.METHODS.get(node.method, scoring.token_length_normalized)
        scores = method(rows, bare)
        index = -1 if node.method == "ask" else scoring.decide(scores, node.temperature, node.seed)
        done = SelectDone(
            branch=branch.number,
            slot=node.slot,
            index=index,
            scores=scores,
            token_logprobs=[[(value, i, None) for i, value in enumerate(row)] for row in rows],
            unconditional=None if bare is None else [[(value, 0, None) for value in row] for row in bare],
            prompt_tokens=len(branch.text),
            prefill_computed=3,
            seed=node.seed,
        )
        self.told.append((run, done))
        if index < 0:
            branch.waits_for = node.slot
            return False
        self._grow(branch, node.choices[index])
        run.texts[node.slot] = [node.choices[index]]
        return True


def _logprobs(text: str) -> Logprobs:
    rows = [(-0.5, byte, chr(byte)) for byte in text.encode()]
    return Logprobs(tokens=list(rows), top=[[row] for row in rows])
