"""Which device and dtype a model runs with, and why; how much memory is free; how many KV slots fit."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
import torch

from nbsgl.engine.config import EngineConfig
from nbsgl.engine.model_config import ModelConfig
from nbsgl.errors import EngineStartFailed, ParameterError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_POOL_SHARE = 0.25  # of free RAM: the notebook's own data lives there too
CPU_POOL_TOKENS = 65_536  # more than that a CPU does not decode in a session
ACTIVATION_BYTES = 512 << 20  # kept free on CUDA beside mem_fraction_static for the largest step


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A device with the reason for it, in words that are shown to the user."""

    device: torch.device
    reason: str


def choose_device(asked: str) -> DeviceChoice:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device.  ParameterError if CUDA is asked for and cannot be had."""
    if asked == "cpu":
        return DeviceChoice(torch.device("cpu"), "cpu: asked for")
    obstacle = _cuda_obstacle()
    if asked == "auto":
        if obstacle:
            return DeviceChoice(torch.device("cpu"), f"cpu: {obstacle}")
        return DeviceChoice(torch.device("cuda:0"), f"cuda:0: torch sees {torch.cuda.get_device_name(0)}")
    allowed = "'auto' or 'cpu'" if obstacle else ", ".join(f"'cuda:{i}'" for i in range(torch.cuda.device_count()))
    index = int(asked[5:]) if asked.startswith("cuda:") else 0
    if obstacle or index >= torch.cuda.device_count():
        reason = obstacle or f"torch sees {torch.cuda.device_count()} device(s)"
        raise ParameterError(
            f"device={asked!r} cannot be used: {reason}.",
            name="device",
            value=asked,
            allowed=allowed,
            hint="Use device='auto'.",
        )
    return DeviceChoice(torch.device("cuda", index), f"cuda:{index}: asked for ({torch.cuda.get_device_name(index)})")


def _cuda_obstacle() -> str | None:
    """Why CUDA cannot be used, or None."""
    if torch.version.cuda is None:
        return "torch has no CUDA build"
    if not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return (
            f"torch sees no CUDA device (CUDA_VISIBLE_DEVICES={hidden!r})"
            if hidden is not None
            else ("torch sees no CUDA device")
        )
    return None


def choose_dtype(asked: str, device: torch.device, model: ModelConfig) -> torch.dtype:
    """The dtype of weights and KV: "auto" is float32 on CPU and the model's own on CUDA (bfloat16 if it has none)."""
    if asked != "auto":
        return DTYPES[asked]
    if device.type == "cpu":
        return torch.float32
    return DTYPES.get(model.dtype or "bfloat16", torch.bfloat16)


def set_num_threads(asked: int | None) -> int:
    """Set torch's number of CPU threads (None: the cores this process may use) and return it."""
    count = asked or len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0))
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    return count


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


def check_weights_fit(need: int, device: torch.device) -> None:
    """EngineStartFailed(stage="memory") if `need` bytes of weights are more than is free."""
    free = free_bytes(device)
    if need > free:
        raise EngineStartFailed(
            stage="memory",
            reason=f"the weights need {_gb(need)}, {device} has {_gb(free)} free",
            hint="Free memory, take a smaller model, or another dtype=.",
        )


def plan_slots(
    config: EngineConfig,
    model: ModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    context_length: int,
    step_bytes: int | None = None,
) -> int:
    """How many KV slots (tokens) the pool gets, called when the weights are loaded; a multiple of the page size.

    `dtype` is the cache's; `step_bytes` what the largest step takes beside it (None: not measured).
    `num_slots` of the config as it is, else: CUDA, `mem_fraction_static` of the whole memory minus what is taken; CPU,
    `CPU_POOL_SHARE` of what is free, at most `CPU_POOL_TOKENS` and at least one full context.
    EngineStartFailed(stage="memory") if it does not fit.
    """
    per_slot = slot_bytes(model, dtype)
    free = free_bytes(device)
    if config.num_slots is not None:
        slots = config.num_slots
    elif device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        taken = total - free
        slots = (int(total * config.mem_fraction_static) - taken - (step_bytes or ACTIVATION_BYTES)) // per_slot
    else:
        slots = min(int(free * CPU_POOL_SHARE) // per_slot, max(CPU_POOL_TOKENS, context_length))
    slots -= slots % config.page_size
    least = 1 if config.num_slots is not None else min(context_length, 256)
    if slots * per_slot > free or slots < least:
        wanted = max(slots, least)
        raise EngineStartFailed(
            stage="memory",
            reason=f"a KV pool of {wanted:,} tokens needs {_gb(wanted * per_slot)}, {device} has {_gb(free)} free",
            hint="Pass a smaller num_slots= or context_length=, or a larger mem_fraction_static=.",
        )
    return slots


def slot_bytes(model: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one token's K and V in all layers."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype.itemsize


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
