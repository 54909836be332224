"""A scheduler over the oracle in one line, for tests small enough to check by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from nbsgl.engine.scheduler import Limits, Scheduler
from nbsgl.engine.segments import Forced, Sampled, Segment, Update
from nbsgl.protocol import GrammarSpec, SamplingParams, pack_ids, unpack_ids
from tests.sim.oracle import EOS, VOCAB, OracleRunner
from tests.sim.toy_grammar import ToyEncoder, ToyGrammar


def forced(*ids: int, score_from: int = -1, top: int = 0) -> Forced:
    return Forced(ids=pack_ids(ids), score_from=score_from, top=top)


def greedy(
    max_tokens: int | str,
    *,
    stream: bool = False,
    size: int | str | None = None,
    jump: Literal["off", "verify", "canonical"] = "verify",
    **params: Any,
) -> Sampled:
    """A run at temperature 0 that ignores EOS unless told; `size` gives it the toy grammar of that size or text."""
    settings = {"temperature": 0.0, "ignore_eos": True, "seed": 0, **params}
    grammar = GrammarSpec(kind="regex", text=str(size), jump=jump) if size is not None else None
    return Sampled(params=SamplingParams(max_tokens=max_tokens, **settings), grammar=grammar, stream=stream)


class Engine:
    """Scheduler, oracle and all updates; strict: the census runs after every step."""

    def __init__(
        self,
        *,
        context_length: int = 400,
        strict: bool = True,
        has_tables: bool = False,
        compile_grammar: Callable[[GrammarSpec], Any] | None = None,
        **limits: Any,
    ) -> None:
        """`has_tables`: the device masks and steps grammars by itself."""
        chosen = Limits(**{"num_slots": 256, "max_running": 8, "token_budget": 64, "policy": "fcfs", **limits})
        self.runner = OracleRunner(chosen.num_slots, has_device_grammars=has_tables)
        self.updates: list[Update] = []
        self.now = 0.0
        self.scheduler = Scheduler(
            chosen,
            self.runner,
            eos_ids=[EOS],
            vocab_bytes=VOCAB,
            compile_grammar=compile_grammar or (lambda spec: ToyGrammar(spec.text, VOCAB, has_tables=has_tables)),
            encode=ToyEncoder(VOCAB),
            context_length=context_length,
            emit=self.updates.extend,
            clock=lambda: self.now,
            strict=strict,
        )

    def add(self, seq: int, *segments: Segment, parent: int | None = None, after: int = 0) -> None:
        self.scheduler.open(seq, parent, after)
        if segments:
            self.scheduler.extend(seq, 0, 0, segments)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.scheduler.step()

    def run(self) -> None:
        """Until there is nothing to do."""
        for _ in range(10_000):
            if not self.scheduler.step():
                return
        raise AssertionError("the work does not end")

    def ids(self, seq: int, segment: int) -> list[int]:
        """All ids reported of a segment."""
        return [i for u in self.updates if (u.seq, u.segment) == (seq, segment) for i in unpack_ids(u.ids)]

    def done(self, seq: int, segment: int) -> Update:
        """The last update of a segment."""
        (update,) = [u for u in self.updates if (u.seq, u.segment, u.done) == (seq, segment, True)]
        return update

    def error(self, seq: int) -> str:
        (update,) = [u for u in self.updates if u.seq == seq and u.error is not None]
        return update.error["cls"] if update.error else ""
