"""`RunWidget`: a run as it grows, and the deltas that carry it to the page.

State and deltas are JSON of protocol's `RunView`.  A delta holds what differs:

    {"set": {field: value}, "vars": {name: [keep, add] or null}, "keep": n, "branches": [[i, branch], ...]}
    branch   {"set": {...}, "keep": n, "segs": [[j, segment], ...]}
    segment  {"set": {...}, "text": [keep, add]}

`keep` shortens a list, or in a text's pair the text (in code points; null: nothing is cut), before the rest is laid on
it; an index past the end appends.
"""

from __future__ import annotations

from collections.abc import Callable
from os.path import commonprefix
from typing import Any

import msgspec
import traitlets

from nbsgl.protocol import BranchView, RunView, SegmentView
from nbsgl.widgets.text import clean
from nbsgl.widgets.view import PageMessage, Payload, View, Watch, module
from nbsgl.widgets.watched import Drawer, Watched

RUN_FIELDS = ("title", "status", "elapsed_s", "prefill_cached", "prefill_computed", "generated", "error")
BRANCH_FIELDS = ("id", "parent", "fork_at", "status")
SEGMENT_FIELDS = tuple(name for name in SegmentView.__struct_fields__ if name != "text")

Delta = dict[str, Any]


def text_change(old: str, new: str) -> list[Any]:
    """[code points to keep, or None for all; text to add]."""
    if new.startswith(old):
        return [None, new[len(old) :]]
    keep = len(commonprefix((old, new)))
    return [keep, new[keep:]]


def _fields(old: Any, new: Any, names: tuple[str, ...]) -> Delta:
    """The fields that differ; all of them when there is no old one."""
    return {name: getattr(new, name) for name in names if old is None or getattr(old, name) != getattr(new, name)}


def run_delta(old: RunView, new: RunView) -> Delta:
    """What turns the old view into the new one; empty if they are equal."""
    delta: Delta = {}
    if changed := _fields(old, new, RUN_FIELDS):
        delta["set"] = changed
    if old.variables != new.variables:
        delta["vars"] = _variables(old.variables, new.variables)
    if len(new.branches) < len(old.branches):
        delta["keep"] = len(new.branches)
    branches = []
    for i, branch in enumerate(new.branches):
        before = old.branches[i] if i < len(old.branches) else None
        if before is not branch and before != branch:
            branches.append([i, _branch(before, branch)])
    if branches:
        delta["branches"] = branches
    return delta


def _variables(old: dict[str, str], new: dict[str, str]) -> dict[str, list[Any] | None]:
    gone: dict[str, list[Any] | None] = {name: None for name in old if name not in new}
    return gone | {k: text_change(old.get(k, ""), text) for k, text in new.items() if old.get(k) != text}


def _branch(old: BranchView | None, new: BranchView) -> Delta:
    delta: Delta = {}
    if changed := _fields(old, new, BRANCH_FIELDS):
        delta["set"] = changed
    before = [] if old is None else old.segments
    if len(new.segments) < len(before):
        delta["keep"] = len(new.segments)
    segs = []
    for j, segment in enumerate(new.segments):
        was = before[j] if j < len(before) else None
        if was is not segment and was != segment:
            segs.append([j, _segment(was, segment)])
    if segs:
        delta["segs"] = segs
    return delta


def _segment(old: SegmentView | None, new: SegmentView) -> Delta:
    delta: Delta = {}
    if changed := _fields(old, new, SEGMENT_FIELDS):
        delta["set"] = changed
        if "grammar" in changed:
            changed["grammar"] = lean(new).grammar
    text = "" if old is None else old.text
    if text != new.text:
        delta["text"] = text_change(text, new.text)
    return delta


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, (list, tuple)) else value


MAX_GRAMMAR = 200  # characters of a grammar's text that go to the page with its segment


def lean(segment: SegmentView) -> SegmentView:
    """The segment as it is sent: a grammar by its head, enough to name it."""
    spec = segment.grammar
    if spec is None or len(spec.text) <= MAX_GRAMMAR:
        return segment
    replace = msgspec.structs.replace
    return replace(segment, grammar=replace(spec, text=f"{spec.text[:MAX_GRAMMAR]}…"))


def _lean_run(view: RunView) -> RunView:
    if not any(segment.grammar for branch in view.branches for segment in branch.segments):
        return view
    replace = msgspec.structs.replace
    return replace(view, branches=[replace(b, segments=[lean(s) for s in b.segments]) for b in view.branches])


class RunWidget(View):
    """A run by branches.  `source` returns the `RunView` of now, cheaply and from any thread.

    `drawer` makes the picture of a segment's grammar when a reader opens it, and again as the text grows, at most ten
    times a second, on a thread of its own.
    """

    _esm = module("run")
    kind = traitlets.Unicode("run").tag(sync=True)
    can_draw = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        source: Callable[[], RunView],
        *,
        on_stop: Callable[[], None] | None = None,
        title: str = "",
        drawer: Drawer | None = None,
    ) -> None:
        self._watched: Watched | None = None
        self._drawer = drawer
        super().__init__(source, on_stop=on_stop, title=title)
        self.can_draw = drawer is not None

    def answer(self, message: PageMessage) -> None:
        if isinstance(message, Watch) and self._drawer is not None:
            is_end = message.segment < 0
            self._watched = None if is_end else Watched(self._drawer, message.branch, message.segment)

    def _update(self, now: float) -> None:
        super()._update(now)
        watched, view = self._watched, self._sent_picture
        if watched is not None and view is not None:
            watched.look(view, now, is_last=self._finished)
            if (message := watched.news()) is not None:
                self.reply("grammar", message)

    def _send_full(self, picture: RunView, now: float) -> None:
        super()._send_full(picture, now)
        if (watched := self._watched) is not None:
            self._watched = Watched(watched.drawer, watched.branch, watched.segment)

    def full(self, picture: RunView) -> Payload:
        return Payload([_encode(_lean_run(picture))])

    def delta(self, old: RunView, new: RunView) -> Payload | None:
        change = run_delta(old, new)
        only_clock = set(change) == {"set"} and set(change["set"]) == {"elapsed_s"}
        if not change or (only_clock and new.status in ("queued", "running")):
            return None  # the page's own clock goes on
        return Payload([_encode(change)])


def _encode(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # a lone surrogate somewhere; same number of code points after mending
        return msgspec.json.encode(_clean(msgspec.to_builtins(value)))
