"""The engine's settings: resolved once at the door, checked, then frozen.  One struct for kernel, front and worker."""

from __future__ import annotations

import difflib
import hashlib
from typing import Any

import msgspec

from nbsgl.errors import ParameterError
from nbsgl.protocol import PROTOCOL_VERSION

DTYPES = ("auto", "float32", "bfloat16", "float16")
POLICIES = ("fcfs", "lpm", "dfs-weight")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one engine.  Names follow SGLang's offline engine where it has one.

    `model_path` is "embedded", a local Hugging Face folder, or a hub name.  `device` "auto" takes CUDA if there is one.
    `num_slots` is the KV pool's size in tokens.  None: on CUDA so many that weights and pool take
    `mem_fraction_static` of the card's memory, or less where steps, graphs and other processes need more than the rest.
    `kv_cache_dtype` "fp8_e4m3" halves what a token takes in the pool.  With `deterministic` outputs do not depend on
    what else is computed, to the last bit, at a cost (docs/performance.md); on a CPU nothing changes.
    `chunked_prefill_size` is the token budget of a step.  `random_seed` makes the seeds that are drawn for runs without
    one (and dummy weights) the same each time.
    """

    model_path: str = "embedded"
    tokenizer_path: str | None = None
    load_format: str = "auto"
    skip_tokenizer_init: bool = False
    chat_template: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    context_length: int | None = None
    mem_fraction_static: float = 0.93
    num_slots: int | None = None
    page_size: int = 1
    max_running_requests: int | None = None
    chunked_prefill_size: int | None = None
    schedule_policy: str = "lpm"
    disable_radix_cache: bool = False
    attention_backend: str = "auto"
    kv_cache_dtype: str = "auto"
    deterministic: bool = False
    random_seed: int | None = None
    num_threads: int | None = None
    overlap: bool | None = None
    log_level: str = "info"
    step_timeout_s: float = 60.0
    name: str | None = None

    def __post_init__(self) -> None:
        _one_of("load_format", self.load_format, ("auto", "safetensors", "dummy"))
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("attention_backend", self.attention_backend, ("auto", "flashinfer", "triton", "torch"))
        _one_of("kv_cache_dtype", self.kv_cache_dtype, ("auto", "fp8_e4m3"))
        _one_of("schedule_policy", self.schedule_policy, POLICIES)
        _one_of("page_size", self.page_size, (1, 4, 16))
        _one_of("log_level", self.log_level, ("debug", "info", "warning", "error"))
        good = self.device in ("auto", "cpu", "cuda") or (self.device.startswith("cuda:") and self.device[5:].isdigit())
        _allow(good, "device", self.device, "'auto', 'cpu', 'cuda' or 'cuda:N'")
        _allow(0 < self.mem_fraction_static <= 1, "mem_fraction_static", self.mem_fraction_static, "0 < fraction <= 1")
        for name, low in (
            ("context_length", 1),
            ("num_slots", 16),
            ("max_running_requests", 1),
            ("chunked_prefill_size", 8),
            ("num_threads", 1),
        ):
            value = getattr(self, name)
            _allow(value is None or value >= low, name, value, f">= {low}, or None")
        _allow(self.step_timeout_s > 0, "step_timeout_s", self.step_timeout_s, "> 0 seconds")
        _allow(bool(self.model_path), "model_path", self.model_path, "'embedded', a folder or a hub name")

    @property
    def key(self) -> str:
        """Which engine: the name if it has one, else a hash of model, device, settings and protocol version."""
        if self.name:
            return "name-" + hashlib.sha256(self.name.encode()).hexdigest()[:16]
        text = msgspec.json.encode([PROTOCOL_VERSION, self])
        return hashlib.sha256(text).hexdigest()[:16]

    @classmethod
    def of(cls, **settings: Any) -> EngineConfig:
        """Make a config; an unknown name or a value of the wrong type is a `ParameterError` naming what is known."""
        known = cls.__struct_fields__
        for name, value in settings.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"Did you mean {close[0]}=?" if close else "See help(nbsgl.Engine)."
                raise ParameterError(
                    f"Engine() has no argument {name!r}; it knows: {', '.join(known)}.",
                    name=name,
                    value=value,
                    hint=hint,
                )
        try:
            return msgspec.convert(settings, cls)
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, ParameterError):
                raise error.__cause__ from None
            raise ParameterError(f"Engine(): {error}.", hint="See help(nbsgl.Engine).") from None


ServerArgs = EngineConfig  # SGLang's name; `Engine(server_args=ServerArgs(...))`


def _allow(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ParameterError(name=name, value=value, allowed=allowed)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    _allow(value in allowed, name, value, " | ".join(map(repr, allowed)))
