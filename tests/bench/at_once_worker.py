"""A worker that answers every segment the moment it comes: what is left is the language and the way between processes.

`language` has it spawned, with the embedded model's tokenizer.  Every token drawn is the same one.
"""

from __future__ import annotations

import os
import sys

from nbsgl.engine import worker
from nbsgl.engine.folders import EMBEDDED
from nbsgl.engine.segments import Ask, Extend, Forced, Phase, Ready, Segment, Stop, Update, Updates, WorkerAnswer
from nbsgl.protocol import Finish, pack_ids
from tests.process.fake_worker import SNAPSHOT

TOKEN, VOCAB = 300, 4096


def answer(seq: int, index: int, segment: Segment) -> Update:
    if isinstance(segment, Forced):
        return Update(seq=seq, segment=index, done=True, prompt_len=1)
    count = segment.params.max_tokens
    assert isinstance(count, int)
    finish = Finish(type="length", length=count)
    return Update(seq=seq, segment=index, ids=pack_ids([TOKEN] * count), done=True, finish=finish, prompt_len=1)


def serve(link: worker.Link) -> None:
    step = 0
    while True:
        updates: list[Update] = []
        for message in link.receive(0.2):
            match message:
                case Extend():
                    updates += [answer(message.seq, i, s) for i, s in enumerate(message.segments, message.first)]
                case Ask():
                    value = True if message.what == "flush" else {**SNAPSHOT, "steps": step}
                    link.send(WorkerAnswer(ask=message.ask, value=value))
                case Stop():
                    return
        step += 1
        link.send(Updates(step=step, updates=updates))


def main() -> None:
    launch, _ = worker.set_up(sys.argv)
    link = worker.Link(launch.socket)
    link.send(Phase(phase="load"))
    ready = Ready(
        context_length=100_000,
        vocab_size=VOCAB,
        num_slots=1_000_000,
        device="cpu",
        device_reason="none",
        dtype="none",
        num_parameters=0,
        eos_ids=[2],
        load_s=0.0,
        folder=str(EMBEDDED),
    )
    link.send(ready)
    serve(link)
    link.close()
    os._exit(0)


if __name__ == "__main__":
    main()
