import pytest

from nbsgl.engine.batch import Batch, Row
from nbsgl.engine.request import SeqState, Sequence
from nbsgl.protocol import unpack_ids
from tests.sim.helpers import Engine, forced, greedy
from tests.sim.reference import run_segment

PROMPT = tuple(range(10)) * 5  # 50 tokens


def alone(prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    return run_segment(list(prompt), greedy(max_tokens), 400, 10_000).ids


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_output_is_that_of_the_sequence_alone(overlap: bool, page_size: int) -> None:
    engine = Engine(overlap=overlap, page_size=page_size, token_budget=16)
    for seq in range(6):
        engine.add(seq, forced(*PROMPT, seq), greedy(12))
    engine.run()
    assert [engine.ids(seq, 1) for seq in range(6)] == [alone((*PROMPT, seq), 12) for seq in range(6)]


def test_first_token_is_drawn_in_the_step_of_the_last_chunk() -> None:
    engine = Engine(token_budget=25)
    engine.add(1, forced(*PROMPT), greedy(5, stream=True))
    engine.steps(1)
    assert engine.updates == []
    engine.steps(1)
    assert len(engine.ids(1, 1)) == 1


def test_slack_is_filled_with_prompts_that_fit_whole() -> None:
    engine = Engine(token_budget=64)  # and 4 more
    sizes: list[list[int]] = []
    engine.runner.watch = lambda batch: sizes.append([row.num_tokens for row in batch.rows])
    for seq, num_tokens in enumerate((62, 3, 3, 3)):
        engine.add(seq, forced(*[seq] * num_tokens), greedy(1))
    engine.run()
    assert sizes == [[62, 3, 3], [3]]


def test_next_forced_run_is_extended_in_the_very_next_step() -> None:
    engine = Engine()
    batches: list[list[Row]] = []
    engine.runner.watch = lambda batch: batches.append(batch.rows)
    engine.add(1, forced(*PROMPT), greedy(2), forced(7, 8), greedy(1))
    engine.run()
    assert [(row.start, row.num_tokens) for rows in batches for row in rows] == [(0, 50), (50, 1), (51, 3)]


def test_shared_prefix_in_one_wave_is_computed_once() -> None:
    engine = Engine(token_budget=40)
    for seq in range(8):
        engine.add(seq, forced(*PROMPT, seq), greedy(1))
    engine.run()
    assert engine.scheduler.stats.prefill_computed == 50 + 8


def test_another_takes_over_when_the_first_of_a_wave_is_aborted() -> None:
    engine = Engine(token_budget=8)
    for seq in range(4):
        engine.add(seq, forced(*PROMPT, seq), greedy(3))
    engine.steps(2)
    engine.scheduler.abort([0])
    engine.run()
    assert [engine.ids(seq, 1) for seq in (1, 2, 3)] == [alone((*PROMPT, seq), 3) for seq in (1, 2, 3)]
    assert engine.scheduler.stats.prefill_computed <= 50 + 4


def test_second_request_takes_the_prefix_from_the_tree() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(3))
    engine.run()
    engine.add(2, forced(*PROMPT), greedy(3))
    engine.run()
    update = engine.done(2, 0)
    assert (update.prefill_cached, update.prefill_computed, update.cached_len) == (49, 1, 49)
    assert engine.ids(2, 1) == engine.ids(1, 1)


def test_fork_copies_no_kv() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT))
    engine.run()
    before = engine.scheduler.stats.prefill_computed
    for seq in range(2, 7):
        engine.add(seq, forced(seq), greedy(1), parent=1, after=1)
    engine.run()
    assert engine.scheduler.stats.prefill_computed - before == 5


def test_children_opened_before_the_parent_got_there_are_the_same() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(4))
    engine.add(2, greedy(3), parent=1, after=2)
    engine.add(3, forced(5), greedy(3), parent=2, after=1)
    engine.scheduler.close(1)
    engine.run()
    grown = PROMPT + tuple(alone(PROMPT, 4))
    assert engine.ids(2, 0) == alone(grown, 3)
    assert engine.ids(3, 1) == alone((*grown, *alone(grown, 3), 5), 3)
    assert list(engine.scheduler.seqs) == [2, 3]


