"""A model's chat template, taken apart into one prefix and one suffix per role.

A template is a program from outside: it is compiled and rendered in a process of its own (`python -m
nbsgl.engine.templates`: a request as JSON on stdin, an answer on stdout), sandboxed, with limits on memory, processor
time, output and the clock.  It is rendered once, at load, for conversations of marks; what stands between the marks
are the roles' prefixes and suffixes.  They are taken only if they put every probe conversation together again, for then
a conversation can grow by appending, which is what a branch does.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nbsgl.chat_templates import ChatTemplate
from nbsgl.engine.tokenizer_files import TokenizerFiles
from nbsgl.errors import TemplateError
from nbsgl.protocol import RoleFormat
from nbsgl.reasoning import own_pair

logger = logging.getLogger("nbsgl")

MAX_TEMPLATE_BYTES = 256 << 10
MAX_OUTPUT_BYTES = 4 << 20
MAX_MEMORY_BYTES = 256 << 20
TIMEOUT_S = 5.0

DEFAULT_ROLES = {
    "system": RoleFormat("SYSTEM:", "\n"),
    "user": RoleFormat("USER:", "\n"),
    "assistant": RoleFormat("ASSISTANT:", "\n"),
}

Message = dict[str, str]


class RoleFormats(NamedTuple):
    """How roles are written.  `source`: "model", the path of a template file, or a `ChatTemplate`'s name.

    `default_system` is the text of the system message that the template adds to a conversation without one (None: it
    adds none).  `stop` are strings that end an assistant's turn.  `writes_bos`: the template writes a BOS in front of a
    conversation, so a sequence must begin with one, whether or not the tokenizer adds it to plain text.
    `folds_system`: a leading system message stands inside the first user's message, after that one's prefix.
    `thinking`: the marks around the model's thinking.
    """

    roles: dict[str, RoleFormat]
    default_system: str | None
    source: str
    stop: tuple[str, ...] = ()
    writes_bos: bool = False
    folds_system: bool = False
    thinking: tuple[str, str] | None = None


def role_formats(folder: Path | str, chat_template: str | None = None) -> RoleFormats:
    """The roles of the model in a folder, or those the user asked for: a template file, or a `ChatTemplate` as JSON.

    Without a template, and with one that is not append-only, the plain default with one warning; a template named by
    the user, or one that hits a limit, is a `TemplateError` instead.
    """
    if chat_template is not None and chat_template.startswith("{"):
        return _of_data(ChatTemplate.from_json(chat_template))
    files = TokenizerFiles.load(Path(folder))
    if chat_template is not None:
        path = Path(chat_template).expanduser()
        return _take_apart(_read(path), files, str(path))
    source = _template_of(files)
    if source is None:
        logger.warning("%s has no chat template: roles are written as SYSTEM:, USER:, ASSISTANT:.", files.folder)
        return RoleFormats(DEFAULT_ROLES, None, "default")
    try:
        return _take_apart(source, files, "model")
    except TemplateError as error:
        if error.limit is not None:
            raise
        logger.warning(
            "The chat template of %s cannot be used (%s): roles are written as SYSTEM:, USER:, ASSISTANT:. "
            "Pass chat_template='FILE.jinja' for another one.",
            files.folder,
            error.reason,
        )
        return RoleFormats(DEFAULT_ROLES, None, "default")


def _of_data(data: ChatTemplate) -> RoleFormats:
    return RoleFormats(data.roles, data.default_system_prompt, data.name, data.stop_str, folds_system=data.folds_system)


# ---- where templates come from ---------------------------------------------------------------------------------------


def _template_of(files: TokenizerFiles) -> str | None:
    path = files.folder / "chat_template.jinja"
    if path.is_file():
        return _read(path)
    template = files.config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) and template else None


def _read(path: Path) -> str:
    what = f"The chat template {path}"
    if not path.is_file():
        hint = "chat_template= takes the path of a .jinja file."
        raise TemplateError(what=what, reason="there is no such file", hint=hint)
    if path.stat().st_size > MAX_TEMPLATE_BYTES:
        raise _too_much(what, f"{path.stat().st_size:,} bytes", f"{MAX_TEMPLATE_BYTES:,} bytes of template")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise TemplateError(what=what, reason="it is not UTF-8") from None


def _too_much(what: str, reason: str, limit: str) -> TemplateError:
    return TemplateError(what=what, reason=f"{reason}; the limit is {limit}", limit=limit)


# ---- taking a template apart -----------------------------------------------------------------------------------------

# Marks are words no template writes itself, and that trimming, splitting and lower-casing leave alone.
_SYSTEM, _USER, _ASSISTANT = "zqsystemqz", "zquserqz{}", "zqassistantqz{}"


def _conversation(roles: str) -> list[Message]:
    """One message of marks per letter: s, u, a."""
    names = {"s": "system", "u": "user", "a": "assistant"}
    marks = {"s": _SYSTEM, "u": _USER, "a": _ASSISTANT}
    return [{"role": names[r], "content": marks[r].format(place)} for place, r in enumerate(roles)]


# u, ua, su: what the parts are read from (without a generation prompt).  The rest: what the parts must make again.
_READ = ("u", "ua", "uau", "su")
_PROBES = ("u", "uau", "uauau", "su", "suau")


def _take_apart(template: str, files: TokenizerFiles, source: str) -> RoleFormats:
    what = "The model's chat template" if source == "model" else f"The chat template {source}"
    plan = [(roles, False) for roles in _READ] + [(roles, True) for roles in _PROBES]
    requests = [(_conversation(roles), is_open) for roles, is_open in plan]
    names = {name: files.named(name) or "" for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    answers = dict(zip(plan, render(template, requests, names, what=what)))
    failed = next((error for key, (_, error) in answers.items() if error and "s" not in key[0]), None)
    if failed:
        raise TemplateError(what=what, reason=failed)
    texts = {key: text for key, (text, _) in answers.items() if text is not None}
    bos = _written_bos(texts["uau", False], files, names["bos_token"])
    parts = _Parts({key: text.removeprefix(bos) for key, text in texts.items()}, what)
    if not parts.has_system:
        logger.warning("%s has no place for a system message: its text is written without markup.", what)
    markers = [token.text for token in files.added if token.special]
    stop = _stops(parts.roles["assistant"].suffix, markers)
    thinking = own_pair(template) or own_pair("\n".join(token.text for token in files.added))
    return RoleFormats(parts.roles, parts.default_system, source, stop, bool(bos), parts.folds_system, thinking)


def _written_bos(text: str, files: TokenizerFiles, bos_token: str) -> str:
    """The BOS a template writes, or "": it belongs to the start of the sequence, where encoding puts it, not to a role.

    One that comes again in the conversation is a role's marker (some models name the marker as their BOS).
    """
    starts = [bos_token, *(token.text for token in files.added if token.id in files.start_ids)]
    return next((start for start in starts if start and text.startswith(start) and text.count(start) == 1), "")


def _stops(suffix: str, markers: Sequence[str]) -> tuple[str, ...]:
    """The special token an assistant's turn ends with, if it does."""
    found = [(suffix.find(marker), -len(marker), marker) for marker in markers if marker in suffix]
    return (min(found)[2],) if found else ()


