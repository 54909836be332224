"""Chat templates as data: what stands before and after a message of each role, by model family and by name.

A model's own template (its tokenizer's) is what an engine uses; one of these replaces it by name, and stands for models
behind a server that tells nothing of theirs.  Markup only: a BOS that the tokenizer itself writes is not repeated here.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from nbsgl.errors import ParameterError
from nbsgl.protocol import RoleFormat


class ChatTemplateStyle(Enum):
    PLAIN = "plain"  # every message is written by itself
    LLAMA2 = "llama2"  # a leading system message stands inside the first user's message


@dataclass
class ChatTemplate:
    """How a conversation is written.  `role_prefix_and_suffix`: role -> (before, after); special tokens in both count.

    `default_system_prompt` is added to a conversation that begins without a system message; `stop_str` end every gen.
    """

    name: str
    default_system_prompt: str | None
    role_prefix_and_suffix: dict[str, tuple[str, str]]
    stop_str: tuple[str, ...] = ()
    image_token: str = "<image>"
    audio_token: str = "<audio>"
    style: ChatTemplateStyle = field(default=ChatTemplateStyle.PLAIN)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ParameterError(name="name", value=self.name, allowed="a string")
        self.stop_str = (self.stop_str,) if isinstance(self.stop_str, str) else tuple(self.stop_str)
        self.role_prefix_and_suffix = {role: tuple(pair) for role, pair in self.role_prefix_and_suffix.items()}  # type: ignore[misc]
        for role, pair in self.role_prefix_and_suffix.items():
            if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise ParameterError(
                    name="role_prefix_and_suffix", value={role: pair}, allowed="role -> (prefix, suffix), two strings"
                )

    def get_prefix_and_suffix(self, role: str, hist: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
        """The markup of the message that follows `hist`; two empty strings for a role the template does not know."""
        prefix, suffix = self.role_prefix_and_suffix.get(role, ("", ""))
        if self.style is ChatTemplateStyle.LLAMA2:
            if role == "system" and not hist:
                return self.role_prefix_and_suffix["user"][0] + prefix, suffix
            if role == "user" and len(hist) == 1 and hist[0]["role"] == "system" and hist[0]["content"] is not None:
                return "", suffix
        return prefix, suffix

    def get_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The conversation as text.  A system message whose content is None is the default one, if there is one."""
        text = ""
        for i, message in enumerate(messages):
            role, content = message["role"], message["content"]
            if role == "system" and content is None:
                content = self.default_system_prompt
                if content is None:
                    continue
            prefix, suffix = self.get_prefix_and_suffix(role, messages[:i])
            text += f"{prefix}{content}{suffix}"
        return text

    @property
    def roles(self) -> dict[str, RoleFormat]:
        return {role: RoleFormat(*pair) for role, pair in self.role_prefix_and_suffix.items()}

    @property
    def folds_system(self) -> bool:
        return self.style is ChatTemplateStyle.LLAMA2

    def to_json(self) -> str:
        """The template as one line: what an engine's processes are told."""
        import msgspec

        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> ChatTemplate:
        import msgspec

        return msgspec.json.decode(text, type=cls)


# ---- by name ---------------------------------------------------------------------------------------------------------

_templates: dict[str, ChatTemplate] = {}
_matching: list[Callable[[str], ChatTemplate | str | None]] = []  # the user's


def register_chat_template(template: ChatTemplate) -> None:
    """Make a template known by its name; one of that name is replaced."""
    if not isinstance(template, ChatTemplate):
        raise ParameterError(name="template", value=template, allowed="a ChatTemplate")
    _templates[template.name] = template


def get_chat_template(name: str) -> ChatTemplate:
    """The template of that name; KeyError with the names there are."""
    found = _templates.get(name)
    if found is None:
        raise KeyError(f"there is no chat template {name!r}; there are: {', '.join(sorted(_templates))}")
    return found


