"""`TreeWidget`: the prefix tree as it is now.

A message carries facts (JSON), ids of removed nodes, then columns of the nodes that are new or changed, little endian:
`u32 id, u32 parent, u32 tokens, u16 locks, u32 hits, f32 last_use, u8 flags`, 23 B a node.  `last_use` is in seconds on
the axis of the facts' `now`, so a node that nobody touches never changes.  Texts are sent when asked for.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
import traitlets

from nbsgl.protocol import EngineSnapshot, TreeNode
from nbsgl.widgets.text import clean, tree_facts
from nbsgl.widgets.view import Find, Label, PageMessage, Payload, View, module

MAX_NODES = 10_000
MAX_LABELS = 200
MAX_FOUND = 1_000
NO_PARENT = 0xFFFFFFFF
PARKED = 1
USE_STEP_S = 0.25  # a smaller move of `last_use` is the rounding of an age, not a use

# array's type codes of the columns, in order; "I" and "H" are 4 and 2 bytes on every platform CPython runs on
COLUMNS = "IIIHIfB"


class Row(NamedTuple):
    """One node as it is sent."""

    id: int
    parent: int
    tokens: int
    locks: int
    hits: int
    last_use: float
    flags: int


class TreePicture(NamedTuple):
    """A snapshot, ready to be compared with the next."""

    facts: dict[str, object]
    rows: dict[int, Row]
    texts: dict[int, str]


def tree_picture(snapshot: EngineSnapshot, origin: float, old: TreePicture | None = None) -> TreePicture:
    """The snapshot's tree as rows; times count from `origin`.  Rows that stayed the same are the old ones."""
    now = snapshot.time - origin
    nodes = capped(snapshot.tree or ())
    rows = {}
    for node in nodes:
        row = _row(node, now)
        was = None if old is None else old.rows.get(row.id)
        rows[row.id] = was if was is not None and _same(was, row) else row
    facts: dict[str, object] = {
        "now": round(now, 1),
        "line": tree_facts(snapshot),
        "total": snapshot.slots_total,
        "in_tree": snapshot.slots_in_tree,
        "evictable": snapshot.slots_evictable,
        "free": snapshot.slots_free,
        "hit_rate": round(snapshot.hit_rate, 4),
        "evicted": snapshot.evicted_tokens,
        "left_out": len(snapshot.tree or ()) - len(nodes),
    }
    return TreePicture(facts, rows, {node.id & NO_PARENT: clean(node.text) for node in nodes})


def capped(nodes: Sequence[TreeNode]) -> Sequence[TreeNode]:
    """At most `MAX_NODES`, the largest subtrees, so that a kept node's parent is kept too."""
    if len(nodes) <= MAX_NODES:
        return nodes
    from nbsgl.widgets.html import largest

    return largest(nodes, MAX_NODES)


def _row(node: TreeNode, now: float) -> Row:
    parent = node.parent if node.parent >= 0 else NO_PARENT
    return Row(
        id=node.id & NO_PARENT,
        parent=parent & NO_PARENT,
        tokens=min(node.num_tokens, NO_PARENT),
        locks=min(node.locks, 0xFFFF),
        hits=min(node.hits, NO_PARENT),
        last_use=round(now - node.age_s, 2),
        flags=PARKED * node.parked,
    )


def _same(a: Row, b: Row) -> bool:
    return a[:5] == b[:5] and a.flags == b.flags and abs(a.last_use - b.last_use) < USE_STEP_S


def columns(rows: Iterable[Row]) -> list[bytes]:
    """The rows as one little-endian buffer per column."""
    packed = []
    table = list(rows)
    for i, code in enumerate(COLUMNS):
        column = array(code, [row[i] for row in table])
        if sys.byteorder == "big":
            column.byteswap()
        packed.append(column.tobytes())
    return packed


def tree_delta(old: TreePicture, new: TreePicture) -> Payload | None:
    """What changed between two pictures; None if only time has passed."""
    removed = [i for i in old.rows if i not in new.rows]
    changed = [row for i, row in new.rows.items() if old.rows.get(i) is not row]
    same_facts = {**old.facts, "now": 0} == {**new.facts, "now": 0}
    if not removed and not changed and same_facts:
        return None
    return _payload(new.facts, removed, changed)


def _payload(facts: dict[str, object], removed: list[int], rows: Iterable[Row]) -> Payload:
    gone = array("I", removed)
    if sys.byteorder == "big":
        gone.byteswap()
    return Payload([msgspec.json.encode(facts), gone.tobytes(), *columns(rows)])


class TreeWidget(View):
    """The prefix tree, four times a second while somebody looks.  `source` returns a snapshot that has its tree."""

    _esm = module("tree")
    kind = traitlets.Unicode("tree").tag(sync=True)
    max_hz = 4.0

    def __init__(self, source: Callable[[], EngineSnapshot], *, title: str = "prefix tree") -> None:
        self._origin: float | None = None
        self._latest: TreePicture | None = None
        super().__init__(source, title=title)

    def picture(self) -> TreePicture:
        snapshot: EngineSnapshot = super().picture()
        if self._origin is None:
            self._origin = snapshot.time
        self._latest = tree_picture(snapshot, self._origin, self._latest)
        return self._latest

    def full(self, picture: TreePicture) -> Payload:
        return _payload(picture.facts, [], picture.rows.values())

    def delta(self, old: TreePicture, new: TreePicture) -> Payload | None:
        return tree_delta(old, new)

    def answer(self, message: PageMessage) -> None:
        texts = {} if self._latest is None else self._latest.texts
        if isinstance(message, Label):
            known = [(i, texts[i]) for i in message.ids[:MAX_LABELS] if i in texts]
            self.reply("label", known)
        elif isinstance(message, Find) and message.text:
            wanted = message.text.casefold()
            found = [i for i, text in texts.items() if wanted in text.casefold()]
            self.reply("found", {"text": clean(message.text), "ids": found[:MAX_FOUND], "total": len(found)})
