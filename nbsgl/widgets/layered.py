"""Where an automaton's nodes, edges and labels lie: layers from left to right, broken into bands like lines of text.

Laws: nodes of one layer never overlap; an edge forward leaves its source on the right and enters its target on the
left; every label stands on its own line beside no other; nothing lies outside `width` x `height`.  The page draws what
is computed here, so a saved picture and a live one are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from nbsgl.automaton import Automaton, AutomatonEdge

RADIUS = 11.0
BAND_WIDTH = 720.0
CHAR_WIDTH = 6.65  # of a monospaced font of 11 px
NODE_HEIGHT, LABEL_HEIGHT, LOOP_HEIGHT = 32.0, 22.0, 26.0
GAP = 16.0  # between two columns
MARGIN = 10.0
SWEEPS = 6
MAX_ARCS = 6  # edges backwards that are drawn within a band; more of them only name their target


class DrawnNode(msgspec.Struct, frozen=True):
    """A node's centre."""

    id: int
    x: float
    y: float


class DrawnEdge(msgspec.Struct, frozen=True):
    """An edge's line and arrow head as SVG paths, and where its label is centred.  `jump`: the line only names its
    target, which lies in another band."""

    id: int
    line: str
    head: str
    label: str
    x: float
    y: float
    jump: bool = False


class Drawing(msgspec.Struct, frozen=True):
    """Everything placed, in pixels."""

    width: float
    height: float
    nodes: list[DrawnNode] = []
    edges: list[DrawnEdge] = []


@dataclass
class _Item:
    """What stands in a column: a node, or (edge is not None) a piece of an edge, with its label or without."""

    key: object
    height: float
    width: float
    above: float = 0.0  # of `height`, what lies above the centre beyond one half of the rest
    edge: int | None = None
    y: float = 0.0
    x: float = 0.0  # of a node its centre, of a piece of an edge its left end
    span: float = 0.0  # of a piece of an edge its length: the column's width


@dataclass
class _Band:
    """One line of the drawing: its columns, and the links between neighbouring ones."""

    columns: dict[int, list[_Item]] = field(default_factory=lambda: defaultdict(list))
    before: dict[object, list[object]] = field(default_factory=lambda: defaultdict(list))
    after: dict[object, list[object]] = field(default_factory=lambda: defaultdict(list))
    arcs: list[AutomatonEdge] = field(default_factory=list)


def draw(automaton: Automaton, band_width: float = BAND_WIDTH) -> Drawing:
    """Lay an automaton out; the first node without an edge into it, or the start, is leftmost."""
    if not automaton.nodes:
        return Drawing(2 * MARGIN, 2 * MARGIN)
    return _Layout(automaton, band_width).drawing()


def shown_label(edge: AutomatonEdge) -> str:
    """A label on one line, in which spaces at its ends can be seen."""
    text = edge.label.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    if edge.literal and text == ".":
        return '"."'  # a class's dot is bare
    inner = text.strip(" ")
    if edge.literal and inner != text:
        lead = len(text) - len(text.lstrip(" "))
        text = "␣" * len(text) if not inner else "␣" * lead + inner + "␣" * (len(text) - lead - len(inner))
    return text


def label_width(text: str) -> float:
    """Wide characters count twice."""
    return CHAR_WIDTH * sum(2 if ord(char) > 0x2E7F else 1 for char in text)


