"""Each pass changes no greedy output: programs drawn by seed answer the same with it and without it."""

from __future__ import annotations

import hashlib
import random

import pytest

import nbsgl as sgl
from nbsgl.errors import ParameterError, ProgramError, StateFailed, TraceError
from nbsgl.lang.ir import Watch
from nbsgl.lang.optimize import PASSES, _content, optimized
from nbsgl.lang.program_graph import GraphNode, Op
from nbsgl.protocol import Close, Fork, Gen
from tests.unit import programs
from tests.unit.fakes import FakeBackend


def by_history(prompt, node):
    """An answer that depends on the whole history and on the parameters, as greedy decoding does."""
    said = hashlib.blake2b(f"{prompt}|{node.params.max_tokens}".encode(), digest_size=3).hexdigest()
    return f"<{said}>"


def by_history_scores(prompt, choice):
    return [-float(int(hashlib.blake2b((prompt + choice).encode(), digest_size=2).hexdigest(), 16))]


@pytest.fixture
def backend():
    fake = FakeBackend(by_history, scores=by_history_scores)
    yield fake
    fake.close()


@sgl.function
def tea(s):
    s += "Do you like tea? " + sgl.gen("first_word", max_tokens=1, choices=["Yes", "No"])
    if s["first_word"] == "Yes":
        s += sgl.gen("more")


# ---- programs drawn by seed ------------------------------------------------------------------------------------------


