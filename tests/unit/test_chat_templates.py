"""Chat templates as data: SGLang's names, calls and 27 families; checked against published templates as Jinja."""

from __future__ import annotations

from pathlib import Path

import pytest

import nbsgl as sgl
from nbsgl import chat_templates
from nbsgl.engine.handle import _chat_template
from nbsgl.engine.templates import render, role_formats
from nbsgl.errors import ParameterError
from nbsgl.lang.chat_template import (
    ChatTemplate,
    ChatTemplateStyle,
    get_chat_template,
    get_chat_template_by_model_path,
    register_chat_template,
    register_chat_template_matching_function,
)
from nbsgl.protocol import RoleFormat
from tests.unit import tiny_tokenizers
from tests.unit.fakes import FakeBackend

NAMES = """default claude chatml chatml-llava qwen qwen2-vl vicuna_v1.1 llama-2-chat mistral llama-3-instruct
llama-3-instruct-llava llama-4 minicpmv minicpmo janus janus-pro yi-1.5 yi-vl gemma-it gemma-4-it dbrx-instruct
c4ai-command-r internvl-2-5 interns1 granite-3-instruct deepseek-v3 glm-4v""".split()

# What the models' makers publish as Jinja, written anew with the same output.
LOOP = "{% for m in messages %}"
CHATML = LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PUBLISHED = {
    "chatml": CHATML,
    "qwen": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
        + CHATML
    ),
    "llama-3-instruct": LOOP
    + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}",
    "gemma-it": (
        "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}" + LOOP + "<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first else '' }}{{ m.content | trim }}"
        "<end_of_turn>\n{% endfor %}"
    ),
    "yi-1.5": (
        LOOP + "{% if m.role == 'system' %}{{ m.content }}{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>\n{% endif %}{% endfor %}"
    ),
    "granite-3-instruct": LOOP
    + "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endfor %}",
    "c4ai-command-r": (
        LOOP + "<|START_OF_TURN_TOKEN|><|{{ 'CHATBOT' if m.role == 'assistant' else m.role.upper() }}_TOKEN|>"
        "{{ m.content }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    ),
    "llama-2-chat": (
        "{% if messages[0].role == 'system' %}{% set first = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}"
        + LOOP
        + "{% if m.role == 'user' %}"
        "[INST] {{ first if loop.first else '' }}{{ m.content }} [/INST]{% else %}{{ m.content }} </s><s>{% endif %}"
        "{% endfor %}"
    ),
}
CONVERSATIONS = [
    [{"role": "user", "content": "Hi."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye."},
    ],
]


@pytest.fixture
def registries(monkeypatch):
    monkeypatch.setattr(chat_templates, "_templates", dict(chat_templates._templates))
    monkeypatch.setattr(chat_templates, "_matching", [])


def mine(**changes) -> ChatTemplate:
    roles = {"system": ("S ", "\n"), "user": ("U ", "\n"), "assistant": ("A ", "\n")}
    return ChatTemplate(**{"name": "mine", "default_system_prompt": "Go.", "role_prefix_and_suffix": roles} | changes)


# ---- the families ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_all_27_are_there_with_three_roles(name) -> None:
    template = get_chat_template(name)
    assert template.name == name
    assert set(template.roles) == {"system", "user", "assistant"}
    assert len(NAMES) == 27 == len(chat_templates._templates)


@pytest.mark.parametrize("name", PUBLISHED)
def test_families_write_what_their_published_templates_write(name) -> None:
    wanted = render(PUBLISHED[name], [(messages, False) for messages in CONVERSATIONS], {})
    template = get_chat_template(name)
    for messages, (text, error) in zip(CONVERSATIONS, wanted, strict=True):
        assert error is None
        whole = messages
        if messages[0]["role"] != "system" and template.default_system_prompt:
            whole = [{"role": "system", "content": None}, *messages]
        assert template.get_prompt(whole) == text


def test_default_is_three_words() -> None:
    default = get_chat_template("default")
    assert default.get_prompt(CONVERSATIONS[1]) == "SYSTEM:Be brief.\nUSER:Hi.\n"
    assert default.get_prefix_and_suffix("tool", []) == ("", "")


def test_llama_2_writes_a_leading_system_message_inside_the_first_users() -> None:
    template = get_chat_template("llama-2-chat")
    assert template.style is ChatTemplateStyle.LLAMA2
    hist = [{"role": "system", "content": "x"}]
    assert template.get_prefix_and_suffix("system", []) == ("[INST] <<SYS>>\n", "\n<</SYS>>\n\n")
    assert template.get_prefix_and_suffix("user", hist) == ("", " [/INST]")
    assert template.get_prefix_and_suffix("user", hist * 2) == ("[INST] ", " [/INST]")


def test_a_system_message_of_none_is_the_default_one_or_nothing() -> None:
    assert mine().get_prompt([{"role": "system", "content": None}]) == "S Go.\n"
    assert mine(default_system_prompt=None).get_prompt([{"role": "system", "content": None}]) == ""


# ---- by name and by path ---------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(KeyError, match=r"'qwen9'.*chatml.*yi-vl"):
        get_chat_template("qwen9")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen3-0.6B", "qwen"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2-vl"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-chat"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3-instruct"),
        ("meta-llama/Llama-3.1-8B", "default"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama-4"),
        ("google/gemma-3-1b-it", "gemma-it"),
        ("google/gemma-3-1b-pt", "default"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-V3-Base", "default"),
        ("deepseek-ai/Janus-Pro-7B", "janus-pro"),
        ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "mistral"),
        ("lmsys/vicuna-7b-v1.5", "vicuna_v1.1"),
        ("/models/somebody", "default"),
    ],
)
def test_paths_tell_of_families(path, name) -> None:
    assert get_chat_template_by_model_path(path).name == name