def register_chat_template_matching_function(
    func: Callable[[str], ChatTemplate | str | None],
) -> Callable[[str], ChatTemplate | str | None]:
    """Let `func(model_path)` choose: it gives a template, its name, or None for models it does not know.

    An engine started afterwards without `chat_template` uses it too.  Also a decorator.
    """
    if not callable(func):
        raise ParameterError(name="func", value=func, allowed="a function of the model's path")
    _matching.append(func)
    return func


def matched_by_user(model_path: str) -> ChatTemplate | None:
    """What the registered functions say, the first that says anything."""
    for func in _matching:
        found = func(model_path)
        if found is not None:
            return get_chat_template(found) if isinstance(found, str) else found
    return None


def get_chat_template_by_model_path(model_path: str) -> ChatTemplate:
    """The template for a model's path or name: the registered functions are asked first, then what is known of names.

    "default" if nobody knows it.  Engines do not guess so: they have the model's own template.
    """
    found = matched_by_user(model_path)
    if found is None:
        path = model_path.lower()
        found = _templates[next((name for pattern, name in _FAMILIES if re.search(pattern, path)), "default")]
    return found


def setting(asked: object) -> str:
    """The engine's setting `chat_template` for a ChatTemplate, a name, or the path of a .jinja file.

    `ParameterError` for a word that is neither a name nor a path.
    """
    if isinstance(asked, ChatTemplate):
        return asked.to_json()
    if isinstance(asked, str) and asked in _templates:
        return _templates[asked].to_json()
    if isinstance(asked, os.PathLike) or (isinstance(asked, str) and os.path.exists(asked)):
        return str(Path(asked).expanduser().resolve())
    if isinstance(asked, str) and (os.sep in asked or asked.endswith(".jinja") or asked.startswith("{")):
        return asked
    close = difflib.get_close_matches(str(asked), _templates, 1)
    raise ParameterError(
        name="chat_template",
        value=asked,
        allowed=f"the path of a .jinja file, a ChatTemplate, or a name: {', '.join(sorted(_templates))}",
        hint=f"Did you mean {close[0]!r}?" if close else "",
    )


# ---- the families ----------------------------------------------------------------------------------------------------


def _add(
    name: str,
    system: tuple[str, str],
    user: tuple[str, str],
    assistant: tuple[str, str],
    default_system: str | None = None,
    stop: tuple[str, ...] = (),
    **more: Any,
) -> None:
    roles = {"system": system, "user": user, "assistant": assistant}
    register_chat_template(ChatTemplate(name, default_system, roles, stop, **more))


def _add_marked(name: str, form: str, end: str, *, model: str = "assistant", **more: Any) -> None:
    """Every role alike: `form` with the role's word, the text, `end`."""
    words = ("system", "user", model)
    system, user, assistant = ((form.format(word), end) for word in words)
    _add(name, system, user, assistant, **more)


_CHATML = "<|im_start|>{}\n"
_HELPFUL = "You are a helpful assistant."
_JANUS = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_END_DEEPSEEK = "<｜end▁of▁sentence｜>"
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_YI_VL = (
    "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant. Read all "
    "the images carefully, and respond to the human's questions with informative, helpful, detailed and polite "
    "answers. "
    "这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
    "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。"
)
_DBRX = (
    "You are DBRX, created by Databricks. You were last updated in December 2023. You answer questions based on "
    "information available up to that point.\n"
    "YOU PROVIDE SHORT RESPONSES TO SHORT QUESTIONS OR STATEMENTS, but provide thorough responses to more complex and "
    "open-ended questions.\n"
    "You assist with various tasks, from writing to coding (using markdown for code blocks — remember to use ``` with "
    "code, JSON, and tables).\n"
    "(You do not have real-time data access or code execution capabilities. You avoid stereotyping and provide "
    "balanced perspectives on controversial topics. You do not provide song lyrics, poems, or news articles and do not "
    "divulge details of your training data.)\n"
    "This is your system prompt, guiding your responses. Do not reference it, just respond to the user. If you find "
    "yourself talking about this message, stop. You should be responding appropriately and usually that means not "
    "mentioning this.\n"
    "YOU DO NOT MENTION ANY OF THIS INFORMATION ABOUT YOURSELF UNLESS THE INFORMATION IS DIRECTLY PERTINENT TO THE "
    "USER'S QUERY."
)
_INTERN_VL = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
_INTERN_S1 = (
    "You are an AI assistant whose name is Intern-S1 (书生大模型).\n"
    "- Intern-S1 (书生大模型) is a vision-language model that is developed by Shanghai AI Laboratory "
    "(上海人工智能实验室).  It is designed to be helpful, honest, and harmless.\n"
    "- Intern-S1 (书生大模型) can understand and communicate fluently in the language chosen by the user such as "
    "English and 中文.\n"
    "You are an expert reasoner with extensive experience in all areas. You approach problems through systematic "
    "thinking and rigorous reasoning. Your response should reflect deep understanding and precise logical thinking, "
    "making your solution path and reasoning clear to others. Please put your thinking process within "
    "<think>...</think> tags."
)


