"""Frozen pictures: what a saved notebook shows when nobody answers any more.

Written for a reader who did not run the notebook: the front end's sanitiser strips scripts, `<style>`, inline `<svg>`
and ARIA, so all looks are inline styles, structure is `<details>`, tables and `<pre>`, and a drawing is an `<img>`.
Text keeps the page's own colour (light or dark); a colour of ours always brings its own background.
"""

from __future__ import annotations

import base64
import html
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from nbsgl.automaton import GrammarPicture
from nbsgl.errors import NbsglError
from nbsgl.protocol import BranchView, EngineSnapshot, GrammarSpec, RunView, SegmentView, TreeNode
from nbsgl.widgets.icicle import Box, icicle
from nbsgl.widgets.text import (
    Forest,
    node_flags,
    one_line,
    plural,
    prompt_facts,
    reached,
    repr_text,
    run_facts,
    run_text,
    scored_choices,
    segment_note,
    tree_facts,
    tree_text,
    visible,
)

logger = logging.getLogger("nbsgl")

MAX_BYTES = 64_000  # 50 runs in one notebook stay below 4 MB
TREE_NODES = 300
TREE_ROWS = 20

# (text, background) of every badge and bar: contrast >= 4.5 : 1, so they read the same on any page.  Okabe-Ito's hues.
BADGES = {
    "queued": ("#ffffff", "#5f6368"),
    "running": ("#000000", "#e69f00"),
    "done": ("#ffffff", "#00664b"),
    "failed": ("#ffffff", "#b34700"),
    "aborted": ("#ffffff", "#b34700"),
    "cut": ("#000000", "#e69f00"),
    "cached": ("#ffffff", "#00664b"),
    "computed": ("#000000", "#e69f00"),
    "chosen": ("#ffffff", "#0072b2"),
}
GREY, BLUE, VERMILION = "#808080", "#0072b2", "#d55e00"
BOX = f"border:1px solid {GREY};border-radius:4px;padding:6px 10px;line-height:1.45;font-size:13px"
WRAP = "white-space:pre-wrap;overflow-wrap:anywhere;word-break:normal"
PRE = f"margin:0;padding:1px 0 1px 8px;{WRAP};background:transparent;color:inherit"
FORCED = f"{PRE};border-left:4px solid {GREY}"
GENERATED = f"{PRE};border-left:4px double {BLUE};font-weight:600"
CELL = "padding:1px 10px 1px 0;text-align:left;vertical-align:top"
LABEL = "font-size:11px;letter-spacing:.03em"

# What is left of a picture when it would be too large: (characters per text, branches, choices and variables).
PROMPT_CHARS = 3_000  # of a prompt's text, which its writer knows already
OPEN_BRANCHES = 5  # a run of so few shows them all at once, forks side by side
SIZES = ((20_000, 64, 64), (6_000, 64, 64), (2_000, 40, 32), (600, 24, 16), (200, 16, 8), (60, 6, 4))


def esc(text: str) -> str:
    """Visible and inert in HTML text and in a quoted attribute."""
    return html.escape(visible(text), quote=True)


