"""Small random checkpoints made with transformers, and the least driver that runs rows through a runner."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import Any

import torch

from nbsgl.engine.batch import Batch, Row, RowResult
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.loader import LoadedModel, load

VOCAB = 211
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def make_checkpoint(folder: Path, family: str, *, shard: str | None = None, **settings: Any) -> torch.nn.Module:
    """Save a random model of the transformers family ("Llama", "Qwen2" ...) and return it."""
    import transformers

    torch.manual_seed(zlib.crc32(family.encode()))
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **settings})
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    for parameter in model.parameters():  # biases and norms that are not 0 and 1
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
        else:
            parameter.data.normal_(0, 0.08)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return model


def load_small(folder: Path, **settings: Any) -> LoadedModel:
    return load(
        EngineConfig.of(model_path=str(folder), **{"num_slots": 512, "device": "cpu", "num_threads": 2, **settings})
    )


def reference_logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def run(loaded: LoadedModel, *rows: Row) -> list[RowResult]:
    return loaded.runner.launch(Batch(list(rows))).result()
