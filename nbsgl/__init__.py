"""nbsgl: SGLang made native to the notebook.

    import nbsgl as sgl

The names below are loaded when they are first used: importing the package loads neither torch nor IPython.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nbsgl import errors as _errors
from nbsgl.lang.default import default as _default

if TYPE_CHECKING:
    from nbsgl.protocol import Backend, EngineSnapshot

__version__ = "0.1.0"

_PLACES = {
    "nbsgl.lang.api": (
        "gen gen_int gen_string select raw system user assistant system_begin system_end user_begin user_end "
        "assistant_begin assistant_end image video separate_reasoning"
    ),
    "nbsgl.lang.tools": "ToolCall tag tags",
    "nbsgl.protocol": "GrammarSpec",
    "nbsgl.lang.program": "function state SglFunction",
    "nbsgl.lang.state": "ProgramState",
    "nbsgl.lang.ir": "HoleWarning",
    "nbsgl.lang.group": "ProgramStateGroup",
    "nbsgl.lang.choices": (
        "ChoicesDecision ChoicesSamplingMethod token_length_normalized greedy_token_selection "
        "unconditional_likelihood_normalized"
    ),
    "nbsgl.lang.global_config": "global_config",
    "nbsgl.lang.prefetch": "prefetch",
    "nbsgl.lang.backends.runtime_endpoint": "RuntimeEndpoint",
    "nbsgl.lang.backends.runtime": "Runtime",
    "nbsgl.lang.backends.openai": "OpenAI",
    "nbsgl.lang.backends.anthropic": "Anthropic",
    "nbsgl.lang.backends.litellm": "LiteLLM",
    "nbsgl.lang.backends.vertexai": "VertexAI",
    "nbsgl.lang.backends.crusoe": "Crusoe",
    "nbsgl.errors": " ".join(_errors.ERRORS),
    "nbsgl.engine.config": "ServerArgs",
    "nbsgl.engine.handle": "Engine",
    "nbsgl.magics": "load_ipython_extension unload_ipython_extension",
}
_HOMES = {name: module for module, names in _PLACES.items() for name in names.split()}
_MODULES = {"grammar"}
_HOMES |= {name: f"nbsgl.{name}" for name in _MODULES}
_HERE = ("set_default_backend", "get_default_backend", "start", "flush_cache", "get_server_info", "get_status")

__all__ = sorted([*(name for name in _HOMES if not name.endswith("ipython_extension")), *_HERE])


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nbsgl' has no attribute {name!r}")
    module = import_module(home)
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def _make_engine(model_path: str, **settings: Any) -> Backend:
    from nbsgl.engine.handle import Engine

    engine: Backend = Engine(model_path, **settings)
    return engine


def _draw_grammar(spec: Any, text: str, model: str | None, top: Any) -> Any:
    from nbsgl.grammar import of_run

    return of_run(spec, text, model, top)


_default.make_engine = _make_engine
_default.draw_grammar = _draw_grammar


def start(model_path: str = "embedded", **settings: Any) -> Backend:
    """Start an engine, or find the running one, and make it the default of this process.

    With the default's own settings it returns the default; with others it raises `EngineMismatch`.
    """
    return _default.start(model_path, **settings)


def set_default_backend(backend: Any) -> None:
    """Who answers programs that name no backend; None: nobody (`NoBackend`), the embedded model neither."""
    _default.set(backend)


def get_default_backend() -> Backend | None:
    """The default backend if there is one; starts nothing."""
    return _default.get()


def flush_cache(backend: Any = None) -> bool:
    """Drop every cached prefix nobody uses.  False without a backend."""
    found = _backend(backend)
    return found is not None and found.flush_cache()


def get_status(backend: Any = None) -> EngineSnapshot | None:
    """A picture of the engine now: its model, pool, tree and rates.  None without a backend."""
    found = _backend(backend)
    return None if found is None else found.snapshot()


def get_server_info(backend: Any = None) -> dict[str, Any] | None:
    """`get_status` as plain data; of a server, what it tells."""
    from msgspec import to_builtins

    tell = getattr(_backend(backend), "get_server_info", None)
    if tell is not None:
        told: dict[str, Any] = tell()
        return told
    status = get_status(backend)
    info: dict[str, Any] | None = None if status is None else to_builtins(status)
    return info


def _backend(backend: Any) -> Backend | None:
    return _default.get() if backend is None else _default.resolve(backend)