class _Layout:
    def __init__(self, automaton: Automaton, band_width: float) -> None:
        self.automaton = automaton
        self.band_width = band_width
        self.edges = {edge.id: edge for edge in automaton.edges}
        self.labels = {edge.id: shown_label(edge) for edge in automaton.edges}
        self.loops: dict[int, list[AutomatonEdge]] = defaultdict(list)
        for edge in automaton.edges:
            if edge.source == edge.target:
                self.loops[edge.source].append(edge)
        self.layer = layers(automaton)
        self.band_of_layer = self._break()
        self.items: dict[object, _Item] = {}
        self.bands: dict[int, _Band] = defaultdict(_Band)
        self.jumps: set[int] = set()

    # ---- into layers and bands ----

    def _break(self) -> list[int]:
        """The band of each layer: as many layers as fit the width."""
        depth = max(self.layer.values()) + 1
        widths = [2 * RADIUS + 2 * GAP] * depth
        for edge in self.automaton.edges:
            widest = label_width(self.labels[edge.id]) + 30.0
            at = self.layer[edge.source]
            if edge.source != edge.target:
                widths[at] = max(widths[at], widest + 2 * RADIUS + 2 * GAP)
        bands, used, band = [], 0.0, 0
        for width in widths:
            if used and used + width > self.band_width:
                band, used = band + 1, 0.0
            used += width
            bands.append(band)
        return bands

    def _band(self, node: int) -> int:
        return self.band_of_layer[self.layer[node]]

    def _fill(self) -> None:
        for node in self.automaton.nodes:
            above = LOOP_HEIGHT if self.loops[node.id] else 0.0
            width = max([2 * RADIUS, *(label_width(self.labels[e.id]) for e in self.loops[node.id])])
            extra = 13.0 * max(len(self.loops[node.id]) - 1, 0)
            item = _Item(node.id, NODE_HEIGHT + above + extra, width, above + extra)
            self._put(self._band(node.id), 2 * self.layer[node.id], item)
        for edge in self.automaton.edges:
            if edge.source != edge.target:
                self._thread(edge)
        for band in self.bands.values():
            if len(band.arcs) > MAX_ARCS:
                for edge in band.arcs:
                    self._jump(edge)
                band.arcs = []

    def _put(self, band: int, column: int, item: _Item) -> None:
        self.items[item.key] = item
        self.bands[band].columns[column].append(item)

    def _thread(self, edge: AutomatonEdge) -> None:
        """Lead an edge through every column between its ends; its label stands in the first."""
        band, first, last = self._band(edge.source), self.layer[edge.source], self.layer[edge.target]
        if band != self._band(edge.target):
            self._jump(edge)
            return
        if last <= first:
            self.bands[band].arcs.append(edge)
            return
        key: object = edge.source
        for column in range(2 * first + 1, 2 * last):
            is_label = column == 2 * first + 1
            width = label_width(self.labels[edge.id]) + 6.0 if is_label else 0.0
            item = _Item((edge.id, column), LABEL_HEIGHT if is_label else 14.0, width, 6.0 * is_label, edge.id)
            self._put(band, column, item)
            self._link(band, key, item.key)
            key = item.key
        self._link(band, key, edge.target)

    def _jump(self, edge: AutomatonEdge) -> None:
        self.jumps.add(edge.id)
        self.labels[edge.id] = f"{self.labels[edge.id]} ▸{edge.target}"
        band, column = self._band(edge.source), 2 * self.layer[edge.source] + 1
        item = _Item((edge.id, column), LABEL_HEIGHT, label_width(self.labels[edge.id]) + 6.0, 6.0, edge.id)
        self._put(band, column, item)
        self._link(band, edge.source, item.key)

    def _link(self, band: int, source: object, target: object) -> None:
        self.bands[band].after[source].append(target)
        self.bands[band].before[target].append(source)

    # ---- within a band ----

    def _order(self, band: _Band) -> None:
        """Sort each column by where its neighbours are, forth and back."""
        columns = sorted(band.columns)
        place: dict[object, float] = {}
        for column in columns:
            for i, item in enumerate(band.columns[column]):
                place[item.key] = float(i)
        for sweep in range(SWEEPS):
            links = band.before if sweep % 2 == 0 else band.after
            for column in columns if sweep % 2 == 0 else reversed(columns):
                kin = band.columns[column]
                weight = {item.key: _mean([place[k] for k in links[item.key]], place[item.key]) for item in kin}
                ranks = sorted(range(len(kin)), key=[weight[item.key] for item in kin].__getitem__)
                kin[:] = [kin[i] for i in ranks]
                for i, item in enumerate(kin):
                    place[item.key] = i - (len(kin) - 1) / 2

    def _heights(self, band: _Band) -> None:
        """Give each item its height: as near to its neighbours as the others of its column allow."""
        columns = sorted(band.columns)
        for column in columns:
            stack(band.columns[column], {item.key: 0.0 for item in band.columns[column]})
        for sweep in range(SWEEPS):
            for column in columns if sweep % 2 == 0 else reversed(columns):
                kin = band.columns[column]
                wanted = {}
                for item in kin:
                    near = [self.items[key].y for key in (*band.before[item.key], *band.after[item.key])]
                    wanted[item.key] = _mean(near, item.y)
                stack(kin, wanted)

    def _widths(self, band: _Band) -> float:
        """Columns from left to right; the width they take."""
        x = MARGIN + 18.0
        for column in sorted(band.columns):
            width = max([item.width for item in band.columns[column]], default=0.0)
            if column % 2 == 0:
                width = max(width, 2 * RADIUS)
            for item in band.columns[column]:
                item.x, item.span = (x + width / 2, 0.0) if item.edge is None else (x, width)
            x += width + GAP
        return x + MARGIN

    # ---- the drawing ----

    def drawing(self) -> Drawing:
        self._fill()
        top, width = MARGIN, 0.0
        for number in sorted(self.bands):
            band = self.bands[number]
            self._order(band)
            self._heights(band)
            width = max(width, self._widths(band))
            kin = [item for column in band.columns.values() for item in column]
            shift = top - min(item.y - _up(item) for item in kin)
            for item in kin:
                item.y += shift
            bottom = max(item.y + _down(item) for item in kin)
            top = bottom + self._arc_room(band) + GAP
        nodes = [DrawnNode(n.id, _r(self.items[n.id].x), _r(self.items[n.id].y)) for n in self.automaton.nodes]
        edges = [self._edge(edge) for edge in self.automaton.edges if edge.id not in self._arc_ids()]
        for band in self.bands.values():
            bottom = max(item.y + _down(item) for column in band.columns.values() for item in column)
            edges += [self._arc(edge, bottom + 18.0 * (i + 1)) for i, edge in enumerate(self._nested(band))]
        return Drawing(_r(width), _r(top - GAP + MARGIN), nodes, sorted(edges, key=lambda edge: edge.id))

    def _arc_ids(self) -> set[int]:
        return {edge.id for band in self.bands.values() for edge in band.arcs}

    def _arc_room(self, band: _Band) -> float:
        return 18.0 * len(band.arcs) + (4.0 if band.arcs else 0.0)

    def _nested(self, band: _Band) -> list[AutomatonEdge]:
        """Short arcs above long ones, so that they do not cross."""
        return sorted(band.arcs, key=lambda edge: self.layer[edge.source] - self.layer[edge.target])

    def _edge(self, edge: AutomatonEdge) -> DrawnEdge:
        if edge.source == edge.target:
            return self._loop(edge)
        source, target = self.items[edge.source], self.items[edge.target]
        points = [(source.x + RADIUS, source.y)]
        label = (0.0, 0.0)
        column = 2 * self.layer[edge.source] + 1
        while (item := self.items.get((edge.id, column))) is not None:
            points.append((item.x, item.y))
            points.append((item.x + item.span, item.y))
            if item.width:
                label = (item.x + item.span / 2, item.y - 4.0)
            column += 1
        is_jump = edge.id in self.jumps
        if not is_jump:
            points.append((target.x - RADIUS - 5.0, target.y))
        head = "" if is_jump else _head(target.x - RADIUS, target.y, 1, 0)
        line = _curve(points, source)
        return DrawnEdge(edge.id, line, head, self.labels[edge.id], _r(label[0]), _r(label[1]), is_jump)

    def _loop(self, edge: AutomatonEdge) -> DrawnEdge:
        item = self.items[edge.source]
        kin = self.loops[edge.source]
        y = item.y - RADIUS
        line = f"M{_r(item.x - 5)} {_r(y + 1)}C{_r(item.x - 16)} {_r(y - 20)} {_r(item.x + 16)} {_r(y - 20)} "
        line += f"{_r(item.x + 6)} {_r(y - 4)}"
        head = _head(item.x + 4.5, y + 0.5, -0.3, 1)
        rank = next(i for i, other in enumerate(kin) if other.id == edge.id)
        return DrawnEdge(edge.id, line, head, self.labels[edge.id], _r(item.x), _r(y - 18.0 - 13.0 * rank))

    def _arc(self, edge: AutomatonEdge, y: float) -> DrawnEdge:
        """Backwards: down, along below the band, and up into the target."""
        a, b = self.items[edge.source], self.items[edge.target]
        left, right = b.x + 4.0, a.x - 4.0
        if edge.source != edge.target and abs(right - left) < 8.0:
            left, right = b.x - 6.0, a.x + 6.0
        corner = 8.0 if right > left else -8.0
        line = f"M{_r(right)} {_r(a.y + RADIUS)}V{_r(y - 8)}Q{_r(right)} {_r(y)} {_r(right - corner)} {_r(y)}"
        line += f"H{_r(left + corner)}Q{_r(left)} {_r(y)} {_r(left)} {_r(y - 8)}V{_r(b.y + RADIUS + 5)}"
        head = _head(left, b.y + RADIUS, 0, -1)
        return DrawnEdge(edge.id, line, head, self.labels[edge.id], _r((left + right) / 2), _r(y - 3.0))


