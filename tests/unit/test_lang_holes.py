"""Expressions: checked where they are written, never mistaken for values."""

from __future__ import annotations

import re

import pytest

import nbsgl as sgl
from nbsgl.errors import BadGrammar, BadRegex, HoleError, ParameterError
from nbsgl.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR
from nbsgl.protocol import Gen, Select, Text
from tests.unit.fakes import FakeBackend


@pytest.fixture
def backend():
    fake = FakeBackend()
    yield fake
    fake.close()


def only_gen(backend, expr, **defaults) -> Gen:
    with sgl.state(backend, **defaults) as s:
        s += "x" + expr
    (node,) = [node for node in backend.nodes if isinstance(node, Gen)]
    return node


# ---- the hole pitfall ------------------------------------------------------------------------------------------------

USES = {
    "==": lambda g: g == "Yes",
    "!=": lambda g: g != "Yes",
    "reversed ==": lambda g: "Yes" == g,  # noqa: SIM300
    "<": lambda g: g < 1,
    ">=": lambda g: g >= 1,
    "if": lambda g: 1 if g else 2,
    "not": lambda g: not g,
    "in": lambda g: "a" in g,
    "len": len,
    "int": int,
    "float": float,
    "iter": list,
    "index": lambda g: g[0],
    "unpack": lambda g: [*g],
    "range": range,
    "format spec": lambda g: f"{g:>10}",
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(
    "make", [lambda: sgl.gen("x"), lambda: sgl.select("x", ["a", "b"]), lambda: sgl.user("a") + "b"]
)
def test_using_a_hole_as_a_value_raises(use, make) -> None:
    with pytest.raises(HoleError, match="is a hole, not a value"):
        use(make())


def test_identity_and_hash_of_a_hole_work() -> None:
    hole = sgl.gen("x")
    assert hole is hole
    assert {hole: 1}[hole] == 1


@pytest.mark.parametrize("wrong", [3, None, b"x", ["x"], object()])
def test_adding_other_types_raises_at_once(backend, wrong) -> None:
    with pytest.raises(HoleError, match="takes strings and holes"):
        sgl.gen("x") + wrong
    with sgl.state(backend) as s, pytest.raises(HoleError, match="test_lang_holes.py"):
        s += wrong
    with pytest.raises(ValueError):
        wrong + sgl.gen("x")


def test_holes_in_f_strings_are_found_again(backend) -> None:
    hole = f"Name: {sgl.gen('n')}, twice {sgl.gen('m')!s}%s." % sgl.select("c", ["a", "b"])
    assert "Gen" not in hole
    with sgl.state(backend) as s:
        s += hole
        s += sgl.user(f"<{sgl.gen('u')}>")
    assert s.text() == "Name: [n], twice [m]a.<|user|><[u]><|end|>"


def test_marks_may_not_end_elsewhere(backend) -> None:
    marked = f"{sgl.gen('x')}"
    with sgl.state(backend) as s:
        for use in (
            lambda: sgl.gen("y", stop=marked),
            lambda: sgl.select("y", ["a", marked]),
            lambda: s.set_var("y", marked),
            lambda: s.set_var("y", sgl.gen("z")),
            lambda: sgl.gen(marked),
            lambda: sgl.gen(regex=marked),
        ):
            with pytest.raises(HoleError):
                use()


def test_concatenation_runs_left_to_right(backend) -> None:
    with sgl.state(backend) as s:
        s += "a" + sgl.gen("x") + "b" + (sgl.gen("y") + "c")
    assert s.text() == "a[x]b[y]c"


# ---- gen's parameters ------------------------------------------------------------------------------------------------


def test_gen_takes_all_positions_of_sglang(backend) -> None:
    expr = sgl.gen("x", 9, 1, 2, "s", [3], None, 0.5, 0.6, 7, 0.1, 0.2, 0.3, True, True, 0, 4, True)
    params = only_gen(backend, expr).params
    assert (params.max_tokens, params.min_tokens, params.n, params.stop, params.stop_token_ids) == (
        9,
        1,
        2,
        ("s", "<|end|>"),
        (3,),
    )
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.6, 7, 0.1)
    assert (params.frequency_penalty, params.presence_penalty, params.ignore_eos) == (0.2, 0.3, True)
    assert (params.return_logprob, params.logprob_start_len, params.top_logprobs_num) == (True, 0, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": -1},
        {"max_tokens": 1.5},
        {"max_tokens": "all"},
        {"min_tokens": 3, "max_tokens": 2},
        {"n": 0},
        {"n": 129},
        {"stop": 3},
        {"stop": [3]},
        {"stop": [""]},
        {"stop": ["x"] * 33},
        {"stop_token_ids": 5},
        {"stop_token_ids": [-1]},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": 0},
        {"min_p": 2},
        {"min_p": False},
        {"repetition_penalty": True},
        {"top_logprobs_num": False},
        {"frequency_penalty": 3},
        {"presence_penalty": -3},
        {"repetition_penalty": 0},
        {"ignore_eos": 1},
        {"return_logprob": "yes"},
        {"logprob_start_len": -2},
        {"top_logprobs_num": 129},
        {"seed": 1.5},
        {"logit_bias": [1]},
        {"logit_bias": {1: 1000}},
        {"dtype": object()},
        {"dtype": "list"},
        {"choices": []},
        {"choices": "ab"},
        {"choices": ["a", "a"]},
        {"choices": ["a", ""]},
        {"choices": ["a", 3]},
        {"choices": ["a"], "choices_method": "greedy"},
        {"choices_method": sgl.greedy_token_selection},
        {"regex": 3},
        {"json_schema": 3},
        {"regex": "a", "dtype": int},
        {"regex": "a", "json_schema": "{}"},
        {"choices": ["a"], "regex": "a"},
        {"name": 3},
    ],
    ids=lambda given: "-".join(given),
)
def test_gen_checks_every_value_at_its_line(wrong) -> None:
    with pytest.raises(ParameterError):
        sgl.gen(**wrong)


