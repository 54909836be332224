"""From the engine's settings to a model that runs: folder, shape, device, weights, KV pool, runner."""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nbsgl.engine import sizes, weights
from nbsgl.engine.admission import most_tokens
from nbsgl.engine.attention import create_attention
from nbsgl.engine.attention.choice import AttentionChoice, choose_attention
from nbsgl.engine.attention.paged import PagedAttention, create_paged_attention
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.device import (
    check_weights_fit,
    choose_device,
    choose_dtype,
    free_bytes,
    plan_slots,
    set_num_threads,
)
from nbsgl.engine.folders import Progress, resolve_model
from nbsgl.engine.kv_cache import KVCache
from nbsgl.engine.layers.linear import can_pack
from nbsgl.engine.layers.rope import Rope
from nbsgl.engine.model_config import ModelConfig, read_model_config
from nbsgl.engine.models.decoder import Decoder
from nbsgl.engine.runner import ModelRunner
from nbsgl.errors import EngineStartFailed, ModelUnsupported, ParameterError

if TYPE_CHECKING:
    from nbsgl.engine.cuda.runner import CudaRunner

log = logging.getLogger("nbsgl")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, and what a scheduler has to know of it.  `num_slots` is the KV pool's size in tokens."""

    runner: ModelRunner | CudaRunner
    folder: Path
    config: ModelConfig
    context_length: int
    vocab_size: int
    num_slots: int
    page_size: int
    max_running: int
    chunked_prefill_size: int
    device: str
    device_reason: str
    attention: str
    dtype: str
    num_threads: int
    num_parameters: int
    eos_ids: tuple[int, ...]


def load(
    config: EngineConfig,
    *,
    progress: Progress = lambda fraction, note: None,
    mark: Callable[[str], None] = lambda part: None,
) -> LoadedModel:
    """Load the model of `config` and allocate its KV pool; sets torch's number of threads.

    `progress(fraction, note)` is called as the weights come, `mark(part)` at the end of each part.  Raises ModelError's
    children for the model's files, ParameterError for settings that do not fit it, EngineStartFailed(stage="memory") if
    it does not fit the device.
    """
    folder = resolve_model(config.model_path, progress)
    model_config = read_model_config(folder)
    context_length = choose_context(config.context_length, model_config)
    choice = choose_device(config.device)
    dtype = choose_dtype(config.dtype, choice.device, model_config)
    num_threads = set_num_threads(config.num_threads)
    if choice.device.type == "cuda":
        free_bytes(choice.device)  # opens the context
    attention = _choose_attention(config, choice.device, dtype, model_config)
    if attention.name != "torch":
        _import_ahead(attention.name)
    mark("device")
    model = load_decoder(config, folder, model_config, dtype, choice.device, progress)
    mark("weights")
    progress(1.0, "KV pool")
    max_running, budget = _sizes(config, model, context_length)
    num_slots = plan_slots(
        config,
        model_config,
        device=choice.device,
        dtype=cache_dtype(config, dtype),
        context_length=context_length,
        max_running=max_running,
        step_bytes=_step_bytes(model, attention, max_running, most_tokens(budget)),
    )
    runner, attention = make_runner(
        model,
        config,
        attention,
        num_slots=num_slots,
        max_running=max_running,
        max_tokens=most_tokens(budget),
        context_length=context_length,
    )
    mark("KV pool")
    log.info(
        "loaded %s: %d parameters, %s on %s, %d slots; attention by %s",
        model_config.architecture,
        model.num_parameters,
        dtype,
        choice.reason,
        num_slots,
        attention.reason,
    )
    return LoadedModel(
        runner=runner,
        folder=folder,
        config=model_config,
        context_length=context_length,
        vocab_size=model_config.vocab_size,
        num_slots=num_slots,
        page_size=config.page_size,
        max_running=max_running,
        chunked_prefill_size=budget,
        device=str(choice.device),
        device_reason=choice.reason,
        attention=attention.reason,
        dtype=str(dtype).removeprefix("torch."),
        num_threads=num_threads,
        num_parameters=model.num_parameters,
        eos_ids=model_config.eos_ids,
    )


def _sizes(config: EngineConfig, model: Decoder, context_length: int) -> tuple[int, int]:
    """Sequences at once and the token budget of a step, as asked or as suits the model and the device."""
    max_running, budget = sizes.ON_CPU
    if model.device.type == "cuda":
        card = sizes.CardSize.of(model.device)
        max_running = sizes.sequences_at_once(card, context_length)
        budget = sizes.tokens_a_step(card, model.config, model.num_parameters, model.dtype.itemsize)
    return config.max_running_requests or max_running, config.chunked_prefill_size or budget


