"""The whole engine: front, worker and the embedded model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbsgl.engine.handle import Engine
from nbsgl.errors import EngineDied, ModelNotFound, RequestTooLong
from nbsgl.lang.default import Default
from nbsgl.protocol import Prompt, unpack_ids
from tests.process.tools import until

pytestmark = pytest.mark.process

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
GREEDY = {"temperature": 0, "max_new_tokens": 12}


@pytest.fixture
def engine(home: Path) -> Iterator[Engine]:
    phases: list[str] = []
    engine = Engine(keep=0, num_slots=4096, on_progress=lambda phase, progress, note: phases.append(phase))
    assert engine.info.context_length == 4096
    assert phases[0] == "spawn"
    assert "load" in phases
    yield engine
    engine.stop(force=True)


def test_start_after_shutdown_starts_anew(home: Path) -> None:
    default = Default()
    default.make_engine = Engine
    first = default.start(num_slots=4096, keep=0)
    assert default.start(num_slots=4096, keep=0) is first
    first.close()
    second = default.start(num_slots=4096, keep=0)
    assert isinstance(second, Engine)
    assert second is not first
    assert second.info.context_length == 4096
    second.stop(force=True)


def test_generate_stream_interrupt_and_death(engine: Engine) -> None:
    whole = engine.generate(PROMPT, GREEDY)
    assert isinstance(whole, dict)
    assert "Paris" in whole["text"]
    assert whole["meta_info"]["cached_tokens"] == 0
    again = engine.generate([PROMPT, PROMPT], GREEDY)
    assert [one["text"] for one in again] == [whole["text"]] * 2
    assert again[0]["meta_info"]["cached_tokens"] > 0

    parts = [part["text"] for part in engine.generate(PROMPT, GREEDY, stream=True)]
    assert parts[-1] == whole["text"]
    assert all(later.startswith(earlier) for earlier, later in zip(parts, parts[1:], strict=False))

    async def both() -> list[str]:
        streamed = await engine.async_generate(PROMPT, GREEDY, stream=True)
        texts = [part["text"] async for part in streamed]
        once = await engine.async_generate(PROMPT, GREEDY)
        return [texts[-1], once["text"]]

    assert asyncio.run(both()) == [whole["text"]] * 2

    with pytest.raises(RequestTooLong) as caught:
        engine.generate(PROMPT, {"max_new_tokens": 5000})
    assert (caught.value.max_tokens, caught.value.limit) == (5000, 4096)

    # an interrupt leaves nothing running
    long = {"max_new_tokens": 3000, "ignore_eos": True}
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        engine.generate([PROMPT] * 4, long)
    until(lambda: (s := engine.snapshot()).running == s.waiting == s.slots_owned == 0, 3.0)

    # a death is heard at once, and the next call works
    threading.Timer(0.5, lambda: os.kill(engine.worker_pid or 0, signal.SIGKILL)).start()
    began = time.monotonic()
    with pytest.raises(EngineDied):
        engine.generate(PROMPT, long)
    assert time.monotonic() - began < 3.0
    assert engine.generate(PROMPT, GREEDY)["text"] == whole["text"]


def test_restart_finds_engine_with_cache(home: Path) -> None:
    code = f"""
from nbsgl.engine.handle import Engine
engine = Engine(keep=30, num_slots=4096)
answer = engine.generate({PROMPT!r}, {GREEDY!r})
print(engine.front_pid, engine.was_running, answer["meta_info"]["cached_tokens"])
"""
    one, two = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert one[0] == two[0]
    assert (one[1], two[1]) == ("False", "True")
    assert int(one[2]) == 0
    assert int(two[2]) > 0
    Engine(keep=0, num_slots=4096).stop()


def test_a_missing_model_says_so(home: Path) -> None:
    with pytest.raises(ModelNotFound, match="/no/such/model"):
        Engine("/no/such/model", keep=0)
    assert not list(home.iterdir())  # refused at the door: no process was started


def test_peek_tells_tokens_and_what_is_cached_and_changes_nothing(engine: Engine) -> None:
    prompts = [Prompt(pieces=[(PROMPT, True)]), Prompt(pieces=[(" and", False)], is_first=False)]
    cold = engine.peek(prompts)
    assert [peek.cached for peek in cold] == [0, 0]
    engine.generate(PROMPT, GREEDY)
    steps = engine.snapshot().steps
    warm = engine.peek(prompts)
    assert [peek.ids for peek in warm] == [peek.ids for peek in cold]
    assert [peek.cached for peek in warm] == [len(unpack_ids(cold[0].ids)), 0]
    assert engine.snapshot().steps == steps
    assert engine.peek([]) == []
