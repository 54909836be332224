"""Figures of other engines: measured once with these workloads, given beside ours where the card is the same.

One NVIDIA H200, bf16, dummy weights, default settings, best of two after a warm-up; SGLang 0.5.17, vLLM 0.26.0.
"""

from __future__ import annotations

CARD = "NVIDIA H200"
VERSIONS = {"sglang": "0.5.17", "vllm": "0.26.0"}

# (model, workload) -> figure in the workload's own unit (`rows.UNITS`)
FIGURES: dict[tuple[str, str], dict[str, float]] = {
    ("llama-3.1-8b", "single"): {"sglang": 204.9, "vllm": 199.0},
    ("llama-3.1-8b", "prefill"): {"sglang": 6.404, "vllm": 6.433},
    ("llama-3.1-8b", "prefix"): {"sglang": 3.718, "vllm": 3.337},
    ("llama-3.1-8b", "chat"): {"sglang": 6.794, "vllm": 6.73},
    ("llama-3.1-8b", "tree"): {"sglang": 6.554, "vllm": 6.489},
    ("llama-3.1-8b", "nano"): {"sglang": 9532.0, "vllm": 10146.0},
    ("qwen3-0.6b", "single"): {"sglang": 622.6, "vllm": 470.5},
    ("qwen3-0.6b", "nano"): {"sglang": 21859.0, "vllm": 21301.0},
    ("llama-3.1-8b", "start"): {"sglang": 59.5, "vllm": 84.6},
    ("llama-3.1-8b", "select"): {"sglang": 5.15},  # programs: its frontend and server
    ("llama-3.1-8b", "judge"): {"sglang": 5.37},
    ("llama-3.1-8b", "chain"): {"sglang": 5.69},
    ("llama-3.1-8b", "json"): {"sglang": 2.45},
}


def figures(card: str, model: str, workload: str, scale: str, load_format: str) -> dict[str, float]:
    """What the peers reached at the same thing on the same card; {} where nothing is known."""
    if card != CARD or scale != "full" or load_format != "dummy":
        return {}
    return dict(FIGURES.get((model, workload), {}))
