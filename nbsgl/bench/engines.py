"""Who is measured: nbsgl through its public door, or a peer that is installed, each behind the same few calls."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Protocol

from nbsgl.bench.drive import BenchError
from nbsgl.bench.workloads import Ids

MOST_SETTLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Setup:
    """What an engine is started with.  `settings` go to the engine as they are (its own names)."""

    model_path: Path
    load_format: str = "dummy"
    device: str = "auto"
    dtype: str = "auto"
    tokenizer_path: Path | None = None
    with_text: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


class Measured(Protocol):
    """An engine under test."""

    name: str

    def generate(self, prompts: list[Ids], lengths: list[int], temperature: float) -> list[Ids]:
        """Output ids of each prompt, exactly as many as asked for."""

    def flush(self) -> None:
        """Forget every cached prefix."""

    def close(self) -> None:
        """End it and give its memory back."""


class Nbsgl:
    """`nbsgl.Engine` in its own processes, token ids in and out; requests have fixed seeds."""

    name = "nbsgl"

    def __init__(self, setup: Setup, on_progress: Callable[[str, float | None, str], None] | None = None) -> None:
        import nbsgl

        tokenizer = {} if setup.tokenizer_path is None else {"tokenizer_path": str(setup.tokenizer_path)}
        self.engine = nbsgl.Engine(
            str(setup.model_path),
            keep=0,
            on_progress=on_progress,
            load_format=setup.load_format,
            device=setup.device,
            dtype=setup.dtype,
            skip_tokenizer_init=not setup.with_text,
            **{"random_seed": 0, **tokenizer, **setup.settings},
        )
        self.info = self.engine.info

    def generate(self, prompts: list[Ids], lengths: list[int], temperature: float) -> list[Ids]:
        params = [
            {"max_new_tokens": length, "ignore_eos": True, "temperature": temperature, "sampling_seed": seed}
            for seed, length in enumerate(lengths)
        ]
        return [answer["output_ids"] for answer in self.engine.generate(input_ids=prompts, sampling_params=params)]

    def flush(self) -> None:
        self.engine.flush_cache()

    def settle(self) -> float:
        """Wait until idle moments have captured the graphs that steps may need, which peers do before they serve; s."""
        begin = time.perf_counter()
        while time.perf_counter() - begin < MOST_SETTLE_S and not self.engine.snapshot().counters.get("prepared"):
            time.sleep(0.1)
        return time.perf_counter() - begin

    def close(self) -> None:
        self.engine.close()


class SGLang:
    """`sglang.Engine`.  Draws without seeds of the requests: with them it takes a slower path."""

    name = "sglang"

    def __init__(self, setup: Setup) -> None:
        sglang = _import("sglang")
        self.engine = sglang.Engine(
            model_path=str(setup.model_path),
            load_format=setup.load_format,
            dtype=setup.dtype,
            skip_tokenizer_init=True,
            random_seed=0,
            **setup.settings,
        )

    def generate(self, prompts: list[Ids], lengths: list[int], temperature: float) -> list[Ids]:
        params = [{"max_new_tokens": n, "ignore_eos": True, "temperature": temperature} for n in lengths]
        return [answer["output_ids"] for answer in self.engine.generate(input_ids=prompts, sampling_params=params)]

    def flush(self) -> None:
        self.engine.flush_cache()

    def close(self) -> None:
        self.engine.shutdown()


class VLLM:
    """`vllm.LLM`.  Draws without seeds of the requests: with them it takes a slower path."""

    name = "vllm"

    def __init__(self, setup: Setup) -> None:
        self._vllm = _import("vllm")
        self.llm: Any = self._vllm.LLM(
            model=str(setup.model_path),
            load_format=setup.load_format,
            dtype=setup.dtype,
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            seed=0,
            **setup.settings,
        )

    def generate(self, prompts: list[Ids], lengths: list[int], temperature: float) -> list[Ids]:
        params = [
            self._vllm.SamplingParams(max_tokens=n, ignore_eos=True, temperature=temperature, detokenize=False)
            for n in lengths
        ]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        answers = self.llm.generate(asked, params, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]

    def flush(self) -> None:
        self.llm.reset_prefix_cache()

    def close(self) -> None:
        core = getattr(self.llm.llm_engine, "engine_core", None)
        if hasattr(core, "shutdown"):
            core.shutdown()
        self.llm = None


ENGINES: dict[str, Callable[[Setup], Measured]] = {"nbsgl": Nbsgl, "sglang": SGLang, "vllm": VLLM}


def version(name: str) -> str | None:
    """The installed version of an engine's package."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return getattr(import_module("nbsgl"), "__version__", None) if name == "nbsgl" else None


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise BenchError(f"{name} is not installed here ({error}).", hint=f"Leave out --engine {name}.") from error