def choose_context(asked: int | None, model: ModelConfig) -> int:
    """The context in tokens: as asked, else the model's own, cut to its sliding window (attention here is full).

    ParameterError beyond `max_position_embeddings`, ModelUnsupported beyond the window.
    """
    window = model.sliding_window
    if asked is None:
        if window is not None and window < model.max_position:
            log.info("context cut from %d to the sliding window of %d tokens", model.max_position, window)
        return min(model.max_position, window or model.max_position)
    if asked > model.max_position:
        raise ParameterError(
            name="context_length",
            value=asked,
            allowed=f"1..{model.max_position} (max_position_embeddings of the model)",
            hint=f"Use context_length={model.max_position}.",
        )
    if window is not None and asked > window:
        raise ModelUnsupported(
            file="config.json",
            field="sliding_window",
            value=window,
            allowed=f"a context within the window; context_length={asked} is beyond it",
            hint=f"Use context_length={window}.",
        )
    return asked


def load_decoder(
    config: EngineConfig,
    folder: Path,
    model_config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> Decoder:
    """The model with its weights, packed; files are found and checked before memory is taken."""
    declared = Decoder(model_config, dtype, torch.device("meta"))
    entries = None
    if config.load_format != "dummy":
        entries = weights.read_entries(weights.find_files(folder))
        weights.check(entries, dict(declared.parameters()), is_tied=model_config.tie_embeddings)
    packed_head = declared.embedding.nbytes if model_config.tie_embeddings and can_pack(device, dtype) else 0
    check_weights_fit(declared.num_bytes + packed_head, device)
    model = Decoder(model_config, dtype, device)
    if entries is None:
        weights.fill_dummy(dict(model.parameters()), config.random_seed or 0, progress)
    else:
        weights.load(entries, dict(model.parameters()), progress)
    model.pack()
    return model


def _choose_attention(
    config: EngineConfig, device: torch.device, dtype: torch.dtype, model: ModelConfig
) -> AttentionChoice:
    """Deterministic mode has one backend, whose sums do not depend on the batch."""
    asked = config.attention_backend
    if config.deterministic and device.type == "cuda":
        if asked not in ("auto", "triton"):
            raise ParameterError(name="attention_backend", value=asked, allowed="'auto' or 'triton' if deterministic")
        asked = "triton"
    return choose_attention(asked, device, dtype, model.head_dim, kv_dtype=cache_dtype(config, dtype))


def _import_ahead(attention: str) -> None:
    """Import the kernels' modules and the attention library on a thread, while the weights come: 0.2 and 1.1 s.

    Whoever needs a module waits until it is there; what cannot be imported fails again then.
    """

    def run() -> None:
        with contextlib.suppress(Exception):
            importlib.import_module("nbsgl.engine.cuda.runner")
            importlib.import_module(attention)

    threading.Thread(target=run, name="nbsgl-import", daemon=True).start()


def cache_dtype(config: EngineConfig, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the KV cache."""
    return torch.float8_e4m3fn if config.kv_cache_dtype == "fp8_e4m3" else dtype


def _step_bytes(model: Decoder, attention: AttentionChoice, max_running: int, max_tokens: int) -> int | None:
    """What a step needs beside weights and pool, where it can be measured."""
    if model.device.type != "cuda" or attention.name == "torch":
        return None
    from nbsgl.engine.cuda.memory import step_bytes

    return step_bytes(model, max_tokens=max_tokens, max_running=max_running)


def make_runner(
    model: Decoder,
    config: EngineConfig,
    attention: AttentionChoice,
    *,
    num_slots: int,
    max_running: int,
    max_tokens: int,
    context_length: int,
) -> tuple[ModelRunner | CudaRunner, AttentionChoice]:
    """A runner for the model with a KV pool of `num_slots` tokens, and its attention if the chosen one fails.

    "torch" attention goes with the plain runner.
    """
    cache = KVCache(
        model.config,
        num_slots=num_slots,
        max_running=max_running,
        context_length=context_length,
        page_size=config.page_size,
        dtype=cache_dtype(config, model.dtype),
        device=model.device,
    )
    rope = Rope(model.config.rope, model.config.head_dim, context_length, model.device)
    if attention.name == "torch":
        plain = create_attention(attention.name, model.config, cache)
        return ModelRunner(model, cache, plain, rope, max_running), attention
    from nbsgl.engine.cuda.runner import CudaRunner

    paged, attention = _paged_attention(model, config, cache, attention)
    runner = CudaRunner(
        model, cache, paged, rope, max_running=max_running, max_tokens=max_tokens, deterministic=config.deterministic
    )
    return runner, attention


def _paged_attention(
    model: Decoder, config: EngineConfig, cache: KVCache, choice: AttentionChoice
) -> tuple[PagedAttention, AttentionChoice]:
    """The chosen backend; if nobody asked for it and it has no kernels after all, Triton's."""
    try:
        return create_paged_attention(choice.name, model.config, cache, model.dtype), choice
    except EngineStartFailed as error:
        if config.attention_backend != "auto":
            raise
        head_dim, dtype = model.config.head_dim, model.dtype
        choose_attention("triton", model.device, dtype, head_dim, kv_dtype=cache.k[0].dtype)
        log.warning("attention by Triton's kernels: %s", error.reason)
        instead = AttentionChoice("triton", f"triton: {error.reason}")
        return create_paged_attention(instead.name, model.config, cache, dtype), instead
