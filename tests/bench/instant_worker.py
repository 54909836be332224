"""A worker whose model takes a given time per step and draws one token always: what is left is the host's part.

`host_path` has it spawned.  NBSGL_INSTANT names the file in which its steps are told when it ends.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from nbsgl.engine import worker
from nbsgl.engine.batch import Batch, RowResult
from nbsgl.engine.limits import Limits
from nbsgl.engine.scheduler import Scheduler
from nbsgl.engine.segments import Phase, Ready

TOKEN = 11
VOCAB = 100_000
CONTEXT = 100_000
NUM_SLOTS = 2_000_000
STEP_S, TOKEN_S = 0.004, 15e-6  # an 8B on an H200, about


class Instant:
    """A step on its way."""

    def __init__(self, results: list[RowResult], done_at: float) -> None:
        self._results, self._done_at = results, done_at

    def result(self) -> list[RowResult]:
        if (left := self._done_at - time.monotonic()) > 0:
            time.sleep(left)
        return self._results


class InstantRunner:
    """Draws TOKEN for every row; a step takes `step_s`, and `token_s` for each known token.

    `launches` holds (launched at, done at, rows, tokens) of each step, times of the monotonic clock.
    """

    has_device_grammars = False

    def __init__(self, max_running: int, step_s: float = 0.0, token_s: float = 0.0) -> None:
        self._step_s, self._token_s = step_s, token_s
        self._done_at = 0.0
        self._results = [RowResult(token=TOKEN) for _ in range(max_running)]
        self.launches: list[tuple[float, float, int, int]] = []

    def launch(self, batch: Batch) -> Instant:
        num, num_tokens = len(batch.rows), batch.num_tokens
        now = time.monotonic()
        self._done_at = max(now, self._done_at) + self._step_s + self._token_s * (num_tokens - num)
        self.launches.append((now, self._done_at, num, num_tokens))
        return Instant(self._results[:num], self._done_at)

    def forget(self) -> None:
        self._done_at = 0.0

    def prepare_next(self) -> bool:
        return False


def make_scheduler(emit: Any, runner: Any, *, max_running: int = 512, overlap: bool = True, **more: Any) -> Scheduler:
    """As the worker makes it, for tokens only."""
    limits = Limits(num_slots=NUM_SLOTS, max_running=max_running, overlap=overlap, **more)
    return Scheduler(
        limits,
        runner,
        eos_ids=[2],
        vocab_bytes=[b"a"] * VOCAB,
        compile_grammar=lambda spec: None,
        context_length=CONTEXT,
        emit=emit,
    )


def main() -> None:
    gc.disable()
    launch, _ = worker.set_up(sys.argv)
    link = worker.Link(launch.socket)
    runner = InstantRunner(512, STEP_S, TOKEN_S)
    scheduler = make_scheduler(lambda updates: loop.emit(updates), runner, overlap=True)
    loop = worker.Worker(link, scheduler, str, lambda: None)
    link.send(Phase(phase="load"))
    link.send(
        Ready(
            context_length=CONTEXT,
            vocab_size=VOCAB,
            num_slots=NUM_SLOTS,
            device="cpu",
            device_reason="none",
            dtype="none",
            num_parameters=0,
            eos_ids=[2],
            load_s=0.0,
            folder=str(Path.cwd()),
        )
    )
    gc.freeze()
    loop.serve()
    Path(os.environ["NBSGL_INSTANT"]).write_text(json.dumps(runner.launches))
    link.close()
    os._exit(0)


if __name__ == "__main__":
    main()
