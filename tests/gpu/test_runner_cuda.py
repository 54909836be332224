"""The torch backend on CUDA against the CPU, and draws that do not depend on the device."""

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from nbsgl.engine.batch import Batch, Row, StepOutOfMemory
from nbsgl.engine.loader import LoadedModel
from nbsgl.engine.rng import draw_keys, exponentials
from nbsgl.engine.sampler import Sampler
from nbsgl.protocol import SamplingParams
from tests.gpu.harness import Ask, Server, load_model, make_model
from tests.unit.model_fakes import VOCAB, load_small, make_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

GREEDY = SamplingParams(temperature=0.0, return_logprob=True, top_logprobs_num=5)


def run_everything(loaded: LoadedModel) -> list[list[float]]:
    """Scores and top log-probabilities of a prefill, an extend beside decodes, and fed-back decodes."""
    rng = random.Random(0)
    prompts = [rng.choices(range(VOCAB), k=n) for n in (40, 90, 7)]
    order = rng.sample(range(512), 400)
    slots = [[order.pop() for _ in range(120)] for _ in prompts]
    launch = loaded.runner.launch
    found = launch(Batch([Row(i, 0, 5 + i, p, 0, slots[i], score=range(4)) for i, p in enumerate(prompts)])).result()
    steps = [launch(Batch([Row(i, 5 + i, len(p) - 5 - i, p, params=GREEDY) for i, p in enumerate(prompts) if i < 2]))]
    for step in range(4):
        rows = [
            Row(i, len(prompts[i]) + step, 1, prompts[i], params=GREEDY, run_idx=step + 1, is_fed_back=True)
            for i in (0, 1)
        ]
        steps.append(launch(Batch(rows)))
    results = found + [result for step in steps for result in step.result()]
    return [[*r.scores, *(value for _, value in r.top)] for r in results]


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_cuda_equals_cpu_in_float32(tmp_path: Path, family: str) -> None:
    make_checkpoint(tmp_path, family)
    torch.backends.cuda.matmul.allow_tf32 = False
    cpu = run_everything(load_small(tmp_path))
    cuda = run_everything(load_small(tmp_path, device="cuda", dtype="float32"))
    assert len(cpu) == len(cuda)
    for a, b in zip(cpu, cuda):
        assert b == pytest.approx(a, abs=1e-3)


def test_bfloat16_runs_and_is_near(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "Qwen2")
    exact = run_everything(load_small(tmp_path))
    half = run_everything(load_small(tmp_path, device="cuda", dtype="bfloat16"))
    assert half[0] == pytest.approx(exact[0], abs=0.3)


def test_draws_are_the_same_on_both_devices() -> None:
    logits = torch.randn(64, 5_000, generator=torch.Generator().manual_seed(0)) * 3
    rows = [
        Row(i, 0, 1, [], run_idx=i, params=SamplingParams(temperature=0.5 + i / 40, top_p=0.7 + (i % 4) / 10, seed=i))
        for i in range(64)
    ]
    drawn = []
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        sampler = Sampler(5_000, device, torch.zeros(64, dtype=torch.int64, device=device))
        with torch.inference_mode():
            drawn.append(sampler.draw(logits.to(device), rows).tokens.tolist())
    assert drawn[0] == drawn[1]
    keys, ids = torch.tensor([draw_keys(3, 4)], dtype=torch.int32), torch.arange(5_000, dtype=torch.int32)
    assert torch.allclose(exponentials(keys, ids), exponentials(keys.cuda(), ids.cuda()).cpu(), rtol=1e-5)


@pytest.mark.parametrize("where", ["plain runner", "kernel by kernel", "before a capture", "within a capture"])
def test_out_of_memory_leaves_the_runner_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    is_plain = where == "plain runner"
    loaded = load_model(make_model(tmp_path, "Llama"), attention_backend="torch" if is_plain else "triton")
    runner = loaded.runner
    owner, name = (runner.model, "forward") if is_plain else (type(runner.forward), "hidden")
    if not is_plain:
        assert type(runner).__name__ == "CudaRunner"
        monkeypatch.setattr(runner, "use_graphs", where != "kernel by kernel")
    works = getattr(owner, name)

    def fails(*given: Any) -> Any:
        if where == "within a capture" and not torch.cuda.is_current_stream_capturing():
            return works(*given)
        return torch.empty(1 << 50, device="cuda")

    # without room for a graph the step goes kernel by kernel
    failure = nullcontext() if where == "within a capture" else pytest.raises(StepOutOfMemory)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fails)
        with failure:
            runner.launch(Batch([Row(0, 0, 3, [1, 2, 3], 0, range(3), params=GREEDY)])).result()
    result = runner.launch(Batch([Row(0, 0, 3, [1, 2, 3], 0, range(3), params=GREEDY)])).result()[0]
    assert result.is_finite
    assert result.token == Server(loaded).run([Ask([1, 2, 3], max_tokens=1)])[0].tokens[0]
