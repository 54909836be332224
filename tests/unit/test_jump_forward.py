"""Jump-forward over the oracle: what comes out is what comes out one by one, in fewer steps."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbsgl.engine import jump_forward
from nbsgl.engine.batch import Row, RowResult
from nbsgl.engine.habits import Habits
from nbsgl.errors import GrammarTooExpensive
from nbsgl.protocol import GrammarSpec, SamplingParams
from tests.sim.helpers import Engine, forced, greedy
from tests.sim.oracle import VOCAB
from tests.sim.reference import run_segment
from tests.sim.toy_grammar import FIRST, ToyGrammar, ToyMatcher, ToyPending

PROMPT = tuple(range(10)) * 3
SPELT_ONE_WAY = "ddeegg?ddffhh?ggdd"  # of letters that are in no longer token: every draft is drawn as proposed


def alone(sampled: Any, prompt: tuple[int, ...] = PROMPT) -> list[int]:
    return run_segment(list(prompt), sampled, 400, 10_000).ids


def drafts_of(engine: Engine) -> list[Row]:
    rows: list[Row] = []
    engine.runner.watch = lambda batch: rows.extend(row for row in batch.rows if row.draft)
    return rows


@pytest.mark.parametrize("has_tables", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
@settings(max_examples=12, deadline=None)
@given(
    runs=st.lists(
        st.tuples(
            st.text("abcdefgh??", min_size=1, max_size=24).filter(lambda text: text != "bad"),
            st.sampled_from(["verify", "verify", "canonical"]),
            st.sampled_from([0.0, 1.0]),
            st.integers(1, 30),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_output_is_that_of_one_token_at_a_time(runs: list[Any], overlap: bool, has_tables: bool) -> None:
    engine = Engine(overlap=overlap, has_tables=has_tables and overlap, token_budget=24)
    sampled = [
        greedy(limit, size=text, jump=jump, temperature=temperature, seed=7, stream=stream)  # type: ignore[arg-type]
        for text, jump, temperature, limit, stream in runs
    ]
    for seq, segment in enumerate(sampled):
        engine.add(seq, forced(*PROMPT, seq), segment, forced(1, 2), greedy(2))
    engine.run()
    for seq, segment in enumerate(sampled):
        tokens = [*PROMPT, seq]
        outcomes = [run_segment(tokens, each, 400, 10_000) for each in (segment, forced(1, 2), greedy(2))]
        assert engine.ids(seq, 1) == outcomes[0].ids
        assert engine.done(seq, 1).finish == outcomes[0].finish
        assert engine.ids(seq, 3) == outcomes[2].ids


@pytest.mark.parametrize("jump", ["verify", "canonical"])
def test_forced_text_takes_few_steps_and_is_counted(jump: Any) -> None:
    steps = {}
    for how in ("off", jump):
        engine = Engine()
        engine.add(1, forced(*PROMPT), greedy(40, size=SPELT_ONE_WAY, jump=how))
        engine.run()
        steps[how] = engine.scheduler.stats.batches
        use = engine.done(1, 1).grammar
        assert use is not None
    assert use.engine == "toy"
    assert use.accepted == use.proposed > 0
    assert steps[jump] == steps["off"] - use.steps_saved <= 5


def test_device_with_tables_runs_ahead_and_drafts_behind_a_token_in_flight() -> None:
    engine = Engine(overlap=True, has_tables=True)
    drafts = drafts_of(engine)
    engine.add(1, forced(*PROMPT), greedy(40, size="??????ddeegghh??ddeegghh??"))
    engine.add(2, forced(*PROMPT, 1), greedy(40))
    engine.run()
    assert engine.ids(1, 1) == alone(greedy(40, size="??????ddeegghh??ddeegghh??"))
    assert engine.ids(2, 1) == alone(greedy(40), (*PROMPT, 1))
    assert any(row.is_fed_back for row in drafts)
    assert all((row.states[0] == -1) == row.is_fed_back and len(row.states) == len(row.draft) + 1 for row in drafts)
    assert engine.done(1, 1).grammar.accepted == sum(len(row.draft) for row in drafts) > 6  # type: ignore[union-attr]


@pytest.mark.parametrize("end", [Engine.run, lambda engine: engine.scheduler.abort([1])])
def test_sequence_is_taken_back_with_a_draft_in_flight(end: Callable[[Engine], None]) -> None:
    engine = Engine(overlap=True)
    drafts = drafts_of(engine)
    engine.add(1, forced(*PROMPT), greedy(40, size=SPELT_ONE_WAY))
    while not drafts:
        engine.steps(1)
    engine.scheduler._retract(engine.scheduler.seqs[1])
    end(engine)
    engine.run()
    assert engine.ids(1, 1) in ([], alone(greedy(40, size=SPELT_ONE_WAY)))
    assert not engine.scheduler.seqs.get(1) or engine.done(1, 1)


def test_what_was_computed_for_a_refused_draft_is_never_shared() -> None:
    engine = Engine()
    sampled = greedy(40, size="cabcabcabcabcab?cabcabcab", temperature=1.0, seed=3)
    drafts = drafts_of(engine)
    engine.add(1, forced(*PROMPT), sampled, forced(1))
    engine.run()
    (use,) = [u.grammar for u in engine.updates if u.grammar]
    assert drafts
    assert use.accepted < use.proposed
    engine.add(2, forced(*PROMPT, *alone(sampled), 1, 5), greedy(3))
    engine.run()
    assert engine.ids(2, 1) == alone(greedy(3), (*PROMPT, *alone(sampled), 1, 5))


def test_places_where_drafts_fail_are_left_alone() -> None:
    engine = Engine(num_slots=4096)
    grammar = ToyGrammar("cab" * 5, VOCAB)
    engine.scheduler._compile = lambda spec: grammar
    for seq in range(60):
        engine.add(seq, forced(*PROMPT, seq % 9, seq % 7), greedy(40, size="any", temperature=1.0, seed=seq))
    engine.run()
    edges = engine.scheduler.jump.known_of(grammar).edges.values()
    tried = [edge for edge in edges if edge.num_tries >= jump_forward.TRIES]
    assert tried
    poor = [edge for edge in tried if not edge.is_worth_it]
    assert poor
    assert all(edge.num_tries < 60 for edge in poor)


@pytest.mark.parametrize(
    "params",
    [{"return_logprob": True}, {"frequency_penalty": 0.5}, {"repetition_penalty": 1.1}, {"min_tokens": 40}],
)
def test_draws_that_depend_on_the_ones_before_have_no_drafts(params: dict[str, Any]) -> None:
    engine = Engine()
    drafts = drafts_of(engine)
    engine.add(1, forced(*PROMPT), greedy(40, size=SPELT_ONE_WAY, **params))
    engine.run()
    assert engine.ids(1, 1) == alone(greedy(40, size=SPELT_ONE_WAY, **params))
    assert not drafts


def test_canonical_tokens_have_their_log_probabilities() -> None:
    sampled = greedy(40, size="ddcab?cab", jump="canonical", return_logprob=True)
    engine = Engine()
    engine.add(1, forced(*PROMPT), sampled)
    engine.run()
    outcome = run_segment(list(PROMPT), sampled, 400, 10_000)
    assert engine.done(1, 1).scores.logprobs == outcome.logprobs  # type: ignore[union-attr]


def test_a_run_without_any_choice_is_not_drawn_at_all() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(40, size="ddcab", jump="canonical"), forced(3))
    engine.run()
    assert engine.ids(1, 1) == [3, 3, VOCAB.index(b"cab")]
    assert engine.scheduler.stats.decode_tokens == 0


def test_a_draft_never_takes_more_than_is_left() -> None:
    for limit in range(1, 8):
        engine = Engine(context_length=len(PROMPT) + limit)
        engine.add(1, forced(*PROMPT), greedy(limit, size=SPELT_ONE_WAY))
        engine.run()
        assert engine.ids(1, 1) == alone(greedy(limit, size=SPELT_ONE_WAY))


def test_draws_under_the_mask_of_another_place_do_not_count() -> None:
    """A device's first draw is under its own state; those behind a draft are under the states that were guessed."""
    row = Row(0, 9, 3, [0] * 9, params=SamplingParams(), draft=(4, 4), states=(-1, 6, 8))
    result = RowResult(token=4, more=(4, 5))
    guessed, other = (
        SimpleNamespace(matcher=SimpleNamespace(state=6)),
        SimpleNamespace(matcher=SimpleNamespace(state=5)),
    )
    tokens = jump_forward.counted(row, result, guessed)  # type: ignore[arg-type]
    assert [next(tokens), next(tokens)] == [4, 4]
    guessed.matcher.state = 8
    assert list(tokens) == [5]
    assert list(jump_forward.counted(row, result, other)) == [4]  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["fill_mask", "advance", "fork"])
