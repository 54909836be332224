"""An explanation as a notebook draws it: inline styles only, the drawing an image.

A saved notebook's sanitiser strips scripts, `<style>` and inline `<svg>`; text keeps the page's own colours, and the
image follows light or dark by itself.
"""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

from nbsgl.lang.program_graph import GraphNode, Op

if TYPE_CHECKING:
    from nbsgl.lang.explain import Explanation

MAX_DRAWN = 160  # nodes: beyond that a drawing is a wall
WIDTH, HEIGHT, GAP_X, GAP_Y = 190, 22, 26, 12  # of a box and between boxes, in px
BOX = "border:1px solid #808080;border-radius:4px;padding:6px 10px;line-height:1.45;font-size:13px"
PRE = "margin:0;font-size:12px;line-height:1.35;overflow-x:auto;background:transparent;color:inherit"
# Okabe and Ito's hues, on either ground
STYLE = """
text{font:12px system-ui,sans-serif;fill:#202124}
.box{fill:#f1f3f4;stroke:#808080}.sampled{fill:#cfe8f7;stroke:#0072b2;stroke-width:2}.value{fill:#fdebd0;stroke:#e69f00}
.next{stroke:#808080}.fork{stroke:#0072b2}.to{stroke:#d55e00;stroke-dasharray:4 3}path{fill:none;stroke-width:1.5}
@media(prefers-color-scheme:dark){text{fill:#e8eaed}.box{fill:#303134}.sampled{fill:#0b3a57}.value{fill:#4a3410}}
"""


def html(shown: Explanation) -> str:
    """Facts, drawing, and the table of nodes in a `<details>`."""
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in shown.facts())
    drawing = _drawing(shown) if len(shown.graph.nodes) <= MAX_DRAWN else ""
    head = f'<div style="font-weight:600">{escape(shown.head())}</div>'
    table = f'<details><summary>nodes</summary><pre style="{PRE}">{escape(shown.table())}</pre></details>'
    return f'<div style="{BOX}">{head}<ul style="margin:4px 0">{facts}</ul>{drawing}{table}</div>'


def _drawing(shown: Explanation) -> str:
    picture = base64.b64encode(svg(shown).encode()).decode()
    words = escape(f"The graph of {shown.head()}", quote=True)
    return f'<img alt="{words}" style="max-width:100%" src="data:image/svg+xml;base64,{picture}" />'


def svg(shown: Explanation) -> str:
    """One column per branch, each node below all it follows."""
    graph = shown.graph
    columns = {number: i for i, number in enumerate(graph.branches)}
    edges = graph.edges()
    row: dict[int, int] = {}
    for node in graph.nodes:
        row[node.id] = 1 + max((row[a] for a, b, _ in edges if b == node.id), default=-1)
    place = {n.id: (columns[n.branch] * (WIDTH + GAP_X) + 8, row[n.id] * (HEIGHT + GAP_Y) + 8) for n in graph.nodes}
    lines = "".join(_line(place[a], place[b], kind) for a, b, kind in edges)
    boxes = "".join(_box(node, *place[node.id]) for node in graph.nodes)
    wide = len(columns) * (WIDTH + GAP_X) + 16
    high = (max(row.values(), default=0) + 1) * (HEIGHT + GAP_Y) + 16
    size = f'width="{wide}" height="{high}" viewBox="0 0 {wide} {high}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{lines}{boxes}</svg>'


def _line(start: tuple[int, int], end: tuple[int, int], kind: str) -> str:
    x, y = start[0] + WIDTH // 2, start[1] + HEIGHT
    u, v = end[0] + WIDTH // 2, end[1]
    bend = (v - y) // 2
    name = {"next": "next", "fork": "fork"}.get(kind, "to")
    return f'<path class="{name}" d="M{x} {y}C{x} {y + bend} {u} {v - bend} {u} {v}"/>'


def _box(node: GraphNode, x: int, y: int) -> str:
    name = "sampled" if node.is_sampled else "value" if node.op in (Op.REF, Op.JOIN, Op.SET, Op.TEXT) else "box"
    words = str(node)
    shown = escape(words if len(words) <= 28 else f"{words[:27]}…")
    frame = f'<rect class="{name}" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4"/>'
    title = f"<title>{escape(words)} ({escape(node.where)})</title>"
    return f'<g>{title}{frame}<text x="{x + 7}" y="{y + 15}">{shown}</text></g>'
