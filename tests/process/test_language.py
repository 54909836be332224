"""What a hole may ask for, on the whole engine: front, worker and the embedded model."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

import nbsgl as sgl
from nbsgl.engine.handle import Engine

pytestmark = pytest.mark.process


@pytest.fixture
def engine(home: Path) -> Iterator[Engine]:
    engine = Engine(keep=0, num_slots=4096)
    yield engine
    engine.stop(force=True)


@sgl.function
def asks(s):
    s += "The capital of France is Par" + sgl.gen("healed", heal=True, max_tokens=4)
    s += ".\nDay: " + sgl.gen("day", type=datetime.date) + "\nPair: " + sgl.gen("pair", type=tuple[Literal[1, 2], bool])
    s += "\nThree: " + sgl.gen("three", n=3, max_tokens=4, temperature=1.0)
    (f,) = s.fork(1)
    f += sgl.separate_reasoning("<think>" + sgl.gen("thought", max_tokens=8, min_tokens=2), model_type="deepseek-r1")
    s += "\nIn all: " + f.ref("day") + s.ref("three", sep="|") + sgl.gen("end", max_tokens=4)
    return f


def test_types_results_healing_thinking_and_references(engine: Engine) -> None:
    state = asks.run(backend=engine, temperature=0, max_new_tokens=64, seed=7)
    assert state["healed"].startswith("is")
    assert isinstance(state.value("day"), datetime.date)
    first, second = state.value("pair")
    assert first in (1, 2)
    assert isinstance(second, bool)
    assert len(state["three"]) == 3
    assert state.text().endswith(f"In all: {state['day']}{'|'.join(state['three'])}{state['end']}")
    thinker = state.ret_value
    assert thinker["thought"] == ""
    assert thinker["thought_reasoning_content"]
    assert thinker.text().endswith("<think>")
