"""Plain pictures, checked by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nbsgl.protocol import BranchView, RunView
from nbsgl.widgets import run_text, tree_text
from nbsgl.widgets.text import MARKED_CODES, TREE_LINES, one_line, visible
from tests.unit.widget_pictures import PAYLOADS, chat, forced, gen, haunted, node, small_tree, snapshot

CHAT = """\
run 7 · 3 branches · 412 tokens · 1.8 s · done
user: Capital of France?
assistant: [answer: Par | cut at 1 token]
├ branch 1 · running
│ Tell me. [more: It is | running]
├ branch 2 · failed
│ [z: failed: BadRegex: (]
City: [city: Lyon | Paris -1.250 · ✓ Lyon -0.500]
mood = calm"""

TREE = """\
prefix tree · 5 nodes · 400 of 1,000 slots (40 %) · evictable 300 · free 500 · hit rate 75 %
root · 0 tokens · 1 hit · 2 s ago
  "You are kind." · 20 tokens · 1 hit · 2 s ago
    "b" · 10 tokens · 1 hit · 2 s ago · locked 2 · parked
    "a" · 5 tokens · 1 hit · 2 s ago
  "other" · 5 tokens · 1 hit · 2 s ago"""


def test_transcript_marks_generated_text_forks_cuts_and_errors() -> None:
    assert run_text(chat()) == CHAT


def test_empty_run_is_its_facts() -> None:
    assert run_text(RunView()) == "run · 0 branches · 0 tokens · 0 ms · queued"


def test_error_of_the_run_is_its_last_line() -> None:
    assert run_text(RunView(status="failed", error="EngineDied: gone")).endswith("\nerror: EngineDied: gone")


def test_what_a_broken_branch_did_not_reach_is_a_number() -> None:
    ended = gen("made", name="a")
    lost = [gen("", name=f"x{i}", status="aborted", num_tokens=0, error="Aborted: by an interrupt") for i in range(3)]
    branch = BranchView(id=0, status="aborted", segments=[forced("Say: "), ended, *lost, forced("later")])
    text = run_text(RunView(status="aborted", branches=[branch]))
    assert text.endswith("Say: [a: made]\n… 3 holes not reached")


def test_branches_whose_parents_go_in_a_circle_are_shown_once() -> None:
    branches = [BranchView(id=i, parent=1 - i, segments=[forced(f"text {i}")]) for i in range(2)]
    text = run_text(RunView(branches=branches))
    assert [text.count(f"text {i}") for i in range(2)] == [1, 1]


def test_tree_is_indented_largest_first() -> None:
    assert tree_text(snapshot(small_tree())) == TREE


def test_tree_stops_at_depth_four() -> None:
    chain = [node(i, i - 1, 1, f"n{i}", depth=i) for i in range(10)]
    lines = tree_text(snapshot(chain)).split("\n")
    assert len(lines) == 1 + 4 + 1
    assert lines[-1].strip() == "… 1 child, 6 tokens below"


def test_tree_stops_at_forty_lines() -> None:
    lines = tree_text(snapshot([node(i, -1, 1, f"n{i}") for i in range(100)])).split("\n")
    assert len(lines) == TREE_LINES
    assert lines[-1] == "… 62 more lines"


def test_tree_that_was_not_asked_for_says_so() -> None:
    assert "not asked for" in tree_text(snapshot(None))


def test_control_characters_and_bidi_overrides_become_symbols() -> None:
    assert visible("a\x1b[1mb\u202ec\x7f\x9bd\n\te") == "a␛[1mb⟨U+202E⟩c␡⟨U+009B⟩d\n\te"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_leaves_a_control_character_in_a_transcript(payload: str) -> None:
    text = run_text(haunted(payload))
    bad = {c for c in text if (ord(c) < 32 and c != "\n") or ord(c) in MARKED_CODES or 0xD800 <= ord(c) < 0xE000}
    assert not bad
    text.encode()


def test_one_line_is_as_long_as_asked() -> None:
    assert one_line("abc", 3) == "abc"
    assert one_line("abcd", 3) == "ab…"
    assert one_line("a\nb", 3) == "a⏎b"


def test_text_and_html_load_no_widget_library() -> None:
    code = (
        "import sys, nbsgl.widgets; sys.exit(bool({'anywidget', 'ipywidgets', 'IPython', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_role_label_waits_for_the_first_text() -> None:
    segments = [forced("<|a|>", "assistant", markup=True), forced("", "assistant"), gen("hi", "x", role="assistant")]
    text = run_text(RunView(branches=[BranchView(id=0, segments=segments)]))
    assert text.split("\n")[1] == "assistant: [x: hi]"