def shorten(text: str, limit: int) -> str:
    """The text's head and tail, saying how much of the middle is left out."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f"{text[:head]}\n… {len(text) - limit:,} characters left out …\n{text[len(text) - (limit - head) :]}"


def badge(kind: str, text: str | None = None) -> str:
    colour, ground = BADGES[kind]
    style = f"display:inline-block;padding:0 6px;border-radius:3px;background:{ground};color:{colour};{LABEL}"
    return f'<span style="{style}">{esc(kind if text is None else text)}</span>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f'<th style="{CELL};font-weight:600">{esc(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f'<td style="{CELL}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    style = "border-collapse:collapse;margin:4px 0;font-size:13px"
    return f'<table style="{style}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def bar(parts: Sequence[tuple[str, float]], width_px: int = 240) -> str:
    """A horizontal bar in badges' colours; each part's share of the width.  Never alone: numbers stand beside it."""
    frame = f"display:inline-block;width:{width_px}px;height:8px;border:1px solid {GREY}"
    pieces = "".join(
        f'<div style="display:inline-block;height:8px;width:{share * width_px:.0f}px;background:{BADGES[kind][1]}">'
        "</div>"
        for kind, share in parts
    )
    return f'<div style="{frame};line-height:8px;font-size:0;vertical-align:middle">{pieces}</div>'


def fitted(draw: Callable[[int, int, int], str], fallback: str) -> str:
    """The richest picture of at most `MAX_BYTES`; the fallback if even the poorest is larger."""
    for size in SIZES:
        page = draw(*size)
        if len(page.encode()) <= MAX_BYTES:
            return page
    return fallback


# ---- a run -----------------------------------------------------------------------------------------------------------


Drawn = Mapping[tuple[GrammarSpec, str], GrammarPicture]
"""The pictures of grammars, by spec and text."""
MAX_DRAWN = 4


def run_html(view: RunView, drawer: Callable[[GrammarSpec, str], GrammarPicture] | None = None) -> str:
    """The run as one box: facts, branches (each in a `<details>` if there are several), variables, cache bar.

    `drawer` makes the pictures of the first grammars.  At most 64 kB.
    """
    words = "This run is too large for a picture; its text form is complete."
    facts = f'<div style="{BOX}">{_facts(view)}<div>{words}</div></div>'
    drawn = {} if drawer is None else _drawn(view, drawer)
    for kept in (drawn, dict(list(drawn.items())[:1]), {}) if drawn else ({},):
        page = fitted(partial(_run_page, view, drawn=kept), "")
        if page:
            return page
    return facts


def _drawn(view: RunView, drawer: Callable[[GrammarSpec, str], GrammarPicture]) -> Drawn:
    """Of the first grammars that wrote something; one that cannot be drawn is left out."""
    found: dict[tuple[GrammarSpec, str], GrammarPicture] = {}
    specs: set[GrammarSpec] = set()
    for segment in (segment for branch in view.branches for segment in branch.segments):
        spec = segment.grammar
        if spec is None or not segment.text or spec in specs or len(specs) >= MAX_DRAWN:
            continue
        specs.add(spec)
        try:
            found[spec, segment.text] = drawer(spec, segment.text)
        except NbsglError:
            logger.debug("a grammar could not be drawn", exc_info=True)
    return found


def _run_page(view: RunView, chars: int, max_branches: int, max_rows: int, drawn: Drawn) -> str:
    shown = view.branches[:max_branches]
    parts = [_facts(view)]
    if view.error:
        parts.append(f'<pre style="{PRE};border-left:4px solid {VERMILION}">{badge("failed", "error")} ')
        parts.append(f"{esc(shorten(view.error, chars))}</pre>")
    parts += _branches(shown, chars, max_rows, drawn)
    if len(view.branches) > len(shown):
        parts.append(f"<div>… {plural(len(view.branches) - len(shown), 'branch')} more in the text form</div>")
    # a variable of the only branch is the text of its hole, which stands above already
    named = {segment.name for segment in shown[0].segments} if len(view.branches) == 1 else set()
    left = {name: text for name, text in view.variables.items() if name not in named}
    parts += [_variables(left, chars, max_rows), _cache_line(view)]
    return f'<div style="{BOX}">{"".join(parts)}</div>'


def _facts(view: RunView) -> str:
    facts = run_facts(view).rsplit(" · ", 1)[0]
    return f"<div><b>{esc(facts)}</b> · {badge(view.status)}</div>"


def _cache_line(view: RunView) -> str:
    prompt = view.prefill_cached + view.prefill_computed
    if not prompt:
        return ""
    share = view.prefill_cached / prompt
    picture = bar([("cached", share), ("computed", 1 - share)], 120)
    return f'<div style="margin-top:4px;{LABEL}">{prompt_facts(view)} {picture} {share:.0%} cached</div>'


def _branches(branches: Sequence[BranchView], chars: int, max_rows: int, drawn: Drawn) -> list[str]:
    """One branch as it is; a few all open, the forks of the first side by side; of many, the first open."""
    if len(branches) == 1:
        return [f'<div style="margin:4px 0">{_body(branches[0], chars, max_rows, drawn)}</div>']
    if len(branches) > OPEN_BRANCHES:
        return [_branch(branch, i == 0, chars, max_rows, drawn) for i, branch in enumerate(branches)]
    style = "display:inline-block;vertical-align:top;margin:4px 24px 4px 0;max-width:100%"
    return [_branch(b, True, chars, max_rows, drawn, "margin:4px 0" if b.parent is None else style) for b in branches]


def _branch(
    branch: BranchView, is_open: bool, chars: int, max_rows: int, drawn: Drawn, style: str = "margin:4px 0"
) -> str:
    tokens = sum(segment.num_tokens for segment in branch.segments if segment.kind == "gen")
    origin = f" from branch {branch.parent}" if branch.parent else ""  # of the first branch's forks it goes unsaid
    words = f"branch {branch.id}{esc(origin)} · {plural(tokens, 'token')}"
    summary = f'<summary style="cursor:pointer">{words} · {badge(branch.status)}</summary>'
    body = _body(branch, chars, max_rows, drawn)
    opened = " open" if is_open else ""
    return f'<details{opened} style="{style}">{summary}<div style="margin:4px 0 4px 12px">{body}</div></details>'


def _body(branch: BranchView, chars: int, max_rows: int, drawn: Drawn) -> str:
    segments, left = reached(branch)
    body = "".join(_segment(segment, chars, max_rows, drawn) for segment in _merged(segments))
    return body + (f'<div style="{LABEL}">… {plural(left, "hole")} not reached</div>' if left else "")


def _merged(segments: Sequence[SegmentView]) -> list[SegmentView]:
    """The segments without role markup, of which only the role's name is shown."""
    return [segment for segment in segments if not segment.is_markup and (segment.kind != "forced" or segment.text)]


