import { columnOf, count, jsonOf, make, oneLine, plural, setText, viewModule, visible } from "./base.js";

// ---- state: {facts, at: seconds on Python's axis, nodes: Map id -> node, ghosts: Map id -> node just evicted} ----

export const NO_PARENT = 0xffffffff;
const PARKED = 1;
const GHOST_MS = 3000;
const TYPES = [Uint32Array, Uint32Array, Uint32Array, Uint16Array, Uint32Array, Float32Array, Uint8Array];

export const treeCodec = {
  full: (buffers) => applyTree({ facts: {}, nodes: new Map(), ghosts: new Map(), found: null, version: 0 }, buffers),
  delta: (state, buffers) => applyTree(state, buffers),
  other(state, envelope, buffers) {
    if (state === null) return;
    if (envelope.kind === "label") {
      for (const [id, text] of jsonOf(buffers[0])) {
        const node = state.nodes.get(id);
        if (node) node.text = text;
      }
    } else if (envelope.kind === "found") state.found = jsonOf(buffers[0]);
  },
};

// Lays a message (facts, removed ids, columns of new or changed nodes) on the state, in place.
export function applyTree(state, buffers, now = Date.now()) {
  state.facts = jsonOf(buffers[0]);
  state.heardAt = now;
  state.version += 1;
  for (const id of columnOf(buffers[1], Uint32Array)) {
    const node = state.nodes.get(id);
    if (!node) continue;
    state.nodes.delete(id);
    state.ghosts.set(id, { ...node, goneAt: now });
  }
  const [ids, parents, tokens, locks, hits, uses, flags] = TYPES.map((Type, i) => columnOf(buffers[i + 2], Type));
  for (let i = 0; i < ids.length; i++) {
    const text = state.nodes.get(ids[i])?.text;
    const row = { tokens: tokens[i], locks: locks[i], hits: hits[i], lastUse: uses[i], parked: (flags[i] & PARKED) !== 0 };
    // the text of a node that was split or has grown may have changed
    const kept = state.nodes.get(ids[i])?.tokens === row.tokens ? text : undefined;
    state.nodes.set(ids[i], { id: ids[i], parent: parents[i], text: kept, ...row });
    state.ghosts.delete(ids[i]);
  }
  return state;
}

export function ageOf(state, node, now = Date.now()) {
  return Math.max(0, state.facts.now + (now - state.heardAt) / 1000 - node.lastUse);
}

// ---- layout: the same laws as icicle.py ----

export const nodeWidth = (tokens) => 0.5 + Math.log2(1 + tokens);

// Parents, children and subtree totals; computed once per change, not per frame.
export function forestOf(nodes) {
  const children = new Map();
  const roots = [];
  for (const node of nodes.values()) {
    if (node.parent === node.id || !nodes.has(node.parent)) roots.push(node);
    else if (children.has(node.parent)) children.get(node.parent).push(node);
    else children.set(node.parent, [node]);
  }
  const order = [];
  for (const stack = [...roots]; stack.length; ) {
    const node = stack.pop();
    order.push(node);
    for (const child of children.get(node.id) ?? []) stack.push(child);
  }
  const total = new Map(order.map((node) => [node.id, node.tokens]));
  for (let i = order.length - 1; i >= 0; i--) {
    const { id, parent } = order[i];
    if (parent !== id && total.has(parent)) total.set(parent, total.get(parent) + total.get(id));
  }
  const bySize = (a, b) => total.get(b.id) - total.get(a.id) || a.id - b.id;
  for (const kin of children.values()) kin.sort(bySize);
  return { nodes, children, roots: roots.sort(bySize), total };
}

