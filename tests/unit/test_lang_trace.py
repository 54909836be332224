"""A trace runs the body once with symbols and writes down a graph; what needs a value is an error at its line."""

from __future__ import annotations

import inspect
import json

import pytest

import nbsgl as sgl
from nbsgl.errors import ProgramError, RoleError, TraceError, UnknownVariable
from nbsgl.lang.program_graph import Op
from tests.unit import programs
from tests.unit.fakes import FakeBackend


def ops(trace):
    return [node.node.op.value for node in trace.flatten_nodes()]


def line_of(function, words):
    """`file.py:line` of the first line of the function that holds the words."""
    lines, first = inspect.getsourcelines(function)
    return f"test_lang_trace.py:{first + next(i for i, line in enumerate(lines) if words in line)}"


# ---- what traces -----------------------------------------------------------------------------------------------------


def test_constants_arguments_and_holes_are_nodes_with_their_lines() -> None:
    def body(s, question):
        s += "Q: " + question + "\nA:"
        s += sgl.gen("answer", max_tokens=3)

    trace = sgl.function(body).trace()
    assert ops(trace) == ["root", "const", "ref", "const", "gen"]
    assert trace.nodes[1].node.where == line_of(body, "Q: ")
    assert trace.last_node.node.where == line_of(body, "sgl.gen")
    assert trace.nodes[2].node.is_argument
    assert trace.complete
    assert trace.stopped_at is None
    assert list(trace.variables) == ["answer"]


def test_known_arguments_are_text_and_defaults_count_as_known() -> None:
    @sgl.function
    def body(s, question, times=2):
        for _ in range(times):
            s += question + "."

    trace = body.trace(question="Why")
    assert [node.node.text for node in trace.nodes[1:]] == ["Why.", "Why."]
    assert len(body.trace(times=3, question="x").nodes) == 4
    with pytest.raises(ProgramError, match="no argument"):
        body.trace(answer=1)


def test_nothing_is_sent() -> None:
    backend = FakeBackend()
    programs.turns.trace(backend=backend)
    assert backend.submissions == []
    backend.close()


def test_symbols_go_into_fstrings_sums_and_other_states() -> None:
    @sgl.function
    def body(s, topic):
        s += f"About {topic}: {sgl.gen('tip')}"
        f = s.fork(1)[0]
        f += "Again: " + s["tip"] + "!"
        f += f"<{s['tip']}>"
        s["kept"] = s["tip"]
        s += s["kept"]
        return [s["tip"], {"topic": topic}]

    trace = body.trace()
    assert ops(trace) == "root const ref const gen fork const ref const const ref const set ref".split()
    gen = next(node for node in trace.flatten_nodes() if node.node.op is Op.GEN)
    users = {target for source, target, kind in trace.graph.edges() if kind == "value"}
    assert all(trace.graph.definers[var] == gen.node_id for node in trace.graph.nodes for var in node.uses)
    assert len(users) == 4
    assert trace.ret_value[0].name == "tip"
    assert [demand.name for demand in trace.graph.demands] == ["tip"] * 4 + ["tip"]


def test_roles_scopes_fork_join_and_copy_trace() -> None:
    @sgl.function
    def body(s, q):
        with s.system():
            s += "Be brief."
        s.user(q)
        s += s.user("one more")
        with s.assistant(), s.var_scope("all"):
            s += sgl.gen("a")
        forks = s.fork(2)
        forks += sgl.user("why?") + sgl.assistant(sgl.gen("why"))
        forks.join()
        with s.copy() as c:
            c += sgl.gen("apart")
        s += s["why"][1] + s["all"] + s["apart"][0]
        forks = s.fork(2)
        forks += sgl.gen("tail")
        forks.join("concate_and_append")

    trace = body.trace()
    assert ops(trace).count("role_begin") == ops(trace).count("role_end") == 8
    joins = [node.node for node in trace.flatten_nodes() if node.node.op is Op.JOIN]
    assert [(len(join.children), join.appends) for join in joins] == [(2, False), (1, False), (2, True)]
    forks = [node.node for node in trace.flatten_nodes() if node.node.op is Op.FORK]
    assert [fork.path for fork in forks] == [(0,), (1,), (2,), (3,), (4,)]


def test_a_program_called_inside_has_a_root_of_its_own() -> None:
    @sgl.function
    def helper(s, topic):
        s += "Tip on " + topic + sgl.gen("tip")
        return s["tip"]

    @sgl.function
    def body(s, topic):
        inner = helper(topic, temperature=0.0)
        s += "A tip: " + inner["tip"]
        s += inner.ret_value
        several = helper.run_batch([{"topic": topic}, {"topic": "x"}])
        s += several[1]["tip"]

    trace = body.trace()
    assert ops(trace).count("root") == 4
    called = [node.node.value for node in trace.flatten_nodes() if node.node.op is Op.ROOT][1]
    assert (called.title, dict(called.defaults)) == ("helper", {"temperature": 0.0})