def layers(automaton: Automaton) -> dict[int, int]:
    """Node -> layer: the longest way to it that goes forward only."""
    after: dict[int, list[int]] = {node.id: [] for node in automaton.nodes}
    for edge in automaton.edges:
        if edge.source != edge.target:
            after[edge.source].append(edge.target)
    entered = {edge.target for edge in automaton.edges if edge.source != edge.target}
    roots = [n.id for n in automaton.nodes if n.start] + [n.id for n in automaton.nodes if n.id not in entered]
    order, back = forward([*roots, *after], after)
    found = dict.fromkeys(after, 0)
    for node in order:
        for target in after[node]:
            if (node, target) not in back:
                found[target] = max(found[target], found[node] + 1)
    return found


def forward(roots: Iterable[int], after: Mapping[int, Sequence[int]]) -> tuple[list[int], set[tuple[int, int]]]:
    """A topological order of a graph, and the edges that had to be left out: those to a node still being visited."""
    done: list[int] = []
    state: dict[int, int] = {}  # 1: being visited, 2: done
    back: set[tuple[int, int]] = set()
    for root in roots:
        if root in state:
            continue
        state[root] = 1
        stack = [(root, iter(after[root]))]
        while stack:
            node, targets = stack[-1]
            target = next(targets, None)
            if target is None:
                state[node] = 2
                done.append(node)
                stack.pop()
            elif target not in state:
                state[target] = 1
                stack.append((target, iter(after[target])))
            elif state[target] == 1:
                back.add((node, target))
    return done[::-1], back


