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

# What is kept free on CUDA beside weights, pool and the largest step.
RUNTIME_BYTES = 1536 << 20  # graphs of all sizes, the modules of their kernels, attention's workspace (8B: 0.17 GB)
SMALL_CARD_BYTES = 33 << 30  # up to here a card may drive a display or be shared with other programs ...
SMALL_CARD_SPARE_BYTES = 1 << 30  # ... whose needs grow while the engine runs
UNMEASURED_STEP_BYTES = 2 << 30  # of the plain runner, whose largest step is not tried out


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
    max_running: int = 1,
    step_bytes: int | None = None,
) -> int:
    """How many KV slots (tokens) the pool gets, called when the weights are loaded; a multiple of the page size.

    `dtype` is the cache's; `step_bytes` what the largest step takes beside it (None: not measured).  `num_slots` of the
    config as it is, else: CPU, `CPU_POOL_SHARE` of what is free, at most `CPU_POOL_TOKENS` and at least one full
    context; CUDA, so much that weights and pool are `mem_fraction_static` of the card, or less if not all else fits.
    EngineStartFailed(stage="memory") if it does not fit.

    An 8B on 150 GB: 139.6 GB are weights (16.1) and pool (123.5 GB, 942,000 tokens).  Of the other 10.5 GB the CUDA
    context takes 0.6, steps of 8,192 tokens and 512 draws 1.9 (gate and up of one layer alone 0.47, float32 logits and
    their copies 0.9), page table and rotary tables 0.4, graphs and kernels up to 1.6; the rest is never asked for.
    On 24 GB the same model leaves 7.9 GB, of which 2.8 GB (21,000 tokens) go to the pool: what is taken, not the share,
    decides on a small card.
    """
    per_slot = slot_bytes(model, dtype)
    free = free_bytes(device)
    if config.num_slots is not None:
        slots = config.num_slots
    elif device.type == "cuda":
        kept = table_bytes(model, context_length, max_running)
        kept += UNMEASURED_STEP_BYTES if step_bytes is None else step_bytes
        slots = cuda_pool_bytes(card(device), free, config.mem_fraction_static, kept) // per_slot - config.page_size
    else:
        slots = min(int(free * CPU_POOL_SHARE) // per_slot, max(CPU_POOL_TOKENS, context_length))
    slots -= slots % config.page_size
    least = 1 if config.num_slots is not None else min(context_length, 256)
    if slots * per_slot > free or slots < least:
        wanted = max(slots, least)
        raise EngineStartFailed(
            stage="memory",
            reason=f"a KV pool of {wanted:,} tokens needs {_gb(wanted * per_slot)}, {device} has {_gb(free)} free, "
            "a part of which the steps need",
            hint="Pass a smaller num_slots=, context_length= or chunked_prefill_size=, or free memory on the device.",
        )
    return slots


@dataclass(frozen=True, slots=True)
class Card:
    """A CUDA device's memory, and what this process's tensors hold of it, in bytes."""

    total: int
    held: int


def card(device: torch.device) -> Card:
    return Card(torch.cuda.get_device_properties(device).total_memory, torch.cuda.memory_allocated(device))


def cuda_pool_bytes(card: Card, free: int, fraction: float, kept: int) -> int:
    """Bytes for the pool when `card.held` are the weights: up to `fraction` of the card, and `kept` and more stay free.

    What other processes hold is not free, so it makes the pool smaller only where the share would not fit beside it.
    """
    spare = SMALL_CARD_SPARE_BYTES if card.total <= SMALL_CARD_BYTES else 0
    return max(0, min(int(card.total * fraction) - card.held, free - kept - RUNTIME_BYTES - spare))


def table_bytes(model: ModelConfig, context_length: int, max_running: int) -> int:
    """The page table (int32) and the rotary tables (two, float32): 512 rows of 131,072 positions are 269 + 134 MB."""
    return context_length * ((max_running + 1) * 4 + 2 * model.head_dim * 4)


def slot_bytes(model: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one token's K and V in all layers."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype.itemsize


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
