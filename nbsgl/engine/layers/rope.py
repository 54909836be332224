"""Rotary position embedding with its scalings.  Su et al. 2021, "RoFormer"; Peng et al. 2023, "YaRN"."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nbsgl.engine.model_config import RopeConfig


class Rope:
    """Tables of cos and signed sin for positions [0, context_length), float32 rounded to the model's dtype when read.

    "dynamic" equals "default" here: it only changes positions beyond `max_position`, which no request reaches.
    """

    def __init__(self, config: RopeConfig, head_dim: int, context_length: int, device: torch.device) -> None:
        freqs, self.amplitude = inverse_frequencies(config, head_dim)
        angles = torch.outer(torch.arange(context_length, dtype=torch.float32), freqs)
        cos, sin = angles.cos() * self.amplitude, angles.sin() * self.amplitude
        # [context, head_dim]: rotate(x) = x * cos + roll(x, head_dim / 2) * sin, the first half of sin negated
        self.cos = torch.cat((cos, cos), -1).to(device)
        self.sin = torch.cat((-sin, sin), -1).to(device)
        self.half = head_dim // 2

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin `[num_tokens, 1, head_dim]` of the positions (int64), once per step."""
        cos = self.cos.index_select(0, positions).unsqueeze(1)
        sin = self.sin.index_select(0, positions).unsqueeze(1)
        return cos.to(dtype), sin.to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[num_tokens, heads, head_dim]`; a new tensor."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


def inverse_frequencies(config: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """The `head_dim / 2` angles per position (float32) and the factor on cos and sin."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    freqs = 1.0 / (config.theta**exponents)
    if config.kind == "linear":
        return freqs / config.params["factor"], 1.0
    if config.kind == "llama3":
        return _llama3(freqs, config), 1.0
    if config.kind == "yarn":
        return _yarn(config, head_dim)
    return freqs, 1.0


def _llama3(freqs: Tensor, config: RopeConfig) -> Tensor:
    """Slow waves are stretched by `factor`, quick ones kept, those between interpolated (Llama 3.1's model card)."""
    p = config.params
    waves = 2 * math.pi / freqs
    smooth = (p["original"] / waves - p["low_freq_factor"]) / (p["high_freq_factor"] - p["low_freq_factor"])
    between = (1 - smooth) * freqs / p["factor"] + smooth * freqs
    slow, quick = waves > p["original"] / p["low_freq_factor"], waves < p["original"] / p["high_freq_factor"]
    return torch.where(slow, freqs / p["factor"], torch.where(quick, freqs, between))


def _yarn(config: RopeConfig, dim: int) -> tuple[Tensor, float]:
    p = config.params

    def turns_at(turns: float) -> float:
        return dim * math.log(p["original"] / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = turns_at(p["beta_fast"]), turns_at(p["beta_slow"])
    if p["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)).clamp(0, 1)
    powers = config.theta ** (torch.arange(0, dim, 2).float() / dim)
    freqs = ramp / (p["factor"] * powers) + (1 - ramp) / powers
    return freqs, p.get("attention_factor") or _yarn_amplitude(p)


def _yarn_amplitude(p: dict[str, float]) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(p["factor"]) + 1.0 if p["factor"] > 1 else 1.0

    if "mscale" in p and "mscale_all_dim" in p:
        return mscale(p["mscale"]) / mscale(p["mscale_all_dim"])
    return mscale(1.0)
