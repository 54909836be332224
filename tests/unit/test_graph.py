"""The graph in `front`: what goes to the worker, and what comes back to whom."""

from __future__ import annotations

import random

import pytest

from nbsgl import errors
from nbsgl.engine.graph import GraphRunner
from nbsgl.engine.segments import AbortSeqs, CloseSeq, Extend, Open
from nbsgl.protocol import (
    Append,
    BranchFailed,
    Choose,
    Close,
    Fork,
    Gen,
    GenDone,
    GrammarSpec,
    Root,
    SamplingParams,
    Select,
    SelectDone,
    Text,
    Tokens,
    pack_ids,
    unpack_ids,
)
from tests.unit.graph_fakes import EOS, TOKENS, ByteCodec, FakeWorker


def scripted(text: str):
    """A model that spells `text`, then ends; its place in the text is the index in the run."""
    ids = [*text.encode(), EOS]
    return lambda tokens, idx, seed: ids[idx]


class World:
    """A graph with a fake worker behind it; `events` is everything told, in order."""

    def __init__(self, draw, context_length: int = 1000, codec=True) -> None:
        self.worker = FakeWorker(draw)
        self.events: list[object] = []
        self.graph = GraphRunner(
            ByteCodec() if codec else None,  # type: ignore[arg-type]
            send=self.worker.send,
            emit=lambda client, run, events: self.events.extend(events),
            context_length=context_length,
            vocab_size=len(TOKENS),
            rng=random.Random(0),
        )
        self.worker.on_updates = self.graph.on_updates

    def submit(self, *nodes) -> None:
        self.graph.submit("client", 1, nodes)

    def run(self, steps: int = 500) -> list[object]:
        for _ in range(steps):
            if not self.worker.step():
                break
        return self.events

    def results(self) -> dict[int, str]:
        return {e.slot: e.results[0].text for e in self.events if isinstance(e, GenDone)}


def gen(branch: int, slot: int, **params) -> Gen:
    return Gen(branch=branch, slot=slot, params=SamplingParams(**params))


def test_text_cut_in_pieces_is_encoded_as_one_run() -> None:
    world = World(scripted("x"))
    world.submit(Root(branch=0), Text(branch=0, text="Hel"), Text(branch=0, text="lo"), Text(branch=0, text=" world"))
    world.submit(gen(0, 0))
    world.run()
    assert world.worker.forced == [[TOKENS.index(b"Hello"), TOKENS.index(b" world")]]
    assert world.results() == {0: "x"}


def test_eight_gens_are_one_message_each_without_waiting() -> None:
    """Nothing waits for an answer: all segments are with the worker before its first step."""
    world = World(scripted("yes"))
    nodes = [Root(branch=0)]
    for i in range(8):
        nodes += [Text(branch=0, text=f"Q{i}:"), gen(0, i)]
    world.submit(*nodes)
    segments = [s for m in world.worker.log if isinstance(m, Extend) for s in m.segments]
    assert len(segments) == 16
    world.run()
    assert world.results() == dict.fromkeys(range(8), "yes")


def test_stop_inside_a_token_begins_the_next_run() -> None:
    """The model draws `b\\n`; the stop is the newline: `b` is kept as text and encoded with what follows."""
    ids = [ord("x"), TOKENS.index(b"b\n")]
    world = World(lambda tokens, idx, seed: ids[idx] if idx < 2 else EOS)
    world.submit(Root(branch=0), Text(branch=0, text="go"), gen(0, 0, stop=("\n",)))
    world.submit(Text(branch=0, text="!"), gen(0, 1, max_tokens=1))
    world.run()
    assert world.results() == {0: "xb", 1: "x"}
    assert world.worker.forced == [list(b"go"), list(b"b!")]


def test_tail_merges_with_the_text_after_it() -> None:
    """`a` is left of a cut token and the program goes on with `b`: together they are the token `ab`."""
    TOKENS.append(b"a\n")
    try:
        world = World(lambda tokens, idx, seed: len(TOKENS) - 1)
        world.submit(Root(branch=0), Text(branch=0, text="go"), gen(0, 0, stop=("\n",)))
        world.run()
        world.submit(Text(branch=0, text="b"), gen(0, 1, max_tokens=1))
        world.run()
        assert world.worker.forced[-1] == [TOKENS.index(b"ab")]
    finally:
        TOKENS.pop()


