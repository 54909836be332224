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
from nbsgl.widgets.view import Payload, View, module

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


class RunWidget(View):
    """A run by branches.  `source` returns the `RunView` of now, cheaply and from any thread."""

    _esm = module("run")
    kind = traitlets.Unicode("run").tag(sync=True)

    def __init__(
        self, source: Callable[[], RunView], *, on_stop: Callable[[], None] | None = None, title: str = ""
    ) -> None:
        super().__init__(source, on_stop=on_stop, title=title)

    def full(self, picture: RunView) -> Payload:
        return Payload([_encode(picture)])

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
