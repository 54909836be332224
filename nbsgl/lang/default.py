"""The default backend: one value with one owner."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbsgl.errors import EngineMismatch, NoBackend, ParameterError

if TYPE_CHECKING:
    from nbsgl.automaton import GrammarPicture
    from nbsgl.protocol import Backend

logger = logging.getLogger("nbsgl")


class Default:
    """Who answers programs that name no backend.

    Never set: the first program starts the embedded model's engine (`make_engine`), and a warning says so.  Set to
    None: `NoBackend`.
    """

    def __init__(self) -> None:
        self.make_engine: Callable[..., Backend] | None = None
        self.draw_grammar: Callable[..., GrammarPicture] | None = None  # (spec, text, model, last step's likeliest)
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._settings: dict[str, Any] | None = None  # of an engine that `start` made
        self._was_set = False

    def get(self) -> Backend | None:
        """The default backend if there is one; starts nothing."""
        return self._backend

    @property
    def is_off(self) -> bool:
        """The user has set it to None: nothing starts by itself."""
        return self._was_set and self._backend is None

    def set(self, backend: Any) -> None:
        with self._lock:
            self._backend = None if backend is None else unwrapped(backend)
            self._settings, self._was_set = None, True

    def start(self, model_path: str = "embedded", *, on_progress: Any = None, **settings: Any) -> Backend:
        """Start an engine, or find the running one, and make it the default."""
        asked = {"model_path": model_path, **settings}
        with self._lock:
            is_closed = getattr(self._backend, "is_closed", False)
            if self._backend is not None and self._settings is not None and not is_closed:
                if self._settings != asked:
                    raise EngineMismatch(
                        running=_shown(self._settings),
                        asked=_shown(asked),
                        hint="Call set_default_backend(None) first, or use nbsgl.Engine(...) for a second engine.",
                    )
                return self._backend
            if self.make_engine is None:
                raise NoBackend("There is no engine to start.")
            extra = {} if on_progress is None else {"on_progress": on_progress}
            engine = self.make_engine(model_path, **settings, **extra)
            self._backend, self._settings, self._was_set = engine, asked, True
            return engine

    def resolve(self, backend: Any = None) -> Backend:
        """The backend a program runs on."""
        if backend is not None:
            return unwrapped(backend)
        found = self._backend
        if found is not None:
            return found
        if self.is_off:
            raise NoBackend(
                "No backend is set.",
                hint="Call nbsgl.start() for the embedded model, or set_default_backend(nbsgl.Engine(model_path=...)).",
            )
        logger.warning("nbsgl: no backend was set; starting the embedded model (nbsgl.start(...) picks another).")
        return self.start()


def unwrapped(backend: Any) -> Backend:
    """The backend itself, of an object that carries one as `.endpoint`."""
    if not hasattr(backend, "open_run"):
        backend = getattr(backend, "endpoint", backend)
    if not hasattr(backend, "open_run"):
        raise ParameterError(
            name="backend", value=backend, allowed="a Backend: an nbsgl.Engine, or an object with its methods"
        )
    found: Backend = backend
    return found


def _shown(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in settings.items())


default = Default()