// Rectangles of the trees under `roots`, parents before children.  Siblings under `minHeight` are merged into one grey
// block ({merged: n}), which ends that branch of the drawing.
export function layout(forest, roots, width, height, minHeight = 0) {
  const reach = reachOf(forest, roots);
  const unit = width / reach;
  const boxes = [];
  const todo = [[roots, 0, 0, height]];
  while (todo.length) {
    const [kin, x, y0, h0] = todo.pop();
    const weight = (node) => Math.max(forest.total.get(node.id), 1);
    const scale = h0 / kin.reduce((sum, node) => sum + weight(node), 0);
    let y = y0;
    for (let i = 0; i < kin.length; i++) {
      const h = weight(kin[i]) * scale;
      if (h < minHeight && kin.length > 1) { // kin is sorted: all that follow are smaller
        boxes.push({ x, y, w: unit * 3, h: y0 + h0 - y, merged: kin.length - i });
        break;
      }
      const w = nodeWidth(kin[i].tokens) * unit;
      boxes.push({ node: kin[i], x, y, w, h });
      const inner = forest.children.get(kin[i].id);
      if (inner) todo.push([inner, x + w, y, h]);
      y += h;
    }
  }
  return boxes;
}

function reachOf(forest, roots) {
  let reach = 1;
  for (const stack = roots.map((node) => [node, 0]); stack.length; ) {
    const [node, x] = stack.pop();
    const right = x + nodeWidth(node.tokens);
    reach = Math.max(reach, right);
    for (const child of forest.children.get(node.id) ?? []) stack.push([child, right]);
  }
  return reach;
}

export function boxAt(boxes, x, y) {
  for (let i = boxes.length - 1; i >= 0; i--) {
    const b = boxes[i];
    if (x >= b.x && x < b.x + b.w && y >= b.y && y < b.y + b.h) return b;
  }
  return null;
}

// The path from a root to the node, the node last.
export function pathOf(nodes, id) {
  const path = [];
  for (let node = nodes.get(id); node && path.length < 10000; node = nodes.get(node.parent)) {
    path.unshift(node);
    if (node.parent === node.id) break;
  }
  return path;
}

// ---- words ----

const nameOf = (node) => (node.text ? `"${oneLine(node.text, 40)}"` : node.tokens ? `node ${node.id}` : "root");

export function nodeLine(state, node) {
  const parts = [nameOf(node), plural(node.tokens, "token"), plural(node.hits, "hit")];
  parts.push(`${ageOf(state, node).toFixed(0)} s ago`);
  if (node.locks) parts.push(`locked ${count(node.locks)}`);
  if (node.parked) parts.push("parked");
  return parts.join(" \u00b7 ");
}

// The indented tree: depth 4, 40 lines.
export function treeText(state) {
  const forest = forestOf(state.nodes);
  const lines = [state.facts.line];
  const walk = (kin, indent) => {
    for (const node of kin) {
      lines.push(`${"  ".repeat(indent)}${nodeLine(state, node)}`);
      const inner = forest.children.get(node.id) ?? [];
      if (inner.length && indent >= 3) lines.push(`${"  ".repeat(indent + 1)}\u2026 ${plural(inner.length, "child", "children")}`);
      else walk(inner, indent + 1);
    }
  };
  walk(forest.roots, 0);
  if (lines.length > 40) lines.splice(39, lines.length, `\u2026 ${count(lines.length - 39)} more lines`);
  return lines.join("\n");
}

// ---- the view ----

const HEIGHT = 320;
const MIN_PX = 3;
const AGES = [[1, "--nb-new"], [10, "--nb-mid"], [60, "--nb-old"], [Infinity, "--nb-ancient"]];
const COLOURS = ["--nb-new", "--nb-mid", "--nb-old", "--nb-ancient", "--nb-blue", "--nb-red", "--nb-grey", "--nb-text"];