def test_a_grammar_that_fails_during_a_run_ends_one_sequence(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    working = getattr(ToyMatcher, what)

    def failing(self: ToyMatcher, *args: Any) -> Any:
        if self.grammar.spec_text == "??dd?dd" and self.state > FIRST + 1:
            raise GrammarTooExpensive(kind="regex", path="during the run", limit="fuel")
        return working(self, *args)

    monkeypatch.setattr(ToyMatcher, what, failing)
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(9, size="??dd?dd"))
    engine.add(2, forced(*PROMPT, 1), greedy(9, size="??dd?"))
    engine.run()
    monkeypatch.undo()
    assert engine.ids(2, 1) == alone(greedy(9, size="??dd?"), (*PROMPT, 1))
    if what == "fork":  # only asked for a proposal
        assert engine.ids(1, 1) == alone(greedy(9, size="??dd?dd"))
    else:
        assert engine.error(1) == "GrammarTooExpensive"


# ---- grammars that come later ----------------------------------------------------------------------------------------


def late(delay: int, *, stands_in: bool, has_tables: bool = True) -> Callable[[GrammarSpec], ToyPending]:
    return lambda spec: ToyPending(spec.text, VOCAB, delay, stands_in=stands_in, has_tables=has_tables)


def until_idle(engine: Engine) -> None:
    while engine.scheduler.step() or engine.scheduler.awaits_grammars:
        pass