def test_min_tokens_over_the_runs_max_is_an_error_where_they_meet(backend) -> None:
    with sgl.state(backend, max_tokens=5) as s, pytest.raises(ParameterError, match="min_tokens"):
        s += sgl.gen("x", min_tokens=10)


def test_max_tokens_fit_and_zero_are_allowed(backend) -> None:
    with sgl.state(backend) as s:
        s += sgl.gen("x", max_tokens="fit") + sgl.gen("y", max_tokens=0)
    assert [n.params.max_tokens for n in backend.nodes if isinstance(n, Gen)] == ["fit", 0]


def test_a_bad_regex_is_refused_at_once_as_re_does() -> None:
    with pytest.raises(BadRegex, match="position"):
        sgl.gen("x", regex="a(b")
    with pytest.raises(re.error):
        sgl.gen("x", regex="a(b")
    sgl.gen("x", regex=r"\p{L}+")


def test_asking_for_details_turns_logprobs_on(backend) -> None:
    assert only_gen(backend, sgl.gen("x", top_logprobs_num=2)).params.return_logprob


@pytest.mark.parametrize(
    ("dtype", "regex", "stops"),
    [
        (int, REGEX_INT, (" ", "\n")),
        ("float", REGEX_FLOAT, (" ", "\n")),
        (bool, REGEX_BOOL, ()),
        ("str", REGEX_STR, ()),
    ],
)
def test_dtypes_are_sglangs_regexes(backend, dtype, regex, stops) -> None:
    node = only_gen(backend, sgl.gen("x", dtype=dtype, stop="!"))
    assert (node.grammar.kind, node.grammar.text) == ("regex", regex)
    assert node.params.stop == ("!", *stops, "<|end|>")


def test_gen_int_and_gen_string_take_sglangs_positions(backend) -> None:
    node = only_gen(backend, sgl.gen_int("x", 5, 1, "!", temperature=0.5, seed=3))
    assert (node.params.max_tokens, node.params.stop[0], node.params.seed) == (5, "!", 3)
    assert node.grammar.text == REGEX_INT
    assert repr(sgl.gen_string("q")) == "gen('q')"


def test_json_schema_keeps_the_order_of_a_dict(backend) -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    node = only_gen(backend, sgl.gen("x", json_schema=schema))
    assert node.grammar.kind == "json_schema"
    assert node.grammar.text.index('"b"') < node.grammar.text.index('"a"')
    for bad in ("{", {"x": object()}):
        with pytest.raises(BadGrammar):
            sgl.gen("x", json_schema=bad)


def test_stop_regex_is_checked_at_its_line(backend) -> None:
    node = only_gen(backend, sgl.gen("x", stop_regex=[r"\n[0-9]+\.", "END"]))
    assert node.params.stop_regex == (r"\n[0-9]+\.", "END")
    with pytest.raises(BadRegex, match="stop_regex="):
        sgl.gen("x", stop_regex="(")
    for bad in ("a*", "", "x" * 257, 3, ["a"] * 33):
        with pytest.raises(ParameterError, match="stop_regex"):
            sgl.gen("x", stop_regex=bad)
    with pytest.raises(ParameterError, match="stop_regex"):
        sgl.function(lambda s: None).run(stop_regex="x?")


# ---- roles and raw text ----------------------------------------------------------------------------------------------


