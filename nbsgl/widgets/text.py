"""Pictures as plain text: what a diff, a terminal and a screen reader get."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from nbsgl.protocol import BranchView, EngineSnapshot, RunView, SegmentView, TreeNode

TREE_DEPTH = 4
TREE_LINES = 40
SHOWN_CHOICES = 8

# Line and paragraph separators, marks that turn or hide text, and invisible characters that no script needs.
MARKED_CODES = (0x061C, 0x200B, 0x200E, 0x200F, 0xFEFF, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_SURROGATE = re.compile("[\ud800-\udfff]")
_VISIBLE: dict[int, str] = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: "\u2421"} | {code: f"⟨U+{code:04X}⟩" for code in (*range(0x80, 0xA0), *MARKED_CODES)}


def clean(text: str) -> str:
    """The text with surrogates replaced one by one, so that it can be written as UTF-8."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def visible(text: str) -> str:
    """The text with every control character and bidi override as a symbol; newlines and tabs stay."""
    return clean(text).translate(_VISIBLE)


def one_line(text: str, limit: int) -> str:
    """At most `limit` characters on one line, nothing invisible; a longer text ends in `…`."""
    short = visible(text[: limit + 1]).replace("\n", "⏎").replace("\t", " ")
    return short if len(short) <= limit else f"{short[: limit - 1]}…"


def plural(n: int, word: str) -> str:
    """`1 branch`, `3 branches`, `1,204 tokens`."""
    many = {"branch": "branches", "child": "children"}.get(word, f"{word}s")
    return f"{n:,} {word if n == 1 else many}"


# ---- a run -----------------------------------------------------------------------------------------------------------


def run_facts(view: RunView) -> str:
    """The first line of every picture of a run."""
    parts = [
        f"run {one_line(view.title, 60)}".rstrip(),
        plural(len(view.branches), "branch"),
        plural(view.generated, "token"),
        f"{view.elapsed_s:.1f} s" if view.elapsed_s >= 1 else f"{1000 * view.elapsed_s:.0f} ms",
        view.status,
    ]
    return " · ".join(parts)


def prompt_facts(view: RunView) -> str:
    """Where the prompt's tokens came from; empty while nothing was prefilled."""
    if not view.prefill_cached + view.prefill_computed:
        return ""
    return f"prompt: {plural(view.prefill_cached, 'token')} cached, {view.prefill_computed:,} computed"


def reached(branch: BranchView) -> tuple[list[SegmentView], int]:
    """The segments up to where a failed or aborted branch broke off, and how many holes it left unbegun."""
    segments = branch.segments
    if branch.status not in ("failed", "aborted"):
        return segments, 0
    for i, segment in enumerate(segments):
        is_hole = segment.kind != "forced"
        if segment.status == "queued" or (is_hole and segment.status == "aborted" and not segment.num_tokens):
            return segments[:i], sum(later.kind != "forced" for later in segments[i:])
    return segments, 0


def branch_order(branches: Iterable[BranchView]) -> tuple[list[BranchView], dict[int, list[BranchView]]]:
    """The branches without a known parent, and each branch's children; a branch in a circle counts as a root."""
    known = {branch.id: branch for branch in branches}
    roots, children = [], defaultdict(list)
    for branch in known.values():
        if branch.parent is None or not _reaches_root(branch, known):
            roots.append(branch)
        else:
            children[branch.parent].append(branch)
    return roots, children


def _reaches_root(branch: BranchView, known: dict[int, BranchView]) -> bool:
    seen = {branch.id}
    parent = branch.parent
    if parent not in known:
        return False
    while parent is not None and parent in known:
        if parent in seen:
            return False
        seen.add(parent)
        parent = known[parent].parent
    return True


def segment_note(segment: SegmentView) -> str:
    """What a reader must know of a segment beside its text: cut, failed, not there yet; empty when all went well."""
    if segment.status == "aborted":
        return "aborted"
    if segment.error:
        return f"{segment.status}: {one_line(segment.error, 300)}"
    if segment.finish is not None and segment.finish.type == "length":
        limit = "" if segment.finish.length is None else f" at {plural(segment.finish.length, 'token')}"
        return f"cut{limit}"
    if segment.finish is not None and segment.finish.type in ("abort", "error"):
        return {"abort": "aborted", "error": "failed"}[segment.finish.type]
    return "" if segment.status == "done" else segment.status


def scored_choices(segment: SegmentView) -> list[tuple[str, float | None, bool]]:
    """(choice, score or None, chosen) of a select, in the order the program gave them."""
    scores: list[float | None] = [*segment.scores, *[None] * len(segment.choices)]
    return [(choice, scores[i], i == segment.chosen) for i, choice in enumerate(segment.choices)]


def run_text(view: RunView) -> str:
    """The transcript: facts, then each branch where it forked, generated text as `[name: ...]`."""
    roots, children = branch_order(view.branches)
    lines = [run_facts(view)]
    for root in roots:
        if len(roots) > 1:
            lines.append(f"branch {root.id} · {root.status}")
        lines += _branch_lines(root, children)
    named = {segment.name for branch in view.branches for segment in branch.segments}
    lines += [f"{one_line(k, 60)} = {visible(v)}" for k, v in view.variables.items() if k not in named]
    if view.error:
        lines.append(f"error: {visible(view.error)}")
    return "\n".join(lines)


