"""How much memory the largest step takes beside weights and pool: measured, before the pool takes the rest."""

from __future__ import annotations

import torch

from nbsgl.engine.cuda.graphs import MAX_BUCKET
from nbsgl.engine.grammar.arena import arena_bytes
from nbsgl.engine.kernels.fused import silu_mul
from nbsgl.engine.models.decoder import Decoder

# float32 logits of every drawing row, their copy, and what a filtered draw or a log-probability makes of them
LOGIT_COPIES = 3


@torch.inference_mode()
def step_bytes(model: Decoder, *, max_tokens: int, max_running: int) -> int:
    """Bytes that a step of `max_tokens` tokens and `max_running` draws takes: the peak of one MLP, logits, grammars.

    Runs the widest part of a layer, and leaves its cuBLAS workspace behind, which steps will use.  An 8B at 8,192
    tokens: 0.47 GB of gate and up, 0.23 GB activated, 0.2 GB of stream and norm; the logits of 512 rows 0.9 GB.
    """
    device, layer = model.device, model.layers[0]
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    x = torch.zeros((max_tokens, model.config.hidden_size), dtype=model.dtype, device=device)
    residual, mixed = x.clone(), torch.zeros((max_tokens, model.q_size), dtype=model.dtype, device=device)
    qkv = torch.mm(x, layer.qkv.weight.t())
    residual.add_(torch.mm(mixed, layer.o.weight.t()))
    del qkv, mixed
    gate_up = torch.mm(x, layer.gate_up.weight.t())
    active = torch.empty((max_tokens, model.config.intermediate_size), dtype=model.dtype, device=device)
    silu_mul(gate_up, active, pdl=False)
    torch.mm(active, layer.down.weight.t())
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del x, residual, gate_up, active
    torch.cuda.empty_cache()
    rows = max(max_running, MAX_BUCKET)
    logits = rows * model.config.vocab_size * (model.dtype.itemsize + LOGIT_COPIES * 4)
    return peak + logits + arena_bytes(torch.cuda.get_device_properties(device).total_memory)
