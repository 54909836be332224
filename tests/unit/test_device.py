"""Device, dtype and pool size, with their reasons."""

from __future__ import annotations

import pytest
import torch

from nbsgl.engine import device as device_module
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.device import (
    RUNTIME_BYTES,
    Card,
    choose_device,
    choose_dtype,
    cuda_pool_bytes,
    plan_slots,
    slot_bytes,
)
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


LLAMA_8B = ModelConfig("LlamaForCausalLM", 128_256, 4096, 14_336, 32, 32, 8, 128, 131_072, 1e-5, RopeConfig())
WEIGHTS_8B = 16_060_522_496  # bytes, bf16


def plan_on_card(monkeypatch: pytest.MonkeyPatch, total: int, free: int, **settings: object) -> int:
    """Slots of an 8B whose weights are loaded, in steps that take 1.9 GB."""
    monkeypatch.setattr(device_module, "free_bytes", lambda device: free)
    monkeypatch.setattr(device_module, "card", lambda device: Card(total, WEIGHTS_8B))
    return plan_slots(
        EngineConfig.of(**settings),
        LLAMA_8B,
        device=torch.device("cuda"),
        dtype=torch.float8_e4m3fn if settings.get("kv_cache_dtype") == "fp8_e4m3" else torch.bfloat16,
        context_length=131_072,
        max_running=512,
        step_bytes=1_900_000_000,
    )


def test_weights_and_pool_are_93_percent_of_a_large_card(monkeypatch: pytest.MonkeyPatch) -> None:
    total = 150_000_000_000
    free = total - WEIGHTS_8B - 600_000_000
    slots = plan_on_card(monkeypatch, total, free)
    share = (WEIGHTS_8B + slots * slot_bytes(LLAMA_8B, torch.bfloat16)) / total
    assert 0.9299 < share <= 0.93
    assert plan_on_card(monkeypatch, total, free, kv_cache_dtype="fp8_e4m3") == pytest.approx(2 * slots, abs=16)
    assert plan_on_card(monkeypatch, total, free, page_size=16) % 16 == 0
    # 30 GB of another process: all else still has its room
    slots = plan_on_card(monkeypatch, total, free - 30_000_000_000)
    left = free - 30_000_000_000 - slots * slot_bytes(LLAMA_8B, torch.bfloat16)
    assert 1_900_000_000 + 400_000_000 + RUNTIME_BYTES < left < 4_100_000_000


def test_a_small_card_keeps_a_gigabyte_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    total = 24 << 30
    slots = plan_on_card(monkeypatch, total, total - WEIGHTS_8B - 500_000_000)
    assert 10_000 < slots < 40_000
    large, small = Card(40 << 30, 0), Card(24 << 30, 0)
    assert cuda_pool_bytes(large, 10 << 30, 1.0, 0) - cuda_pool_bytes(small, 10 << 30, 1.0, 0) == 1 << 30
    with pytest.raises(EngineStartFailed, match="free memory on the device"):
        plan_on_card(monkeypatch, 20 << 30, 3 << 30)
