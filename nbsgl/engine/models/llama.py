"""Llama 2 and 3.x: `attention_bias` puts a bias on q, k, v and o, `mlp_bias` on the MLP; off by default."""

from __future__ import annotations

from dataclasses import replace

from nbsgl.engine.model_config import Fields, ModelConfig
from nbsgl.engine.models import register_family


@register_family("LlamaForCausalLM")
def adapt(config: ModelConfig, fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    return replace(config, qkv_bias=bias, o_bias=bias, mlp_bias=fields.flag("mlp_bias", False))