def test_children_of_an_aborted_parent_fail() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(4))
    engine.add(2, greedy(3), parent=1, after=2)
    engine.scheduler.abort([1])
    engine.run()
    engine.add(3, parent=1, after=0)
    engine.run()
    assert (engine.error(2), engine.error(3)) == ("Aborted", "Aborted")
    assert not engine.scheduler.seqs


def test_scores_come_back_across_chunks_and_cached_prefixes() -> None:
    engine = Engine(token_budget=8)
    engine.add(1, forced(*PROMPT))
    engine.run()
    engine.add(2, forced(*PROMPT, score_from=0, top=1))
    engine.run()
    engine.add(3, forced(4, 5, score_from=0), parent=1, after=1)
    engine.run()
    scores, expected = engine.done(2, 0).scores, run_segment([], forced(*PROMPT, score_from=0), 400, 999).logprobs
    assert scores is not None
    assert scores.logprobs == expected
    assert scores.logprobs[0] is None
    assert [len(top) for top in scores.top] == [0] + [1] * 49
    tail = engine.done(3, 0).scores
    assert tail is not None
    assert tail.logprobs == run_segment(list(PROMPT), forced(4, 5, score_from=0), 400, 999).logprobs


@pytest.mark.parametrize("overlap", [False, True])
def test_retraction_does_not_change_greedy_output(overlap: bool) -> None:
    engine = Engine(num_slots=96, overlap=overlap)
    engine.scheduler.room.ratio = 0.0
    for seq in range(4):
        engine.add(seq, forced(*PROMPT[:5], seq), greedy(60, stream=True))
    engine.run()
    assert engine.scheduler.stats.retractions > 0
    for seq in range(4):
        assert engine.ids(seq, 1) == alone((*PROMPT[:5], seq), 60)


def test_retracted_stop_strings_and_grammars_go_on_where_they_were() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(30, size=12, ignore_eos=False))
    engine.steps(3)
    engine.scheduler._retract(engine.scheduler.seqs[1])
    engine.run()
    expected = run_segment(list(PROMPT), greedy(30, size=12, ignore_eos=False), 400, 999)
    assert (engine.ids(1, 1), engine.done(1, 1).complete) == (expected.ids, expected.complete)


def test_never_fits_is_refused_at_the_door() -> None:
    engine = Engine(num_slots=64)
    engine.add(1, forced(*PROMPT), greedy(16))
    engine.run()
    assert engine.error(1) == "OutOfMemory"
    assert engine.runner.num_computed == 0


def test_context_plus_one_is_refused() -> None:
    engine = Engine(context_length=60)
    engine.add(1, forced(*PROMPT), greedy(11))
    engine.add(2, forced(*PROMPT), greedy("fit"))
    engine.run()
    assert engine.error(1) == "RequestTooLong"
    assert engine.done(2, 1).finish.length == 10  # type: ignore[union-attr]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("steps", range(6))
def test_abort_half_a_chunk_frees_everything(overlap: bool, steps: int) -> None:
    engine = Engine(token_budget=20, overlap=overlap)
    engine.add(1, forced(*PROMPT), greedy(9))
    engine.steps(steps)
    engine.scheduler.abort([1])
    engine.run()
    pool = engine.scheduler.pool
    assert pool.num_free + engine.scheduler.tree.num_evictable == pool.num_slots
    assert pool.num_free_rows == pool.num_rows
    assert not any(update.done for update in engine.updates if update.segment == 1)


def test_parked_sequence_holds_nothing_and_goes_on() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(4))
    engine.run()
    seq = engine.scheduler.seqs[1]
    assert (seq.state, seq.row, len(seq.slots)) == (SeqState.PARKED, -1, 0)
    engine.scheduler.tree.evict(20)  # under pressure its path goes too: it is computed again
    engine.scheduler.extend(1, 2, 0, [forced(3), greedy(4)])
    engine.run()
    assert engine.ids(1, 3) == alone((*PROMPT, *alone(PROMPT, 4), 3), 4)


def test_parked_kv_is_not_computed_again() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(4))
    engine.run()
    engine.scheduler.extend(1, 2, 0, [forced(3), greedy(1)])
    engine.run()
    assert engine.done(1, 2).prefill_computed == 2  # the last drawn token and the new one