def test_waiting_for_a_grammar_blocks_nobody_and_computes_the_prompt_meanwhile() -> None:
    engine = Engine(compile_grammar=late(40, stands_in=False))
    engine.add(1, forced(*PROMPT), greedy(9, size="12"))
    engine.add(2, forced(*PROMPT, 1), greedy(9))
    engine.run()
    assert engine.ids(2, 1) == alone(greedy(9), (*PROMPT, 1))
    assert engine.scheduler.awaits_grammars
    assert not engine.scheduler.has_work
    assert engine.done(1, 0)
    until_idle(engine)
    assert engine.ids(1, 1) == alone(greedy(9, size="12"))


def test_a_compile_that_fails_ends_the_sequence_that_waits() -> None:
    engine = Engine(compile_grammar=late(5, stands_in=False))
    engine.add(1, forced(*PROMPT), greedy(9, size="bad"))
    until_idle(engine)
    assert engine.error(1) == "EngineError"


def test_a_sequence_that_waits_for_its_grammar_can_be_aborted() -> None:
    engine = Engine(compile_grammar=late(1_000_000, stands_in=False))
    engine.add(1, forced(*PROMPT), greedy(9, size="12"))
    engine.steps(5)
    engine.scheduler.abort([1])
    engine.run()
    assert not engine.scheduler.awaits_grammars
    assert not engine.scheduler.seqs


