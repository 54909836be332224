from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from nbsgl.engine import templates
from nbsgl.engine.templates import DEFAULT_ROLES, RoleFormats, render, role_formats
from nbsgl.engine.text import TextCodec
from nbsgl.errors import TemplateError
from nbsgl.protocol import RoleFormat
from tests.unit import tiny_tokenizers

CHATML_ROLES = {name: RoleFormat(f"<|im_start|>{name}\n", "<|im_end|>\n") for name in DEFAULT_ROLES}
LLAMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set sys = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set sys = '' %}{% endif %}"
    "<|h|>system<|/h|>\n\nDate: {{ strftime_now('%Y') }}\n\n{{ sys }}<|eot|>"
    "{% for m in messages %}<|h|>{{ m.role }}<|/h|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% else %}{{ raise_exception('no system') }}{% endif %}"
    "{% endfor %}"
)
THINKING = (  # past answers lose their thinking, the last one shows an empty one, the prompt opens one
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_tokenizers.byte_level(tmp_path / "model", bos=True)


def with_template(folder: Path, template: object) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return folder


def test_chatml_with_default_system(folder: Path) -> None:
    expected = RoleFormats(CHATML_ROLES, "You are helpful.", "model", ("<|im_end|>",))
    assert role_formats(folder) == expected


def test_parts_make_what_the_template_makes(folder: Path) -> None:
    codec, formats = TextCodec.load(folder), role_formats(folder)
    user, answer = formats.roles["user"], formats.roles["assistant"]
    pieces = [(user.prefix, True), ("<|im_end|>", False), (user.suffix, True), (answer.prefix, True)]
    ids = codec.encode_run(pieces, is_first=True)
    assert ids[0] == codec.bos_id
    assert [t for t in ids if t in codec.special_ids] == [codec.bos_id, 1, 2, 1]


def test_bos_of_the_template_belongs_to_the_sequence(folder: Path) -> None:
    formats = role_formats(with_template(folder, LLAMA3))
    assert formats.default_system == ""
    assert formats.roles["system"] == RoleFormat(f"<|h|>system<|/h|>\n\nDate: {time.strftime('%Y')}\n\n", "<|eot|>")
    assert formats.roles["user"] == RoleFormat("<|h|>user<|/h|>\n\n", "<|eot|>")
    assert formats.roles["assistant"] == RoleFormat("<|h|>assistant<|/h|>\n\n", "<|eot|>")
    assert formats.stop == ()  # this tokenizer has no <|eot|>
    assert formats.writes_bos


def test_bos_that_is_a_role_s_marker_stays_there(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<|im_start|>"}))
    formats = role_formats(folder)
    assert formats.roles == CHATML_ROLES
    assert not formats.writes_bos


def test_template_without_system_role(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    formats = role_formats(with_template(folder, GEMMA))
    assert formats.roles["user"] == RoleFormat("<turn>user\n", "<end>\n")
    assert formats.roles["assistant"] == RoleFormat("<turn>model\n", "<end>\n")
    assert formats.roles["system"] == RoleFormat("", "\n")
    assert formats.default_system is None
    assert "no place for a system message" in caplog.text


def test_space_before_past_answers_is_the_model_s_own(folder: Path) -> None:
    formats = role_formats(with_template(folder, MISTRAL))
    assert formats.source == "model"
    assert formats.roles["user"] == RoleFormat("[INST] ", " [/INST]")
    assert formats.roles["assistant"] == RoleFormat("", "</s>")


def test_opened_thinking_is_part_of_the_prefix(folder: Path) -> None:
    formats = role_formats(with_template(folder, THINKING))
    assert formats.source == "model"
    assert formats.roles["assistant"] == RoleFormat("<|im_start|>assistant\n<think>\n", "<|im_end|>\n")
    assert formats.roles["user"] == RoleFormat("<|im_start|>user\n", "<|im_end|>\n")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}",
        "{% for m in messages | reverse %}<{{ m.role }}>{{ m.content }}</>{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last else '...' }}</>{% endfor %}",
        "{% for m in messages %}<{{ m.role }}{{ loop.index }}>{{ m.content }}</>{% endfor %}",
        "{{ messages[-1].content }}",
        "{{ raise_exception('never') }}",
        "{% for m in messages %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "nothing",
    ],
)
def test_unusable_template_means_default_and_one_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, template: str
) -> None:
    with caplog.at_level(logging.WARNING, "nbsgl"):
        formats = role_formats(with_template(folder, template))
    assert formats == RoleFormats(DEFAULT_ROLES, None, "default", ())
    assert len(caplog.records) == 1


