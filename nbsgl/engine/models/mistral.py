"""Mistral: Llama without biases, in its first version with a sliding window."""

from __future__ import annotations

from dataclasses import replace

from nbsgl.engine.model_config import MAX_CONTEXT, Fields, ModelConfig
from nbsgl.engine.models import register_family


@register_family("MistralForCausalLM")
def adapt(config: ModelConfig, fields: Fields) -> ModelConfig:
    if fields.data.get("sliding_window") is None:
        return config
    return replace(config, sliding_window=fields.integer("sliding_window", MAX_CONTEXT))
