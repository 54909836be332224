"""Which attention backend a model runs with on a device, and why, in words that are shown to the user."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch

from nbsgl.errors import ParameterError

BACKENDS = ("flashinfer", "triton", "torch")  # the first that can be had is taken
MIN_CAPABILITY = (8, 0)
FLASHINFER_HEAD_DIMS = (64, 128, 256)
TRITON_HEAD_DIMS = (32, 64, 128, 256)  # powers of two, of which a half is as wide as a tensor core's step
TRITON_E4M3 = (8, 9)  # Triton converts e4m3 from there on
INSTALL = {"flashinfer": "pip install 'nbsgl[flashinfer]'", "triton": "pip install triton"}
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """A backend's name with the reason for it."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the choice depends on.  `capability` is None without CUDA; `installed` names importable packages."""

    capability: tuple[int, int] | None
    dtype: torch.dtype
    kv_dtype: torch.dtype
    head_dim: int
    installed: frozenset[str]


def choose_attention(
    asked: str, device: torch.device, dtype: torch.dtype, head_dim: int, *, kv_dtype: torch.dtype | None = None
) -> AttentionChoice:
    """Choose for `asked`: "auto" or a backend's name.  ParameterError if that one is unknown or cannot be had.

    `dtype` is that of the model, `kv_dtype` that of the KV cache (None: the same).  Imports no backend.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    installed = frozenset(name for name in ("flashinfer", "triton") if find_spec(name) is not None)
    return decide(asked, Circumstances(capability, dtype, kv_dtype or dtype, head_dim, installed))


def decide(asked: str, here: Circumstances) -> AttentionChoice:
    """`choose_attention` for circumstances that are known."""
    obstacles = {name: obstacle(name, here) for name in BACKENDS}
    possible = [name for name in BACKENDS if obstacles[name] is None]
    if asked == "auto":
        return _best(obstacles, here)
    allowed = " | ".join(map(repr, ("auto", *possible)))
    if asked not in BACKENDS:
        raise ParameterError(name="attention_backend", value=asked, allowed=allowed)
    if obstacles[asked] is not None:
        raise ParameterError(
            f"attention_backend={asked!r} cannot be used: {obstacles[asked]}.",
            name="attention_backend",
            value=asked,
            allowed=allowed,
            hint=f"Use attention_backend={possible[0]!r}, or 'auto'.",
        )
    return AttentionChoice(asked, f"{asked}: asked for")


def obstacle(name: str, here: Circumstances) -> str | None:
    """Why a backend cannot be used, or None."""
    if name == "torch":
        return None
    if here.capability is None:
        return "there is no CUDA device"
    if here.capability < MIN_CAPABILITY:
        return f"it needs compute capability {_dotted(MIN_CAPABILITY)}, the card has {_dotted(here.capability)}"
    if name not in here.installed:
        return f"it is not installed ({INSTALL[name]})"
    if name == "triton":
        if here.head_dim not in TRITON_HEAD_DIMS:
            return f"its kernels are for a head_dim of {TRITON_HEAD_DIMS}, the model has {here.head_dim}"
        if here.kv_dtype.itemsize == 1 and here.capability < TRITON_E4M3:
            return f"an e4m3 cache needs compute capability {_dotted(TRITON_E4M3)}"
        return None
    if here.dtype not in HALF:
        return f"its kernels are for 16 bits, the model runs in {_named(here.dtype)}"
    if here.head_dim not in FLASHINFER_HEAD_DIMS:
        return f"its kernels are for a head_dim of {FLASHINFER_HEAD_DIMS}, the model has {here.head_dim}"
    return None


def _best(obstacles: dict[str, str | None], here: Circumstances) -> AttentionChoice:
    """The first that can be had; but the kernels of `triton` are made for 16 bits, so float32 is better with torch."""
    passed_over = dict(obstacles)
    if passed_over["triton"] is None and here.dtype not in HALF:
        passed_over["triton"] = f"slower in {_named(here.dtype)}"
    name = next(name for name in BACKENDS if passed_over[name] is None)
    if here.capability is None:
        return AttentionChoice(name, f"{name}: there is no CUDA device")
    before = {other: passed_over[other] for other in BACKENDS[: BACKENDS.index(name)]}
    if before:
        return AttentionChoice(name, f"{name}: {_listed(before)}")
    return AttentionChoice(name, f"{name}: installed, and the card has compute capability {_dotted(here.capability)}")


def _listed(obstacles: dict[str, str | None]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in obstacles.items())


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
