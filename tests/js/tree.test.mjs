// The tree view's pure half: columns to nodes, and the layout's laws.
import assert from "node:assert/strict";
import { test } from "node:test";
import { boxAt, forestOf, layout, nodeWidth, pathOf, treeCodec, treeText } from "../../nbsgl/widgets/static/tree.js";
import { bytes, recording } from "./recording.mjs";

const near = (a, b) => assert.ok(Math.abs(a - b) < 1e-6 * Math.max(1, Math.abs(b)), `${a} is not ${b}`);
const plain = (state) =>
  [...state.nodes.values()].map((n) => [n.id, n.parent, n.tokens, n.locks, n.hits, Math.round(n.lastUse * 100), n.parked])
    .sort((a, b) => a[0] - b[0]);
const treeOf = (nodes) => new Map(nodes.map(([id, parent, tokens]) => [id, { id, parent, tokens }]));

function random(count, seed = 1) {
  const next = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const nodes = [[0, -1, 0]];
  for (let i = 1; i < count; i++) nodes.push([i, Math.max(0, i - 1 - Math.floor(next() * 50)), Math.ceil(1000 * next() ** 4)]);
  return treeOf(nodes);
}

test("recorded messages give the nodes that Python holds", () => {
  for (const { messages, want } of recording("trees")) {
    let state = null;
    messages.forEach((buffers, i) => {
      const parts = buffers.map(bytes);
      state = i ? treeCodec.delta(state, parts) : treeCodec.full(parts);
      assert.deepEqual(plain(state), want[i]);
    });
    assert.ok(state.ghosts.size > 0);
    assert.ok([...state.ghosts.keys()].every((id) => !state.nodes.has(id)));
  }
});

test("a small tree lies as icicle.py lays it", () => {
  const { nodes, boxes } = recording("icicle");
  const forest = forestOf(treeOf(nodes));
  const mine = new Map(layout(forest, forest.roots, 700, 300).map((b) => [b.node.id, [b.x, b.y, b.w, b.h]]));
  assert.equal(mine.size, boxes.length);
  for (const [id, ...rect] of boxes) rect.forEach((value, i) => near(mine.get(id)[i], value));
});

test("children begin where their parent ends and fill its height", () => {
  const forest = forestOf(random(500));
  const boxes = layout(forest, forest.roots, 700, 300);
  const byId = new Map(boxes.map((b) => [b.node.id, b]));
  assert.equal(boxes.length, 500);
  for (const box of boxes) {
    const kin = (forest.children.get(box.node.id) ?? []).map((node) => byId.get(node.id));
    if (!kin.length) continue;
    near(kin.reduce((sum, b) => sum + b.h, 0), box.h);
    for (const b of kin) near(b.x, box.x + box.w);
    assert.ok(kin.every((b) => b.y >= box.y - 1e-6 && b.y + b.h <= box.y + box.h + 1e-6));
  }
});

test("small siblings are merged into one block that names how many", () => {
  const forest = forestOf(treeOf([[0, -1, 0], [1, 0, 1000], ...Array.from({ length: 50 }, (_, i) => [i + 2, 0, 1])]));
  const boxes = layout(forest, forest.roots, 700, 300, 3);
  assert.equal(boxes.length, 3);
  const merged = boxes.find((b) => b.merged);
  assert.equal(merged.merged, 50);
  near(merged.y + merged.h, 300);
});

test("10,000 nodes are laid out in less than 50 ms", () => {
  const nodes = random(10000);
  const run = () => {
    const start = performance.now();
    const forest = forestOf(nodes);
    layout(forest, forest.roots, 1000, 320, 3);
    return performance.now() - start;
  };
  assert.ok(Math.min(run(), run(), run(), run(), run()) < 50);
});

test("a tree with a circle or a missing parent does not hang", () => {
  const forest = forestOf(treeOf([[0, 0, 3], [1, 2, 1], [2, 1, 1], [3, 99, 2]]));
  assert.deepEqual(forest.roots.map((n) => n.id), [0, 3]);
  assert.equal(layout(forest, forest.roots, 10, 10).length, 2);
  assert.ok(pathOf(forest.nodes, 1).length <= 10000);
});

test("what lies under the pointer, and the way to it", () => {
  const forest = forestOf(treeOf([[0, -1, 0], [1, 0, 20], [2, 1, 5], [3, 1, 10]]));
  const boxes = layout(forest, forest.roots, 100, 40);
  const target = boxes.find((b) => b.node.id === 2);
  assert.equal(boxAt(boxes, target.x + 1, target.y + 1).node.id, 2);
  assert.equal(boxAt(boxes, 1000, 1), null);
  assert.deepEqual(pathOf(forest.nodes, 2).map((n) => n.id), [0, 1, 2]);
  assert.equal(nodeWidth(1), 1.5);
});

test("the text view is the tree, indented", () => {
  const state = treeCodec.full(recording("trees")[0].messages[0].map(bytes));
  const lines = treeText(state).split("\n");
  assert.match(lines[0], /^prefix tree · /);
  assert.match(lines[1], /^root · 0 tokens · 1 hit/);
  assert.ok(lines.length <= 40);
});
