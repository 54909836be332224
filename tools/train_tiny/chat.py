"""The chat format: special tokens, the Jinja template shipped with the model, and the same rendering in Python."""

from typing import NamedTuple

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)

# Append-only: the rendering of messages[:n] is a prefix of the rendering of messages[:n + 1].
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Message(NamedTuple):
    """One turn. Roles in use: system, user, assistant."""

    role: str
    content: str


def system(text: str) -> Message:
    """A system turn."""
    return Message("system", text)


def user(text: str) -> Message:
    """A user turn."""
    return Message("user", text)


def assistant(text: str) -> Message:
    """An assistant turn."""
    return Message("assistant", text)


def render(messages: list[Message], add_generation_prompt: bool = False) -> str:
    """What `CHAT_TEMPLATE` gives for the same messages; a test compares the two."""
    text = "".join(f"{IM_START}{m.role}\n{m.content}{IM_END}\n" for m in messages)
    return text + (f"{IM_START}assistant\n" if add_generation_prompt else "")
