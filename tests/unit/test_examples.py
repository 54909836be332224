"""Programs of the kinds that SGLang's public examples show, with only the import line changed, on the fake backend."""

from __future__ import annotations

import json

import pytest

import nbsgl as sgl
from nbsgl.protocol import Gen, Select
from tests.unit.fakes import FakeBackend


@pytest.fixture
def backend():
    fake = FakeBackend()
    yield fake
    fake.close()


def num_asked(backend) -> int:
    """Submissions that ask for something (others close what was dropped)."""
    return sum(any(isinstance(node, Gen | Select) for node in nodes) for nodes in backend.submissions)


def gens(backend) -> list[Gen]:
    return [node for node in backend.nodes if isinstance(node, Gen)]


# ---- few-shot questions, by hand and in a batch ----------------------------------------------------------------------


@sgl.function
def few_shot_qa(s, question):
    s += "Q: What is the capital of Norway?\nA: Oslo\n\nQ: How many legs has a spider?\nA: Eight\n\n"
    s += "Q: " + question + "\nA:" + sgl.gen("answer", stop="\n", temperature=0)


def test_few_shot_qa_in_a_batch(backend) -> None:
    rows = [{"question": f"What is {i} + 1?"} for i in range(5)]
    states = few_shot_qa.run_batch(rows, backend=backend, progress_bar=False)
    assert [state["answer"] for state in states] == ["[answer]"] * 5
    assert states[3].text().endswith("Q: What is 3 + 1?\nA:[answer]")
    assert {gen.params.stop for gen in gens(backend)} == {("\n", "<|end|>")}


# ---- several turns, single, streamed and asked again -----------------------------------------------------------------


@sgl.function
def two_turns(s, first, second):
    s += sgl.system("You answer in one sentence.")
    s += sgl.user(first)
    s += sgl.assistant(sgl.gen("first", max_tokens=64))
    s += sgl.user(second)
    s += sgl.assistant(sgl.gen("second", max_tokens=64))


