"""A branch's parts as the messages of a chat service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nbsgl.errors import Unsupported
from nbsgl.lang.backends.remote import Part

Message = dict[str, str]
Prompt = str | list[Message]


@dataclass(frozen=True, slots=True)
class Conversation:
    """The text outside of messages, the closed messages, and the open one."""

    loose: str
    closed: tuple[tuple[str, str], ...]
    role: str | None
    open: str

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Conversation:
        loose: list[str] = []
        closed: list[tuple[str, str]] = []
        role, said = None, loose
        for part in parts:
            if part.mark is None:
                said.append(part.text)
                continue
            if role is not None:
                closed.append((role, "".join(said)))
            role = part.mark or None
            said = loose if role is None else []
        return cls("".join(loose), tuple(closed), role, "" if role is None else "".join(said))

    def messages(self, service: str, *, takes_text: bool = False, may_be_open: bool = False) -> list[Message]:
        """The messages that an assistant's now follows, contents as `s.messages()` has them.

        With `takes_text`, text without any role is a user's message; with `may_be_open` the assistant's message may
        have begun, and is left out.  `Unsupported` for what messages cannot say.
        """
        if takes_text and self.role is None and not self.closed:
            return [{"role": "user", "content": self.loose}]
        if self.loose.strip():
            raise Unsupported(
                f"{service} takes messages, and {_shown(self.loose)} stands in none.",
                hint="Put it into a role: s += user(...).",
            )
        if self.role != "assistant" or (self.open and not may_be_open):
            where = f"after {_shown(self.open)}" if self.open else f"in {self.role or 'no role'}"
            raise Unsupported(
                f"{service} takes whole messages: a gen or select must stand right after assistant begins, this one "
                f"stands {where}.",
                hint="Write s += assistant(gen(...)); for text around gens, @function(num_api_spec_tokens=128).",
            )
        return [{"role": role, "content": text.lstrip()} for role, text in self.closed]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:20]}…{text[-19:]}")
