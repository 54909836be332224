"""Device, dtype and pool size, with their reasons."""

from __future__ import annotations

import pytest
import torch

from nbsgl.engine import device as device_module
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.device import choose_device, choose_dtype, plan_slots
from nbsgl.engine.model_config import ModelConfig, RopeConfig
from nbsgl.errors import EngineStartFailed, ParameterError

CPU = torch.device("cpu")
MODEL = ModelConfig("LlamaForCausalLM", 100, 64, 64, 2, 4, 2, 16, 4096, 1e-5, RopeConfig(), dtype="bfloat16")


def test_auto_says_why_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_cuda_obstacle", lambda: "torch has no CUDA build")
    choice = choose_device("auto")
    assert (choice.device, choice.reason) == (CPU, "cpu: torch has no CUDA build")
    with pytest.raises(ParameterError, match="no CUDA build"):
        choose_device("cuda")


def test_dtype_of_each_device() -> None:
    assert choose_dtype("auto", CPU, MODEL) is torch.float32
    assert choose_dtype("auto", torch.device("cuda"), MODEL) is torch.bfloat16
    assert choose_dtype("float16", CPU, MODEL) is torch.float16


def test_slots_from_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "free_bytes", lambda device: 4 << 20)
    slot = 2 * 2 * 2 * 16 * 4

    def plan(context: int = 256, **settings: object) -> int:
        config = EngineConfig.of(**settings)
        return plan_slots(config, MODEL, device=CPU, dtype=torch.float32, context_length=context)

    assert plan() == (1 << 20) // slot
    assert plan(num_slots=333, page_size=16) == 320
    with pytest.raises(EngineStartFailed, match="memory"):
        plan(num_slots=10_000)