def stack(kin: Sequence[_Item], wanted: Mapping[object, float]) -> None:
    """Place a column's items in their order, none over another, as near as can be to where each wants to be.

    Pools neighbours that would overlap into blocks (isotonic regression).
    """
    blocks: list[tuple[float, list[tuple[_Item, float]]]] = []  # (sum of wishes for the block's first, items)
    offset = 0.0
    for item in kin:
        offset += _up(item)
        members, total = [(item, offset)], wanted[item.key] - offset
        while blocks and blocks[-1][0] / len(blocks[-1][1]) >= total / len(members):
            sum_before, before = blocks.pop()
            members, total = before + members, sum_before + total
        blocks.append((total, members))
        offset += _down(item)
    for total, members in blocks:
        for item, place in members:
            item.y = total / len(members) + place


def _up(item: _Item) -> float:
    return (item.height - item.above) / 2 + item.above


def _down(item: _Item) -> float:
    return (item.height - item.above) / 2


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _curve(points: Sequence[tuple[float, float]], source: _Item) -> str:
    """A line through the points, level at each."""
    (x, y), *rest = points
    line = f"M{_r(x)} {_r(y)}"
    for nx, ny in rest:
        middle = (x + nx) / 2
        line += f"H{_r(nx)}" if abs(ny - y) < 0.05 else f"C{_r(middle)} {_r(y)} {_r(middle)} {_r(ny)} {_r(nx)} {_r(ny)}"
        x, y = nx, ny
    return line


def _head(x: float, y: float, dx: float, dy: float) -> str:
    """A small triangle whose tip is at (x, y), pointing along (dx, dy)."""
    size = (dx * dx + dy * dy) ** 0.5
    dx, dy = dx / size, dy / size
    bx, by = x - 7 * dx, y - 7 * dy
    return f"M{_r(x)} {_r(y)}L{_r(bx - 3.2 * dy)} {_r(by + 3.2 * dx)}L{_r(bx + 3.2 * dy)} {_r(by - 3.2 * dx)}Z"


def _r(value: float) -> float | int:
    """One decimal is a tenth of a pixel."""
    rounded = round(value, 1)
    return int(rounded) if rounded == int(rounded) else rounded
