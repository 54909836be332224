"""Qwen 2 and 2.5: biases on q, k and v; a sliding window only where `use_sliding_window` says so."""

from __future__ import annotations

from dataclasses import replace

from nbsgl.engine.model_config import MAX_CONTEXT, Fields, ModelConfig
from nbsgl.engine.models import register_family


@register_family("Qwen2ForCausalLM")
def adapt(config: ModelConfig, fields: Fields) -> ModelConfig:
    return replace(config, qkv_bias=True, sliding_window=sliding_window(fields))


def sliding_window(fields: Fields) -> int | None:
    """The window in tokens if any layer uses one (Qwen 2 and 3 share the fields)."""
    if not fields.flag("use_sliding_window", False) or fields.data.get("sliding_window") is None:
        return None
    return fields.integer("sliding_window", MAX_CONTEXT)