function buildTree(frame) {
  const crumbs = make("span", { class: "nb-crumbs" });
  const find = make("input", { class: "nb-find", type: "search", placeholder: "find text", "aria-label": "find text", tabindex: "-1" });
  const bar = make("div", { class: "nb-crumbs" }, crumbs, find);
  const canvas = make("canvas", { class: "nb-canvas", role: "img", "aria-label": "prefix tree; press t for its text" });
  frame.body.append(bar, canvas);
  const context = canvas.getContext("2d");
  const zoom = []; // ids; the last one is the root of the drawing
  let at = null; // the node under the pointer or the focus
  let cache = { version: -1, key: "", boxes: [], forest: null };
  let colours = null;
  let asked = new Set();

  const rootsOf = (state, forest) => {
    while (zoom.length && !state.nodes.has(zoom.at(-1))) zoom.pop();
    return zoom.length ? [state.nodes.get(zoom.at(-1))] : forest.roots;
  };

  function boxes(state, width) {
    const key = `${width} ${zoom.at(-1)}`;
    if (cache.version === state.version && cache.key === key && cache.state === state) return cache.boxes;
    const fresh = cache.version === state.version && cache.state === state;
    const forest = fresh ? cache.forest : forestOf(state.nodes);
    cache = { version: state.version, key, state, forest, boxes: layout(forest, rootsOf(state, forest), width - 2, HEIGHT - 2, MIN_PX) };
    return cache.boxes;
  }

  function draw(state) {
    const width = canvas.clientWidth;
    if (!width) return;
    const ratio = globalThis.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(HEIGHT * ratio)) canvas.height = Math.round(HEIGHT * ratio);
    colours ??= Object.fromEntries(COLOURS.map((name) => [name, frame.colour(name)]));
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, HEIGHT);
    context.translate(1, 1);
    context.font = "11px monospace";
    const found = new Set(state.found?.text === find.value && find.value ? state.found.ids : []);
    const onPath = new Set([...found].flatMap((id) => pathOf(state.nodes, id).map((node) => node.id)));
    const drawn = boxes(state, width);
    for (const box of drawn) paint(state, box, found, onPath);
    for (const [id, ghost] of state.ghosts) ghostly(state, id, ghost, drawn);
    askTexts(state, drawn);
    drawCrumbs(state);
    frame.hint(hintOf(state));
  }

  function paint(state, { node, x, y, w, h, merged }, found, onPath) {
    if (merged) {
      context.fillStyle = colours["--nb-grey"];
      context.fillRect(x, y, w, Math.max(h - 0.5, 0.5));
      return;
    }
    const age = ageOf(state, node);
    context.fillStyle = colours[AGES.find(([limit]) => age <= limit)[1]];
    context.fillRect(x, y, w, h);
    context.lineWidth = node.locks ? Math.min(2, h / 2) : 0.5;
    context.strokeStyle = node.locks ? colours["--nb-blue"] : colours["--nb-grey"];
    context.strokeRect(x + 0.5, y + 0.5, Math.max(w - 1, 0.5), Math.max(h - 1, 0.5));
    if (onPath.has(node.id)) outline(x, y, w, h, colours["--nb-red"], found.has(node.id) ? 3 : 1.5);
    if (node.id === at) outline(x, y, w, h, colours["--nb-text"], 2);
    context.fillStyle = "#000000";
    if (node.parked && h >= 6) context.fillRect(x + w - 7, y + h / 2 - 2, 4, 4);
    const letters = Math.floor((w - 6) / 6.7);
    if (h >= 12 && letters >= 3) context.fillText(oneLine(node.text || nameOf(node), letters), x + 3, y + Math.min(h / 2 + 4, 15));
  }

  function outline(x, y, w, h, colour, line) {
    context.lineWidth = line;
    context.strokeStyle = colour;
    context.strokeRect(x + 1, y + 1, Math.max(w - 2, 1), Math.max(h - 2, 1));
  }

  // A node that was evicted less than 3 s ago: a cross at its parent's right edge.
  function ghostly(state, id, ghost, drawn) {
    if (Date.now() - ghost.goneAt > GHOST_MS) return state.ghosts.delete(id);
    const box = drawn.find((b) => b.node?.id === ghost.parent);
    if (!box) return undefined;
    context.strokeStyle = colours["--nb-red"];
    context.lineWidth = 1.5;
    const [x, y] = [box.x + box.w - 6, box.y + Math.min(box.h - 6, 20)];
    context.beginPath();
    context.moveTo(x - 3, y - 3);
    context.lineTo(x + 3, y + 3);
    context.moveTo(x + 3, y - 3);
    context.lineTo(x - 3, y + 3);
    context.stroke();
    return undefined;
  }

  // The texts of what is large enough to bear one, once per node and size.
  function askTexts(state, drawn) {
    const wanted = [];
    for (const { node, h } of drawn) {
      if (!node || node.text !== undefined || (h < 12 && node.id !== at) || wanted.length >= 200) continue;
      const key = `${node.id} ${node.tokens}`;
      if (asked.has(key)) continue;
      asked.add(key);
      wanted.push(node.id);
    }
    if (wanted.length) frame.send({ type: "label", ids: wanted });
    if (asked.size > 50000) asked = new Set();
  }

  function drawCrumbs(state) {
    const key = zoom.join(" ");
    if (crumbs.dataset.key === key) return;
    crumbs.dataset.key = key;
    const crumb = (text, keep) => {
      const node = make("button", { type: "button", class: "nb-crumb", tabindex: "-1", text });
      node.addEventListener("click", () => zoomTo(keep));
      return node;
    };
    crumbs.replaceChildren(crumb("whole tree", 0));
    zoom.forEach((id, i) => crumbs.append(" \u203a ", crumb(nameOf(state.nodes.get(id)), i + 1)));
  }

  function hintOf(state) {
    const node = state.nodes.get(at);
    if (node) return `${nodeLine(state, node)} \u00b7 ${plural((cache.forest.total.get(at) ?? 0) - node.tokens, "token")} below`;
    if (find.value && state.found?.text === find.value) return `${plural(state.found.total, "node")} with "${oneLine(find.value, 40)}"`;
    return "yellow: used just now, grey: long ago \u00b7 blue border: locked \u00b7 square: parked \u00b7 red cross: evicted";
  }

  function zoomTo(depth) {
    zoom.length = depth;
    frame.want();
  }

  function zoomInto(id) {
    if (id === null || id === zoom.at(-1)) return;
    zoom.push(id);
    frame.want();
  }

  const hit = (event) => boxAt(cache.boxes, event.offsetX - 1, event.offsetY - 1)?.node?.id ?? null;
  canvas.addEventListener("pointermove", (event) => {
    at = hit(event);
    frame.want();
  });
  canvas.addEventListener("pointerleave", () => {
    at = null;
    frame.want();
  });
  canvas.addEventListener("dblclick", (event) => zoomInto(hit(event)));
  find.addEventListener("input", () => {
    if (find.value) frame.send({ type: "find", text: find.value });
    frame.want();
  });

  // Left and right along the path, up and down among what lies in the same column.
  function key(name) {
    const state = frame.state;
    if (!state || !cache.forest) return false;
    const node = state.nodes.get(at);
    const kin = node ? cache.forest.children.get(node.parent) ?? cache.forest.roots : [];
    const step = { ArrowDown: 1, ArrowUp: -1 }[name];
    if (name === "/") find.focus();
    else if (name === "Enter") zoomInto(at);
    else if (name === "Backspace") zoomTo(Math.max(zoom.length - 1, 0));
    else if (!name.startsWith("Arrow")) return false;
    else if (!node) at = rootsOf(state, cache.forest)[0]?.id ?? null;
    else if (name === "ArrowRight") at = cache.forest.children.get(at)?.[0]?.id ?? at;
    else if (name === "ArrowLeft") at = state.nodes.has(node.parent) ? node.parent : at;
    else at = kin[Math.min(Math.max(kin.indexOf(node) + step, 0), kin.length - 1)]?.id ?? at;
    frame.want();
    return true;
  }

  return {
    draw,
    key,
    text: treeText,
    status: () => "live",
    facts: (state) => visible(state.facts.line).replace(/^prefix tree \u00b7 /, ""),
    theme: () => (colours = null),
    help: [
      ["arrows", "parent, first child, siblings"], ["Enter", "zoom into the node (or double click)"],
      ["Backspace", "zoom out"], ["/", "find text"],
    ],
    inspect: () => ({ boxes: cache.boxes.length, nodes: frame.state?.nodes.size ?? 0, zoom: [...zoom], at }),
  };
}

export default viewModule(treeCodec, buildTree);