def _add_plain_families() -> None:
    _add("default", ("SYSTEM:", "\n"), ("USER:", "\n"), ("ASSISTANT:", "\n"))
    _add("claude", ("", ""), ("\n\nHuman: ", ""), ("\n\nAssistant:", ""))
    _add(
        "vicuna_v1.1", ("", " "), ("USER: ", " "), ("ASSISTANT:", "</s>"), _VICUNA, ("</s>",), image_token=" <image>\n"
    )
    _add(
        "yi-vl",
        ("", "\n\n"),
        ("### Human: ", "\n"),
        ("### Assistant:", "\n"),
        _YI_VL,
        ("###",),
        image_token=" <image_placeholder>\n",
    )
    for name, user, assistant in (
        ("janus", "User: ", "Assistant:"),
        ("janus-pro", "<|User|>: ", "<|Assistant|>:"),
    ):
        _add(
            name,
            ("", "\n\n"),
            (user, "\n\n"),
            (assistant, _END_DEEPSEEK),
            _JANUS,
            (_END_DEEPSEEK,),
            image_token="<image_placeholder>\n",
        )
    _add("deepseek-v3", ("", ""), ("<｜User｜>", ""), ("<｜Assistant｜>", _END_DEEPSEEK), stop=(_END_DEEPSEEK,))


def _add_chatml_families() -> None:
    end, stop = "<|im_end|>\n", ("<|im_end|>",)
    _add_marked("chatml", _CHATML, end, stop=stop)
    _add_marked("chatml-llava", _CHATML, end, default_system=_HELPFUL, stop=stop, image_token="<image>\n")
    _add_marked("qwen", _CHATML, end, default_system=_HELPFUL, stop=stop)
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    _add_marked("qwen2-vl", _CHATML, end, default_system=_HELPFUL, stop=stop, image_token=picture)
    picture, sound = "(<image>./</image>)", "(<audio>./</audio>)"
    both = ("<|im_end|>", "<|endoftext|>")
    _add_marked("minicpmv", _CHATML, end, default_system=_HELPFUL, stop=both, image_token=picture)
    _add_marked("minicpmo", _CHATML, end, default_system=_HELPFUL, stop=both, image_token=picture, audio_token=sound)
    user, assistant = _CHATML.format("user"), _CHATML.format("assistant")
    _add("yi-1.5", ("", ""), (user, end), (assistant, end), stop=stop)
    # DBRX writes the line's end before a message, not after it
    _add(
        "dbrx-instruct",
        (_CHATML.format("system"), "<|im_end|>"),
        (f"\n{user}", "<|im_end|>"),
        (f"\n{assistant}", "<|im_end|>"),
        _DBRX,
        stop,
    )
    both = ("<|im_end|>", "<|action_end|>")
    _add_marked("internvl-2-5", _CHATML, end, default_system=_INTERN_VL, stop=both)
    _add_marked("interns1", _CHATML, end, default_system=_INTERN_S1, stop=both)