def _segment(segment: SegmentView, chars: int, max_rows: int, drawn: Drawn) -> str:
    note = segment_note(segment)
    status = "cut" if note.startswith("cut") else segment.status if segment.status != "done" else "failed"
    mark = f" {badge(status, note)}" if note else ""
    who = f"{esc(one_line(segment.role, 40))} · " if segment.role else ""
    if segment.kind == "forced":
        label = f'<div style="{LABEL}">{who}prompt{mark}</div>' if segment.role or note else ""
        return f'{label}<pre style="{FORCED}">{esc(shorten(segment.text, min(chars, PROMPT_CHARS)))}</pre>'
    name = f"{who}<b>{esc(one_line(segment.name or segment.kind, 60))}</b>"
    what = "selected" if segment.kind == "select" else "generated"
    size = f" · {plural(segment.num_tokens, 'token')}" if segment.num_tokens else ""
    label = f'<div style="{LABEL}">{name} · {what}{size}{mark}</div>'
    inner, below = esc(shorten(segment.text, chars)), ""
    if segment.grammar is not None and (picture := drawn.get((segment.grammar, segment.text))) is not None:
        from nbsgl.widgets.automaton import automaton_details, tinted

        inner, below = tinted(segment.text, picture.place, chars), automaton_details(picture)
    text = f'<pre style="{GENERATED}">{inner}</pre>{below}' if segment.text else ""
    return label + text + (_choices(segment, chars, max_rows) if segment.choices else "")


def _choices(segment: SegmentView, chars: int, max_rows: int) -> str:
    known = segment.scores
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    rows = []
    for choice, score, chosen in scored_choices(segment)[:max_rows]:
        share = 0.0 if score is None else 1.0 if high == low else (score - low) / (high - low)
        words = esc(shorten(choice, min(chars, 400)))
        mark = f"<b>✓ {words}</b> {badge('chosen')}" if chosen else words
        number = "" if score is None else f"{score:.3f}"
        rows.append((mark, number, bar([("chosen", 0.02 + 0.98 * share)], 120) if number else ""))
    if len(segment.choices) > max_rows:
        rows.append((f"… {len(segment.choices) - max_rows:,} more", "", ""))
    return table(("choice", "score", "worst to best"), rows)


def _variables(variables: dict[str, str], chars: int, max_rows: int) -> str:
    if not variables:
        return ""
    rows = [
        (
            f"<b>{esc(one_line(name, 60))}</b>",
            f'<span style="white-space:pre-wrap">{esc(shorten(text, min(chars, 1000)))}</span>',
        )
        for name, text in list(variables.items())[:max_rows]
    ]
    if len(variables) > max_rows:
        rows.append((f"… {len(variables) - max_rows:,} more", ""))
    summary = f'<summary style="cursor:pointer">{plural(len(variables), "variable")}</summary>'
    return f'<details style="margin:4px 0">{summary}{table(("variable", "text"), rows)}</details>'


# ---- the prefix tree -------------------------------------------------------------------------------------------------

SVG_WIDTH, SVG_HEIGHT = 720, 320
# Lightness says age: used now, in the last 10 s, minute, 10 minutes, before.  Black text reads on each.
AGES = ((1.0, "#f9dd6d"), (10.0, "#d9c98a"), (60.0, "#b3b6c0"), (600.0, "#c9ccd4"), (float("inf"), "#e6e8ec"))


