"""The model's shape, and its files as transformers and the engine read them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from tools.train_tiny.chat import END_OF_TEXT, IM_END

MAX_POSITIONS = 4096
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8,
             "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32},
    "smoke": {"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
}  # fmt: skip


def new_model(size: str, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A fresh fp32 model with tied embeddings, from torch's random state."""
    shape = {**SIZES[size], "vocab_size": tokenizer.get_vocab_size()}
    config = LlamaConfig(
        **shape,
        max_position_embeddings=MAX_POSITIONS,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        eos_token_id=tokenizer.token_to_id(IM_END),
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` in bf16, the tied head left out."""
    c = model.config
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim, "hidden_act": "silu", "max_position_embeddings": MAX_POSITIONS, "rope_theta": 10000.0,
        "rms_norm_eps": c.rms_norm_eps, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "initializer_range": c.initializer_range, "bos_token_id": c.bos_token_id,
        "eos_token_id": c.eos_token_id, "pad_token_id": c.pad_token_id, "torch_dtype": "bfloat16", "use_cache": True,
    }  # fmt: skip
    generation = {
        "bos_token_id": c.bos_token_id, "eos_token_id": [c.eos_token_id, c.bos_token_id],
        "pad_token_id": c.pad_token_id, "do_sample": False,
    }  # fmt: skip
    for name, value in (("config", config), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    tensors = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    file = folder / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)
