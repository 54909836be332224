"""Qwen 3: an RMSNorm over each head of q and k before the rotation; biases only with `attention_bias`."""

from __future__ import annotations

from dataclasses import replace

from nbsgl.engine.model_config import Fields, ModelConfig
from nbsgl.engine.models import register_family
from nbsgl.engine.models.qwen2 import sliding_window


@register_family("Qwen3ForCausalLM")
def adapt(config: ModelConfig, fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    return replace(config, qk_norm=True, qkv_bias=bias, o_bias=bias, sliding_window=sliding_window(fields))
