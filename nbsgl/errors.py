"""The exception tree. Every class is importable without torch, carries plain fields, and crosses the wire as data.

An error says what it got, what it allows, and (in `hint`) the line to type next.  `encode`/`decode` rebuild an error
from a table of names; no name from the wire is ever imported.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar


class _Count(int):
    """A number as people read it."""

    def __format__(self, spec: str) -> str:
        return f"{int(self):,}"


class NbsglError(Exception):
    """Root of all errors of nbsgl.

    `fields` names the plain values a class carries (None when not given); `pattern` makes the message from them
    unless `message` is given.  `hint` is the line to type next, shown after the message.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    pattern: ClassVar[str] = ""

    def __init__(self, message: str = "", *, hint: str = "", request_id: str | None = None, **values: Any) -> None:
        unknown = values.keys() - set(self.fields)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {sorted(unknown)}; it has {list(self.fields)}")
        for name in self.fields:
            setattr(self, name, values.get(name))
        shown = {name: _Count(v) if type(v) is int else v for name, v in ((n, values.get(n)) for n in self.fields)}
        self.message = message or self.pattern.format(**shown)
        self.hint = hint
        self.request_id = request_id
        super().__init__(self.message)

    def __str__(self) -> str:  # a KeyError child would show its message quoted
        return f"{self.message} {self.hint}".strip()

    def __getattr__(self, name: str) -> Any:  # for mypy: fields are set by name in __init__
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return decode, (encode(self),)


class UsageError(NbsglError, ValueError):
    """The call is wrong; nothing was run."""

    fields: ClassVar[tuple[str, ...]] = ("name", "value")


class ParameterError(UsageError):
    """A parameter's value is outside what is allowed."""

    fields: ClassVar[tuple[str, ...]] = ("name", "value", "allowed")
    pattern = "{name}={value!r}: allowed is {allowed}."


class EngineMismatch(UsageError):
    """The default engine runs with other settings than those asked for."""

    fields: ClassVar[tuple[str, ...]] = ("running", "asked")
    pattern = "The engine runs with {running}; you asked for {asked}."


class WrongProcess(UsageError):
    """A handle was used in a forked child."""

    fields: ClassVar[tuple[str, ...]] = ("pid", "here")
    pattern = "This engine handle belongs to process {pid}, but was used in process {here}."


class ProgramError(UsageError, TypeError):
    """A program is not well formed (no first parameter `s`, a cycle, an unknown argument)."""


class HoleError(ProgramError):
    """A hole (`gen(...)`, `select(...)`) was used as if it were a value."""


class TraceError(ProgramError):
    """The control flow of a traced program depends on a value."""


class RoleError(UsageError):
    """Roles are nested or closed in the wrong order."""


class UnknownVariable(UsageError, KeyError):
    """The state has no variable of that name."""

    fields: ClassVar[tuple[str, ...]] = ("name", "value", "known")


class NoBackend(UsageError, RuntimeError):
    """No backend is set, and the embedded one was switched off."""


class Unsupported(UsageError, NotImplementedError):
    """What was asked for is not something this backend or model can do."""


class RequestError(NbsglError):
    """Ends one request; the engine and its other requests go on."""

    fields: ClassVar[tuple[str, ...]] = ("branch",)


class RequestTooLong(RequestError, ValueError):
    fields: ClassVar[tuple[str, ...]] = ("prompt_len", "max_tokens", "limit", "variable")
    pattern = "A prompt of {prompt_len} tokens + max_tokens={max_tokens} exceeds the context of {limit}."


class RequestTooLarge(RequestError, ValueError):
    fields: ClassVar[tuple[str, ...]] = ("what", "n", "limit")
    pattern = "{what} is {n}, the limit is {limit}."


class TooManyBranches(RequestTooLarge):
    """More branches, forks or segments than the limits allow."""


class OutOfMemory(RequestError, RuntimeError):
    """The request alone needs more of the KV pool than there is."""

    fields: ClassVar[tuple[str, ...]] = ("needs", "has")
    pattern = "The request needs {needs} KV slots, the pool has {has}."


class GrammarError(RequestError, ValueError):
    fields: ClassVar[tuple[str, ...]] = ("kind", "path", "reason", "limit")
    pattern = "{kind} at {path}: {reason}."


class BadGrammar(GrammarError):
    """The grammar is not valid, or no output can satisfy it."""


class BadRegex(BadGrammar, re.error):  # type: ignore[misc]  # `pattern` means another thing in each
    """The pattern of a `regex=` is invalid; also a `re.error`, as SGLang raises."""

    def __init__(self, message: str = "", **values: Any) -> None:
        self.pattern_text = values.pop("pattern_text", None)
        NbsglError.__init__(self, message, **values)
        self.msg, self.pos, self.lineno, self.colno = self.message, None, None, None  # type: ignore[assignment]


class GrammarTooExpensive(GrammarError):
    """Compiling a grammar hit a limit."""

    pattern = "Compiling the {kind} stopped at its limit: {limit}."


class TemplateError(RequestError, ValueError):
    fields: ClassVar[tuple[str, ...]] = ("what", "reason", "limit")
    pattern = "{what}: {reason}."


class NumericalError(RequestError, ArithmeticError):
    fields: ClassVar[tuple[str, ...]] = ("position", "step", "dtype")
    pattern = "NaN or infinity in the logits at token {position} ({dtype})."


class QueueFull(RequestError, RuntimeError):
    fields: ClassVar[tuple[str, ...]] = ("what", "n", "limit")
    pattern = "{n} {what} waiting, the limit is {limit}."


