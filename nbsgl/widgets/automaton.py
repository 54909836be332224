"""A grammar's picture as SVG, frozen HTML, plain text and Graphviz's dot.

The SVG brings its own ground and its own colours for light and dark pages, so it reads the same wherever it is shown.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from functools import partial

from nbsgl.automaton import Automaton, AutomatonEdge, AutomatonNode, GrammarPicture, Place
from nbsgl.widgets.html import BOX, LABEL, MAX_BYTES, WRAP, esc, fitted, shorten
from nbsgl.widgets.layered import RADIUS, Drawing, draw
from nbsgl.widgets.text import one_line, plural, visible

TEXT_LINES = 60
MONO = "ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"
FORCED_GROUND, FORCED_INK = "#f3dbe9", "#5b1f45"

# Okabe-Ito's hues; contrast >= 4.5 : 1 on the ground.  Never colour alone: forced edges are dashed, the current place
# has a second ring, accepting nodes a double one.
_STYLE = """
.g{fill:#fff;stroke:#d0d0d0}.n{fill:#f4f6f8;stroke:#3c4043;stroke-width:1.2}.r{fill:none;stroke:#3c4043}
.i{fill:#202124;font:10px sans-serif;text-anchor:middle}.e{fill:none;stroke:#80868b;stroke-width:1.2}
.h{fill:#80868b}.l{fill:#202124;font:11px MONO;text-anchor:middle;white-space:pre}
.f{stroke:#a3457e;stroke-dasharray:5 2;stroke-width:2}.fh{fill:#a3457e}.fl{fill:#8a2f66}
.t{stroke:#0072b2;stroke-width:2.4}.th{fill:#0072b2}.tn{stroke:#0072b2;stroke-width:2}
.c{fill:#e69f00;stroke:#7a5200;stroke-width:2}.ct{stroke:#c77f00;stroke-width:3.2}.cth{fill:#c77f00}
.m{fill:#5f6368;font:10px sans-serif}
@media (prefers-color-scheme:dark){.g{fill:#1e1f22;stroke:#4a4d52}.n{fill:#2b2d31;stroke:#c4c7cc}.r{stroke:#c4c7cc}
.i,.l{fill:#e8eaed}.e{stroke:#9aa0a6}.h{fill:#9aa0a6}.f{stroke:#e39ac5}.fh{fill:#e39ac5}.fl{fill:#f0b8d9}
.t{stroke:#56b4e9}.th{fill:#56b4e9}.tn{stroke:#56b4e9}.c{fill:#e69f00;stroke:#ffd98a}.c+.i{fill:#000}
.ct{stroke:#ffb93b}.cth{fill:#ffb93b}.m{fill:#bdc1c6}}
""".replace("MONO", MONO).replace("\n", "")


def automaton_svg(automaton: Automaton, place: Place | None = None, drawing: Drawing | None = None) -> str:
    """The automaton; with a place, the way to it and where it stands are marked."""
    drawing = drawing or draw(automaton)
    taken = Counter({edge: 0 for edge, _ in place.path} if place else {})
    for edge, times in place.path if place else ():
        taken[edge] += times
    known = {edge.id: edge for edge in automaton.edges}
    current = place.edge if place else -1
    parts = [_svg_edge(known[e.id], e.line, e.head, taken[e.id], e.id == current) for e in drawing.edges]
    parts += [_svg_label(known[e.id], e.label, e.x, e.y, taken[e.id]) for e in drawing.edges]
    visited = {known[e].source for e in taken if e in known}
    visited |= {known[e].target for e, times in taken.items() if e in known and (e != current or times > 1)}
    where = place.node if place and place.edge < 0 else -1
    for node, at in zip(automaton.nodes, drawing.nodes, strict=True):
        kind = "n c" if node.id == where else "n tn" if node.id in visited else "n"
        ring = f'<circle class="r" cx="{at.x}" cy="{at.y}" r="{RADIUS - 3}"/>' if node.accepting else ""
        parts.append(f'<circle class="{kind}" cx="{at.x}" cy="{at.y}" r="{RADIUS}"/>')
        parts.append(f'<text class="i" x="{at.x}" y="{at.y + 3.5}">{node.id}</text>{ring}')
        if node.start:
            line = f"M{at.x - RADIUS - 14} {at.y}H{at.x - RADIUS - 5}"
            parts.append(f'<path class="e" d="{line}"/>{_triangle(at.x - RADIUS, at.y)}')
        if note := node_note(node):
            parts.append(f'<text class="m" x="{at.x + 8}" y="{at.y + 19}">{note}</text>')
    size = f'width="{drawing.width:g}" height="{drawing.height:g}" viewBox="0 0 {drawing.width:g} {drawing.height:g}"'
    ground = f'<rect class="g" x=".5" y=".5" rx="4" width="{drawing.width - 1:g}" height="{drawing.height - 1:g}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{_STYLE}</style>{ground}{"".join(parts)}</svg>'


def node_note(node: AutomatonNode) -> str:
    """How many states it stands for, and how many edges are not shown."""
    return " ".join([f"×{node.times}"] * (node.times > 1) + [f"+{node.hidden}"] * (node.hidden > 0))


def _triangle(x: float, y: float) -> str:
    return f'<path class="h" d="M{x} {y}l-7 -3.2v6.4Z"/>'


def _svg_edge(edge: AutomatonEdge, line: str, head: str, times: int, is_current: bool) -> str:
    kind = " f" if edge.forced else ""
    mark = "ct" if is_current else "t" if times else ""
    first = f'<path class="e{kind} {mark}" d="{line}"/>' if mark else f'<path class="e{kind}" d="{line}"/>'
    tip = f"{mark}h" if mark else "fh" if edge.forced else ""
    return first + (f'<path class="h {tip}" d="{head}"/>' if head else "")


def _svg_label(edge: AutomatonEdge, label: str, x: float, y: float, times: int) -> str:
    text = esc(label).replace(" ", "\N{NO-BREAK SPACE}")
    count = f" ×{times}" if times > 1 else ""
    return f'<text class="l{" fl" if edge.forced else ""}" x="{x}" y="{y}">{text}{count}</text>'


# ---- frozen HTML -----------------------------------------------------------------------------------------------------


def automaton_image(automaton: Automaton, place: Place | None = None) -> str:
    """An `<img>` that holds the drawing; its alt text says what there is."""
    drawing = draw(automaton)
    svg = automaton_svg(automaton, place, drawing)
    data = base64.b64encode(svg.encode()).decode()
    size = f'width="{drawing.width:g}" height="{drawing.height:g}"'
    return (
        f'<img alt="{esc(automaton_facts(automaton))}" style="max-width:100%;height:auto" {size} '
        f'src="data:image/svg+xml;base64,{data}">'
    )


def grammar_html(picture: GrammarPicture) -> str:
    """The grammar's text, the drawing, what was written so far with forced text marked, what may follow.  <= 64 kB."""
    plain = f'<div style="{BOX}"><pre style="margin:0;{WRAP}">{esc(shorten(grammar_text(picture), 20_000))}</pre></div>'
    for limit in (200, 100, 40, 0):
        page = fitted(partial(_page, picture, limit), "")
        if page:
            return page
    return plain if len(plain.encode()) <= MAX_BYTES else f'<div style="{BOX}">{esc(picture_facts(picture))}</div>'


def _page(picture: GrammarPicture, limit: int, chars: int, *_: int) -> str:
    shown = picture.automaton if len(picture.automaton.nodes) <= limit else None
    source = esc(shorten(picture.text, min(chars, 2_000)))
    parts = [f"<div><b>{esc(picture_facts(picture))}</b></div>"]
    parts.append(f'<pre style="margin:2px 0;{WRAP};background:transparent;color:inherit">{source}</pre>')
    if shown is not None and shown.nodes:
        parts.append(automaton_image(shown, picture.place))
        parts.append(f'<div style="{LABEL}">{_legend(picture)}</div>')
    if picture.output:
        parts.append(f'<pre style="margin:4px 0;{WRAP};background:transparent;color:inherit">')
        parts.append(f"{tinted(picture.output, picture.place, chars)}</pre>")
    parts += [f"<div>{esc(line)}</div>" for line in place_lines(picture)]
    return f'<div style="{BOX}">{"".join(parts)}</div>'


def automaton_details(picture: GrammarPicture) -> str:
    """The drawing behind a line to open, for a text that stands above it."""
    name = one_line(f"{picture.kind.replace('_', ' ')} {picture.text}", 60)
    body = "".join(f"<div>{esc(line)}</div>" for line in place_lines(picture))
    if picture.automaton.nodes:
        body = f'{automaton_image(picture.automaton, picture.place)}<div style="{LABEL}">{_legend(picture)}</div>{body}'
    facts = esc(automaton_facts(picture.automaton))
    summary = f'<summary style="cursor:pointer;{LABEL}">grammar · {esc(name)} · {facts}</summary>'
    return f'<details style="margin:2px 0 4px 12px">{summary}{body}</details>'


def _legend(picture: GrammarPicture) -> str:
    words = ["double ring: may end here", "dashed: forced"]
    if picture.output:
        words += ["blue: the way taken", "orange: where the text stands"]
    if any(node.times > 1 for node in picture.automaton.nodes):
        words.append("×n: n states alike, a count")
    if any(edge.label == "\\…" for edge in picture.automaton.edges):
        words.append("\\…: any escape")
    if picture.automaton.hidden_nodes:
        words.append(f"+n: edges to the {plural(picture.automaton.hidden_nodes, 'node')} not shown")
    return " · ".join(words)


def tinted(text: str, place: Place, limit: int = 20_000) -> str:
    """The text as HTML, forced stretches on a ground of their own and dotted below."""
    style = f"background:{FORCED_GROUND};color:{FORCED_INK};border-bottom:1px dotted {FORCED_INK}"
    parts, at = [], 0
    for begin, end in place.forced[:500]:
        if end > limit:
            break
        parts.append(esc(text[at:begin]))
        parts.append(f'<span style="{style}">{esc(text[begin:end])}</span>')
        at = end
    rest = text[at:]
    return "".join(parts) + esc(shorten(rest, max(limit - at, 60)))


# ---- words -----------------------------------------------------------------------------------------------------------


def automaton_facts(automaton: Automaton) -> str:
    if not automaton.nodes:
        return "no automaton"
    shown = len(automaton.nodes) + automaton.hidden_nodes
    left = f", {automaton.hidden_nodes:,} of them not shown" if automaton.hidden_nodes else ""
    return f"automaton of {plural(automaton.states, 'byte state')}, drawn as {plural(shown, 'node')}{left}"


def picture_facts(picture: GrammarPicture) -> str:
    """The first line of every form."""
    facts = [picture.kind, automaton_facts(picture.automaton), picture.note]
    return " · ".join(fact for fact in facts if fact)


def place_lines(picture: GrammarPicture) -> list[str]:
    """Where the text stands, and what may follow."""
    place, lines = picture.place, []
    if picture.output:
        forced = sum(end - begin for begin, end in place.forced)
        parts = [where(picture)] if picture.automaton.nodes else []
        parts.append("may end here" if place.accepting else "not complete")
        parts.append(f"{forced:,} of {plural(len(picture.output), 'character')} forced")
        if place.matched < len(picture.output):
            parts = [f"the language has no text that goes on as this one does from character {place.matched}"]
        lines.append(" · ".join(parts))
    if (allowed := place.allowed) is not None:
        likely = [one_line(repr(text), 24) + ("" if p is None else f" {p:.0%}") for text, _, p in allowed.top]
        lines.append(f"{allowed.count:,} of {allowed.of:,} tokens allowed: {' '.join(likely)}")
    elif place.expected:
        lines.append(f"may follow: {' '.join(one_line(repr(text), 24) for text in place.expected)}")
    return lines


def where(picture: GrammarPicture) -> str:
    """`at node 5`, or on the way between two."""
    place = picture.place
    for edge in picture.automaton.edges:
        if edge.id == place.edge:
            return f"between nodes {edge.source} and {edge.target}"
    return f"at node {place.node}"


def grammar_text(picture: GrammarPicture) -> str:
    """The plain form: facts, the grammar, an edge per line, the text and its place."""
    lines = [picture_facts(picture), one_line(picture.text, 400)]
    lines += automaton_lines(picture.automaton)
    if picture.output:
        lines.append(visible(picture.output))
    return "\n".join(lines + place_lines(picture))


def automaton_lines(automaton: Automaton) -> list[str]:
    """`1 -[0-9]-> 2 (end)`, an edge per line, at most 60."""
    accepting = {node.id for node in automaton.nodes if node.accepting}
    lines = [
        f"{edge.source} -{'!' if edge.forced else ''}{visible(text_label(edge))}-> {edge.target}"
        + (" (end)" if edge.target in accepting else "")
        for edge in automaton.edges
    ]
    if len(lines) > TEXT_LINES:
        lines[TEXT_LINES - 1 :] = [f"… {len(lines) - TEXT_LINES + 1:,} more edges"]
    return lines


def text_label(edge: AutomatonEdge) -> str:
    """A literal in quotes, a class bare."""
    return json.dumps(edge.label, ensure_ascii=False) if edge.literal else edge.label


def automaton_dot(automaton: Automaton) -> str:
    """Graphviz's source of the same graph."""
    lines = ["digraph grammar {", "  rankdir=LR; node [shape=circle]; start [shape=point];"]
    lines += [f"  {node.id} [shape=doublecircle];" for node in automaton.nodes if node.accepting]
    lines += [f"  start -> {node.id};" for node in automaton.nodes if node.start]
    for edge in automaton.edges:
        label = visible(text_label(edge)).replace("\\", "\\\\").replace('"', '\\"')
        look = ", style=dashed" if edge.forced else ""
        lines.append(f'  {edge.source} -> {edge.target} [label="{label}"{look}];')
    return "\n".join([*lines, "}"])
