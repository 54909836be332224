"""The public names: what `import nbsgl as sgl` offers, and SGLang's deep import paths."""

from __future__ import annotations

import inspect

import pytest

import nbsgl
from nbsgl import errors

LANGUAGE = [
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "select",
    "raw",
    "system",
    "user",
    "assistant",
    "system_begin",
    "system_end",
    "user_begin",
    "user_end",
    "assistant_begin",
    "assistant_end",
    "image",
    "video",
    "separate_reasoning",
    "ToolCall",
    "tag",
    "tags",
    "GrammarSpec",
    "HoleWarning",
    "prefetch",
    "state",
    "SglFunction",
    "ProgramState",
    "ProgramStateGroup",
    "ChoicesDecision",
    "ChoicesSamplingMethod",
    "token_length_normalized",
    "greedy_token_selection",
    "unconditional_likelihood_normalized",
]
BACKENDS = [
    "Engine",
    "Runtime",
    "RuntimeEndpoint",
    "OpenAI",
    "Anthropic",
    "LiteLLM",
    "VertexAI",
    "Crusoe",
    "ServerArgs",
    "global_config",
    "start",
    "set_default_backend",
    "get_default_backend",
    "flush_cache",
    "get_server_info",
    "get_status",
]
MODULES = ["grammar"]


def test_the_public_names_are_these() -> None:
    assert set(nbsgl.__all__) == {*LANGUAGE, *BACKENDS, *MODULES, *errors.ERRORS}


@pytest.mark.parametrize("name", [*LANGUAGE, *MODULES, *errors.ERRORS])
def test_every_name_is_there(name) -> None:
    assert getattr(nbsgl, name) is getattr(nbsgl, name)
    assert name in dir(nbsgl)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nbsgl.nothing


def test_every_public_function_says_what_it_does() -> None:
    short = {"system_begin", "system_end", "user_begin", "user_end", "assistant_begin", "assistant_end"}
    for name in {*LANGUAGE, *BACKENDS} - {"Engine"} - short:
        value = getattr(nbsgl, name)
        if inspect.isroutine(value) or inspect.isclass(value):
            assert value.__doc__, name


def test_gen_has_sglangs_positions_in_order() -> None:
    kinds = inspect.signature(nbsgl.gen).parameters.values()
    positions = [p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positions == [
        "name",
        "max_tokens",
        "min_tokens",
        "n",
        "stop",
        "stop_token_ids",
        "stop_regex",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "ignore_eos",
        "return_logprob",
        "logprob_start_len",
        "top_logprobs_num",
        "return_text_in_logprobs",
        "dtype",
        "choices",
        "choices_method",
        "regex",
        "json_schema",
    ]
    assert [p.name for p in kinds if p.kind is p.KEYWORD_ONLY] == [
        "seed",
        "type",
        "repetition_penalty",
        "logit_bias",
        "list_append",
        "heal",
        "ebnf",
        "lark",
        "grammar",
        "after",
        "max_think_tokens",
        "tools",
        "tool_format",
        "on_limit",
        "on_unsupported",
        "jump",
        "whitespace",
    ]


def test_sglangs_deep_paths() -> None:
    from nbsgl.lang.choices import greedy_token_selection
    from nbsgl.lang.interpreter import ProgramState
    from nbsgl.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR

    assert greedy_token_selection is nbsgl.greedy_token_selection
    assert ProgramState is nbsgl.ProgramState
    assert REGEX_INT == r"[-+]?[0-9]+[ \n]*"
    assert REGEX_FLOAT == r"[-+]?[0-9]*\.?[0-9]+[ \n]*"
    assert (REGEX_BOOL, REGEX_STR) == (r"(True|False)", r"\"[\w\d\s]*\"")


def test_the_fakes_satisfy_the_waist() -> None:
    from nbsgl.protocol import Backend, Run
    from tests.unit.fakes import FakeBackend

    fake = FakeBackend()
    assert isinstance(fake, Backend)
    assert isinstance(fake.open_run(lambda events: None), Run)
    fake.close()