def test_stop_inside_a_token_drops_the_queue_and_waits_for_it_anew() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(200, stop=("b",)), forced(1), greedy(1))
    engine.scheduler.close(1)
    engine.run()
    kept = [2, 18, 19, 10, 18]  # then token 16, b"cab"
    assert (engine.done(1, 1).tail, engine.ids(1, 1)) == (b"ca", kept)
    assert engine.scheduler.seqs[1].awaits_resend
    engine.scheduler.extend(1, 2, 0, [forced(9)])  # of the old generation: ignored
    engine.scheduler.extend(1, 2, 1, [forced(2), greedy(1)])
    engine.run()
    assert engine.ids(1, 3) == alone((*PROMPT, *kept, 2), 1)
    assert not engine.scheduler.seqs


def test_max_tokens_zero_with_logprobs_computes_one_draw_and_throws_it_away() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(0, return_logprob=True, top_logprobs_num=1), greedy(2))
    engine.run()
    update = engine.done(1, 1)
    assert unpack_ids(update.ids) == []
    assert update.scores is not None
    assert (update.scores.logprobs, len(update.scores.top)) == ([], 1)
    assert engine.ids(1, 2) == alone(PROMPT, 2)


def test_max_tokens_zero_computes_nothing() -> None:
    engine = Engine()
    engine.add(1, greedy(0))
    engine.run()
    assert engine.done(1, 0).finish.type == "length"  # type: ignore[union-attr]
    assert engine.runner.num_computed == 0


def test_a_grammar_that_does_not_compile_ends_one_request() -> None:
    engine = Engine()
    bad = greedy(3, size=1)
    bad = type(bad)(params=bad.params, grammar=type(bad.grammar)(kind="regex", text="bad"))  # type: ignore[misc]
    engine.add(1, forced(*PROMPT), bad)
    engine.add(2, forced(*PROMPT), greedy(3))
    engine.run()
    assert engine.error(1) == "EngineError"
    assert engine.ids(2, 1) == alone(PROMPT, 3)


@pytest.mark.parametrize("overlap", [False, True])
def test_nan_row_spares_neighbours_and_is_not_cached(overlap: bool) -> None:
    engine = Engine(overlap=overlap)
    engine.runner.fault = lambda row: row.row == 0 and row.start > 50
    engine.add(1, forced(*PROMPT), greedy(9))
    engine.add(2, forced(*PROMPT[:9]), greedy(9))
    engine.run()
    assert engine.error(1) == "NumericalError"
    assert engine.ids(2, 1) == alone(PROMPT[:9], 9)


def test_step_out_of_memory_shrinks_the_budget_which_recovers() -> None:
    engine = Engine(token_budget=64)
    engine.runner.launch_fault = lambda batch: batch.num_tokens > 20
    engine.add(1, forced(*PROMPT), greedy(150))
    engine.steps(2)
    assert engine.scheduler.budget.now == 12
    engine.run()
    assert engine.ids(1, 1) == alone(PROMPT, 150)
    assert engine.scheduler.budget.now == 64


def test_a_token_that_never_fits_ends_its_request_only() -> None:
    engine = Engine()
    fails = [True]

    def fault(batch: Batch) -> bool:
        return fails[0] and any(row.history[0] == 9 for row in batch.rows)

    engine.runner.launch_fault = fault
    engine.add(1, forced(9, 1, 2), greedy(2))
    engine.add(2, forced(*PROMPT), greedy(2))
    engine.run()
    assert engine.error(1) == "OutOfMemory"
    assert engine.ids(2, 1) == alone(PROMPT, 2)


def test_one_emit_per_step_and_streams_only_where_asked() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(5, stream=True))
    engine.add(2, forced(*PROMPT, 1), greedy(5))
    engine.run()
    assert len([u for u in engine.updates if (u.seq, u.segment) == (1, 1)]) == 5
    assert len([u for u in engine.updates if (u.seq, u.segment) == (2, 1)]) == 1


def test_slots_are_granted_sixteen_ahead() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(100))
    engine.steps(2)
    assert len(engine.scheduler.seqs[1].slots) >= 50 + 16
    sent: list[int] = []
    engine.runner.watch = lambda batch: sent.append(len(batch.rows[0].slots))
    engine.steps(16)
    assert sum(map(bool, sent)) <= 1


