"""What a model launches, and compiling it ahead of time: for a card that need not be there.

Each kernel module has `variants(shape, card)`, which lists what its functions launch for a model's shape on a card: the
same kernels, constants and argument types to the letter, so that what is compiled here is what a launch finds in
Triton's cache.  `tests/unit/test_kernels_compile.py` holds them to it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend

from nbsgl.engine import kernels
from nbsgl.engine.model_config import ModelConfig

KIB = 1024
# shared memory a program may have, by compute capability.  CUDA programming guide, "Technical specifications"
SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model that kernels are compiled for."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    dtype: torch.dtype = torch.bfloat16
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def of(cls, config: ModelConfig, dtype: torch.dtype) -> ModelShape:
        return cls(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab=config.vocab_size,
            dtype=dtype,
            qk_norm=config.qk_norm,
            qkv_bias=config.qkv_bias,
            o_bias=config.o_bias,
            mlp_bias=config.mlp_bias,
        )

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        return self.q_size + 2 * self.kv_size


@dataclass(frozen=True, slots=True)
class Card:
    """What kernels are compiled for.  `capability`: 90 for sm_90.  `num_sms`: multiprocessors (132: an H200)."""

    capability: int
    num_sms: int = 132

    @property
    def pdl(self) -> bool:
        """Whether programmatic dependent launch is there, and so used by every launch."""
        return self.capability >= 90

    @property
    def shared_bytes(self) -> int:
        """Most shared memory of one program; on an unknown card what every known one has."""
        return SHARED_KIB.get(self.capability, min(SHARED_KIB.values())) * KIB


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel.

    `args`: one entry per parameter of `fn`, by name.  A `tl.constexpr` parameter has its value.  Another has the dtype
    of the tensor it gets (16-byte aligned, as allocations and rows of them are), `"i32"`, `"i64"` or `"fp32"` of a
    number, `"i32:16"` of an int divisible by 16, or the value None or 1 itself, for which Triton compiles apart.
    """

    fn: Any
    args: Mapping[str, Any]
    num_warps: int
    num_stages: int = 3
    pdl: bool = False

    @property
    def name(self) -> str:
        constants = ", ".join(f"{p.name}={self.args[p.name]}" for p in self.fn.params if p.is_constexpr)
        return f"{self.fn.__name__}({constants}; {self.num_warps} warps, {self.num_stages} stages)"

    def source(self) -> ASTSource:
        """As Triton's launcher would make it from the arguments of a launch."""
        if wrong := set(self.args) ^ set(self.fn.arg_names):
            raise TypeError(f"{self.fn.__name__}: {sorted(wrong)} in either its parameters or this variant only")
        values = {param.name: self.args[param.name] for param in self.fn.params}
        kinds = [_specialize(param, values[param.name]) for param in self.fn.params]
        # Triton's own: versions differ in how they write the same thing (3.7 gives constants empty attributes)
        backend = make_backend(GPUTarget("cuda", 80, 32))
        _, signature, constants, attributes = self.fn._pack_args(backend, self.options, values, kinds, {})
        return ASTSource(self.fn, signature, constants, attributes)

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "launch_pdl": self.pdl}

    def compile(self, card: Card) -> CompiledKernel:
        """Compile, or find in Triton's cache.  Seconds, and no card needed."""
        return triton.compile(self.source(), target=GPUTarget("cuda", card.capability, 32), options=self.options)

    @property
    def key(self) -> tuple[str, str]:
        """Equal for equal compiled forms, and only for those."""
        return self.source().hash(), str(self.options)


def _specialize(param: Any, value: Any) -> tuple[str, Any]:
    """The type of a parameter, and what Triton compiles apart for: its value, or "D" for divisible by 16, else ""."""
    if param.is_constexpr or value is None or value == 1:
        return "constexpr", value
    kind, _, is_aligned = (f"{POINTERS[value]}:16" if isinstance(value, torch.dtype) else value).partition(":")
    if kind == "fp32" or param.do_not_specialize:
        return kind, None
    return kind, "D" if is_aligned and not param.do_not_specialize_on_alignment else ""


def modules() -> list[str]:
    """The kernel modules' names."""
    found = [f"{kernels.__name__}.{info.name}" for info in pkgutil.iter_modules(kernels.__path__)]
    return [name for name in found if hasattr(importlib.import_module(name), "variants")]


@cache
def module_variants(module: str, shape: ModelShape, card: Card) -> tuple[Variant, ...]:
    """What one module launches, each form once."""
    listed: Iterator[Variant] = importlib.import_module(module).variants(shape, card)
    return tuple({variant.key: variant for variant in listed}.values())


@dataclass(frozen=True, slots=True)
class Job:
    """One variant, by its place in `module_variants`: kernels do not travel between processes, their places do."""

    module: str
    shape: ModelShape
    card: Card
    idx: int

    def variant(self) -> Variant:
        return module_variants(self.module, self.shape, self.card)[self.idx]


def jobs(shapes: Iterable[ModelShape], card: Card) -> list[Job]:
    """All that models of these shapes launch on a card, each form once."""
    unique: dict[tuple[str, str], Job] = {}
    for module in modules():
        for shape in shapes:
            for idx, variant in enumerate(module_variants(module, shape, card)):
                unique.setdefault(variant.key, Job(module, shape, card, idx))
    return list(unique.values())


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a compiled form needs of one program: shared memory, and its cubin's path in Triton's cache."""

    name: str
    shared_bytes: int
    cubin_path: str


def compile_job(job: Job) -> Compiled:
    variant = job.variant()
    kernel = variant.compile(job.card)
    cubin_path = next(path for name, path in kernel.metadata_group.items() if name.endswith(".cubin"))
    return Compiled(f"{variant.name} on sm_{job.card.capability}", kernel.metadata.shared, str(cubin_path))


def compile_jobs(listed: Iterable[Job], pool: Executor) -> Iterator[Compiled]:
    """Compile in a pool of processes, into Triton's cache; yields each as it is done, in order."""
    return pool.map(compile_job, listed)