@pytest.mark.usefixtures("registries")
def test_what_the_user_registered_is_asked_first() -> None:
    register_chat_template(mine())
    assert get_chat_template("mine").default_system_prompt == "Go."

    @register_chat_template_matching_function
    def match(path):
        return "mine" if "qwen" in path else None

    assert get_chat_template_by_model_path("qwen-chat").name == "mine"
    assert get_chat_template_by_model_path("other").name == "default"
    assert match("x") is None
    assert ChatTemplate.from_json(_chat_template({}, "my-qwen") or "") == mine()
    assert _chat_template({}, "embedded") is None


def test_templates_are_checked_when_made() -> None:
    with pytest.raises(ParameterError, match="two strings"):
        mine(role_prefix_and_suffix={"user": ("a",)})
    with pytest.raises(ParameterError):
        mine(name="")
    with pytest.raises(ParameterError):
        register_chat_template("chatml")
    with pytest.raises(ParameterError):
        register_chat_template_matching_function("chatml")
    assert mine(stop_str="x").stop_str == mine(stop_str=["x"]).stop_str == ("x",)


# ---- the engine's setting --------------------------------------------------------------------------------------------


def test_the_setting_takes_a_name_a_template_or_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("x")
    assert chat_templates.setting(path) == chat_templates.setting(str(path)) == str(path)
    assert ChatTemplate.from_json(chat_templates.setting("qwen")) == get_chat_template("qwen")
    assert ChatTemplate.from_json(chat_templates.setting(mine())) == mine()
    assert chat_templates.setting("not/there.jinja") == "not/there.jinja"  # the engine says that it is not there
    with pytest.raises(ParameterError, match=r"lama-3-instruct.*Did you mean 'llama-3-instruct'"):
        chat_templates.setting("lama-3-instruct")


def test_the_setting_has_sglangs_name_too() -> None:
    assert _chat_template({"chat_template_name": "qwen"}, "x") == _chat_template({"chat_template": "qwen"}, "x")
    with pytest.raises(ParameterError, match="same setting"):
        _chat_template({"chat_template_name": "qwen", "chat_template": "qwen"}, "x")


def test_a_template_by_name_replaces_the_models_own(tmp_path: Path) -> None:
    folder = tiny_tokenizers.byte_level(tmp_path / "model")
    formats = role_formats(folder, chat_templates.setting("llama-2-chat"))
    assert formats.roles["user"] == RoleFormat("[INST] ", " [/INST]")
    assert (formats.source, formats.stop, formats.folds_system) == ("llama-2-chat", ("</s>",), True)


@pytest.mark.parametrize("name", ["llama-2-chat", "gemma-it"])
def test_folding_is_read_off_a_models_own_template(tmp_path: Path, name) -> None:
    folder = tiny_tokenizers.byte_level(tmp_path / "model")
    path = tmp_path / "own.jinja"
    opened = "<start_of_turn>model\n" if name == "gemma-it" else ""
    path.write_text(PUBLISHED[name] + "{% if add_generation_prompt %}" + opened + "{% endif %}")
    formats = role_formats(folder, str(path))
    data = get_chat_template(name)
    assert formats.folds_system
    assert formats.roles["user"] == data.roles["user"]
    assert formats.roles["system"] == data.roles["system"]


@pytest.mark.parametrize("name", ["llama-2-chat", "gemma-it", "qwen"])
def test_a_run_writes_what_the_template_writes(name) -> None:
    data = get_chat_template(name)
    backend = FakeBackend(
        roles=data.roles, stop=data.stop_str, default_system=data.default_system_prompt, folds_system=data.folds_system
    )
    for messages in CONVERSATIONS:
        with sgl.state(backend) as s:
            for message in messages:
                s += getattr(sgl, message["role"])(message["content"])
        given = messages[0]["role"] == "system" or not data.default_system_prompt
        whole = messages if given else [{"role": "system", "content": None}, *messages]
        assert s.text() == data.get_prompt(whole)
        assert [m["content"] for m in s.messages()][-len(messages) :] == [m["content"] for m in messages]
    backend.close()