def test_fork_inside_an_open_run_gives_each_child_the_whole_run() -> None:
    world = World(scripted("ok"))
    world.submit(Root(branch=0), Text(branch=0, text="Hel"), Fork(branch=1, parent=0), Fork(branch=2, parent=0))
    world.submit(Text(branch=1, text="lo"), gen(1, 1), Text(branch=2, text="p"), gen(2, 2), gen(0, 0))
    world.run()
    assert world.results() == {0: "ok", 1: "ok", 2: "ok"}
    assert sorted(world.worker.forced) == sorted([[TOKENS.index(b"Hello")], list(b"Help"), list(b"Hel")])


def test_fork_after_a_gen_starts_from_its_tokens_without_waiting() -> None:
    world = World(scripted("ok"))
    world.submit(Root(branch=0), Text(branch=0, text="a:"), gen(0, 0), Fork(branch=1, parent=0))
    world.submit(Text(branch=1, text="?"), gen(1, 1))
    opens = [m for m in world.worker.log if isinstance(m, Open)]
    assert [(o.parent, o.after) for o in opens] == [(None, 0), (opens[0].seq, 2)]
    world.run()
    child = world.worker.seqs[opens[1].seq]
    assert bytes(child.tokens) == b"a:ok?ok"


def test_fork_after_a_run_that_may_be_cut_waits_for_it() -> None:
    ids = [ord("x"), TOKENS.index(b"b\n")]
    world = World(lambda tokens, idx, seed: ids[idx] if idx < 2 else EOS)
    world.submit(Root(branch=0), Text(branch=0, text="go"), gen(0, 0, stop=("\n",)), Fork(branch=1, parent=0))
    world.submit(Text(branch=1, text="!"), gen(1, 1, max_tokens=1))
    world.run()
    assert world.worker.forced[-1] == list(b"b!")


def test_select_scores_from_where_the_choice_differs_and_leaves_the_run_open() -> None:
    world = World(scripted("."))
    world.submit(Root(branch=0), Text(branch=0, text="say a"), Select(branch=0, slot=0, choices=("b", "c")))
    world.submit(Text(branch=0, text="!"), gen(0, 1))
    world.run()
    done = next(e for e in world.events if isinstance(e, SelectDone))
    # "say ab" encodes as `say ` + `ab`: the choice merged with the text before it, so `ab` is what is scored
    assert [[token for _, token, _ in row] for row in done.token_logprobs] == [[TOKENS.index(b"ab")], [ord("c")]]
    winner = ("b", "c")[done.index]
    assert world.worker.forced[-1] == ByteCodec().encode_run([("say a" + winner + "!", False)], is_first=True)


def test_unconditional_scores_come_from_the_tokens_alone() -> None:
    world = World(scripted("."))
    node = Select(
        branch=0, slot=0, choices=("xy", "z"), method="unconditional_likelihood_normalized", needs_unconditional=True
    )
    world.submit(Root(branch=0), Text(branch=0, text="q:"), node)
    world.run()
    done = next(e for e in world.events if isinstance(e, SelectDone))
    assert done.unconditional is not None
    assert [[lp for lp, _, _ in row] for row in done.unconditional] == [[None, -float(ord("y") % 7)], [None]]


def test_asked_select_waits_for_the_choice() -> None:
    world = World(scripted("."))
    world.submit(Root(branch=0), Text(branch=0, text="q:"), Select(branch=0, slot=0, choices=("x", "y"), method="ask"))
    world.submit(Text(branch=0, text="!"), gen(0, 1))
    world.run()
    assert [type(e).__name__ for e in world.events] == ["SelectDone"]
    world.submit(Choose(branch=0, slot=0, index=1))
    world.run()
    assert world.worker.forced[-1] == list(b"q:y!")


def test_append_takes_the_drawn_tokens_as_they_are() -> None:
    """Child 1's `b\\n` stays one token in the parent, though the text around it is encoded anew."""
    world = World(lambda tokens, idx, seed: TOKENS.index(b"b\n") if idx == 0 else EOS)
    world.submit(Root(branch=0), Text(branch=0, text="P"), Fork(branch=1, parent=0), Fork(branch=2, parent=0))
    world.submit(Text(branch=1, text="1"), gen(1, 1), Text(branch=2, text="2"), gen(2, 2))
    world.submit(Append(branch=0, source=1), Append(branch=0, source=2), Text(branch=0, text="."), gen(0, 0))
    world.run()
    merged = TOKENS.index(b"b\n")
    whole = [*b"P1", merged, *b"2", merged, *b".", merged]
    assert whole in [seq.tokens for seq in world.worker.seqs.values()]


