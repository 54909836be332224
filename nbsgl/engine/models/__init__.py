"""The register of model families: an architecture's name -> its family.  One file per family, imported when used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbsgl.errors import ModelUnsupported

if TYPE_CHECKING:
    from nbsgl.engine.model_config import Fields, ModelConfig

# architecture -> module of this package that registers it
MODULES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}

Adapt = Callable[["ModelConfig", "Fields"], "ModelConfig"]


@dataclass(frozen=True, slots=True)
class Family:
    """What sets an architecture apart from the shared decoder: `adapt` completes the common config from its fields."""

    architecture: str
    adapt: Adapt


_families: dict[str, Family] = {}


def register_family(architecture: str) -> Callable[[Adapt], Adapt]:
    """Decorator of a family's `adapt`."""

    def add(adapt: Adapt) -> Adapt:
        _families[architecture] = Family(architecture, adapt)
        return adapt

    return add


def find_family(architecture: str) -> Family:
    """The family of that name, imported if need be.  ModelUnsupported naming those there are."""
    if architecture not in _families and architecture in MODULES:
        importlib.import_module(f"{__name__}.{MODULES[architecture]}")
    family = _families.get(architecture)
    if family is None:
        known = ", ".join(sorted(MODULES.keys() | _families.keys()))
        raise ModelUnsupported(
            file="config.json",
            field="architectures",
            value=architecture,
            allowed=f"one of {known}",
            hint="Take a model of one of these architectures.",
        )
    return family
