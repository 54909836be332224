"""The models that are measured: two shapes that come with the package, the embedded model, or a folder."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbsgl.engine.folders import resolve_model
from nbsgl.engine.model_config import ModelConfig, read_model_config
from nbsgl.errors import ParameterError

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parent / "models"
NAMES = tuple(sorted(path.name for path in FOLDER.iterdir()))  # shapes without weights

SHARD_BYTES = 2 << 30
STD = 0.02  # of random weights, as `load_format="dummy"` has them


@dataclass(frozen=True, slots=True)
class Model:
    """What is measured: `name` stands in reports; shapes that come with the package have weights only as "dummy"."""

    name: str
    folder: Path
    load_format: str
    config: ModelConfig
    has_tokenizer: bool


def find_model(name: str, load_format: str | None = None) -> Model:
    """A shape of the package by name, "embedded", a folder or a hub name."""
    if name in NAMES:
        if load_format not in (None, "dummy"):
            hint = f"Write a checkpoint first: nbsgl bench --make-checkpoint DIR --model {name}"
            raise ParameterError(name="--load-format", value=load_format, allowed=f"'dummy' for {name}", hint=hint)
        folder, load_format = FOLDER / name, "dummy"
    else:
        folder = resolve_model(name)
    shown = name if name in (*NAMES, "embedded") else folder.name
    has_tokenizer = (folder / "tokenizer.json").is_file()
    return Model(shown, folder, load_format or "auto", read_model_config(folder), has_tokenizer)


# ---- a random checkpoint, for the time that a start from files takes ------------------------------------------------


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, as Hugging Face's Llama and Qwen checkpoints have them."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for i in range(config.num_layers):
        at = f"model.layers.{i}."
        linears = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
        for name, shape in linears.items():
            shapes[f"{at}self_attn.{name}_proj.weight"] = shape
            if config.o_bias if name == "o" else config.qkv_bias:
                shapes[f"{at}self_attn.{name}_proj.bias"] = shape[:1]
        if config.qk_norm:
            shapes |= {f"{at}self_attn.{name}_norm.weight": (config.head_dim,) for name in "qk"}
        for name, shape in {"gate": (mlp, hidden), "up": (mlp, hidden), "down": (hidden, mlp)}.items():
            shapes[f"{at}mlp.{name}_proj.weight"] = shape
            if config.mlp_bias:
                shapes[f"{at}mlp.{name}_proj.bias"] = shape[:1]
        shapes |= {f"{at}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def write_checkpoint(model: Model, folder: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Write random bf16 weights of the model's shape in safetensors files of about `shard_bytes`; returns their bytes.

    The same on every machine.  Norms are 1, biases 0.  Shards are drawn and written in parallel; the index comes last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in weight_shapes(model.config).items():
        if size and size + 2 * _count(shape) > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += 2 * _count(shape)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(_write_shard, [folder / name for name in names], shards, range(len(shards))))
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    (folder / "config.json").write_bytes((model.folder / "config.json").read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return sum(sizes)


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> int:
    from safetensors.torch import save_file
    from torch import Generator

    rng = Generator().manual_seed(seed)
    tensors = {name: _random(name, shape, rng) for name, shape in shapes.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def _random(name: str, shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    import torch

    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
    return torch.empty(shape).normal_(0.0, STD, generator=rng).to(torch.bfloat16)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