@pytest.mark.parametrize("text", ["?" * 20, "??dde?fggg??hh?dd"])
def test_a_run_on_a_stand_in_goes_on_in_tables(text: str) -> None:
    engine = Engine(overlap=True, has_tables=True, compile_grammar=late(2, stands_in=True))
    engine.add(1, forced(*PROMPT), greedy(30, size=text))
    engine.run()
    engine.steps(1)
    assert engine.ids(1, 1) == alone(greedy(30, size=text))
    use = engine.done(1, 1).grammar
    assert use is not None
    assert 0 < use.stood_in < len(text)
    assert not engine.scheduler.standing_in


def test_a_compile_that_fails_leaves_the_stand_in() -> None:
    pending = ToyPending("12", VOCAB, 3, stands_in=True, has_tables=True)
    engine = Engine(compile_grammar=lambda spec: pending)
    engine.add(1, forced(*PROMPT), greedy(9, size="12"))
    engine.steps(2)
    pending.text = "bad"
    engine.run()
    engine.steps(1)
    assert engine.ids(1, 1) == alone(greedy(9, size="12"))
    assert not engine.scheduler.standing_in


# ---- habits ----------------------------------------------------------------------------------------------------------


def engine_with(grammar: ToyGrammar, **limits: Any) -> Engine:
    """All runs share one compiled grammar in tables, and what is known of it."""
    return Engine(has_tables=True, num_slots=4096, compile_grammar=lambda spec: grammar, **limits)


def test_what_a_model_wrote_twice_is_drafted_the_third_time() -> None:
    text = "cabcabbcabcab"
    engine = engine_with(ToyGrammar(text, VOCAB, has_tables=True))
    uses, batches = [], []
    for seq in range(1, 5):
        before = engine.scheduler.stats.batches
        engine.add(seq, forced(*PROMPT), greedy(40, size=text))
        engine.run()
        assert engine.ids(seq, 1) == alone(greedy(40, size=text))
        uses.append(engine.done(seq, 1).grammar)
        batches.append(engine.scheduler.stats.batches - before)
    assert uses[0].accepted < uses[0].proposed  # the canonical spelling is not this model's
    assert uses[3].accepted == uses[3].proposed == len(engine.ids(4, 1))
    assert batches[3] <= 3 < batches[0]


@pytest.mark.parametrize("overlap", [False, True])
@settings(max_examples=10, deadline=None)
@given(data=st.data(), text=st.text("abc??", min_size=2, max_size=24))
def test_habits_change_no_output(overlap: bool, data: st.DataObject, text: str) -> None:
    engine = engine_with(ToyGrammar(text, VOCAB, has_tables=True), overlap=overlap)
    run = st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.0, 1.0]), st.integers(0, 2), st.integers(1, 30))
    runs = data.draw(st.lists(run, min_size=6, max_size=12))
    for seq, (start, temperature, seed, most) in enumerate(runs):
        sampled = greedy(most, size=text, temperature=temperature, seed=seed)
        engine.add(seq, forced(*PROMPT, start), sampled)
        engine.steps(data.draw(st.integers(0, 6)))
    engine.run()
    for seq, (start, temperature, seed, most) in enumerate(runs):
        sampled = greedy(most, size=text, temperature=temperature, seed=seed)
        assert engine.ids(seq, 1) == alone(sampled, (*PROMPT, start))


def test_a_habit_is_forgotten_when_it_fails() -> None:
    habits = Habits()
    for _ in range(2):
        habits.saw(2, 7, 8, 3)
        habits.saw(3, 8, 9, 4)
    assert habits.chain(2, 7, 9) == ([8, 9], [3, 4])
    assert habits.chain(2, 7, 1) == ([8], [3])
    assert habits.chain(2, 6, 9) == ([], [])
    habits.saw(3, 8, 5, 6)
    assert habits.chain(2, 7, 9) == ([8], [3])
