"""A run as the widgets see it: `RunView` of one scope's branches.  Cheap, waits for nothing."""

from __future__ import annotations

import time
from typing import Any

from nbsgl.errors import Aborted, StateFailed
from nbsgl.lang.branch import Binding, Branch, Given, Item, Scope, Slot, failure, is_ready, slot_of
from nbsgl.protocol import BranchView, Gen, RunView, SegmentView, Select, Status


def run_view(root: Branch, shown: list[Branch]) -> RunView:
    """The branches of `root`'s scope, in the order they were made; call with the lock held.

    `root` is shown with all it began with, but tokens and times count only what the scope itself did.
    """
    scope = root.scope
    numbers = {branch.number for branch in shown}
    slots = {id(slot): slot for branch in shown for slot in branch.slots() if slot.node.branch in numbers}
    done = [result for slot in slots.values() for result in slot.results]
    selects = [slot.choice for slot in slots.values() if slot.choice is not None]
    status = _run_status(scope, root, shown)
    ends = [slot.ended_at for slot in slots.values() if slot.ended_at is not None]
    end = max(ends, default=scope.began) if scope.is_over and status not in ("queued", "running") else time.monotonic()
    return RunView(
        title=scope.title,
        status=status,
        elapsed_s=max(0.0, end - scope.began),
        branches=[_branch_view(branch, root) for branch in shown],
        variables=_variables(root.bindings),
        prefill_cached=sum(r.prefill_cached for r in done) + sum(s.prefill_cached for s in selects),
        prefill_computed=sum(r.prefill_computed for r in done) + sum(s.prefill_computed for s in selects),
        generated=sum(slot.num_tokens for slot in slots.values()),
        error=_said(root.error),
    )


def _run_status(scope: Scope, root: Branch, shown: list[Branch]) -> Status:
    if root.error is not None:
        return _branch_status(root)
    states = {_branch_status(branch) for branch in shown}
    if not scope.is_over or "running" in states:
        return "running" if any(branch.num_sent for branch in shown) else "queued"
    return "queued" if "queued" in states else "done"


def _branch_status(branch: Branch) -> Status:
    if branch.error is not None:
        return "aborted" if isinstance(branch.error, Aborted) else "failed"
    states = {slot.status for slot in branch.slots()}
    if "running" in states:
        return "running"
    return "queued" if "queued" in states or branch.num_sent < len(branch.items) else "done"


def _branch_view(branch: Branch, root: Branch) -> BranchView:
    first = 0 if branch is root else branch.inherited
    blocked = any(_is_pending(item) for item in branch.items[:first])
    segments: list[SegmentView] = []
    for place, item in enumerate(branch.items[first:], first):
        blocked = blocked or (_is_pending(item) and not isinstance(item, Slot))  # a value that is still to come
        status: Status = "queued" if blocked or place >= branch.num_sent else "done"
        segments.append(_segment_view(item, status, branch.scope.began, place >= branch.inherited))
        blocked = blocked or _is_pending(item)
    return BranchView(
        id=branch.number,
        parent=None if branch is root or branch.parent is None else branch.parent.number,
        fork_at=0 if branch is root else branch.forked_at + (root.inherited if branch.parent is root else 0),
        status=_branch_status(branch),
        segments=segments,
    )


def _is_pending(item: Item) -> bool:
    slot = slot_of(item)
    return slot is not None and not slot.is_final


def _segment_view(item: Item, status: Status, began: float, is_own: bool) -> SegmentView:
    if not isinstance(item, Slot):
        return SegmentView(kind="forced", status=status, text=item.text, role=item.role, is_markup=item.is_markup)
    facts: dict[str, Any] = {}
    first = item.results[0] if item.results else None
    done = first or item.choice
    if done is not None and is_own:
        facts |= {"prefill_cached": done.prefill_cached, "prefill_computed": done.prefill_computed}
    if first is not None:
        facts["finish"] = first.finish
    if isinstance(item.node, Select):
        facts |= {"choices": item.node.choices, "chosen": item.chosen}
        if item.choice is not None:
            facts["scores"] = tuple(item.choice.scores)
    if isinstance(item.node, Gen):
        facts["grammar"] = item.node.grammar
    return SegmentView(
        kind="select" if isinstance(item.node, Select) else "gen",
        status=item.status,
        text=item.text,
        name=item.name,
        role=item.role,
        num_tokens=item.num_tokens,
        queued_at=_since(item.sent_at, began),
        first_at=_since(item.first_at, began),
        ended_at=_since(item.ended_at, began),
        error=_said(item.error),
        **facts,
    )


def _said(error: BaseException | None) -> str | None:
    """The cause: where it happened is what the view shows anyway."""
    cause = error.__cause__ or error if isinstance(error, StateFailed) else error
    return None if cause is None else f"{type(cause).__name__}: {cause}"


def _since(when: float | None, began: float) -> float | None:
    return None if when is None else max(0.0, when - began)


def _variables(bindings: dict[str | None, Binding]) -> dict[str, str]:
    """The variables that have a value, as text; objects of other kinds show their type only."""
    found = {}
    for name, binding in bindings.items():
        if name is None or failure(binding) is not None or not is_ready(binding):
            continue
        value = binding.value()
        plain = isinstance(value, (str, int, float, bool, type(None))) or not isinstance(binding, Given)
        found[name] = str(value) if plain else f"<{type(value).__name__}>"
    return found
