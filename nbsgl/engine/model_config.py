"""`config.json` as checked data: the one description of a model's shape that layers, loader and planner read."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbsgl.errors import BadConfig, ModelNotFound, ModelUnsupported

log = logging.getLogger("nbsgl")

MAX_CONFIG_BYTES = 1 << 20
# reliability.md section 5
MAX_LAYERS, MAX_HIDDEN, MAX_HEADS, MAX_VOCAB, MAX_CONTEXT = 1_024, 131_072, 1_024, 2_097_152, 16_777_216
ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
IGNORED_CODE_FIELDS = ("auto_map", "custom_pipelines")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding: `kind` is one of ROPE_TYPES, `params` the numbers that kind reads."""

    kind: str = "default"
    theta: float = 10_000.0
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer's shape.  Sizes are counts; `sliding_window` is in tokens (None: full attention)."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_eps: float
    rope: RopeConfig
    tie_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    dtype: str | None = None
    eos_ids: tuple[int, ...] = ()


class Fields:
    """Reads checked fields out of a model file's JSON object; every refusal is a BadConfig naming file and field."""

    def __init__(self, data: dict[str, Any], file: str) -> None:
        self.data = data
        self.file = file

    def bad(self, name: str, value: object, allowed: str) -> BadConfig:
        return BadConfig(file=self.file, field=name, value=value, allowed=allowed)

    def integer(self, name: str, limit: int, default: int | None = None) -> int:
        value = self.data.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise self.bad(name, value, f"an int in 1..{limit:,}")
        return value

    def number(self, name: str, default: float | None, low: float = 0.0) -> float:
        value = self.data.get(name)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low < value < float("inf"):
            raise self.bad(name, value, f"a number > {low:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.data.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.bad(name, value, "true or false")
        return value

    def ids(self, name: str, limit: int) -> tuple[int, ...]:
        value = self.data.get(name)
        value = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < limit for i in value):
            raise self.bad(name, value, f"token ids below {limit:,}")
        return tuple(value)


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """A model file's JSON object.  ModelNotFound if it is missing, BadConfig if it is too large or no JSON object."""
    if not path.is_file():
        raise ModelNotFound(
            f"{path.parent} has no {path.name}.",
            file=str(path),
            hint="Give the folder of a Hugging Face model (config.json, tokenizer.json, *.safetensors).",
        )
    size = path.stat().st_size
    if size > limit:
        raise BadConfig(file=path.name, field="size", value=size, allowed=f"at most {limit:,} bytes")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadConfig(file=path.name, field="content", value=str(error)[:80], allowed="JSON in UTF-8") from error
    if not isinstance(data, dict):
        raise BadConfig(file=path.name, field="content", value=type(data).__name__, allowed="a JSON object")
    return data


def read_model_config(folder: Path) -> ModelConfig:
    """Read and check `config.json` (and the end tokens of `generation_config.json`) of a model folder.

    Nothing a file names is imported: `auto_map` and the like are ignored with one INFO line.
    Raises ModelNotFound, BadConfig, ModelUnsupported.
    """
    data = read_json(folder / "config.json", MAX_CONFIG_BYTES)
    generation = folder / "generation_config.json"
    extra = read_json(generation, MAX_CONFIG_BYTES) if generation.is_file() else {}
    return parse_model_config(data, extra)


def parse_model_config(data: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
    """The checked form of a `config.json` object; its family decides on biases, norms and windows."""
    from nbsgl.engine.models import find_family

    fields = Fields(data, "config.json")
    names = data.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise fields.bad("architectures", names, "a list with the architecture's name")
    for name in IGNORED_CODE_FIELDS:
        if name in data:
            log.info("config.json: %s is ignored: nbsgl runs no code from model folders", name)
    family = find_family(names[0])
    if data.get("quantization_config"):
        raise ModelUnsupported(
            file="config.json", field="quantization_config", value="...", allowed="float weights (none)"
        )
    activation = data.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelUnsupported(file="config.json", field="hidden_act", value=activation, allowed="'silu'")
    return family.adapt(_common(fields, names[0], generation or {}), fields)


def _common(fields: Fields, architecture: str, generation: dict[str, Any]) -> ModelConfig:
    hidden = fields.integer("hidden_size", MAX_HIDDEN)
    heads = fields.integer("num_attention_heads", MAX_HEADS)
    kv_heads = fields.integer("num_key_value_heads", MAX_HEADS, default=heads)
    if heads % kv_heads:
        raise fields.bad("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads={heads}")
    if fields.data.get("head_dim") is None and hidden % heads:
        raise fields.bad("num_attention_heads", heads, f"a divisor of hidden_size={hidden}, or an explicit head_dim")
    head_dim = fields.integer("head_dim", MAX_HIDDEN, default=hidden // heads)
    if head_dim % 2:
        raise fields.bad("head_dim", head_dim, "an even int")
    vocab = fields.integer("vocab_size", MAX_VOCAB)
    dtype = fields.data.get("dtype") or fields.data.get("torch_dtype")
    end = Fields(generation, "generation_config.json").ids("eos_token_id", vocab)
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", 16 * MAX_HIDDEN),
        num_layers=fields.integer("num_hidden_layers", MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=fields.integer("max_position_embeddings", MAX_CONTEXT, default=2_048),
        rms_eps=fields.number("rms_norm_eps", 1e-6),
        rope=_rope(fields),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=dtype.removeprefix("torch.") if isinstance(dtype, str) else None,
        eos_ids=end or fields.ids("eos_token_id", vocab),
    )


def _rope(fields: Fields) -> RopeConfig:
    """The rotary settings from `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before)."""
    raw = fields.data.get("rope_parameters") or fields.data.get("rope_scaling") or {}
    if not isinstance(raw, dict):
        raise fields.bad("rope_scaling", raw, "an object")
    inner = Fields({"rope_theta": fields.data.get("rope_theta"), **raw}, "config.json")
    kind = inner.data.get("rope_type") or inner.data.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise ModelUnsupported(file="config.json", field="rope_type", value=kind, allowed=" | ".join(ROPE_TYPES))
    partial = inner.data.get("partial_rotary_factor", fields.data.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ModelUnsupported(file="config.json", field="partial_rotary_factor", value=partial, allowed="1.0")
    theta = inner.number("rope_theta", 10_000.0)
    params: dict[str, Any] = {}
    if kind in ("linear", "dynamic", "llama3", "yarn"):
        params["factor"] = inner.number("factor", None)
    original = inner.data.get("original_max_position_embeddings")
    fallback = original or fields.data.get("original_max_position_embeddings")
    if kind == "llama3":
        params["low_freq_factor"] = inner.number("low_freq_factor", None)
        params["high_freq_factor"] = inner.number("high_freq_factor", None)
        if params["high_freq_factor"] <= params["low_freq_factor"]:
            raise inner.bad("high_freq_factor", params["high_freq_factor"], "more than low_freq_factor")
    if kind in ("llama3", "yarn"):
        inner.data["original_max_position_embeddings"] = fallback
        default = fields.integer("max_position_embeddings", MAX_CONTEXT, default=2_048) if kind == "yarn" else None
        params["original"] = inner.integer("original_max_position_embeddings", MAX_CONTEXT, default=default)
    if kind == "yarn":
        params["beta_fast"] = inner.number("beta_fast", 32.0)
        params["beta_slow"] = inner.number("beta_slow", 1.0)
        params["truncate"] = inner.flag("truncate", True)
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if inner.data.get(name):
                params[name] = inner.number(name, None)
    return RopeConfig(kind=kind, theta=theta, params=params)