class _Parts:
    """Prefixes and suffixes read off renderings; `TemplateError` where they are not of that form."""

    def __init__(self, texts: dict[tuple[str, bool], str], what: str) -> None:
        self.what = what
        head, user_end = self._split(texts["u", False], _USER.format(0))
        opened = self._after(texts["u", True], texts["u", False], "the generation prompt")
        _, rest = self._split(texts["ua", False], _USER.format(0))
        _, assistant_end = self._split(rest, _ASSISTANT.format(1))
        _, rest = self._split(texts["uau", False], _ASSISTANT.format(1))
        between, _ = self._split(rest, _USER.format(2))
        assistant_end = self._assistant_end(between, assistant_end, head)
        user_start = between.removeprefix(assistant_end)
        # Past answers may lack what the generation prompt ends with (an opened <think>), or begin with a space that
        # the model writes itself: a branch keeps what was generated, so the prompt is the prefix all the same.
        self.past = self._split(texts["uau", False], _ASSISTANT.format(1))[0].removeprefix(head + _USER.format(0))
        self.past = self._after(self.past, user_end, "an answer")
        if not opened.startswith(self.past) and (self.past.rstrip() != opened.rstrip()):
            raise self._not_append_only("past answers begin otherwise than the generation prompt")
        self.roles = {
            "system": RoleFormat("", "\n"),
            "user": RoleFormat(user_start, user_end),
            "assistant": RoleFormat(opened, assistant_end),
        }
        self.preamble = head.removesuffix(user_start)
        self.default_system: str | None = None
        self.folds_system = False
        self.has_system = ("su", False) in texts and (
            self._read_system(texts["su", False], user_start) or self._read_folded_system(texts, user_start)
        )
        if self.preamble and self.default_system is None:
            raise self._not_append_only("a conversation begins with text that is no message of a role")
        self._check(texts)

    def _read_system(self, text: str, user_start: str) -> bool:
        """Read the system role off; False if the template writes it inside another message, or not at all."""
        start, found, rest = text.partition(_SYSTEM)
        end, has_user, _ = rest.partition(_USER.format(1))
        if not (found and has_user and end.endswith(user_start)):
            return False
        end = end.removesuffix(user_start)
        is_default = self.preamble.startswith(start) and self.preamble.endswith(end)
        if self.preamble and is_default and len(self.preamble) >= len(start) + len(end):
            self.default_system = self.preamble[len(start) : len(self.preamble) - len(end)]
        self.roles["system"] = RoleFormat(start, end)
        return True

    def _read_folded_system(self, texts: dict[tuple[str, bool], str], user_start: str) -> bool:
        """Read a system text off that stands inside the first user's message; False if it is not simply put there."""
        start, found, rest = texts["su", False].partition(_SYSTEM)
        end, has_user, _ = rest.partition(_USER.format(1))
        if not (found and has_user and start.startswith(user_start)) or self.preamble:
            return False
        self.roles["system"] = RoleFormat(start.removeprefix(user_start), end)
        self.folds_system = True
        if all(texts.get((roles, True)) == self._compose(roles) for roles in _PROBES if "s" in roles):
            return True
        self.roles["system"], self.folds_system = RoleFormat("", "\n"), False
        return False

    def _check(self, texts: dict[tuple[str, bool], str]) -> None:
        """Put every probe conversation together from the parts: it must be what the template makes of it."""
        for roles in _PROBES:
            if "s" in roles and not self.has_system:
                continue
            if texts.get((roles, True)) != self._compose(roles):
                raise self._not_append_only(f"a conversation of {len(roles)} messages is not the sum of its messages")

    def _compose(self, roles: str) -> str:
        text = "" if "s" in roles else self.preamble
        for place, message in enumerate(_conversation(roles)):
            role = self.roles[message["role"]]
            prefix = self.past if message["role"] == "assistant" else role.prefix
            if self.folds_system and roles[0] == "s" and place < 2:  # the user's prefix stands before the system text
                prefix = self.roles["user"].prefix + prefix if place == 0 else ""
            text += prefix + message["content"] + role.suffix
        return text + self.roles["assistant"].prefix

    def _assistant_end(self, between: str, last_end: str, head: str) -> str:
        """What ends an answer that a user's message follows; a conversation's last answer may end otherwise."""
        ends = [last_end, *(between[:cut] for cut in range(len(between) + 1))]
        for end in ends:
            if between.startswith(end) and head.endswith(between.removeprefix(end)):
                return end
        raise self._not_append_only("the first user message begins otherwise than the second")

    def _split(self, text: str, mark: str) -> tuple[str, str]:
        before, found, after = text.partition(mark)
        if not found or mark in after:
            raise self._not_append_only("it does not write each message's text once")
        return before, after

    def _after(self, text: str, start: str, name: str) -> str:
        if not text.startswith(start):
            raise self._not_append_only(f"{name} changes what stands before it")
        return text.removeprefix(start)

    def _not_append_only(self, reason: str) -> TemplateError:
        return TemplateError(what=self.what, reason=f"it is not append-only: {reason}")