def test_n_samples_fork_after_the_prompt_with_seeds_of_their_own() -> None:
    world = World(lambda tokens, idx, seed: 65 + seed % 26 if idx == 0 else EOS)
    world.submit(Root(branch=0), Text(branch=0, text="q"), gen(0, 0, n=3, seed=1), Text(branch=0, text="."), gen(0, 1))
    world.run()
    done = next(e for e in world.events if isinstance(e, GenDone) and e.slot == 0)
    assert len(done.results) == 3
    assert done.results[0].seed == 1
    assert len({r.seed for r in done.results}) == 3


def test_prompt_logprobs_come_with_the_result() -> None:
    world = World(scripted("ok"))
    world.submit(Root(branch=0), Text(branch=0, text="abc"), gen(0, 0, return_logprob=True, logprob_start_len=0))
    world.run()
    result = next(e for e in world.events if isinstance(e, GenDone)).results[0]
    assert result.input_logprobs is not None
    assert [(lp, t) for lp, t, _ in result.input_logprobs.tokens] == [(None, TOKENS.index(b"ab")), (-1.0, ord("c"))]


def test_too_long_is_an_error_before_anything_runs() -> None:
    world = World(scripted("x"), context_length=10)
    world.submit(Root(branch=0), Text(branch=0, text="123456"), gen(0, 0, max_tokens=5))
    assert not [m for m in world.worker.log if isinstance(m, Extend)]
    failed = world.events[0]
    assert isinstance(failed, BranchFailed)
    error = errors.decode(failed.error)
    assert isinstance(error, errors.RequestTooLong)
    assert (error.prompt_len, error.max_tokens, error.limit) == (6, 5, 10)
    assert "max_tokens=4" in error.hint


def test_a_prompt_over_the_context_names_its_longest_part() -> None:
    world = World(scripted("x"), context_length=1000)
    world.submit(
        Root(branch=0), Text(branch=0, text="short"), Text(branch=0, text="long " * 900), gen(0, 0, max_tokens=1)
    )
    failed = world.events[0]
    assert isinstance(failed, BranchFailed)
    text = str(errors.decode(failed.error))
    assert "A prompt of 4,505 tokens + max_tokens=1 exceeds the context of 1,000." in text
    assert "'long long long long long' (4,500 characters)" in text


def test_a_failed_branch_fails_its_heirs_and_spares_its_siblings() -> None:
    world = World(scripted("ok"))
    world.submit(Root(branch=0), Text(branch=0, text="p"), Fork(branch=1, parent=0), Fork(branch=2, parent=0))
    world.submit(Tokens(branch=1, ids=pack_ids([9999])), gen(1, 1), Fork(branch=3, parent=1), gen(3, 3))
    world.submit(Text(branch=2, text="x"), gen(2, 2), Append(branch=0, source=1), gen(0, 0))
    world.run()
    failed = {e.branch for e in world.events if isinstance(e, BranchFailed)}
    assert failed == {0, 1, 3}
    assert world.results() == {2: "ok"}


def test_nodes_for_a_failed_branch_answer_with_its_error() -> None:
    world = World(scripted("ok"))
    world.submit(Root(branch=0), Tokens(branch=0, ids=pack_ids([9999])))
    world.submit(gen(0, 7))
    assert [(e.slot) for e in world.events if isinstance(e, BranchFailed)] == [-1, 7]


def test_abort_ends_what_runs_and_leaves_what_is_idle() -> None:
    world = World(lambda tokens, idx, seed: 65)
    world.submit(Root(branch=0), Text(branch=0, text="a"), gen(0, 0, max_tokens=2), Root(branch=1))
    world.run()
    world.submit(Text(branch=1, text="b"), gen(1, 1, max_tokens=999))
    world.worker.step()
    world.graph.abort("client", 1, None, "the stop button")
    last = world.events[-1]
    assert isinstance(last, BranchFailed)
    assert last.branch == 1
    assert str(errors.decode(last.error)) == "Aborted by the stop button."
    assert world.graph.num_unfinished == 0
    world.submit(Text(branch=0, text="."), gen(0, 2, max_tokens=1))
    world.run()
    assert world.results()[2] == "A"