def test_edges_are_next_fork_and_value_and_point_backwards() -> None:
    trace = programs.judge.trace(strict=False)
    edges = trace.graph.edges()
    assert {kind for _, _, kind in edges} == {"next", "fork", "value"}
    assert all(source < target for source, target, _ in edges)


def test_print_graph_dfs_writes_each_node_after_what_leads_to_it() -> None:
    trace = programs.chain.trace()
    lines = trace.last_node.print_graph_dfs().splitlines()
    assert len(lines) == len(trace.nodes)
    assert lines[0].startswith("%0 root")
    assert "gen 'a7'" in trace.last_node.prev_node.print_graph_dfs()


# ---- what does not ---------------------------------------------------------------------------------------------------

NEEDS = {
    "compare": lambda x: x == "yes",
    "order": lambda x: x < "b",
    "truth": lambda x: bool(x),
    "length": lambda x: len(x),
    "number": lambda x: int(x),
    "text": lambda x: str(x),
    "loop": lambda x: list(x),
    "search": lambda x: "a" in x,
    "method": lambda x: x.strip(),
    "index": lambda x: x[0],
    "range": lambda x: range(x),
    "format": lambda x: f"{x:>5}",
    "sum": lambda x: ("<" + x + ">") == "a",
    "method of a sum": lambda x: ("<" + x).lower(),
    "library": lambda x: json.loads(x),
    "join": lambda x: "".join([x]),
    "choices": lambda x: sgl.gen("c", choices=["a", x]),
    "times": lambda x: x * 3,
}


@pytest.mark.parametrize("use", NEEDS.values(), ids=NEEDS.keys())
def test_what_needs_a_value_is_an_error_at_its_line(use) -> None:
    @sgl.function
    def of_argument(s, x):
        s += "before"
        use(x)

    @sgl.function
    def of_variable(s):
        s += sgl.gen("x")
        use(s["x"])

    for program in (of_argument, of_variable):
        with pytest.raises(TraceError, match=r"test_lang_trace\.py:\d+: control flow depends on") as raised:
            program.trace()
        assert isinstance(raised.value, TypeError)
    partial = of_variable.trace(strict=False)
    assert not partial.complete
    assert partial.stopped_at.startswith("test_lang_trace.py:")
    assert ops(partial) == ["root", "gen"]


def test_the_error_names_variable_and_line() -> None:
    def body(s, mood):
        s += "x"
        if mood == "good":
            s += "y"

    with pytest.raises(TraceError) as raised:
        sgl.function(body).trace()
    assert f"{line_of(body, 'if mood')}: control flow depends on `mood`" in str(raised.value)
    assert "trace(mood=...)" in str(raised.value)
    assert sgl.function(body).trace(mood="good").complete


def test_a_body_that_swallows_the_error_does_not_hide_it() -> None:
    @sgl.function
    def body(s):
        s += sgl.gen("n")
        try:
            number = int(s["n"])
        except (TypeError, ValueError):
            number = 0
        s += str(number)

    with pytest.raises(TraceError, match="`n`"):
        body.trace()
    assert ops(body.trace(strict=False)) == ["root", "gen"]


def test_what_tells_about_a_run_cannot_be_traced() -> None:
    for read in (lambda s: s.get_meta_info("x"), lambda s: s.messages(), lambda s: s.error()):

        @sgl.function
        def body(s, read=read):
            s += sgl.gen("x")
            read(s)

        with pytest.raises(TraceError, match="control flow depends on `s"):
            body.trace()


def test_mistakes_of_the_program_are_their_own_errors() -> None:
    @sgl.function
    def nested(s):
        with s.user():
            s += sgl.assistant("x")

    @sgl.function
    def unknown(s):
        s += s["nothing"]

    @sgl.function
    def own(s):
        raise LookupError("mine")

    for program, error in ((nested, RoleError), (unknown, UnknownVariable), (own, LookupError)):
        with pytest.raises(error):
            program.trace(strict=False)


def test_a_role_the_backend_lacks_is_refused() -> None:
    from nbsgl.protocol import RoleFormat

    backend = FakeBackend(roles={"user": RoleFormat("U:", "\n")})
    with pytest.raises(RoleError, match="system"):
        programs.chat_dialogue.trace(backend=backend)
    backend.close()


def test_a_thread_that_traces_does_not_disturb_others() -> None:
    import threading

    backend = FakeBackend()
    found = []

    @sgl.function
    def body(s, x):
        worker = threading.Thread(target=lambda: found.append(programs.simple_gen.run(prompt="hi", backend=backend)))
        worker.start()
        worker.join(5)
        s += x

    body.trace()
    assert found[0]["response"] == "[response]"
    backend.close()