def test_no_template_means_default(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert role_formats(with_template(folder, None)) == RoleFormats(DEFAULT_ROLES, None, "default", ())
    assert "has no chat template" in caplog.text


def test_named_templates_and_jinja_file(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": tiny_tokenizers.CHATML}]
    assert role_formats(with_template(folder, named)).roles == CHATML_ROLES
    (folder / "chat_template.jinja").write_text(LLAMA3)
    assert role_formats(folder).roles["user"].prefix == "<|h|>user<|/h|>\n\n"


def test_user_s_template_file_wins_and_must_work(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(LLAMA3)
    assert role_formats(folder, str(path)).source == str(path)
    path.write_text("{{ messages[-1].content }}")
    with pytest.raises(TemplateError, match=r"mine\.jinja.*append-only"):
        role_formats(folder, str(path))
    path.write_bytes(b"\xff")
    with pytest.raises(TemplateError, match="not UTF-8"):
        role_formats(folder, str(path))
    with pytest.raises(TemplateError, match=r"no such file.*\.jinja"):
        role_formats(folder, str(tmp_path / "none.jinja"))


def test_generation_blocks_loop_controls_and_tojson_are_known() -> None:
    template = (
        "{% for m in [1, 2] %}{% if m == 2 %}{% break %}{% endif %}"
        "{% generation %}{{ m }}{% endgeneration %}{% endfor %}"
        "{{ {'é': 1} | tojson }}"
    )
    assert render(template, [([], True)], {}) == [('1{"é": 1}', None)]


def test_names_are_passed_and_refusals_are_answers() -> None:
    template = "{{ bos_token }}{% if add_generation_prompt %}{{ raise_exception('no ' ~ messages[0].role) }}{% endif %}"
    message = {"role": "user", "content": "x"}
    got = render(template, [([message], False), ([message], True)], {"bos_token": "<s>"})
    assert got == [("<s>", None), (None, "TemplateError: no user")]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ ('{0.__class__}').format(1) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ range(10**9) | list }}",
    ],
)
def test_sandbox_refuses(template: str) -> None:
    [(text, error)] = render(template, [([], True)], {})
    assert error or text == ""  # refused, or undefined


@pytest.mark.parametrize(
    ("template", "limit"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "1 s"),
        ("{{ 'a' * 10**9 }}", "256 MiB"),
        ("{% set n = 10**9 %}{{ 'a' * n }}", "256 MiB"),
        ("{{ '%999999999d' | format(1) }}", "256 MiB"),
        ("{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}", "output"),
        ("{# " + "x" * (256 << 10) + " #}", "262,144 bytes of template"),
    ],
    ids=lambda value: value[:30],
)
def test_hostile_templates_hit_a_limit(template: str, limit: str) -> None:
    started = time.monotonic()
    with pytest.raises(TemplateError) as caught:
        render(template, [([], True)], {}, timeout_s=1.0)
    assert limit in caught.value.limit
    assert time.monotonic() - started < 3


def test_hostile_template_of_a_model_is_no_silent_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_TEMPLATE_BYTES", 10)
    with pytest.raises(TemplateError, match="the limit is 10 bytes"):
        role_formats(folder)


def test_surrogates_in_the_output_are_survived() -> None:
    [(text, _)] = render("{{ '\\ud800' }}", [([], True)], {})
    assert text == "\ud800"


def test_embedded_model_has_a_usable_template() -> None:
    folder = Path(templates.__file__).parent / "assets" / "tiny"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the embedded model is not in this checkout")
    assert role_formats(folder).source == "model"