def tree_html(snapshot: EngineSnapshot) -> str:
    """The tree as a drawing of its largest 300 nodes and a table of the top 20 by tokens.  At most 64 kB."""
    nodes = snapshot.tree or []
    head = f"<div><b>{esc(tree_facts(snapshot))}</b></div>"
    note = "<div>No node in the tree.</div>" if not nodes else ""
    rows = _tree_rows(nodes)
    for count in (TREE_NODES, 150, 60):
        kept = largest(nodes, count)
        picture = _picture(kept, len(nodes)) if kept else ""
        page = f'<div style="{BOX}">{head}{note}{picture}{rows}</div>'
        if len(page.encode()) <= MAX_BYTES:
            return page
    return f'<div style="{BOX}">{head}</div>'


def largest(nodes: Sequence[TreeNode], count: int) -> list[TreeNode]:
    """The nodes with the most tokens at and under them; a node's parent is always among them."""
    forest = Forest(nodes)
    order = {node.id: i for i, node in enumerate(forest.walk())}
    kept = sorted(order, key=lambda i: (-forest.total[i], order[i]))[:count]
    return [forest.nodes[i] for i in kept]


def _tree_rows(nodes: Sequence[TreeNode]) -> str:
    top = sorted(nodes, key=lambda node: (-node.num_tokens, node.id))[:TREE_ROWS]
    rows = [
        (
            esc(repr_text(node.text)),
            f"{node.num_tokens:,}",
            f"{node.hits:,}",
            f"{node.age_s:.0f} s ago",
            f"{node.depth}",
            node_flags(node),
        )
        for node in top
    ]
    if not rows:
        return ""
    head = ["text", "tokens", "hits", "last use", "depth", "held"]
    width = 6 if any(row[-1] for row in rows) else 5
    inner = table(head[:width], [row[:width] for row in rows])
    words = "its one node" if len(rows) == 1 else f"the {len(rows)} nodes with the most tokens"
    return f'<details style="margin:4px 0"><summary style="cursor:pointer">{words}</summary>{inner}</details>'


def _picture(nodes: Sequence[TreeNode], total: int) -> str:
    svg = tree_svg(nodes)
    data = base64.b64encode(svg.encode()).decode()
    alt = (
        f"Prefix tree, the largest {len(nodes):,} of {plural(total, 'node')}: root on the left, height by tokens below."
    )
    size = f'width="{SVG_WIDTH}" height="{SVG_HEIGHT}"'
    image = f'<img alt="{esc(alt)}" style="max-width:100%" {size} src="data:image/svg+xml;base64,{data}">'
    return (
        f'{image}<div style="{LABEL}">yellow: used just now, grey: long ago · blue border: locked · dot: parked</div>'
    )


def tree_svg(nodes: Sequence[TreeNode]) -> str:
    """The icicle as SVG: lightness is age, a thick border is a lock, a dot is a parked branch."""
    body = "".join(_svg_box(box) for box in icicle(nodes, SVG_WIDTH - 2, SVG_HEIGHT - 2) if box.height >= 0.2)
    frame = f'viewBox="-1 -1 {SVG_WIDTH} {SVG_HEIGHT}" width="{SVG_WIDTH}" height="{SVG_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {frame} font-family="monospace" font-size="10">{body}</svg>'


def _svg_box(box: Box) -> str:
    node, x, y, w, h = box
    fill = next(colour for age, colour in AGES if node.age_s <= age)
    edge = f'stroke="{BLUE}" stroke-width="{min(2, h / 2):.1f}"' if node.locks else 'stroke="#666" stroke-width=".5"'
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{fill}" {edge}/>'
    if node.parked and h >= 6:
        shape += f'<circle cx="{x + w - 5:.1f}" cy="{y + h / 2:.1f}" r="2"/>'
    letters = int((w - 6) / 6.1)
    if h >= 11 and letters >= 3:
        label = one_line(node.text or f"{node.num_tokens:,}", letters)
        shape += f'<text x="{x + 3:.1f}" y="{y + min(h / 2 + 3.5, 14):.1f}">{html.escape(label)}</text>'
    return shape


# ---- both ------------------------------------------------------------------------------------------------------------


def frozen_bundle(picture: RunView | EngineSnapshot | GrammarPicture) -> dict[str, str]:
    """What takes the place of a live view: `{"text/html": ..., "text/plain": ...}` of any picture."""
    if isinstance(picture, GrammarPicture):
        from nbsgl.widgets.automaton import grammar_html, grammar_text

        return {"text/html": grammar_html(picture), "text/plain": grammar_text(picture)}
    if isinstance(picture, RunView):
        return {"text/html": run_html(picture), "text/plain": run_text(picture)}
    return {"text/html": tree_html(picture), "text/plain": tree_text(picture)}
