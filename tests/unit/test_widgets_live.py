"""The live views without a browser: the pump, the stream's envelope, what a page may say, deltas."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbsgl.protocol import EngineSnapshot, RunView
from nbsgl.widgets import RunWidget, TreeWidget, run_html, run_text
from nbsgl.widgets.pump import Pump, pump
from nbsgl.widgets.run import run_delta, text_change
from nbsgl.widgets.tree import COLUMNS, columns, tree_delta, tree_picture
from nbsgl.widgets.view import (
    CALM_S,
    HZ_HIDDEN,
    HZ_SILENT,
    HZ_UNHEARD,
    LATE_S,
    PART_BYTES,
    WHOLE_BYTES,
    Ack,
    Rate,
    View,
    decode_page_message,
)
from tests.unit.widget_pictures import chat, gen, node, random_run, random_tree, small_tree, snapshot

# ---- what a page may say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"type": "run", "code": "1"},
        {"type": "stop", "code": "1"},
        {"type": "ack", "seq": "1", "visible": True},
        {"type": "ack", "seq": 1},
        {"type": "label", "ids": ["a"]},
        {"type": ["stop"]},
        "stop",
        None,
        7,
    ],
)
def test_widget_messages_are_closed(content: object) -> None:
    assert decode_page_message(content) is None


def test_known_messages_arrive_typed() -> None:
    assert decode_page_message({"type": "ack", "seq": 4, "visible": False}) == Ack(seq=4, visible=False)


# ---- one view, stepped by hand ---------------------------------------------------------------------------------------


class Mail:
    """What a view has sent: envelopes, bodies, and the state that a page would hold (it leans on `apply`)."""

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, Any], list[bytes]]] = []

    def __call__(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        self.sent.append((content, buffers or []))

    @property
    def kinds(self) -> list[tuple[str, int]]:
        return [(content["kind"], content["seq"]) for content, _ in self.sent]


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mail]:
    """Views are stepped by the test, not by the pump, and send into a list."""
    mail = Mail()
    monkeypatch.setattr("nbsgl.widgets.view.pump", Pump0())
    monkeypatch.setattr(View, "send", lambda self, content, buffers=None: mail(content, buffers))
    yield mail
    View.close_all()


class Pump0:
    """Holds views and asks none."""

    def add(self, view: object) -> None: ...

    def remove(self, view: object) -> None: ...


def say(view: View, **content: object) -> None:
    view._on_page_message(view, content, [])


def test_first_message_is_the_whole_state_then_deltas_then_beats(by_hand: Mail) -> None:
    now = RunView(status="running", branches=chat().branches)
    view = RunWidget(lambda: now)
    view.step(0.0)
    now = msgspec.structs.replace(now, generated=5)
    view.step(0.1)
    view.step(0.2)  # nothing new
    view.step(1.5)
    assert by_hand.kinds == [("full", 0), ("delta", 1), ("beat", 1)]
    assert msgspec.json.decode(by_hand.sent[0][1][0], type=RunView).branches == chat().branches
    assert msgspec.json.decode(by_hand.sent[1][1][0]) == {"set": {"generated": 5}}


def test_a_running_clock_alone_is_no_delta(by_hand: Mail) -> None:
    now = RunView(status="running")
    view = RunWidget(lambda: now)
    view.step(0.0)
    now = RunView(status="running", elapsed_s=1.0)
    view.step(0.1)
    assert by_hand.kinds == [("full", 0)]


def test_hello_without_state_gets_all_and_with_state_a_beat(by_hand: Mail) -> None:
    view = RunWidget(chat)
    assert not view.heard
    view.step(0.0)
    say(view, type="hello", epoch=1, have_seq=0)
    view.step(0.1)
    assert view.heard
    say(view, type="hello", epoch=-1, have_seq=-1)
    view.step(0.2)
    say(view, type="resync", epoch=1)
    view.step(0.3)
    assert by_hand.kinds == [("full", 0), ("beat", 0), ("full", 1), ("full", 2)]


def test_finish_sends_the_tail_and_says_where_it_ends(by_hand: Mail) -> None:
    now = RunView(status="running")
    view = RunWidget(lambda: now)
    view.step(0.0)
    now = chat()
    view.finish()
    view.finish()
    assert by_hand.kinds == [("full", 0), ("delta", 1)]
    assert (view.final_seq, view.status) == (1, "final")
    assert view.step(1.0) is None
    say(view, type="hello", epoch=-1, have_seq=-1)  # a page that was loaded again
    assert view.step(2.0) is None
    assert by_hand.kinds[-1] == ("full", 2)


def test_a_second_page_is_a_reload(by_hand: Mail) -> None:
    view = RunWidget(chat)
    for _ in range(2):
        say(view, type="hello", epoch=-1, have_seq=-1, page="a")
    view.step(0.0)
    assert not view.was_reloaded
    say(view, type="hello", epoch=-1, have_seq=-1, page="b")
    view.step(0.1)
    assert view.was_reloaded
    view.finish()
    assert view.status == "reloaded"


def test_display_carries_the_frozen_picture_for_those_who_cannot_draw() -> None:
    view = RunWidget(chat)
    data, _ = view._repr_mimebundle_()
    assert data["text/plain"] == run_text(chat())
    assert data["text/html"] == run_html(chat())
    assert "application/vnd.jupyter.widget-view+json" in data
    view.close()


def test_display_of_a_failing_source_is_no_error() -> None:
    def source() -> RunView:
        raise RuntimeError("gone")

    view = RunWidget(source)
    assert "application/vnd.jupyter.widget-view+json" in view._repr_mimebundle_()[0]
    view.close()


def test_close_finishes_and_then_sends_nothing(by_hand: Mail) -> None:
    view = RunWidget(chat)
    view.close()
    view.close()
    say(view, type="hello", epoch=-1, have_seq=-1)
    assert view.step(1.0) is None
    assert by_hand.kinds == [("full", 0)]


def test_stop_reaches_the_callback_on_its_own_thread(by_hand: Mail) -> None:
    stopped = threading.Event()
    view = RunWidget(chat, on_stop=stopped.set)
    say(view, type="stop")
    assert not stopped.is_set()  # the handler only queues
    view.step(0.0)
    assert stopped.wait(5)
    assert view.can_stop
    assert not RunWidget(chat).can_stop


def test_a_failing_source_leaves_the_last_picture(by_hand: Mail, caplog: pytest.LogCaptureFixture) -> None:
    answers: list[RunView | Exception] = [chat(), RuntimeError("gone"), RuntimeError("gone"), RunView()]

    def source() -> RunView:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    view = RunWidget(source)
    for i in range(4):
        assert view.step(float(i)) is not None
    assert by_hand.kinds == [("full", 0), ("delta", 1)]
    assert len([r for r in caplog.records if "source failed" in r.message]) == 1


def test_a_large_state_goes_in_parts(by_hand: Mail) -> None:
    text = "x" * (WHOLE_BYTES + 10)
    view = RunWidget(lambda: RunView(title=text))
    view.step(0.0)
    assert {content["kind"] for content, _ in by_hand.sent} == {"part"}
    assert [content["i"] for content, _ in by_hand.sent] == list(range(by_hand.sent[0][0]["n"]))
    assert max(len(buffers[0]) for _, buffers in by_hand.sent) == PART_BYTES
    whole = b"".join(buffers[0] for _, buffers in by_hand.sent)
    assert by_hand.sent[0][0]["lengths"] == [len(whole)]
    assert msgspec.json.decode(whole)["title"] == text


def test_lone_surrogates_are_sent_as_replacement_characters(by_hand: Mail) -> None:
    now = RunView(title="a\ud800", variables={"v": "\udfff"})
    view = RunWidget(lambda: now)
    view.step(0.0)
    now = RunView(title="b\ud800")
    view.step(0.1)
    assert msgspec.json.decode(by_hand.sent[0][1][0])["title"] == "a\ufffd"
    assert msgspec.json.decode(by_hand.sent[1][1][0]) == {"set": {"title": "b\ufffd"}, "vars": {"v": None}}


def test_a_slow_source_is_asked_more_seldom(by_hand: Mail) -> None:
    def source() -> RunView:
        time.sleep(0.05)
        return RunView()

    assert (RunWidget(source).step(0.0) or 0) >= 0.5


# ---- how often -------------------------------------------------------------------------------------------------------


def test_rate_halves_while_the_page_is_behind_and_climbs_back() -> None:
    rate = Rate()
    assert rate.hz(0.0) == HZ_UNHEARD
    rate.acked(-1, 10.0)
    assert rate.hz(10.0) == 30
    rate.sent(0, 10.0)
    assert rate.hz(10.0 + LATE_S) == 30
    assert rate.hz(10.1 + LATE_S) == 15
    assert rate.hz(10.2 + LATE_S) == 15  # one step at a time
    assert rate.hz(10.2 + 2 * LATE_S) == 8
    rate.acked(0, 20.0)
    assert rate.hz(14.0 + 2 * CALM_S) == 15
    assert rate.hz(20.0 + 3 * CALM_S) == 30


def test_rate_is_low_when_nobody_looks_and_lowest_when_the_page_is_gone() -> None:
    rate = Rate()
    rate.acked(-1, 0.0)
    rate.visible = False
    assert rate.hz(1.0) == HZ_HIDDEN
    assert rate.hz(100.0) == HZ_SILENT


# ---- the pump --------------------------------------------------------------------------------------------------------


class Counter:
    """Lives for `steps` steps, then lets go; may fail."""

    def __init__(self, steps: int, fails: bool = False) -> None:
        self.left, self.fails, self.threads = steps, fails, set[str]()
        self.done = threading.Event()

    def step(self, now: float) -> float | None:
        self.threads.add(threading.current_thread().name)
        self.left -= 1
        if self.left <= 0 or self.fails:
            self.done.set()
        if self.fails:
            raise RuntimeError("broken")
        return now + 0.01 if self.left > 0 else None


def ended(pump: Pump) -> bool:
    deadline = time.monotonic() + 5
    while pump.is_running and time.monotonic() < deadline:
        time.sleep(0.01)
    return not pump.is_running


def test_one_thread_serves_all_views_and_ends_with_the_last() -> None:
    mine = Pump()
    views = [Counter(5), Counter(2), Counter(3)]
    for view in views:
        mine.add(view)
    assert all(view.done.wait(5) for view in views)
    assert ended(mine)
    assert set().union(*(view.threads for view in views)) == {"nbsgl-pump"}
    again = Counter(1)
    mine.add(again)  # a new thread, once it is needed again
    assert again.done.wait(5)
    assert ended(mine)


def test_a_view_that_fails_is_dropped_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    mine = Pump()
    bad, good = Counter(9, fails=True), Counter(3)
    mine.add(bad)
    mine.add(good)
    assert good.done.wait(5)
    assert ended(mine)
    assert bad.left == 8
    assert "a view failed" in caplog.text


def test_a_closed_widget_leaves_no_pump_behind() -> None:
    view = RunWidget(chat)
    assert pump.is_running
    view.close()
    assert ended(pump)


# ---- deltas ----------------------------------------------------------------------------------------------------------


def apply(state: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    """What `applyRun` of run.js does, in Python."""
    state |= delta.get("set", {})
    for name, change in delta.get("vars", {}).items():
        if change is None:
            del state["variables"][name]
        else:
            state["variables"][name] = changed(state["variables"].get(name, ""), change)
    cut(state["branches"], delta)
    for i, change in delta.get("branches", []):
        branch = at(state["branches"], i, {"segments": []})
        branch |= change.get("set", {})
        cut(branch["segments"], change)
        for j, grown in change.get("segs", []):
            segment = at(branch["segments"], j, {"text": ""})
            segment |= grown.get("set", {})
            if "text" in grown:
                segment["text"] = changed(segment["text"], grown["text"])
    return state


def cut(items: list[Any], delta: dict[str, Any]) -> None:
    if "keep" in delta:
        del items[delta["keep"] :]


def at(items: list[Any], i: int, empty: Any) -> Any:
    if i == len(items):
        items.append(empty)
    return items[i]


def changed(text: str, change: list[Any]) -> str:
    keep, added = change
    return str(text if keep is None else text[:keep]) + str(added)


@given(st.integers(0, 10**9))
@settings(max_examples=150, deadline=None)
def test_deltas_laid_on_the_old_view_give_the_new_one(seed: int) -> None:
    rng = random.Random(seed)
    old = random_run(rng)
    state = msgspec.to_builtins(old)
    for _ in range(6):
        new = random_run(rng, old)
        state = apply(state, msgspec.json.decode(msgspec.json.encode(run_delta(old, new))))
        assert msgspec.convert(state, RunView) == new
        old = new


def test_equal_views_have_no_delta() -> None:
    assert run_delta(chat(), chat()) == {}


def test_growing_text_costs_only_what_grew() -> None:
    old = msgspec.structs.replace(chat().branches[1], segments=[gen("a" * 10_000)])
    new = msgspec.structs.replace(old, segments=[gen("a" * 10_000 + "b")])
    delta = run_delta(RunView(branches=[old]), RunView(branches=[new]))
    assert delta == {"branches": [[0, {"segs": [[0, {"text": [None, "b"]}]]}]]}


def test_text_that_was_cut_back_says_how_much_stays() -> None:
    assert text_change("abcd", "abX") == [2, "X"]
    assert text_change("😀😀b", "😀") == [1, ""]


# ---- the tree --------------------------------------------------------------------------------------------------------


def test_a_node_is_23_bytes() -> None:
    picture = tree_picture(snapshot(small_tree()), 100.0)
    packed = columns(picture.rows.values())
    assert [len(column) // 5 for column in packed] == [4, 4, 4, 2, 4, 4, 1]
    assert sum(map(len, packed)) == 5 * 23
    assert len(COLUMNS) == 7


def test_time_alone_changes_no_node() -> None:
    older = [msgspec.structs.replace(n, age_s=n.age_s + 3) for n in small_tree()]
    first = tree_picture(snapshot(small_tree()), 100.0)
    assert tree_delta(first, tree_picture(snapshot(older, time=103.0), 100.0, first)) is None


def test_a_split_changes_one_node_and_adds_one() -> None:
    first = tree_picture(snapshot(small_tree()), 100.0)
    nodes = [n if n.id != 1 else msgspec.structs.replace(n, num_tokens=12, parent=9) for n in small_tree()]
    payload = tree_delta(first, tree_picture(snapshot([*nodes, node(9, 0, 8)]), 100.0, first))
    assert payload is not None
    assert len(payload.buffers[1]) == 0
    assert sorted(memoryview(payload.buffers[2]).cast("I")) == [1, 9]


def test_removed_nodes_are_named() -> None:
    first = tree_picture(snapshot(small_tree()), 100.0)
    payload = tree_delta(first, tree_picture(snapshot(small_tree()[:-1]), 100.0, first))
    assert payload is not None
    assert list(memoryview(payload.buffers[1]).cast("I")) == [4]


def test_tree_widget_answers_labels_and_searches(by_hand: Mail) -> None:
    view = TreeWidget(lambda: snapshot(small_tree()))
    again = view.step(0.0)
    assert again == pytest.approx(0.25, abs=0.05) or (again or 0) > 0.25
    say(view, type="label", ids=[1, 77])
    say(view, type="find", text="KIND")
    view.step(0.1)
    answers = {content["kind"]: msgspec.json.decode(buffers[0]) for content, buffers in by_hand.sent[1:]}
    assert answers["label"] == [[1, "You are kind."]]
    assert answers["found"] == {"text": "KIND", "ids": [1], "total": 1}


def test_a_huge_tree_is_cut_to_its_largest_part() -> None:
    nodes = random_tree(random.Random(1), 12_000)
    picture = tree_picture(snapshot(nodes), 100.0)
    assert len(picture.rows) == 10_000
    assert picture.facts["left_out"] == 2_000


def test_tree_of_an_engine_that_sends_none_is_empty(by_hand: Mail) -> None:
    def source() -> EngineSnapshot:
        return snapshot(None)

    TreeWidget(source).step(0.0)
    assert by_hand.kinds == [("full", 0)]