def _branch_lines(branch: BranchView, children: dict[int, list[BranchView]]) -> list[str]:
    """The branch's text; its forks, indented, at the segment where they left."""
    lines: list[str] = []
    text = ""
    segments, left = reached(branch)
    forks: dict[int, list[BranchView]] = defaultdict(list)
    for child in children.get(branch.id, ()):
        forks[min(max(child.fork_at, 0), len(segments))].append(child)
    label = ""  # the role whose first text is still to come
    for i in range(len(segments) + 1):
        for child in forks.get(i, ()):
            lines += _flush(text) + [f"├ branch {child.id} · {child.status}"]
            lines += [f"│ {line}" for line in _branch_lines(child, children)]
            text = ""
        if i == len(segments):
            break
        segment = segments[i]
        if segment.is_markup:
            label = segment.role or label
            lines += _flush(text)
            text = ""
            continue
        piece = _segment_text(segment)
        text += f"{one_line(label, 40)}: {piece.lstrip()}" if label and piece.strip() else piece
        label = "" if piece.strip() else label
    lines += _flush(text)
    return [*lines, f"… {plural(left, 'hole')} not reached"] if left else lines


def _flush(text: str) -> list[str]:
    return text.strip("\n").split("\n") if text.strip() else []


def _segment_text(segment: SegmentView) -> str:
    note = segment_note(segment)
    if segment.kind == "forced":
        return visible(segment.text) + (f"[{note}]" if note else "")
    text = segment.text
    if segment.kind == "select" and not text and 0 <= segment.chosen < len(segment.choices):
        text = segment.choices[segment.chosen]
    parts = [visible(text)]
    if segment.kind == "select":
        parts.append(_choices_text(segment))
    parts.append(note)
    return f"[{one_line(segment.name or segment.kind, 60)}: {' | '.join(p for p in parts if p)}]"


def _choices_text(segment: SegmentView) -> str:
    shown = [
        f"{'✓ ' if chosen else ''}{one_line(choice, 40)}" + ("" if score is None else f" {score:.3f}")
        for choice, score, chosen in scored_choices(segment)[:SHOWN_CHOICES]
    ]
    left = len(segment.choices) - len(shown)
    return " · ".join(shown) + (f" · {left:,} more" if left else "")


# ---- the prefix tree -------------------------------------------------------------------------------------------------


def tree_facts(snapshot: EngineSnapshot) -> str:
    """The first line of every picture of the tree: how full the pool is, and what the cache has saved."""
    total = max(snapshot.slots_total, 1)
    nodes = "not asked for" if snapshot.tree is None else plural(len(snapshot.tree), "node")
    return (
        f"prefix tree · {nodes} · {snapshot.slots_in_tree:,} of {snapshot.slots_total:,} slots"
        f" ({100 * snapshot.slots_in_tree / total:.0f} %) · evictable {snapshot.slots_evictable:,}"
        f" · free {snapshot.slots_free:,} · hit rate {100 * snapshot.hit_rate:.0f} %"
    )


class Forest:
    """The tree's nodes by parent, with the tokens under each; a node without a known parent is a root."""

    def __init__(self, nodes: Iterable[TreeNode]) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.children: dict[int, list[TreeNode]] = defaultdict(list)
        self.roots: list[TreeNode] = []
        for node in self.nodes.values():
            if node.parent in self.nodes and node.parent != node.id:
                self.children[node.parent].append(node)
            else:
                self.roots.append(node)
        self.total = {node.id: node.num_tokens for node in self.nodes.values()}
        for node in reversed(list(self.walk())):
            if node.parent in self.total and node.parent != node.id:
                self.total[node.parent] += self.total[node.id]
        for kin in (self.roots, *self.children.values()):
            kin.sort(key=lambda node: (-self.total[node.id], node.id))

    def walk(self) -> Iterator[TreeNode]:
        """Parents before children, each root's tree in turn."""
        stack = self.roots[::-1]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(self.children.get(node.id, [])))


def node_flags(node: TreeNode) -> str:
    """`locked 2 · parked`, or nothing."""
    return " · ".join([f"locked {node.locks}"] * (node.locks > 0) + ["parked"] * node.parked)


def tree_text(snapshot: EngineSnapshot) -> str:
    """The tree, largest branches first: depth 4, 40 lines, the rest as counts."""
    lines = [tree_facts(snapshot)]
    forest = Forest(snapshot.tree or ())
    _tree_lines(forest, forest.roots, "", 1, lines)
    shown = lines[:TREE_LINES]
    if len(lines) > TREE_LINES:
        shown[-1] = f"… {len(lines) - TREE_LINES + 1:,} more lines"
    return "\n".join(shown)


def _tree_lines(forest: Forest, kin: list[TreeNode], indent: str, depth: int, lines: list[str]) -> None:
    for node in kin:
        below = forest.total[node.id] - node.num_tokens
        facts = [
            plural(node.num_tokens, "token"),
            plural(node.hits, "hit"),
            f"{node.age_s:.0f} s ago",
            node_flags(node),
        ]
        label = "root" if not node.num_tokens and not node.text else repr_text(node.text)
        lines.append(f"{indent}{label} · " + " · ".join(fact for fact in facts if fact))
        inner = forest.children.get(node.id, [])
        if inner and depth >= TREE_DEPTH:
            lines.append(f"{indent}  … {plural(len(inner), 'child')}, {plural(below, 'token')} below")
        else:
            _tree_lines(forest, inner, f"{indent}  ", depth + 1, lines)


def repr_text(text: str) -> str:
    """A node's first characters in quotes, on one line."""
    return f'"{one_line(text, 40)}"'