class Drawn:
    """A body whose steps are drawn once, from a seed, and then are the same in every run."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.steps = self._block(rng, depth=0)
        self.num_forks = 0

    def _block(self, rng, depth):
        kinds = ["text", "text", "arg", "gen", "gen", "select", "chat", "scope", "set", "read", "tell"]
        kinds += ["fork"] * (2 if depth < 2 else 0)
        steps = []
        for _ in range(rng.randint(3, 7)):
            kind = rng.choice(kinds)
            extra = None
            if kind == "fork":
                blocks = [self._block(rng, depth + 1) for _ in range(rng.randint(1, 3))]
                if rng.random() < 0.5:
                    blocks = [blocks[0]] * len(blocks)
                extra = (blocks, rng.choice(["gather_variable", "gather_variable", "concate_and_append", None]))
            steps.append((kind, rng.randrange(10_000), extra))
        return steps

    def __call__(self, s, x, y):
        return self._grow(s, self.steps, x, y)

    def _grow(self, s, steps, x, y):
        read = "" + x
        for kind, n, extra in steps:
            name = f"v{n % 5}"
            if kind == "text":
                s += f"text {n}. "
            elif kind == "arg":
                s += f"({x if n % 2 else y})"
            elif kind == "gen":
                s += "ask " + sgl.gen(name, max_tokens=8 + n % 2, temperature=0)
            elif kind == "select":
                s += sgl.select(name, choices=["a", "bb", "ccc"])
            elif kind == "chat":
                s += sgl.user(f"u{n}" + x) + sgl.assistant(sgl.gen(name, temperature=0))
            elif kind == "scope":
                with s.var_scope(f"scope{n % 3}"):
                    s += f"in {n}: " + sgl.gen(name, temperature=0)
            elif kind == "set":
                s["kept"] = f"const{n}"
            elif kind == "read" and name in s and not isinstance(s[name], list):
                read = s[name]
                s += "read " + read
            elif kind == "tell":
                s += s.text() if n % 3 == 0 else f"[{y}]"
            elif kind == "fork":
                self._fork(s, *extra, x, y)
        return [read]

    def _fork(self, s, blocks, mode, x, y):
        forks = s.fork(len(blocks))
        for f, steps in zip(forks, blocks, strict=True):
            self._grow(f, steps, x, y)
        if mode is not None:
            forks.join(mode)


def outcome(state):
    names = sorted(name for name in state.branch.bindings if name is not None)
    return state.text(), {name: state[name] for name in names}, state.ret_value, state.messages()


def num_sent(backend):
    """Submissions that ask for something: a branch nobody can reach any more is closed whenever that is noticed."""
    return sum(not all(isinstance(node, Close) for node in nodes) for nodes in backend.submissions)


ARGUMENTS = {"x": "one", "y": "two {}"}


@pytest.mark.parametrize("passes", [*([name] for name in PASSES), "default", "default+share", "none"], ids=str)
def test_a_pass_changes_no_greedy_output(backend, passes) -> None:
    for seed in range(40):
        program = sgl.function(as_function(Drawn(seed)))
        plain = outcome(program.run(**ARGUMENTS, seed=1, backend=backend))
        compiled = program.compile(passes=passes)
        assert outcome(compiled.run(**ARGUMENTS, seed=1, backend=backend)) == plain, f"seed {seed}"


def as_function(drawn):
    def drawn_program(s, x, y):
        return drawn(s, x, y)

    return drawn_program


@pytest.mark.parametrize("passes", ["default", "default+share"])
def test_declared_outputs_stay_the_same_when_the_rest_is_dropped(backend, passes) -> None:
    dropped = 0
    for seed in range(40):
        program = sgl.function(as_function(Drawn(seed)))
        plain = program.run(**ARGUMENTS, backend=backend)
        names = [name for name in plain.branch.bindings if name is not None and name.startswith("v")][:1]
        compiled = program.compile(passes=passes, outputs=names)
        state = compiled.run(**ARGUMENTS, backend=backend)
        assert [state[name] for name in names] == [plain[name] for name in names], f"seed {seed}"
        dropped += "dropped" in next(n.text for n in compiled.graph.notes if n.pass_name.startswith("P3"))
    assert dropped > 5


def test_a_compiled_run_sends_at_most_what_the_plain_one_does(backend) -> None:
    for seed in range(40):
        program = sgl.function(as_function(Drawn(seed)))
        compiled = program.compile()
        counts = []
        for one in (program, compiled):
            before = num_sent(backend)
            one.run(**ARGUMENTS, backend=backend).sync()
            counts.append(num_sent(backend) - before)
        assert counts[1] <= counts[0], f"seed {seed}"
        assert counts[1] <= compiled.graph.num_submissions, f"seed {seed}"


def test_passes_leave_their_graph_as_it_was() -> None:
    graph = sgl.function(as_function(Drawn(3))).trace().graph
    nodes = graph.nodes
    optimized(graph, "default+share")
    assert graph.nodes is nodes
    assert graph.notes == ()


# ---- P1 --------------------------------------------------------------------------------------------------------------


def test_neighbouring_constants_become_one_with_roles_and_scopes_as_offsets(backend) -> None:
    @sgl.function
    def body(s):
        s += "a"
        s += "b"
        with s.user(), s.var_scope("said"):
            s += "cd"
        s += "e"
        s += sgl.gen("x", temperature=0) + "f" + "g"

    compiled = body.compile(passes=["merge"])
    consts = [node for node in compiled.graph.nodes if node.op is Op.CONST]
    assert [node.text for node in consts] == ["abcde", "fg"]
    assert [(mark.at, mark.node.op) for mark in consts[0].marks] == [
        (2, Op.ROLE_BEGIN),
        (2, Op.SCOPE_BEGIN),
        (4, Op.SCOPE_END),
        (4, Op.ROLE_END),
    ]
    state = compiled.run(backend=backend)
    assert state["said"] == "cd"
    assert state.text() == body.run(backend=backend).text()


def test_constants_on_both_sides_of_a_fork_stay_apart() -> None:
    @sgl.function
    def body(s):
        s += "a"
        f = s.fork(1)[0]
        s += "b"
        f += "c"

    graph = optimized(body.trace().graph, ["merge"])
    assert [node.text for node in graph.nodes if node.op is Op.CONST] == ["a", "b", "c"]


# ---- P2 --------------------------------------------------------------------------------------------------------------


def test_the_shared_prefix_is_reported_and_adds_nothing() -> None:
    graph = programs.judge.trace(strict=False).graph
    after = optimized(graph, ["prefix"])
    assert after.nodes == graph.nodes
    assert "for 4 branches" in after.notes[0].text
    assert "19 characters" in after.notes[0].text


# ---- P3 --------------------------------------------------------------------------------------------------------------


@sgl.function
def with_tails(s):
    s += "a" + sgl.gen("first") + "b" + sgl.gen("second") + "c" + sgl.gen("third")
    f, g = s.fork(2)
    f += sgl.gen("apart")
    g += sgl.gen("joined")


def gens(graph):
    return [node.name for node in graph.nodes if node.op is Op.GEN]


def test_only_dead_tails_and_dead_branches_are_dropped() -> None:
    assert gens(with_tails.compile().graph) == ["first", "second", "third", "apart", "joined"]
    assert gens(with_tails.compile(outputs=["second"]).graph) == ["first", "second"]
    assert gens(with_tails.compile(outputs=["apart"]).graph) == ["first", "second", "third", "apart"]
    assert gens(with_tails.compile(outputs=["text()"]).graph) == ["first", "second", "third"]
    assert gens(with_tails.compile(outputs=[]).graph) == []


def test_what_a_join_or_a_reference_uses_is_not_dead() -> None:
    @sgl.function
    def body(s):
        f, g = s.fork(2)
        f += sgl.gen("tip")
        g += f["tip"] + sgl.gen("used")
        h = s.fork(1)
        h += sgl.gen("joined")
        h.join()

    assert gens(body.compile(outputs=[]).graph) == ["tip", "joined"]


def test_a_stream_shows_what_nobody_else_reads(backend) -> None:
    compiled = with_tails.compile(outputs=["first"])
    assert gens(compiled.graph) == ["first"]
    state = compiled.run(stream=True, backend=backend)
    assert "".join(state.text_iter("third")) == state["third"]


def test_unknown_outputs_are_refused() -> None:
    for outputs in (["nothing"], "first"):
        with pytest.raises(ProgramError, match="'first', 'joined'"):
            with_tails.compile(outputs=outputs)


# ---- P4, P5 ----------------------------------------------------------------------------------------------------------


@sgl.function
def crossed(s):
    f, g = s.fork(2)
    f += "f" + sgl.gen("a", temperature=0) + "then" + sgl.gen("b", temperature=0)
    s += f["b"]  # a plain run stops here, before it has seen the gens of g
    g += "g" + sgl.gen("c", temperature=0)
    s += sgl.gen("d", temperature=0)


def test_independent_gens_go_out_together(backend) -> None:
    for passes, waves in (("none", 4), (["batch"], 3), (["ride"], 2), ("default", 1)):
        compiled = crossed.compile(passes=passes)
        before = num_sent(backend)
        compiled.run(backend=backend).sync()
        assert compiled.graph.num_submissions == waves
        assert num_sent(backend) - before == waves
        first = [{node.name for node in nodes if isinstance(node, Gen)} for nodes in backend.submissions]
        assert ({"a", "b", "c"} in first) == (passes == ["ride"])
        assert ({"a", "b", "c", "d"} in first) == (passes == "default")
        backend.submissions.clear()


def test_a_program_without_reads_is_one_submission_anyway(backend) -> None:
    state = programs.chain.compile().run("Where?", backend=backend)
    state.sync()
    assert len(backend.submissions) == 1


def test_a_value_of_another_run_still_comes_back(backend) -> None:
    @sgl.function
    def helper(s):
        s += sgl.gen("tip")

    @sgl.function
    def body(s):
        s += sgl.gen("own") + sgl.user("x")
        f = s.fork(1)[0]
        f += s["own"] + helper(backend=backend)["tip"] + sgl.gen("end")
        s += s.text() + f["end"]

    graph = body.compile().graph
    assert [node.is_linked for node in graph.nodes if node.op is Op.REF] == [True, False, True, True]
    assert outcome(body.compile().run(backend=backend)) == outcome(body.run(backend=backend))


# ---- P6 --------------------------------------------------------------------------------------------------------------


@sgl.function
def with_blocks(s, question):
    s += "Head. "
    with s.movable():
        s += "Q: " + question + ". "
    with s.movable():
        s += "Rule one. "
        s += "Rule two. "
    with s.movable():
        s += "On " + question + ". "
    s += "A: " + sgl.gen("a", temperature=0)
    with s.movable():
        s += f"{question}"
    s += "fixed"
    with s.movable():
        s += "stays"


def test_constants_move_only_past_movable_neighbours(backend) -> None:
    assert with_blocks.run("x", backend=backend).text().startswith("Head. Q: x. Rule one. Rule two. On x. A: ")
    state = with_blocks.compile().run("x", backend=backend)
    assert state.text().startswith("Head. Rule one. Rule two. Q: x. On x. A: ")
    assert state.text().endswith("xfixedstays")
    assert "became" in next(n.text for n in with_blocks.compile().graph.notes if n.pass_name.startswith("P6"))

    @sgl.function
    def by_hand(s, question):
        s += f"Head. Rule one. Rule two. Q: {question}. On {question}. A: " + sgl.gen("a", temperature=0)

    assert state["a"] == by_hand.run("x", backend=backend)["a"]


def test_a_movable_block_with_a_gen_or_a_role_lets_none_past() -> None:
    for barrier in (lambda: sgl.gen("x"), lambda: sgl.user("u")):

        @sgl.function
        def body(s, q, barrier=barrier):
            with s.movable():
                s += q
            with s.movable():
                s += barrier()
            with s.movable():
                s += "constant"

        graph = body.trace().graph
        assert optimized(graph, ["move"]).nodes == graph.nodes


def test_movable_blocks_cannot_be_nested() -> None:
    @sgl.function
    def body(s):
        with s.movable(), s.movable():
            s += "x"

    with pytest.raises(ProgramError, match="nested"):
        body.trace()


# ---- P7 --------------------------------------------------------------------------------------------------------------


def same(*gens_, joins=None):
    @sgl.function
    def body(s, q):
        s += "Q " + q
        forks = s.fork(len(gens_))
        for f, one in zip(forks, gens_, strict=True):
            f += "A:" + one() + " and " + sgl.gen("then", temperature=0)
        if joins:
            forks.join(joins)
        s["all"] = [f["then"] for f in forks]
        return [f.text() for f in forks]

    return body


def asked(backend, program, **settings):
    before = len(backend.nodes)
    state = program.run(q="x", seed=3, backend=backend, **settings)
    found = state["all"], state.ret_value
    return found, [node for node in backend.nodes[before:] if isinstance(node, Gen)]


def greedy(name, **more):
    return lambda: sgl.gen(name, temperature=0, **more)


SHARED = {
    "greedy": ([greedy("a"), greedy("b"), greedy("a")], None, 4),
    "one seed": ([lambda: sgl.gen("a", seed=5), lambda: sgl.gen("b", seed=5)], None, 3),
    "gathered": ([greedy("a"), greedy("a")], "gather_variable", 3),
    "appended": ([greedy("a"), greedy("a")], "concate_and_append", 4),
    "sampled": ([lambda: sgl.gen("a"), lambda: sgl.gen("a")], None, 4),
    "other seeds": ([lambda: sgl.gen("a", seed=1), lambda: sgl.gen("a", seed=2)], None, 4),
    "other parameters": ([greedy("a"), greedy("a", max_tokens=3)], None, 4),
    "other logprobs": ([greedy("a"), greedy("a", return_logprob=True)], None, 4),
}


@pytest.mark.parametrize(("gens_", "joins", "count"), SHARED.values(), ids=SHARED.keys())
def test_equal_requests_are_made_once_only_where_that_cannot_be_seen(backend, gens_, joins, count) -> None:
    program = same(*gens_, joins=joins)
    plain, all_gens = asked(backend, program)
    found, fewer = asked(backend, program.compile(passes="default+share"))
    assert found == plain
    assert len(all_gens) == 2 * len(gens_)
    assert len(fewer) == count
    assert len(asked(backend, program.compile())[1]) == len(all_gens)  # off by default


def test_a_shared_result_keeps_names_and_later_seeds(backend) -> None:
    backend.answer = lambda prompt, node: f"<{node.params.seed % 1000}>"
    program = same(greedy("a", seed=1), greedy("b", seed=1))
    plain, _ = asked(backend, program)
    found, _ = asked(backend, program.compile(passes="default+share"))
    assert found == plain

    @sgl.function
    def named(s):
        f, g = s.fork(2)
        f += sgl.gen("a", temperature=0)
        g += sgl.gen("b", temperature=0)
        s["names"] = [f["a"], g["b"]]
        return [f, g]

    f, g = named.compile(passes="default+share").run(backend=backend).ret_value
    assert ("a" in f, "b" in f, "a" in g, "b" in g) == (True, False, False, True)


# ---- compiled programs -----------------------------------------------------------------------------------------------


def test_a_compiled_program_runs_in_batches_and_keeps_the_order(backend) -> None:
    compiled = programs.turns.compile(backend)
    rows = [{"first": f"a{i}", "second": f"b{i}"} for i in range(20)]
    states = compiled.run_batch(rows)
    plain = programs.turns.run_batch(rows, backend=backend)
    assert [state["answer_1"] for state in states] == [state["answer_1"] for state in plain]
    assert [state["answer_0"] for state in compiled.run_batch([("a1", "b1")])] == [plain[1]["answer_0"]]


def test_sampling_defaults_and_seeds_are_those_of_the_run(backend) -> None:
    compiled = programs.simple_gen.compile()
    for program in (programs.simple_gen, compiled):
        program.run("hi", temperature=0.5, max_new_tokens=3, seed=9, backend=backend).sync()
    first, second = [node.params for node in backend.nodes if isinstance(node, Gen)]
    assert first == second
    assert first.temperature == 0.5


def test_known_arguments_are_fixed() -> None:
    @sgl.function
    def body(s, q, times=2):
        for _ in range(times):
            s += q

    backend = FakeBackend()
    compiled = body.compile(backend, times=3)
    assert compiled.run("x").text() == compiled.run("x", times=3).text() == compiled.run("x", 3).text() == "xxx"
    with pytest.raises(ProgramError, match=r"compile\(times=...\)"):
        compiled.run("x", times=4)
    with pytest.raises(TypeError):
        compiled.run()
    with pytest.raises(TypeError):
        compiled.run("x", other=1)
    assert compiled.bind(q="y").run().text() == "yyy"
    backend.close()


def test_compile_refuses_what_it_cannot_trace_and_unknown_passes() -> None:
    with pytest.raises(TraceError):
        tea.compile()
    for passes in ("fast", ["merge", "fast"], 3):
        with pytest.raises(ParameterError, match="passes"):
            programs.chain.compile(passes=passes)


def test_a_gen_that_fails_fails_as_in_a_plain_run(backend) -> None:
    from nbsgl.errors import RequestError

    backend.answer = lambda prompt, node: RequestError("no") if node.name == "a" else "fine"
    with pytest.raises(StateFailed, match="'a' failed"):
        crossed.compile(passes=["batch", "ride"]).run(backend=backend)
    state = crossed.compile().run(backend=backend)
    with pytest.raises(StateFailed, match="'a' failed"):
        state["d"]
    state = with_tails.compile().run(backend=backend)
    assert state["third"] == "fine"


def test_programs_called_inside_are_part_of_the_graph(backend) -> None:
    @sgl.function
    def helper(s, topic):
        s += "Tip on " + topic + ":" + sgl.gen("tip", temperature=0)

    @sgl.function
    def body(s, topic):
        one, two = helper(topic, backend=backend), helper.run(topic=topic + "s", backend=backend)
        s += one["tip"] + two["tip"] + sgl.gen("end", temperature=0)

    compiled = body.compile()
    assert outcome(compiled.run("x", backend=backend))[:2] == outcome(body.run("x", backend=backend))[:2]

    @sgl.function
    def outer(s):
        s += compiled(topic="z", backend=backend)["end"]

    assert outer.compile().run(backend=backend).text() == outer.run(backend=backend).text()


def test_shared_requests_are_forks_of_the_first(backend) -> None:
    program = same(greedy("a"), greedy("a")).compile(passes=["share"])
    _, gens_ = asked(backend, program)
    forks = [node for node in backend.nodes if isinstance(node, Fork)]
    assert {fork.parent for fork in forks} == {0, forks[0].branch}


def test_what_watches_over_a_hole_is_no_part_of_what_it_asks() -> None:
    def asked() -> GraphNode:
        hole = sgl.gen("a", temperature=0)
        hole.watch = Watch("here:1")
        return GraphNode(id=1, op=Op.GEN, branch=0, where="here:1", expr=hole)

    assert _content(asked()) == _content(asked())
