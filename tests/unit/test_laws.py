"""The laws of the architecture, on the embedded model, through language, graph, scheduler and runner in one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import nbsgl as sgl
from nbsgl.errors import BadGrammar, RequestTooLong, StateFailed
from nbsgl.protocol import Gen
from tests.unit.in_process import InProcessEngine

STORY = "Once upon a time there was a fox who lived near a baker. "


@pytest.fixture(scope="module")
def engine() -> Iterator[InProcessEngine]:
    engine = InProcessEngine()
    yield engine
    engine.close()


@sgl.function
def chat(s, country, follow):
    s += sgl.system("You answer in one word.")
    s += sgl.user(f"What is the capital of {country}?")
    s += sgl.assistant(sgl.gen("capital", max_tokens=8, temperature=0))
    s += sgl.user(follow)
    s += sgl.assistant(sgl.gen("second", max_tokens=8, temperature=0))


@sgl.function
def tell(s, start, n=24):
    s += start
    s += sgl.gen("story", max_tokens=n, temperature=0, ignore_eos=True)


def alone(engine: InProcessEngine, start: str, n: int = 24) -> str:
    engine.flush_cache()
    return tell.run(start, n, backend=engine)["story"]


def test_a_chat_of_two_turns_is_one_submission(engine: InProcessEngine) -> None:
    before = len(engine.submissions)
    state = chat.run("France", "And of Spain?", backend=engine)
    assert (state["capital"], state["second"]) == ("Paris", "Madrid")
    sent = [nodes for nodes in engine.submissions[before:] if any(isinstance(n, Gen) for n in nodes)]
    assert len(sent) == 1


def test_law_2_neighbours_do_not_change_the_greedy_text(engine: InProcessEngine) -> None:
    starts = [STORY * n + f"Number {n}. " for n in (1, 2, 3, 5, 8)]
    expected = [alone(engine, start) for start in starts]
    engine.flush_cache()
    states = tell.run_batch([{"start": start} for start in starts], backend=engine)
    assert [state["story"] for state in states] == expected


def test_law_2_cache_hits_do_not_change_the_greedy_text(engine: InProcessEngine) -> None:
    first = alone(engine, STORY * 4)
    again = tell.run(STORY * 4, 24, backend=engine)
    assert again["story"] == first
    meta = again.get_meta_info("story")
    assert meta["cached_tokens"] == meta["prompt_tokens"] - 1


def test_law_2_how_a_program_is_cut_changes_no_token(engine: InProcessEngine) -> None:
    text = STORY * 2 + "The fox said hello."

    @sgl.function
    def cut(s, pieces):
        for piece in pieces:
            s += piece
            s.sync()
        s += sgl.gen("story", max_tokens=16, temperature=0, ignore_eos=True)

    whole = cut.run([text], backend=engine)
    parts = cut.run([text[i : i + 3] for i in range(0, len(text), 3)], backend=engine)
    assert parts["story"] == whole["story"]
    assert parts.get_meta_info("story")["prompt_tokens"] == whole.get_meta_info("story")["prompt_tokens"]


@pytest.mark.parametrize(
    "limits", [{"token_budget": 8}, {"num_slots": 256, "max_running": 4}, {"overlap": True}, {"page_size": 16}]
)
def test_law_2_chunks_retraction_and_overlap_do_not_change_the_greedy_text(
    engine: InProcessEngine, limits: dict[str, object]
) -> None:
    starts = [STORY + f"Number {n}. " for n in range(6)]
    expected = [alone(engine, start, 40) for start in starts]
    other = InProcessEngine(limits=limits)
    try:
        states = tell.run_batch([{"start": start, "n": 40} for start in starts], backend=other)
        assert [state["story"] for state in states] == expected
    finally:
        other.close()


def test_law_2_parked_and_resumed_branch_goes_on_as_if_it_had_not_been(engine: InProcessEngine) -> None:
    @sgl.function
    def two(s, flush):
        s += STORY
        s += sgl.gen("a", max_tokens=12, temperature=0, ignore_eos=True)
        if flush:
            s.sync()
            engine.flush_cache()
        s += " Then " + sgl.gen("b", max_tokens=12, temperature=0, ignore_eos=True)

    straight, parked = two.run(False, backend=engine), two.run(True, backend=engine)
    assert (straight["a"], straight["b"]) == (parked["a"], parked["b"])


def test_law_3_a_shared_prefix_in_one_wave_is_computed_once(engine: InProcessEngine) -> None:
    engine.flush_cache()
    head = STORY * 20
    states = tell.run_batch([{"start": head + f"Number {n}: ", "n": 4} for n in range(8)], backend=engine)
    metas = [state.get_meta_info("story") for state in states]
    head_len = len(engine.codec.encode(head))
    computed = sum(meta["prompt_tokens"] - meta["cached_tokens"] for meta in metas)
    assert computed < head_len + 8 * 16


def test_law_3_fork_computes_the_parent_once(engine: InProcessEngine) -> None:
    engine.flush_cache()

    @sgl.function
    def judge(s):
        s += STORY * 20
        forks = s.fork(4)
        for i, f in enumerate(forks):
            f += f"Part {i}: " + sgl.gen("x", max_tokens=4, temperature=0, ignore_eos=True)
        forks.join()
        s += "All: " + sgl.gen("y", max_tokens=4, temperature=0, ignore_eos=True)

    state = judge.run(backend=engine)
    assert len(state["x"]) == 4
    view = (state["y"], state.run_view())[1]
    prompt = len(engine.codec.encode(STORY * 20))
    assert view.prefill_computed < prompt + 4 * 16 + 16


def test_law_4_output_is_in_the_language(engine: InProcessEngine) -> None:
    @sgl.function
    def date(s):
        s += "The date is "
        s += sgl.gen("date", max_tokens=32, regex=r"\d{4}-\d{2}-\d{2}", temperature=1.0, seed=3)

    import re

    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", date.run(backend=engine)["date"])


def test_law_5_an_error_of_one_request_ends_one_request(engine: InProcessEngine) -> None:
    states = tell.run_batch(
        [{"start": STORY, "n": 8}, {"start": STORY, "n": 100_000}, {"start": STORY, "n": 8}], backend=engine
    )
    assert isinstance(states[1].error(), RequestTooLong)
    assert states[0]["story"] == states[2]["story"]
    with pytest.raises(StateFailed) as failed:
        states[1]["story"]
    assert isinstance(failed.value.__cause__, RequestTooLong)


def test_law_5_a_bad_schema_ends_one_request(engine: InProcessEngine) -> None:
    @sgl.function
    def bad(s):
        s += "x" + sgl.gen(
            "x", json_schema={"type": "array", "items": {"type": "string"}, "uniqueItems": True}, max_tokens=4
        )

    assert isinstance(bad.run(backend=engine).error(), BadGrammar)
    assert alone(engine, STORY)


def test_same_seed_same_text_whatever_the_batch(engine: InProcessEngine) -> None:
    @sgl.function
    def roll(s, seed):
        s += STORY
        s += sgl.gen("x", max_tokens=16, temperature=1.0, top_p=0.9, seed=seed, ignore_eos=True)

    lone = [roll.run(seed, backend=engine)["x"] for seed in (1, 2)]
    many = [s["x"] for s in roll.run_batch([{"seed": seed} for seed in (5, 1, 7, 2, 9)], backend=engine)]
    assert [many[1], many[3]] == lone
    assert lone[0] != lone[1]


def test_select_scores_what_the_model_says(engine: InProcessEngine) -> None:
    @sgl.function
    def ask(s, country):
        s += sgl.user(f"What is the capital of {country}?")
        s += sgl.assistant("The capital of " + country + " is " + sgl.select("a", ["Paris", "Rome", "Tokyo"]))

    picks = [ask.run(country, backend=engine)["a"] for country in ("Italy", "France", "Japan")]
    assert picks == ["Rome", "Paris", "Tokyo"]


def test_stop_string_inside_a_token_leaves_the_text_before_it(engine: InProcessEngine) -> None:
    text = alone(engine, STORY, 40)
    cut = text[len(text) // 2 :][:2]

    @sgl.function
    def stopped(s):
        s += STORY + sgl.gen("x", max_tokens=40, temperature=0, ignore_eos=True, stop=cut)
        s += " and then " + sgl.gen("y", max_tokens=4, temperature=0)

    state = stopped.run(backend=engine)
    assert state["x"] == text[: text.index(cut)]
    assert state.text().startswith(STORY + state["x"] + " and then ")
