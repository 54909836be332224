"""A worker without a model: the same wire, one token per step, and faults on request.

It continues a sequence by counting: the token after t is t + 1 (modulo 200, plus 10).  `NBSGL_FAKE` holds words:
"abort-at-load", "fail-at-load", "slow-load", "chatty", "fast".  A forced run that begins with HANG or CRASH does so.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from nbsgl import errors
from nbsgl.engine import worker
from nbsgl.engine.segments import (
    AbortSeqs,
    Ask,
    CloseSeq,
    Extend,
    Forced,
    Open,
    Phase,
    Ready,
    StartFailed,
    Stop,
    Update,
    Updates,
    WorkerAnswer,
)
from nbsgl.protocol import Finish, pack_ids, unpack_ids

HANG, CRASH = 1, 2
STEP_S = 0.005
SNAPSHOT = {
    "policy": "fcfs",
    "slots_total": 100,
    "slots_free": 100,
    "slots_in_tree": 0,
    "slots_owned": 0,
    "running": 0,
    "waiting": 0,
    "parked": 0,
    "prefill_tokens_computed": 0,
    "prefill_tokens_cached": 0,
    "decode_tokens": 0,
    "hit_rate": 0.0,
}


class Seq:
    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.queue: list[tuple[int, object]] = []
        self.drawn: list[int] = []


class Fake:
    def __init__(self, link: worker.Link, words: list[str]) -> None:
        self.link, self.words = link, words
        self.seqs: dict[int, Seq] = {}
        self.steps = 0
        self.is_stopping = False

    def serve(self) -> None:
        while not self.is_stopping:
            is_busy = any(seq.queue for seq in self.seqs.values())
            for message in self.link.receive(0.0 if is_busy else 0.2):
                self.take(message)
            self.steps += 1
            updates = [update for number, seq in self.seqs.items() for update in self.move(number, seq)]
            self.link.send(Updates(step=self.steps, updates=updates))
            if "fast" not in self.words:
                time.sleep(STEP_S)

    def take(self, message: object) -> None:
        match message:
            case Open():
                parent = self.seqs.get(message.parent) if message.parent is not None else None
                self.seqs[message.seq] = Seq(list(parent.tokens) if parent else [])
            case Extend():
                self.seqs[message.seq].queue += list(enumerate(message.segments, message.first))
            case CloseSeq():
                if message.seq in self.seqs and not self.seqs[message.seq].queue:
                    del self.seqs[message.seq]
            case AbortSeqs():
                for number in message.seqs:
                    self.seqs.pop(number, None)
            case Ask():
                value = {**SNAPSHOT, "steps": self.steps, "running": len(self.seqs)}
                self.link.send(WorkerAnswer(ask=message.ask, value=True if message.what == "flush" else value))
            case Stop():
                self.is_stopping = True

    def move(self, number: int, seq: Seq) -> list[Update]:
        if not seq.queue:
            return []
        index, segment = seq.queue[0]
        if isinstance(segment, Forced):
            ids = unpack_ids(segment.ids)
            if ids and ids[0] == HANG:
                time.sleep(1000)
            if ids and ids[0] == CRASH:
                os.kill(os.getpid(), signal.SIGSEGV)
            seq.tokens += ids
            seq.queue.pop(0)
            return [Update(seq=number, segment=index, done=True, prompt_len=len(seq.tokens))]
        if "chatty" in self.words:
            print("x" * 100_000, flush=True)
        token = (seq.tokens[-1] + 1) % 200 + 10
        seq.tokens.append(token)
        seq.drawn.append(token)
        is_last = len(seq.drawn) >= segment.params.max_tokens
        ids = [token] if segment.stream else seq.drawn if is_last else []
        finish = Finish(type="length", length=len(seq.drawn)) if is_last else None
        if is_last:
            seq.queue.pop(0)
            seq.drawn = []
        if not ids:
            return []
        return [Update(seq=number, segment=index, ids=pack_ids(ids), done=is_last, finish=finish, prompt_len=1)]


def main() -> None:
    launch, _ = worker.set_up(sys.argv)
    words = os.environ.get("NBSGL_FAKE", "").split()
    link = worker.Link(launch.socket)
    link.send(Phase(phase="load", progress=0.5, note="pretending"))
    if "slow-load" in words:
        time.sleep(30)
    if "abort-at-load" in words:
        time.sleep(0.3)  # for the message before to leave
        os.abort()
    if "fail-at-load" in words:
        error = errors.ModelNotFound(file="x", field="model_path", value="x", allowed="a folder")
        link.send(StartFailed(stage="load", error=errors.encode(error)))
        link.close()
        os._exit(5)
    link.send(
        Ready(
            context_length=100_000,
            vocab_size=256,
            num_slots=100,
            device="cpu",
            device_reason="a fake",
            dtype="float32",
            num_parameters=0,
            eos_ids=[],
            load_s=0.0,
            folder=str(Path.cwd()),
        )
    )
    Fake(link, words).serve()
    link.close()
    os._exit(0)


if __name__ == "__main__":
    main()
