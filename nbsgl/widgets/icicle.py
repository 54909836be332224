"""Where the nodes of a prefix tree lie in an icicle: root on the left, children to the right of their parent.

Laws: a child begins where its parent ends and lies inside the parent's height; the children of a node fill its height,
each in proportion to the tokens of its own subtree.  `static/tree.js` holds to the same laws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from nbsgl.protocol import TreeNode
from nbsgl.widgets.text import Forest


class Box(NamedTuple):
    """One node's rectangle."""

    node: TreeNode
    x: float
    y: float
    width: float
    height: float


def node_width(num_tokens: int) -> float:
    """Width before scaling: logarithmic, so that a run of 2,000 tokens leaves room for one of 5."""
    return 0.5 + math.log2(1 + num_tokens)


def icicle(nodes: Iterable[TreeNode], width: float, height: float) -> list[Box]:
    """Lay the trees out in `width` x `height`, parents before children."""
    forest = Forest(nodes)
    left: dict[int, float] = {}
    for node in forest.walk():
        up = forest.nodes.get(node.parent) if node.parent != node.id else None
        left[node.id] = left[up.id] + node_width(up.num_tokens) if up is not None else 0.0
    reach = max((left[i] + node_width(forest.nodes[i].num_tokens) for i in left), default=1.0)
    boxes = []
    spans = _shares(forest, forest.roots, 0.0, height)
    for node in forest.walk():
        y, h = spans.pop(node.id)
        boxes.append(Box(node, left[node.id] * width / reach, y, node_width(node.num_tokens) * width / reach, h))
        spans |= _shares(forest, forest.children.get(node.id, []), y, h)
    return boxes


def _shares(forest: Forest, kin: list[TreeNode], y: float, height: float) -> dict[int, tuple[float, float]]:
    """Divide a height among siblings by their subtrees' tokens (at least one each)."""
    weights = [max(forest.total[node.id], 1) for node in kin]
    unit = height / sum(weights) if weights else 0.0
    spans = {}
    for node, weight in zip(kin, weights, strict=True):
        spans[node.id] = (y, weight * unit)
        y += weight * unit
    return spans
