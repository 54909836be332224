"""The whole engine on CUDA, in its own processes: the same answers as on a CPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import nbsgl as sgl
from nbsgl import Engine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PROMPTS = ["The capital of France is", "Q: What is the capital of Italy?\nA:", "hot -> cold\nbig -> small\nwet ->"]
GREEDY = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder: Path = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("NBSGL_RUNTIME_DIR", str(folder))


def answers(**settings: object) -> list[str]:
    with Engine(keep=0, num_slots=8192, **settings) as engine:
        return [answer["text"] for answer in engine.generate(PROMPTS, GREEDY)]


@pytest.mark.parametrize("overlap", [False, True])
def test_cuda_in_float32_says_what_the_cpu_says(runtime: None, overlap: bool) -> None:
    expected = answers(device="cpu")
    assert answers(device="cuda", dtype="float32", overlap=overlap) == expected


def test_auto_takes_the_gpu_in_bfloat16_and_says_why(runtime: None) -> None:
    with Engine(keep=0) as engine:
        assert (engine.info.device.split(":")[0], engine.info.dtype) == ("cuda", "bfloat16")
        assert engine.info.device_reason

        @sgl.function
        def capital(s, country):
            s += sgl.system("You answer in one word.")
            s += sgl.user(f"What is the capital of {country}?")
            s += sgl.assistant(sgl.gen("answer", max_tokens=8, temperature=0))

        rows = [{"country": country} for country in ("France", "Spain", "Japan", "Egypt") * 8]
        states = capital.run_batch(rows, backend=engine)
        assert [state["answer"] for state in states] == ["Paris", "Madrid", "Tokyo", "Cairo"] * 8


def test_grammar_and_select_on_cuda(runtime: None) -> None:
    @sgl.function
    def both(s):
        s += sgl.user("What is the capital of Italy?")
        s += sgl.assistant("It is " + sgl.select("city", ["Paris", "Rome"]) + ".")
        s += sgl.user("How many legs does a spider have?")
        s += sgl.assistant(sgl.gen("legs", regex="[0-9]{1,2}", temperature=0, max_tokens=4))

    with Engine(keep=0) as engine:
        state = both.run(backend=engine)
        assert state["city"] == "Rome"
        assert re.fullmatch("[0-9]{1,2}", state["legs"])