def texts(backend) -> list[tuple[str, bool]]:
    return [(node.text, node.parse_special) for node in backend.nodes if isinstance(node, Text)]


def test_text_in_a_role_is_plain_and_markup_is_not(backend) -> None:
    with sgl.state(backend) as s:
        s += "free" + sgl.user("hi" + sgl.raw("<|x|>") + "ho")
    assert texts(backend) == [
        ("free<|user|>", True),
        ("hi", False),
        ("<|x|>", True),
        ("ho", False),
        ("<|end|>", True),
    ]


def test_an_empty_message_has_prefix_and_suffix(backend) -> None:
    with sgl.state(backend) as s:
        s += sgl.user()
    assert s.text() == "<|user|><|end|>"
    assert s.messages() == [{"role": "user", "content": ""}]


def test_the_templates_system_message_comes_first_unless_the_program_has_one() -> None:
    fake = FakeBackend(default_system="Be kind.")
    with sgl.state(fake) as s:
        s += sgl.user("a") + sgl.user("b")
    assert s.text() == "<|system|>Be kind.<|end|><|user|>a<|end|><|user|>b<|end|>"
    assert s.messages()[0] == {"role": "system", "content": "Be kind."}
    with sgl.state(fake) as s:
        s += sgl.system("Be brief.") + sgl.user("a")
    assert s.text() == "<|system|>Be brief.<|end|><|user|>a<|end|>"
    fake.close()


@pytest.mark.parametrize(
    "expr",
    [
        lambda: sgl.user("a" + sgl.user("b")),
        lambda: sgl.user_begin() + sgl.assistant_begin(),
        lambda: sgl.user_end(),
        lambda: sgl.user_begin() + sgl.assistant_end(),
    ],
)
def test_roles_out_of_order_are_errors_at_the_line(backend, expr) -> None:
    with sgl.state(backend) as s, pytest.raises(sgl.RoleError):
        s += expr()


def test_a_role_the_template_lacks() -> None:
    fake = FakeBackend(roles={})
    with sgl.state(fake) as s, pytest.raises(sgl.RoleError, match="no role 'user'"):
        s += sgl.user("a")
    fake.close()


# ---- select ----------------------------------------------------------------------------------------------------------


def test_select_meta_info_has_sglangs_keys(backend) -> None:
    backend.scores = lambda prompt, choice: {"x": [-1.0, 0.0], "y": [-0.25]}[choice]
    with sgl.state(backend) as s:
        s += sgl.select("a", ["x", "y"])
        s += sgl.select("b", ["x", "y"], choices_method=sgl.greedy_token_selection)
        s += sgl.select("c", ["x", "y"], choices_method=sgl.unconditional_likelihood_normalized)
    assert (s["a"], s["b"], s["c"]) == ("y", "y", "y")
    meta = s.get_meta_info("a")
    assert meta["normalized_prompt_logprobs"] == [-0.5, -0.25]
    assert meta["input_token_logprobs"][0] == [(-1.0, 0, None), (0.0, 1, None)]
    assert "greedy_logprob_matrix" in s.get_meta_info("b")
    assert s.get_meta_info("c")["normalized_unconditional_prompt_logprobs"] == [0.5, 0.75]
    assert s.get_meta_info("c")["unconditional_token_logprobs"] is not None


class Last(sgl.ChoicesSamplingMethod):
    """The last choice, whatever the scores."""

    def __call__(self, *, choices, **scores):
        assert set(scores) == {
            "normalized_prompt_logprobs",
            "input_token_logprobs",
            "output_token_logprobs",
            "unconditional_token_logprobs",
        }
        return sgl.ChoicesDecision(choices[-1], {"mine": True})


def test_a_users_method_decides_in_the_program(backend) -> None:
    with sgl.state(backend) as s:
        s += "a" + sgl.select("x", ["p", "qq"], choices_method=Last()) + sgl.gen("y")
    assert s.text() == "aqq[y]"
    assert s.get_meta_info("x")["mine"] is True
    (node,) = [node for node in backend.nodes if isinstance(node, Select)]
    assert node.method == "ask"


def test_a_users_method_that_raises_ends_its_branch(backend) -> None:
    class Broken(sgl.ChoicesSamplingMethod):
        def __call__(self, **scores):
            raise ZeroDivisionError

    def cell():
        with sgl.state(backend) as s:
            s += sgl.select("x", ["p", "q"], choices_method=Broken())

    with pytest.raises(ZeroDivisionError):
        cell()
    assert backend.alive == 0
    with sgl.state(backend) as s, pytest.raises(ParameterError, match="it decides"):
        s += sgl.select("x", ["p", "q"], temperature=1, choices_method=Last())
