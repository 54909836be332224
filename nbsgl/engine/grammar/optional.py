"""Packages of the optional engines: asked for by name, imported when a grammar is compiled."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from nbsgl.errors import Unsupported

PACKAGES = {"xgrammar": "xgrammar", "outlines": "outlines_core"}


def require(engine: str) -> None:
    """`Unsupported` if the engine's package is not installed.  Does not import it: xgrammar brings torch along."""
    name = PACKAGES[engine]
    if importlib.util.find_spec(name) is None:
        raise Unsupported(
            f"engine={engine!r} needs a package that is not installed ({name}).",
            name="engine",
            value=engine,
            hint=f'pip install "nbsgl[{engine}]", or leave engine out.',
        )


def package(engine: str) -> Any:
    """The engine's package, imported."""
    require(engine)
    return importlib.import_module(PACKAGES[engine])
