"""Grammars in a whole engine: their helpers may die at any time, and die with their worker."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbsgl.engine.handle import Engine
from nbsgl.errors import BadGrammar, GrammarTooExpensive
from tests.process.tools import is_alive, until

pytestmark = pytest.mark.process

PROMPT = "<|im_start|>user\nSay a number.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def engine(home: Path) -> Iterator[Engine]:
    engine = Engine(keep=0, num_slots=4096)
    assert engine.info
    yield engine
    engine.stop(force=True)


def helpers(engine: Engine) -> list[int]:
    """The processes in which the worker's grammars are compiled."""
    children = psutil.Process(engine.worker_pid).children()
    return [child.pid for child in children if any("compile_helper" in word for word in child.cmdline())]


def zombies(engine: Engine) -> list[int]:
    children = psutil.Process(engine.worker_pid).children(recursive=True)
    return [child.pid for child in children if child.status() == psutil.STATUS_ZOMBIE]


def constrained(engine: Engine, pattern: str, **params: Any) -> str:
    answer = engine.generate(PROMPT, {"temperature": 0, "max_new_tokens": 40, "regex": pattern, **params})
    assert isinstance(answer, dict)
    return str(answer["text"])


def test_helpers_are_there_when_the_engine_was_idle_and_end_with_its_worker(engine: Engine) -> None:
    until(lambda: len(helpers(engine)) == 2)
    pids, worker = helpers(engine), engine.worker_pid
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    until(lambda: not any(map(is_alive, [worker, *pids])))


def test_helpers_that_are_killed_cost_neither_decoding_nor_grammars(engine: Engine) -> None:
    """Another program's tokens keep coming while helpers die and grammars are compiled."""
    parts, is_over = [0], threading.Event()

    def run_on() -> None:
        for _ in engine.generate(PROMPT, {"max_new_tokens": 3500, "ignore_eos": True}, stream=True):
            parts[0] += 1
            if is_over.is_set():
                break

    decoding = threading.Thread(target=run_on)
    decoding.start()
    for place in range(3):
        assert re.fullmatch(f"[a-f]{{2,{place + 3}}}", constrained(engine, f"[a-f]{{2,{place + 3}}}"))
        until(lambda: helpers(engine))
        before = parts[0]
        for pid in helpers(engine):
            os.kill(pid, signal.SIGKILL)
        until(lambda before=before: parts[0] > before + 2, timeout=30)
    is_over.set()
    decoding.join(30)
    assert not decoding.is_alive()
    until(lambda: zombies(engine) == [])


def test_hostile_and_wrong_grammars_end_alone(engine: Engine) -> None:
    with pytest.raises(GrammarTooExpensive):
        constrained(engine, "(a{1,1000}){1,1000}")
    with pytest.raises(BadGrammar):
        constrained(engine, "[^\\x00-\\U0010ffff]")
    assert re.fullmatch("[ab]*", constrained(engine, "(a|b)*a(a|b){30}", max_new_tokens=5))
    assert re.fullmatch("yes|no", constrained(engine, "yes|no"))


def test_equal_grammars_of_a_batch_compile_once_and_all_get_them(engine: Engine) -> None:
    params = {"temperature": 1, "max_new_tokens": 30, "regex": "([a-z]{1,9} ){2}[0-9]+[.]"}
    answers = engine.generate([PROMPT] * 24, params)
    ended = [answer["text"] for answer in answers if answer["meta_info"]["finish_reason"]["type"] == "stop"]
    assert all(re.fullmatch(params["regex"], text) for text in ended)
    told = [answer["meta_info"].get("grammar") or {} for answer in answers]
    assert {one.get("engine") for one in told} <= {"fsm", "llguidance"}
    again = engine.generate(PROMPT, params)
    assert again["meta_info"]["grammar"]["cached"]  # type: ignore[call-overload,index]
    assert again["meta_info"]["grammar"]["engine"] == "fsm"  # type: ignore[call-overload,index]
