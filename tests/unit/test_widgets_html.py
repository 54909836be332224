"""Frozen pictures: inert, small enough, readable on any page, and lawful in their drawing."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from nbsgl.protocol import BranchView, RunView, SegmentView
from nbsgl.widgets import frozen_bundle, run_html, run_text, tree_html, tree_text
from nbsgl.widgets.html import AGES, BADGES, MAX_BYTES, TREE_NODES, largest, tree_svg
from nbsgl.widgets.icicle import icicle, node_width
from tests.unit.widget_pictures import PAYLOADS, chat, forced, gen, haunted, node, random_tree, small_tree, snapshot

TAGS = {"div", "b", "span", "pre", "details", "summary", "table", "thead", "tbody", "tr", "th", "td", "img"}
ATTRIBUTES = {"style", "open", "alt", "src", "width", "height"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def check_inert(page: str) -> Page:
    parsed = Page(page)
    assert set(parsed.tags) <= TAGS
    assert {name for name, _ in parsed.attributes} <= ATTRIBUTES
    for name, value in parsed.attributes:
        if name == "style":
            assert re.fullmatch(r"[-a-z0-9#:;.%, ]*", value or ""), value
        if name == "src":
            assert (value or "").startswith("data:image/svg+xml;base64,")
    return parsed


def test_run_says_what_its_transcript_says() -> None:
    page = check_inert(run_html(chat()))
    for part in (
        "run 7 · 3 branches · 412 tokens",
        "Capital of France?",
        "cut at 1 token",
        "BadRegex: (",
        "80% cached",
    ):
        assert part in page.text
    assert page.tags.count("details") == 4  # three branches and the variables
    assert [value for name, value in page.attributes if name == "open"] == [None] * 3  # so few are all open
    assert "<|user|>" not in page.text


def test_select_shows_a_bar_per_choice_and_ticks_the_chosen() -> None:
    page = run_html(chat())
    assert "<b>✓ Lyon</b>" in page
    assert "-1.250" in page
    assert "width:120px" in page


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payloads_are_inert_in_runs_and_trees(payload: str) -> None:
    run = check_inert(run_html(haunted(payload)))
    tree = check_inert(tree_html(snapshot([node(0, -1, 5, payload), node(1, 0, 500, payload)])))
    for page in (run, tree):
        bad = {
            c for c in page.text if (ord(c) < 32 and c not in "\n\t") or 0xD800 <= ord(c) < 0xE000 or c in "\u202e\x9b"
        }
        assert not bad
    svg = tree_svg([node(0, -1, 5, payload), node(1, 0, 500, payload)])
    assert {e.tag.rpartition("}")[2] for e in ElementTree.fromstring(svg).iter()} <= {"svg", "rect", "text", "circle"}


def large_runs() -> list[RunView]:
    story = [forced("<&" * 60_000), gen("word\u202e " * 40_000)]
    wide = SegmentView(kind="select", choices=tuple("&" * 900 for _ in range(400)), scores=(0.0,) * 400, chosen=3)
    many = [BranchView(id=i, segments=[gen(f"text {i} " * 50), wide]) for i in range(300)]
    names = {f"{'<' * 500}{i}": "'" * 5000 for i in range(300)}
    return [
        RunView(branches=[BranchView(id=0, segments=story)]),
        RunView(branches=many, variables=names, error="&" * 100_000, title="<" * 10_000),
        RunView(branches=[BranchView(id=0, segments=[gen("&" * 3000, "&" * 300) for _ in range(2000)])]),
    ]


@pytest.mark.parametrize("i", range(3))
def test_a_large_run_is_summarised_within_the_limit(i: int) -> None:
    page = run_html(large_runs()[i])
    assert len(page.encode()) <= MAX_BYTES
    assert re.search(r"left out|more|too large", check_inert(page).text)


def test_a_large_tree_stays_within_the_limit() -> None:
    nodes = random_tree(random.Random(5), 5000)
    page = tree_html(snapshot(nodes))
    assert len(page.encode()) <= MAX_BYTES
    assert f"the largest {TREE_NODES} of 5,000 nodes" in page


def test_every_badge_reads_on_its_own_background() -> None:
    pairs = [*BADGES.values(), *(("#000000", ground) for _, ground in AGES)]
    assert min(contrast(*pair) for pair in pairs) >= 4.5


def contrast(a: str, b: str) -> float:
    low, high = sorted(luminance(colour) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_bundle_of_both_kinds() -> None:
    run, tree = chat(), snapshot(small_tree())
    assert frozen_bundle(run) == {"text/html": run_html(run), "text/plain": run_text(run)}
    assert frozen_bundle(tree) == {"text/html": tree_html(tree), "text/plain": tree_text(tree)}


def test_tree_table_lists_the_largest_first() -> None:
    text = check_inert(tree_html(snapshot(small_tree()))).text
    assert text.index('"You are kind."') < text.index('"b"') < text.index('"a"')
    assert "locked 2 · parked" in text


# ---- the drawing -----------------------------------------------------------------------------------------------------


def test_icicle_of_a_small_tree_by_hand() -> None:
    boxes = {box.node.id: box for box in icicle(small_tree(), 100, 40)}
    assert [boxes[i].height for i in (0, 1, 4)] == [40, 35, 5]  # 35 of 40 tokens lie at and under node 1
    assert boxes[3].height == pytest.approx(35 * 10 / 15)
    assert boxes[2].y == pytest.approx(boxes[3].height)
    assert boxes[1].x == pytest.approx(boxes[0].width)
    assert boxes[2].x == boxes[3].x == pytest.approx(boxes[1].x + boxes[1].width)
    assert boxes[3].x + boxes[3].width == pytest.approx(100)
    assert node_width(0) == 0.5


@pytest.mark.parametrize("seed", range(8))
def test_children_lie_behind_their_parent_and_fill_its_height(seed: int) -> None:
    nodes = random_tree(random.Random(seed), 300)
    boxes = {box.node.id: box for box in icicle(nodes, 700, 300)}
    assert len(boxes) == 300
    for box in boxes.values():
        kin = [b for b in boxes.values() if b.node.parent == box.node.id]
        assert box.x + box.width <= 700 + 1e-6
        if kin:
            assert sum(b.height for b in kin) == pytest.approx(box.height)
            assert min(b.y for b in kin) == pytest.approx(box.y)
            assert all(b.x == pytest.approx(box.x + box.width) for b in kin)


def test_the_largest_nodes_bring_their_parents() -> None:
    kept = {n.id for n in largest(random_tree(random.Random(2), 900), 100)}
    assert len(kept) == 100
    parents = {n.id: n.parent for n in random_tree(random.Random(2), 900)}
    assert all(parents[i] in kept or parents[i] == -1 for i in kept)
