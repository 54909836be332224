"""The state: variables, messages, scopes, forks and joins, as SGLang has them, and lazily."""

from __future__ import annotations

import gc
import threading
import time

import pytest

import nbsgl as sgl
from nbsgl.errors import ParameterError, ProgramError, RoleError, UnknownVariable, Unsupported
from nbsgl.protocol import Append, Close, Gen
from tests.unit.fakes import FakeBackend


@pytest.fixture
def backend():
    fake = FakeBackend()
    yield fake
    fake.close()


@pytest.fixture
def s(backend):
    """A state whose program has not ended."""
    block = sgl.state(backend)
    state = block.__enter__()
    yield state
    state.abort()


def until(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        gc.collect()
        time.sleep(0.005)


# ---- variables -------------------------------------------------------------------------------------------------------


def test_unknown_variables_are_told_at_once_without_a_flush(s, backend) -> None:
    s += "x" + sgl.gen("a")
    with pytest.raises(UnknownVariable, match="'b'; it has 'a'") as caught:
        s["b"]
    assert isinstance(caught.value, KeyError)
    assert backend.submissions == []


def test_the_last_of_two_bindings_counts(s, backend) -> None:
    backend.answer = lambda prompt, node: f"{len(prompt)}"
    s += "x" + sgl.gen("a") + "yz" + sgl.gen("a")
    assert s["a"] == "4"


def test_set_variables_are_any_objects(s) -> None:
    thing = object()
    s["a"] = thing
    s.set_var("b", 2)
    assert (s["a"], s.get_var("b"), "a" in s, "c" in s) == (thing, 2, True, False)


def test_in_never_waits_and_never_flushes(s, backend) -> None:
    s += sgl.gen("a")
    assert "a" in s
    assert backend.submissions == []


def test_n_gives_a_list_and_goes_on_with_the_first(s) -> None:
    s += "x" + sgl.gen("a", n=3) + "y"
    assert s["a"] == ["[a]0", "[a]1", "[a]2"]
    assert s.text() == "x[a]0y"
    assert len(s.get_meta_info("a")) == 3


def test_meta_info_has_sglangs_keys(s) -> None:
    s += "x" + sgl.gen("a", return_logprob=True, top_logprobs_num=1, logprob_start_len=0)
    s += sgl.gen("b", return_logprob=True, return_text_in_logprobs=True)
    meta = s.get_meta_info("a")
    assert meta["finish_reason"] == {"type": "stop", "matched": 2}
    known = {"id", "prompt_tokens", "completion_tokens", "cached_tokens", "e2e_latency", "ttft_s", "seed", "run_seed"}
    assert known <= meta.keys()
    assert meta["output_token_logprobs"][0] == (-0.5, ord("["), None)
    assert meta["output_token_logprobs_length"] == 3
    assert meta["output_top_logprobs"][0] == [(-0.5, ord("["), None)]
    assert "input_token_logprobs" in meta
    assert s.get_meta_info("b")["output_token_logprobs"][0] == (-0.5, ord("["), "[")
    assert s.get_meta_info("nothing") is None


def test_messages_list_only_closed_roles_left_stripped(s) -> None:
    s += sgl.user("  a") + sgl.assistant_begin() + "b"
    assert s.messages() == [{"role": "user", "content": "a"}]


def test_str_shows_the_text_and_repr_waits_for_nothing(s, backend) -> None:
    s += "x" + sgl.gen("a")
    assert "running" in repr(s)
    assert backend.submissions == []
    assert str(s) == "ProgramState(x[a])"
    assert "done" in repr(s)


def test_internals_of_sglang_name_their_replacement(s) -> None:
    with pytest.raises(AttributeError, match=r"s\.text\(\)"):
        s.stream_executor


# ---- roles and scopes ------------------------------------------------------------------------------------------------


def test_role_blocks_and_role_calls(s) -> None:
    with s.system():
        s += "a"
    s.user("b")
    s += s.user("c")
    with s.assistant():
        s += sgl.gen("x")
    assert [m["content"] for m in s.messages()] == ["a", "b", "c", "[x]"]


def test_a_role_block_that_raises_is_closed(s) -> None:
    with pytest.raises(ZeroDivisionError), s.user():
        1 / 0
    s += sgl.user("b")
    assert len(s.messages()) == 2


def test_nested_roles_are_errors_at_the_line(s) -> None:
    with s.user(), pytest.raises(RoleError, match="nested"):
        s += sgl.assistant("x")


def test_var_scope_binds_the_text_inside(s) -> None:
    with s.var_scope("both"):
        s += "a" + sgl.gen("x")
        with pytest.raises(UnknownVariable, match="var_scope"):
            s["both"]
    s += "z"
    assert s["both"] == "a[x]"


def test_var_scope_is_awaited_from_another_thread(s) -> None:
    found = []
    with s.var_scope("v"):
        thread = threading.Thread(target=lambda: found.append(s["v"]))
        thread.start()
        time.sleep(0.05)
        assert found == []
        s += "a" + sgl.gen("x")
    thread.join(5)
    assert found == ["a[x]"]


# ---- fork and join ---------------------------------------------------------------------------------------------------


def test_fork_does_not_wait_and_children_share_the_pending_tail(s, backend) -> None:
    s += "a" + sgl.gen("x")
    f = s.fork(2)
    f += sgl.gen("y")
    assert backend.submissions == []
    assert f[1].text() == "a[x][y]"
    assert (f[0]["x"], f[0].get_meta_info("x")["completion_tokens"]) == ("[x]", 3)
    assert len(backend.submissions) == 1


def test_a_child_keeps_the_binding_it_was_forked_with(s) -> None:
    s["v"] = 1
    (f,) = s.fork(1)
    s["v"] = 2
    f["w"] = 3
    assert (f["v"], s["v"], "w" in s) == (1, 2, False)


def test_a_child_inherits_the_open_role(s) -> None:
    s += sgl.user_begin() + "a"
    f = s.fork(1)
    f += "b" + sgl.user_end()
    assert f[0].messages() == [{"role": "user", "content": "ab"}]


def test_groups_have_length_slices_and_take_expressions(s) -> None:
    f = s.fork(3)
    assert len(f) == 3
    assert [x for x in f[1:]] == [f[1], f[2]]  # noqa: C416
    f += "a"
    f += ["1", "2", "3"]
    f += lambda i: sgl.gen(f"v{i}")
    f[0] += "!"
    assert [x.text() for x in f] == ["a1[v0]!", "a2[v1]", "a3[v2]"]
    with pytest.raises(IndexError):
        f += ["1", "2"]
    with pytest.raises(ProgramError):
        f[0] = f[1]


def test_fork_checks_its_arguments(s) -> None:
    assert len(s.fork(0)) == 0
    for wrong in (-1, 1.5, "2", True):
        with pytest.raises(ParameterError):
            s.fork(wrong)
    with pytest.raises(Unsupported):
        s.fork(2, position_ids_offset=[1, 2])


def test_join_gathers_new_names_lazily_and_without_holes(s, backend) -> None:
    s["old"] = "mine"
    f = s.fork(3)
    f += lambda i: sgl.gen("all") + (sgl.gen("some") if i != 1 else "")
    for child in f:
        child["old"] = "theirs"
    f.join()
    assert backend.submissions == []
    assert "all" in s
    assert (s["all"], s["some"], s["old"]) == (["[all]"] * 3, ["[some]"] * 2, "mine")
    assert f[0]["all"] == "[all]"  # still readable
    with pytest.raises(ProgramError, match="joined"):
        f[0] += "more"
    closed = [node.branch for node in backend.nodes if isinstance(node, Close)]
    assert closed == [child.branch.number for child in f]


def test_join_appends_the_childrens_tokens_in_order(s, backend) -> None:
    s += "a"
    f = s.fork(2)
    f += lambda i: f"<{i}" + sgl.gen(f"x{i}")
    f.join("concate_and_append")
    s += "z"
    assert s.text() == "a<0[x0]<1[x1]z"
    assert [node.source for node in backend.nodes if isinstance(node, Append)] == [c.branch.number for c in f]
    with pytest.raises(ParameterError):
        s.fork(1).join("other")


def test_copy_is_a_fork_joined_at_the_end(s) -> None:
    s += "a"
    with s.copy() as c:
        c += sgl.gen("x")
    assert s["x"] == ["[x]"]
    assert s.text() == "a"


def test_forks_of_forks(s) -> None:
    s += "a"
    f = s.fork(2)
    f += lambda i: f"{i}" + sgl.gen("p")
    g = f[1].fork(2)
    g += lambda i: f"/{i}" + sgl.gen("q")
    assert g[1].text() == "a1[p]/1[q]"


# ---- demands ---------------------------------------------------------------------------------------------------------


def test_a_demand_sends_what_every_branch_has_queued(s, backend) -> None:
    f = s.fork(2)
    f += sgl.gen("x")
    s += sgl.gen("y")
    f[0]["x"]
    assert len(backend.submissions) == 1
    assert len([node for node in backend.nodes if isinstance(node, Gen)]) == 3


def test_states_may_be_used_from_several_threads(s) -> None:
    f = s.fork(8)

    def grow(child) -> None:
        for i in range(20):
            child += f"{i}" + sgl.gen(f"v{i}")
            child[f"v{i}"]

    threads = [threading.Thread(target=grow, args=(child,)) for child in f]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    expected = "".join(f"{i}[v{i}]" for i in range(20))
    assert [child.text() for child in f] == [expected] * 8


# ---- letting go ------------------------------------------------------------------------------------------------------


def test_a_dropped_fork_is_closed_and_its_pending_work_aborted(s, backend) -> None:
    backend.delay_s = 30
    f = s.fork(2)
    f += sgl.gen("x")
    s.executor.flush()
    numbers = [child.branch.number for child in f]
    until(lambda: backend.alive == 2)
    del f
    until(lambda: backend.alive == 0)
    until(lambda: {node.branch for node in backend.nodes if isinstance(node, Close)} == set(numbers))


def test_a_dropped_fork_that_was_joined_goes_on(s, backend) -> None:
    backend.delay_s = 0.2
    f = s.fork(2)
    f += sgl.gen("x")
    f.join()
    s.executor.flush()
    del f
    gc.collect()
    time.sleep(0.05)
    assert s["x"] == ["[x]"] * 2


def test_dropping_the_last_state_closes_the_run(backend) -> None:
    backend.delay_s = 30

    @sgl.function
    def program(s):
        s += sgl.gen("x")

    state = program.run(backend=backend)
    assert backend.alive == 1
    del state
    until(lambda: backend.runs == [])


def test_a_failed_state_is_let_go_too(backend) -> None:
    backend.answer = lambda prompt, node: sgl.OutOfMemory(needs=2, has=1)

    @sgl.function
    def program(s):
        s += sgl.gen("x")

    def read() -> None:
        state = program.run(backend=backend)
        with pytest.raises(sgl.StateFailed):
            state["x"]

    read()
    until(lambda: backend.runs == [])


# ---- views -----------------------------------------------------------------------------------------------------------


def test_the_view_shows_segments_with_roles_status_and_totals(s, backend) -> None:
    backend.gate = threading.Event()
    s += sgl.user("hi") + sgl.assistant("so " + sgl.gen("x"))
    f = s.fork(2)
    f += sgl.select("c", ["p", "qq"])
    s += sgl.user("more")
    assert s.run_view().status == "queued"
    s.executor.flush()
    view = s.run_view()
    assert (view.status, len(view.branches)) == ("running", 3)
    root = view.branches[0]
    assert [(x.kind, x.text, x.role, x.is_markup) for x in root.segments[:3]] == [
        ("forced", "<|user|>", "user", True),
        ("forced", "hi", "user", False),
        ("forced", "<|end|>", "user", True),
    ]
    assert [x.status for x in root.segments] == ["done"] * 5 + ["running"] + ["queued"] * 4
    assert (view.branches[1].parent, view.branches[1].fork_at) == (root.id, 7)
    backend.gate.set()
    s.sync()
    f[0].sync()
    f[1].sync()
    view = s.run_view()
    assert view.variables == {"x": "[x]"}
    assert (view.generated, view.prefill_cached, view.prefill_computed) == (3, 1, 8)
    chosen = view.branches[1].segments[0]
    assert (chosen.kind, chosen.chosen, chosen.text, chosen.scores) == ("select", 0, "p", (-1.0, -2.0))


def test_a_dropped_fork_stays_in_the_view(s, backend) -> None:
    backend.delay_s = 30
    f = s.fork(1)
    f += "b" + sgl.gen("x")
    s.executor.flush()
    del f
    until(lambda: backend.alive == 0)
    assert [branch.status for branch in s.run_view().branches] == ["done", "aborted"]


def test_what_a_fork_of_a_dropped_fork_still_does_is_not_lost(backend) -> None:
    backend.gate = threading.Event()
    with sgl.state(backend=backend) as s:
        s += sgl.gen("first")
        child = s.fork(1)
        deep = child[0].fork(1)
        deep += sgl.gen("deep")
        deep.join()
        child += sgl.gen("first")  # a name the parent has: nobody will read it
        child.join()
        s.executor.flush()
        del child, deep
        gc.collect()
        time.sleep(0.3)
        backend.gate.set()
        assert s["deep"] == [["[deep]"]]
