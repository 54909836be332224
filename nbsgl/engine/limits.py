"""How much a scheduler may use: the engine's settings, with what they leave open filled in."""

from __future__ import annotations

from dataclasses import dataclass

from nbsgl.engine.config import EngineConfig
from nbsgl.engine.policy import POLICIES
from nbsgl.errors import ParameterError


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the scheduler may use.  `token_budget`: most new tokens in a step."""

    num_slots: int
    page_size: int = 1
    max_running: int = 256
    token_budget: int = 8192
    policy: str = "lpm"
    overlap: bool = False
    disable_radix_cache: bool = False

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ParameterError(name="schedule_policy", value=self.policy, allowed=" | ".join(POLICIES))
        for name in ("num_slots", "page_size", "max_running", "token_budget"):
            if getattr(self, name) < 1:
                raise ParameterError(name=name, value=getattr(self, name), allowed=">= 1")

    @classmethod
    def of(cls, config: EngineConfig, num_slots: int, *, max_running: int, token_budget: int, overlap: bool) -> Limits:
        """Of the engine's settings; what they leave open is given (as measured on the device)."""
        return cls(
            num_slots=num_slots,
            page_size=config.page_size,
            max_running=config.max_running_requests or max_running,
            token_budget=config.chunked_prefill_size or token_budget,
            policy=config.schedule_policy,
            overlap=overlap if config.overlap is None else config.overlap,
            disable_radix_cache=config.disable_radix_cache,
        )