def test_flush_drops_what_nobody_holds() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(1))
    engine.run()
    assert engine.scheduler.flush_cache() == 50
    assert engine.scheduler.snapshot()["slots_free"] == 256


def test_nothing_is_cached_with_the_cache_off() -> None:
    engine = Engine(disable_radix_cache=True)
    for seq in (1, 2):
        engine.add(seq, forced(*PROMPT), greedy(3), forced(1), greedy(2))
    engine.run()
    assert engine.scheduler.tree.num_tokens == 0
    assert engine.ids(1, 3) == engine.ids(2, 3) == alone((*PROMPT, *alone(PROMPT, 3), 1), 2)


def test_more_rows_than_budget_take_turns() -> None:
    engine = Engine(token_budget=2, max_running=8)
    for seq in range(8):
        engine.add(seq, forced(seq, 1), greedy(10))
    engine.run()
    assert all(engine.ids(seq, 1) == alone((seq, 1), 10) for seq in range(8))


def test_close_waits_for_the_queue() -> None:
    engine = Engine()
    engine.add(1, forced(*PROMPT), greedy(3))
    engine.scheduler.close(1)
    engine.run()
    assert engine.done(1, 1).finish is not None
    assert not engine.scheduler.seqs


def test_empty_forced_runs_cost_no_step() -> None:
    engine = Engine()
    engine.add(1, forced())
    assert engine.scheduler.step() is False
    assert engine.done(1, 0).done
    assert engine.runner.num_computed == 0


def test_times_come_from_the_given_clock() -> None:
    engine = Engine(token_budget=25)
    engine.add(1, forced(*PROMPT), greedy(2))
    for now in (1.0, 2.0, 3.0):
        engine.now = now
        engine.steps(1)
    update = engine.done(1, 1)
    assert (update.queued_s, update.ttft_s, update.e2e_s) == (1.0, 2.0, 3.0)


def test_who_loses_least_is_retracted_first() -> None:
    engine = Engine(num_slots=1000, token_budget=256)
    engine.add(1, forced(1), greedy(100))  # the oldest: has least, but goes on
    engine.add(2, forced(*PROMPT, 2), greedy(100))
    engine.add(3, forced(3, *PROMPT[:29]), greedy(100))
    engine.add(4, forced(4, *PROMPT[:19]), greedy(100))
    engine.add(5, forced(3, *PROMPT[:29], 3, 3), greedy(100))
    engine.steps(3)
    scheduler = engine.scheduler
    order = []
    while scheduler.running:
        victim = scheduler._victim()
        order.append(victim.id)
        scheduler._retract(victim)
    assert order == [3, 4, 5, 2, 1]  # thirty tokens of sequence 3 stay for 5, and are lost with 5


def test_of_those_that_lose_as_much_the_newest_is_retracted() -> None:
    engine = Engine()
    for seq in (1, 2, 3, 4):
        engine.add(seq, forced(seq, 1, 2), greedy(50))
    engine.steps(3)
    assert engine.scheduler._victim().id == 4
    engine.scheduler.seqs[4].has_gained = False
    assert engine.scheduler._victim().id == 3


@pytest.mark.parametrize("overlap", [False, True])
def test_the_oldest_is_never_retracted_and_all_end(overlap: bool) -> None:
    engine = Engine(num_slots=96, overlap=overlap)
    scheduler = engine.scheduler
    scheduler.room.ratio = 0.0
    retract, retracted = scheduler._retract, []

    def noting(seq: Sequence) -> None:
        assert len(scheduler.running) == 1 or seq.arrival > min(other.arrival for other in scheduler.running.values())
        retracted.append(seq.id)
        retract(seq)

    scheduler._retract = noting  # type: ignore[method-assign]
    for seq, length in enumerate((5, 30, 12, 20)):
        engine.add(seq, forced(seq, *PROMPT[:length]), greedy(50))
    engine.run()
    assert retracted
    assert 0 not in retracted
    for seq, length in enumerate((5, 30, 12, 20)):
        assert engine.ids(seq, 1) == alone((seq, *PROMPT[:length]), 50)