class StateFailed(RequestError, RuntimeError):
    """A segment of a state failed; every later access raises this same error.

    `__cause__` is the error itself, `partial_text` what had been generated.
    """

    fields: ClassVar[tuple[str, ...]] = ("program", "where", "variable", "partial_text")


class Aborted(StateFailed):
    fields: ClassVar[tuple[str, ...]] = (*StateFailed.fields, "by")
    pattern = "Aborted by {by}."


class DeadlineExceeded(StateFailed, TimeoutError):
    fields: ClassVar[tuple[str, ...]] = (*StateFailed.fields, "after_s")
    pattern = "No result after {after_s} s."


class SpeculationMissed(StateFailed):
    """A chat service's answer did not follow the message that the program had written around its gens."""

    fields: ClassVar[tuple[str, ...]] = (*StateFailed.fields, "tries", "answer")
    pattern = "{tries} answers did not follow the message; the last: {answer!r}."


class ApiError(RequestError, RuntimeError):
    """A remote service refused a request or gave no usable answer.  `status` is HTTP's; None: no answer came."""

    fields: ClassVar[tuple[str, ...]] = ("service", "status", "reason")
    pattern = "{service} answered {status}: {reason}"


class BadValue(NbsglError, ValueError):
    """The text of a variable is no value of the type that its gen asked for; the text itself can be read."""

    fields: ClassVar[tuple[str, ...]] = ("variable", "text", "expected", "reason")
    pattern = "The variable {variable!r} is {text!r}, which is no {expected}: {reason}."


class IncompleteOutput(BadValue):
    """The text ended inside its grammar, at `limit` tokens; `needed`: the least max_tokens that could do, if known."""

    fields: ClassVar[tuple[str, ...]] = (*BadValue.fields, "limit", "needed")
    pattern = "The variable {variable!r} is no whole {expected}: {text!r} ended at max_tokens={limit}."


class EngineError(NbsglError, RuntimeError):
    """Ends all requests of an engine."""

    fields: ClassVar[tuple[str, ...]] = ("log_path",)


class EngineNotRunning(EngineError):
    fields: ClassVar[tuple[str, ...]] = ("log_path", "key")
    pattern = "No engine is running for {key}."


class EngineStartFailed(EngineError):
    fields: ClassVar[tuple[str, ...]] = ("log_path", "stage", "reason", "log_tail")
    pattern = "The engine did not start (stage: {stage}): {reason}"


class EngineDied(EngineError):
    fields: ClassVar[tuple[str, ...]] = ("log_path", "process", "signal", "exit_code", "phase", "lost")
    pattern = "The engine's {process} died ({phase}); {lost} requests lost, the cache is empty."


class EngineHung(EngineDied):
    """The worker made no step within `step_timeout` and was killed."""


class GpuFault(EngineDied):
    """A CUDA error that leaves the context unusable."""


class EngineCrashLoop(EngineError):
    fields: ClassVar[tuple[str, ...]] = ("log_path", "deaths", "last")
    pattern = "{deaths} deaths of the worker in 10 minutes; the last: {last}"


class VersionMismatch(EngineError):
    fields: ClassVar[tuple[str, ...]] = ("log_path", "engine", "client")
    pattern = "The engine speaks protocol {engine}, this process {client}."


class RuntimeFolderError(EngineError):
    fields: ClassVar[tuple[str, ...]] = ("log_path", "path", "reason")
    pattern = "{path}: {reason}."


class ModelError(NbsglError, ValueError):
    fields: ClassVar[tuple[str, ...]] = ("file", "field", "value", "allowed")
    pattern = "{file}: {field}={value!r}, expected {allowed}."


class ModelNotFound(ModelError, FileNotFoundError):
    def __str__(self) -> str:
        return NbsglError.__str__(self)


class UnsafeFile(ModelError):
    """A weights format that can carry code."""


class BadConfig(ModelError):
    """`config.json`, the tokenizer or another model file is missing a field or has a wrong one."""


class CorruptWeights(ModelError):
    """A safetensors file or its index is damaged or does not fit the model."""


class ModelUnsupported(ModelError):
    """An architecture or feature that nbsgl does not run."""


def _tree(cls: type[NbsglError]) -> dict[str, type[NbsglError]]:
    found = {cls.__name__: cls}
    for child in cls.__subclasses__():
        found |= _tree(child)
    return found


ERRORS: dict[str, type[NbsglError]] = _tree(NbsglError)


def encode(error: BaseException) -> dict[str, Any]:
    """Return the error as plain data; one that is not ours becomes an `EngineError` naming its class."""
    if not isinstance(error, NbsglError):
        return {
            "cls": "EngineError",
            "message": f"internal error: {type(error).__name__}: {error}",
            "hint": "",
            "fields": {},
        }
    values = {name: getattr(error, name) for name in error.fields}
    return {
        "cls": type(error).__name__ if type(error).__name__ in ERRORS else "NbsglError",
        "message": error.message,
        "hint": error.hint,
        "request_id": error.request_id,
        "fields": {k: v for k, v in values.items() if v is not None},
    }


def decode(data: dict[str, Any]) -> NbsglError:
    """Rebuild an error from `encode`'s data; an unknown class becomes the root."""
    cls = ERRORS.get(str(data.get("cls")), NbsglError)
    fields = {k: v for k, v in dict(data.get("fields") or {}).items() if k in cls.fields}
    return cls(
        str(data.get("message", "")), hint=str(data.get("hint", "")), request_id=data.get("request_id"), **fields
    )