# ---- rendering, in a process of its own ------------------------------------------------------------------------------

Rendered = tuple[str | None, str | None]
"""(text, None), or (None, the template's own complaint)."""


def render(
    template: str,
    conversations: Sequence[tuple[list[Message], bool]],
    names: dict[str, str],
    *,
    what: str = "The chat template",
    timeout_s: float = TIMEOUT_S,
) -> list[Rendered]:
    """Render (messages, with a generation prompt) pairs in a helper process, all under one clock.

    A template that cannot be compiled, or that hits a limit, is a `TemplateError` (with `limit` for the latter); one
    conversation it refuses is an answer.
    """
    size = len(template.encode("utf-8", "surrogatepass"))
    if size > MAX_TEMPLATE_BYTES:
        raise _too_much(what, f"{size:,} bytes", f"{MAX_TEMPLATE_BYTES:,} bytes of template")
    request = json.dumps({"template": template, "names": names, "conversations": list(conversations)})
    root = str(Path(__file__).resolve().parents[2])
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TZ") if name in os.environ}
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**kept, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        helper = subprocess.run(
            [sys.executable, "-m", "nbsgl.engine.templates"],
            input=request.encode(),
            capture_output=True,
            timeout=timeout_s,
            start_new_session=True,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _too_much(what, f"rendering took longer than {timeout_s:g} s", f"{timeout_s:g} s") from None
    try:
        answer = json.loads(helper.stdout)
    except ValueError:
        ended = f"the helper ended with {helper.returncode}"
        logger.error("template helper: %s", helper.stderr[-2000:].decode("utf-8", "replace"))
        raise _too_much(what, f"rendering was stopped ({ended})", f"{MAX_MEMORY_BYTES >> 20} MiB, 5 s") from None
    if "limit" in answer:
        raise _too_much(what, answer["reason"], answer["limit"])
    if "reason" in answer:
        raise TemplateError(what=what, reason=answer["reason"])
    return [(text, error) for text, error in answer["rendered"]]


def _main() -> None:
    """The helper process: one request, one answer."""
    _limit_resources()
    request = json.loads(sys.stdin.buffer.read())
    try:
        answer = _answer(request)
    except MemoryError:
        answer = {"reason": "rendering needs too much memory", "limit": f"{MAX_MEMORY_BYTES >> 20} MiB"}
    sys.stdout.write(json.dumps(answer))


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # not a POSIX system: the clock alone has to do
        return
    most = _address_space_bytes() + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (int(TIMEOUT_S), int(TIMEOUT_S)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _address_space_bytes() -> int:
    """What the interpreter itself has mapped by now: it differs from machine to machine.  0 where nobody tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


class _TooLong(Exception):
    pass


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    import jinja2

    try:
        template = _environment().from_string(request["template"])
    except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
        return {"reason": f"it does not compile: {_say(error)}"}
    rendered: list[Rendered] = []
    for messages, is_open in request["conversations"]:
        given = {**request["names"], "messages": messages, "add_generation_prompt": is_open}
        try:
            rendered.append((_collect(template.generate(**given)), None))
        except _TooLong:
            return {"reason": "its output is too long", "limit": f"{MAX_OUTPUT_BYTES:,} bytes of output"}
        except MemoryError:
            raise
        except Exception as error:  # whatever a foreign program raises is its answer
            rendered.append((None, _say(error)))
    return {"rendered": rendered}


def _collect(pieces: Any) -> str:
    parts, size = [], 0
    for piece in pieces:
        size += len(piece.encode("utf-8", "surrogatepass"))
        if size > MAX_OUTPUT_BYTES:
            raise _TooLong
        parts.append(piece)
    return "".join(parts)


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _environment() -> Any:
    """What templates of model folders are written for: trimmed blocks, loop controls, and a few functions."""
    import datetime

    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` marks what a model wrote, for training; here it is only its body."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        known = {k: v for k, v in options.items() if k in ("separators", "sort_keys")}
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **known)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


if __name__ == "__main__":
    _main()
