"""The training loop: AdamW on fresh rows, a warm-up and a cosine for the learning rate, checkpoints by wall clock."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from tools.train_tiny.model import save_model
from tools.train_tiny.packing import batches


@dataclass(frozen=True)
class TrainSettings:
    """What one run is. It ends after `steps` or after `minutes`, whichever comes first."""

    tokenizer_file: str
    out: Path
    steps: int
    minutes: float
    device: str
    seed: int
    batch_tokens: int
    workers: int
    lr: float = 2e-3
    warmup: int = 300  # steps; at most a tenth of the run
    weight_decay: float = 0.1
    compile: bool = False
    checkpoint_s: float = 150.0
    micro_tokens: int = 131_072  # most tokens of one forward pass; a larger batch is split by rows


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    steps: int
    tokens: int
    wall_s: float
    loss: float


def learning_rate(settings: TrainSettings, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine from `lr` to zero over `progress` in 0..1."""
    rise = min(1.0, (step + 1) / max(1, min(settings.warmup, settings.steps // 10)))
    return settings.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _optimizer(model: LlamaForCausalLM, settings: TrainSettings) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), fused=settings.device == "cuda")


def _loss_function(model: LlamaForCausalLM, settings: TrainSettings):
    """Mean cross-entropy of the next token over all rows, in bf16 on a GPU."""
    half = settings.device == "cuda"

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(settings.device, torch.bfloat16, enabled=half):
            hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            logits = F.linear(hidden, model.model.embed_tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    return torch.compile(loss_of, dynamic=False) if settings.compile else loss_of


def _to_device(batch: np.ndarray, device: str) -> torch.Tensor:
    ids = torch.from_numpy(batch.astype(np.int32))
    if device == "cuda":
        ids = ids.pin_memory()
    return ids.to(device, non_blocking=True).long()


def train(model: LlamaForCausalLM, settings: TrainSettings) -> TrainResult:
    """Train `model` in place and print a line of progress every few seconds.

    Writes a checkpoint to `settings.out` every `checkpoint_s` seconds; the caller saves the final one.
    """
    model.to(settings.device).train()
    optimizer, loss_of = _optimizer(model, settings), _loss_function(model, settings)
    stream = batches(settings.tokenizer_file, settings.seed, settings.batch_tokens, settings.workers)
    first = next(stream)  # the workers' start is not training time
    start = last_print = last_save = time.monotonic()
    step = tokens = printed_tokens = printed_step = 0
    running = torch.zeros((), device=settings.device)
    recent, batch = float("nan"), first
    while True:
        elapsed = time.monotonic() - start
        progress = max(step / settings.steps, elapsed / (settings.minutes * 60))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, progress)
        ids = _to_device(batch, settings.device)
        parts = ids.split(max(1, settings.micro_tokens // (ids.shape[1] - 1)))
        for part in parts:
            loss = loss_of(part) * (len(part) / len(ids))
            loss.backward()
            running += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens += ids.shape[0] * (ids.shape[1] - 1)
        batch = next(stream)
        if step == 20 or time.monotonic() - last_print > 15:
            now, mean = time.monotonic(), running.item() / (step - printed_step)
            running.zero_()
            rate = (tokens - printed_tokens) / (now - last_print)
            eta = (now - start) * (1 - progress) / max(progress, 1e-6)
            print(f"step {step:6d}  loss {mean:.4f}  {rate / 1e3:8.0f} ktok/s  {tokens / 1e6:7.1f} Mtok  "
                  f"{now - start:5.0f} s  ETA {eta:5.0f} s", flush=True)  # fmt: skip
            last_print, printed_tokens, printed_step, recent = now, tokens, step, mean
        if time.monotonic() - last_save > settings.checkpoint_s:
            save_model(model, settings.out)
            last_save = time.monotonic()
    stream.close()
    return TrainResult(step, tokens, time.monotonic() - start, recent)