def test_several_turns_give_messages(backend) -> None:
    state = two_turns.run("Who was Ada?", "And her father?", backend=backend)
    assert [m["role"] for m in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
    assert state["second"] == "[second]"
    assert num_asked(backend) == 1


def test_several_turns_stream(backend) -> None:
    backend.answer = lambda prompt, node: ["one ", "two"]
    state = two_turns.run("a", "b", stream=True, backend=backend)
    assert "".join(state.text_iter()) == state.text()
    assert list(state.text_iter("second"))[-1].endswith("two")


# ---- a tool, chosen by a select --------------------------------------------------------------------------------------


@sgl.function
def tool_use(s, question):
    s += "To answer this question: " + question + ", I need a "
    s += sgl.gen("tool", choices=["calculator", "web browser"]) + ". "
    if s["tool"] == "calculator":
        s += "The expression is: " + sgl.gen("expression")
    else:
        s += "The page is: " + sgl.gen("page")


@pytest.mark.parametrize(("tool", "name"), [("calculator", "expression"), ("web browser", "page")])
def test_a_tool_decides_the_branch(tool, name) -> None:
    fake = FakeBackend(scores=lambda prompt, choice: [-0.1 if choice == tool else -5.0])
    state = tool_use.run("What is 3 * 7?", backend=fake)
    assert (state["tool"], state[name]) == (tool, f"[{name}]")
    assert ("expression" in state) is (name == "expression")
    fake.close()


# ---- tips, each worked out on a fork of its own ----------------------------------------------------------------------


@sgl.function
def worked_out(s, tip):
    s += f"Explain this tip in a paragraph: {tip}\nParagraph:"
    s += sgl.gen("paragraph", max_tokens=128, stop=["\n\n"])


@sgl.function
def tips(s):
    s += "Two tips for a healthy life: 1. Eat well. 2. Move often.\n"
    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += f"Now tip {i + 1} in detail:\n"
        f += sgl.gen("detail", max_tokens=64, stop="\n\n")
    s += "Tip 1: " + forks[0]["detail"] + "\nTip 2: " + forks[1]["detail"] + "\nIn short: " + sgl.gen("summary")


def test_tips_are_forked_and_put_together(backend) -> None:
    backend.answer = lambda prompt, node: f"<{prompt.split('tip ')[-1][0]}>" if node.name == "detail" else "short"
    state = tips.run(backend=backend)
    assert state.text().endswith("Tip 1: <1>\nTip 2: <2>\nIn short: short")
    assert num_asked(backend) == 2


def test_a_program_calls_programs(backend) -> None:
    @sgl.function
    def outer(s):
        for state in worked_out.run_batch([("rest",), ("walk",)], backend=backend):
            s += state["paragraph"]

    assert outer.run(backend=backend).text() == "[paragraph][paragraph]"


# ---- constrained texts -----------------------------------------------------------------------------------------------


IP = r"((25[0-5]|2[0-4]\d|[01]?\d\d?)\.){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)"


@sgl.function
def address(s):
    s += "The address of that server is " + sgl.gen("address", temperature=0, regex=IP)


CHARACTER = (
    r'\{\n   "name": "[\w\d\s]{1,16}",\n   "house": "(North|South|East|West)",\n   "alive": (true|false),\n'
    r'   "friends": \["[\w\d\s]{1,16}", "[\w\d\s]{1,16}"\]\n\}'
)


@sgl.function
def character(s, name):
    s += f"{name} is a character of the story. Fill in the form about them.\n"
    s += sgl.gen("profile", max_tokens=256, regex=CHARACTER)


@sgl.function
def city(s, name):
    s += f"Facts about {name} as JSON: "
    s += sgl.gen("facts", json_schema=json.dumps({"type": "object", "properties": {"country": {"type": "string"}}}))


def test_regexes_and_schemas_reach_the_engine(backend) -> None:
    assert address.run(backend=backend)["address"] == "[address]"
    assert character.run_batch([("Mara",), ("Ivo",)], backend=backend)[1]["profile"] == "[profile]"
    city.run("Lisbon", backend=backend).sync()
    kinds = [(gen.grammar.kind, gen.name) for gen in gens(backend) if gen.grammar]
    assert kinds == [("regex", "address"), ("regex", "profile"), ("regex", "profile"), ("json_schema", "facts")]


@sgl.function
def character_by_halves(s, name):
    s += name + ' as JSON:\n{\n   "name": "' + name + '",\n'
    with s.var_scope("rest"):
        s += '   "age": ' + sgl.gen_int("age", max_tokens=4) + ',\n   "job": ' + sgl.gen_string("job") + "\n}"


def test_json_by_constants_and_typed_gens(backend) -> None:
    backend.answer = lambda prompt, node: {"age": "34", "job": '"smith"'}[node.name]
    state = character_by_halves.run("Mara", backend=backend)
    assert json.loads(state.text().partition(":\n")[2]) == {"name": "Mara", "age": 34, "job": "smith"}
    assert state["rest"].startswith('   "age": 34')
    assert (state.value("age"), state.value("job")) == (34, "smith")


# ---- choices, samples, a judge ---------------------------------------------------------------------------------------


@sgl.function
def sentiment(s, review, method):
    s += "Review: " + review + "\nSentiment:"
    s += sgl.select("sentiment", [" good", " bad", " mixed"], choices_method=method)


def test_choices_by_each_method() -> None:
    rows = {" good": [-1.0, -1.0], " bad": [-0.9, -3.0], " mixed": [-2.0]}
    fake = FakeBackend(scores=lambda prompt, choice: rows[choice])
    told = {
        method: sentiment.run("Fine.", method, backend=fake)["sentiment"]
        for method in (
            sgl.token_length_normalized,
            sgl.greedy_token_selection,
            sgl.unconditional_likelihood_normalized,
        )
    }
    assert list(told.values()) == [" good", " bad", " good"]
    fake.close()


@sgl.function
def samples(s, question, num):
    s += "Q: " + question + "\n"
    forks = s.fork(num)
    forks += "A:" + sgl.gen("answer", temperature=0.8, max_tokens=16)
    forks.join()
    answers = s["answer"]
    s += "Answers: " + "; ".join(answers) + "\nThe best is number "
    s += sgl.select("best", [str(i + 1) for i in range(num)])


def test_parallel_samples_have_seeds_of_their_own(backend) -> None:
    state = samples.run("Why?", 3, backend=backend)
    assert state["answer"] == ["[answer]"] * 3
    assert state["best"] in {"1", "2", "3"}
    assert len({gen.params.seed for gen in gens(backend)}) == 3


def test_samples_by_n(backend) -> None:
    with sgl.state(backend) as s:
        s += "Q" + sgl.gen("a", n=4, temperature=0.8)
    assert len(s["a"]) == 4


ASPECTS = ["clarity", "depth", "style"]


@sgl.function
def judge(s, essay):
    s += sgl.system("You judge essays.")
    s += sgl.user("Essay:\n" + essay)
    forks = s.fork(len(ASPECTS))
    for f, aspect in zip(forks, ASPECTS, strict=True):
        f += sgl.user(f"Judge its {aspect}; end with a grade.")
        f += sgl.assistant(
            "Judgement: " + sgl.gen("text", stop="END") + "Grade: " + sgl.gen("grade", choices=["A", "B"])
        )
    forks.join()
    s += sgl.user("The judgements:\n" + "\n".join(s["text"]) + "\nSum them up.")
    s += sgl.assistant(sgl.gen("verdict"))
    return s["grade"]


def test_a_judge_forks_by_aspect(backend) -> None:
    state = judge.run("Words.", backend=backend)
    assert state["verdict"] == "[verdict]"
    assert state["text"] == ["[text]"] * 3
    assert state.ret_value == ["A", "A", "A"]
    assert state.messages()[-2]["content"].count("[text]") == 3


# ---- a tree of thoughts, and a readme in sections --------------------------------------------------------------------


def propose(s, num):
    forks = s.fork(num)
    for f in forks:
        f += sgl.user("The next step?") + sgl.assistant(sgl.gen("step", max_tokens=32, temperature=0.7))
    return forks


@sgl.function
def tree(s, task, breadth, depth):
    s += sgl.user("Task: " + task)
    leaves = [s]
    for _ in range(depth):
        leaves = [child for leaf in leaves for child in propose(leaf, breadth)]
    for leaf in leaves:
        leaf += sgl.user("A grade?") + sgl.assistant(sgl.select("grade", ["1", "2", "3"]))
    return max(leaf["grade"] for leaf in leaves), len(leaves)


def test_a_tree_of_forks_is_few_submissions(backend) -> None:
    state = tree.run("Plan a trip.", 2, 3, backend=backend)
    assert state.ret_value == ("1", 8)
    assert num_asked(backend) == 1


@sgl.function
def readme(s, project):
    s += f"# {project}\n\n"
    for title in ("Install", "Use", "License"):
        s += f"## {title}\n\n"
        s += sgl.gen(title.lower(), max_tokens=64, stop="##") + "\n"


def test_a_readme_in_sections(backend) -> None:
    state = readme.run("tools", backend=backend)
    assert state.text().count("## ") == 3
    assert state["license"] == "[license]"
    assert num_asked(backend) == 1


def test_the_next_tokens_distribution(backend) -> None:
    with sgl.state(backend) as s:
        s += "The capital of Norway is"
        s += sgl.gen("next", max_tokens=0, return_logprob=True, top_logprobs_num=5, return_text_in_logprobs=True)
    assert s.get_meta_info("next")["output_top_logprobs"][0]