def test_a_fork_that_is_given_up_before_it_is_born_leaves_its_parent_going() -> None:
    world = World(scripted("ok\n"))
    world.submit(Root(branch=0), Text(branch=0, text="a"), gen(0, 0, stop=("\n",)))
    world.submit(Fork(branch=1, parent=0), Text(branch=1, text="!"), gen(1, 1), gen(0, 2, max_tokens=1))
    world.worker.step()
    world.graph.abort("client", 1, [1], "nobody")
    world.submit(Close(branch=1))
    world.run()
    assert world.results() == {0: "ok", 2: "o"}
    assert list(world.graph._runs["client", 1].branches) == [0]


def test_closed_branch_is_forgotten_when_done() -> None:
    world = World(scripted("ok"))
    world.submit(Root(branch=0), Text(branch=0, text="a"), gen(0, 0), Close(branch=0))
    world.run()
    assert isinstance(world.worker.log[-1], CloseSeq)
    assert not world.graph._runs


def test_idle_branch_goes_on_after_the_worker_died() -> None:
    world = World(scripted("ok"))
    world.submit(Root(branch=0), Text(branch=0, text="a"), gen(0, 0), Root(branch=1))
    world.run()
    world.submit(Text(branch=1, text="b"), gen(1, 1))
    world.graph.worker_died(errors.EngineDied(process="worker", phase="decode", lost=1))
    assert [e.branch for e in world.events if isinstance(e, BranchFailed)] == [1]
    world.worker.seqs.clear()
    world.submit(Text(branch=0, text="!"), gen(0, 2), Fork(branch=2, parent=0), gen(2, 3))
    world.run()
    assert world.results() == {0: "ok", 2: "ok", 3: "ok"}
    assert list(b"aok") in world.worker.forced


def test_close_run_frees_the_worker_and_tells_nothing() -> None:
    world = World(lambda tokens, idx, seed: 65)
    world.submit(Root(branch=0), Text(branch=0, text="a"), gen(0, 0))
    world.worker.step()
    world.graph.drop_client("client")
    assert isinstance(world.worker.log[-1], AbortSeqs)
    assert not world.worker.seqs
    assert world.events == []


def test_without_a_tokenizer_tokens_work_and_text_is_refused() -> None:
    world = World(scripted("A"), codec=False)
    world.submit(Root(branch=0), Tokens(branch=0, ids=pack_ids([1, 2])), gen(0, 0))
    world.run()
    done = next(e for e in world.events if isinstance(e, GenDone))
    assert (done.results[0].text, unpack_ids(done.results[0].ids)) == ("", [65])
    world.submit(Root(branch=1), Text(branch=1, text="x"), gen(1, 1))
    assert isinstance(world.events[-1], BranchFailed)


def test_special_stop_string_becomes_a_stop_id() -> None:
    world = World(scripted("ok"))
    world.submit(Root(branch=0), Text(branch=0, text="a"), gen(0, 0, stop=("<e>", "x")))
    params = next(m for m in world.worker.log if isinstance(m, Extend)).segments[-1].params
    assert (params.stop, params.stop_token_ids) == (("x",), (EOS,))


def test_a_tokenizer_whose_bytes_are_wrong_is_refused_for_grammars_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByteCodec, "misspelt", "é")
    world = World(scripted("ok"))
    spec = GrammarSpec(kind="regex", text="a")
    world.submit(Root(branch=0), Text(branch=0, text="a"), gen(0, 0))
    world.submit(Root(branch=1), Text(branch=1, text="a"), Gen(branch=1, slot=1, params=SamplingParams(), grammar=spec))
    world.run()
    assert world.results() == {0: "ok"}
    failed = next(event for event in world.events if isinstance(event, BranchFailed))
    assert isinstance(errors.decode(failed.error), errors.Unsupported)
    assert "'é'" in str(errors.decode(failed.error))


@pytest.mark.parametrize(
    "node", [gen(5, 0), Text(branch=5, text="x"), Fork(branch=6, parent=5), Append(branch=5, source=1)]
)
def test_unknown_branch_is_an_error_of_that_node_alone(node) -> None:
    world = World(scripted("ok"))
    world.submit(node, Root(branch=0), Text(branch=0, text="a"), gen(0, 1))
    world.run()
    assert isinstance(world.events[0], BranchFailed)
    assert world.results() == {1: "ok"}