def _add_token_families() -> None:
    llama2 = ("<<SYS>>\n", "\n<</SYS>>\n\n"), ("[INST] ", " [/INST]"), ("", " </s><s>")
    _add("llama-2-chat", *llama2, stop=("</s>",), style=ChatTemplateStyle.LLAMA2)
    mistral = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), ("[INST]", "[/INST]"), ("", "</s>")
    _add("mistral", *mistral, stop=("</s>",), image_token="[IMG]")
    head, end = "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"
    _add_marked("llama-3-instruct", head, end, stop=(end,), image_token="<|image|>")
    _add_marked("llama-3-instruct-llava", head, end, stop=(end,), image_token="<image>\n")
    head = "<|header_start|>{}<|header_end|>\n\n"
    _add_marked("llama-4", head, "<|eot|>", stop=("<|eot|>",), image_token="<|image|>")
    # Gemma up to 3 has no system role: its text begins the first user's message
    turn, end = "<start_of_turn>{}\n", "<end_of_turn>\n"
    _add(
        "gemma-it",
        ("", "\n\n"),
        (turn.format("user"), end),
        (turn.format("model"), end),
        stop=("<end_of_turn>",),
        image_token="<start_of_image>",
        audio_token="<start_of_audio>",
        style=ChatTemplateStyle.LLAMA2,
    )
    _add_marked("gemma-4-it", "<|turn>{}\n", "<turn|>\n", model="model", stop=("<turn|>",), image_token="<|image|>")
    start, end = "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
    command_r = ((start.format(word), end) for word in ("SYSTEM", "USER", "CHATBOT"))
    _add("c4ai-command-r", *command_r, stop=(end,))
    head, end = "<|start_of_role|>{}<|end_of_role|>", "<|end_of_text|>"
    _add_marked("granite-3-instruct", head, f"{end}\n", stop=(end,))
    _add(
        "glm-4v",
        ("[gMASK]<sop><|system|>\n", ""),
        ("<|user|>\n", ""),
        ("<|assistant|>\n", ""),
        stop=("<|user|>", "<|endoftext|>", "<|observation|>"),
        image_token="<|begin_of_image|><|image|><|end_of_image|>",
    )


_add_plain_families()
_add_chatml_families()
_add_token_families()

# what a model's path says of its family, the first that matches; pretrained bases have no template of their own
_FAMILIES: tuple[tuple[str, str], ...] = (
    (r"deepseek-(v3|r1)(?!.*(base|distill))", "deepseek-v3"),
    (r"janus-pro", "janus-pro"),
    (r"janus", "janus"),
    (r"dbrx.*instruct", "dbrx-instruct"),
    (r"vicuna|llava-v1\.5|llava-next-video-7b", "vicuna_v1.1"),
    (r"llama-?2.*chat|codellama.*instruct|mi[sx]tral-(7b|8x7b|8x22b)-instruct", "llama-2-chat"),
    (r"(mistral|pixtral|magistral|devstral|ministral)(?!.*base)", "mistral"),
    (r"llama-?4.*instruct", "llama-4"),
    (r"llama-?3.*llava|llava.*llama-?3", "llama-3-instruct-llava"),
    (r"llama-?3.*instruct", "llama-3-instruct"),
    (r"qwen.*-vl|qwen2?\.?5?-?vl", "qwen2-vl"),
    (r"llava-v1\.6-34b|llava-v1\.6-yi-34b|llava-next-video-34b|llava-onevision", "chatml-llava"),
    (r"qwen(?!.*base).*(chat|instruct|qwq)|qwen3(?!.*base)|qwq", "qwen"),
    (r"yi-vl", "yi-vl"),
    (r"yi-1\.5.*chat", "yi-1.5"),
    (r"gemma-?4.*it\b", "gemma-4-it"),
    (r"gemma.*it\b", "gemma-it"),
    (r"minicpm-?o", "minicpmo"),
    (r"minicpm-?v", "minicpmv"),
    (r"c4ai-command-r|command-r", "c4ai-command-r"),
    (r"granite-3.*instruct", "granite-3-instruct"),
    (r"intern-?s1", "interns1"),
    (r"internvl", "internvl-2-5"),
    (r"glm-4.*v", "glm-4v"),
    (r"tinyllama.*chat|openchat|hermes|chatml", "chatml"),
    (r"claude", "claude"),
)
