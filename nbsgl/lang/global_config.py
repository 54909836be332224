"""`global_config`: SGLang's settings of the whole process, as far as they mean something here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from nbsgl.errors import ParameterError, Unsupported
from nbsgl.lang.default import default

if TYPE_CHECKING:
    from nbsgl.lang.state import ProgramState
    from nbsgl.protocol import Backend

# what an answer is, whatever is asked for: (the only value, why)
_FIXED = {
    "skip_special_tokens_in_output": (True, "variables never contain special tokens"),
    "spaces_between_special_tokens_in_out": (True, "variables never contain special tokens"),
    "enable_parallel_encoding": (True, 'join("concate_and_append") appends tokens, never encoded anew'),
}


class GlobalConfig:
    """One object for the process.  A name it does not know is an AttributeError; a value that cannot be kept raises.

    `verbosity` >= 2 prints the text of what `run_batch` and `with state()` have waited for.  `default_backend` is that
    of `set_default_backend`.  `enable_precache_with_tracing` may be False: no body is ever run to find its prefix.
    """

    __slots__ = ("_values",)

    def __init__(self) -> None:
        fixed = {name: value for name, (value, _) in _FIXED.items()}
        object.__setattr__(self, "_values", {"verbosity": 0, "enable_precache_with_tracing": True, **fixed})

    @property
    def default_backend(self) -> Backend | None:
        return default.get()

    @default_backend.setter
    def default_backend(self, backend: Any) -> None:
        default.set(backend)

    def __getattr__(self, name: str) -> Any:
        values = object.__getattribute__(self, "_values")
        if name not in values:
            raise AttributeError(f"global_config has no {name!r}; it has {', '.join(self.__dir__())}")
        return values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "default_backend":
            default.set(value)
            return
        self.__getattr__(name)
        if name == "verbosity":
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ParameterError(name=name, value=value, allowed="an int >= 0")
        elif not isinstance(value, bool):
            raise ParameterError(name=name, value=value, allowed="True or False")
        elif name in _FIXED and value is not _FIXED[name][0]:
            only, reason = _FIXED[name]
            raise Unsupported(
                f"global_config.{name} = {value!r} is not something this engine can do: {reason}.",
                name=name,
                value=value,
                hint=f"Leave it at {only!r}.",
            )
        self._values[name] = value

    def __dir__(self) -> list[str]:
        return sorted([*self._values, "default_backend"])

    def __repr__(self) -> str:
        return f"<global_config: {', '.join(f'{name}={getattr(self, name)!r}' for name in dir(self))}>"


global_config = GlobalConfig()


def show_waited(state: ProgramState) -> None:
    """At a verbosity of 2 or more, print the text of a finished state; a failed one has none."""
    if global_config.verbosity >= 2 and state.branch.error is None:
        sys.stdout.write(f"{state.text()}\n")
