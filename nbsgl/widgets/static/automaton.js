import { make, setText, visible } from "./base.js";

// ---- an automaton, drawn from the places that Python gave its parts ----

const SVG = "http://www.w3.org/2000/svg";
const RADIUS = 11;

function shape(tag, props, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// How often each edge was taken, and the nodes on the way; an edge that the text is still on has not reached its end.
export function wayOf(edges, path, current) {
  const taken = new Map();
  for (const [edge, times] of path) taken.set(edge, (taken.get(edge) ?? 0) + times);
  const visited = new Set();
  for (const { id, source, target } of edges) {
    if (!taken.has(id)) continue;
    visited.add(source);
    if (id !== current || taken.get(id) > 1) visited.add(target);
  }
  return { taken, visited };
}

class Diagram {
  constructor() {
    this.node = make("div", { class: "nb-diagram" });
    this.edges = new Map();
    this.nodes = new Map();
  }

  // Places everything anew; marks come by `mark`.
  lay(automaton, { width, height, nodes, edges }) {
    this.automaton = automaton;
    const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
    svg.append(shape("title", {}, `automaton of ${automaton.nodes.length} nodes`));
    const known = new Map(automaton.edges.map((edge) => [edge.id, edge]));
    this.edges = new Map(edges.map((edge) => [edge.id, this.edge(svg, edge, known.get(edge.id))]));
    this.nodes = new Map(nodes.map((at, i) => [at.id, this.state(svg, at, automaton.nodes[i])]));
    this.node.replaceChildren(svg);
    this.kept = null;
  }

  edge(svg, { line, head, label, x, y }, { forced }) {
    const group = shape("g", { class: forced ? "nb-edge nb-forced-edge" : "nb-edge" });
    group.append(shape("path", { class: "nb-line", d: line }));
    if (head) group.append(shape("path", { class: "nb-arrow", d: head }));
    const words = shape("text", { class: "nb-edge-label", x, y }, visible(label));
    group.append(words);
    svg.append(group);
    return { group, words, label: visible(label) };
  }

  state(svg, { id, x, y }, { start, accepting, hidden, times }) {
    const group = shape("g", { class: "nb-node" });
    group.append(shape("circle", { class: "nb-disc", cx: x, cy: y, r: RADIUS }));
    if (accepting) group.append(shape("circle", { class: "nb-ring", cx: x, cy: y, r: RADIUS - 3 }));
    group.append(shape("text", { class: "nb-node-id", x, y: y + 3.5 }, String(id)));
    if (start) {
      group.append(shape("path", { class: "nb-line", d: `M${x - RADIUS - 14} ${y}h9` }));
      group.append(shape("path", { class: "nb-arrow", d: `M${x - RADIUS} ${y}l-7 -3.2v6.4Z` }));
    }
    const note = [times > 1 && `\u00d7${times}`, hidden && `+${hidden}`].filter(Boolean).join(" ");
    if (note) group.append(shape("text", { class: "nb-node-more", x: x + 8, y: y + 19 }, note));
    svg.append(group);
    return group;
  }

  // The way taken and where it stands; scrolls only when the place has left the view.
  mark({ node, edge, path }) {
    const { taken, visited } = wayOf(this.automaton.edges, path, edge);
    for (const [id, { group, words, label }] of this.edges) {
      const times = taken.get(id) ?? 0;
      group.classList.toggle("nb-taken", times > 0);
      group.classList.toggle("nb-here", id === edge);
      setText(words, times > 1 ? `${label} \u00d7${times}` : label);
    }
    for (const [id, group] of this.nodes) {
      group.classList.toggle("nb-visited", visited.has(id));
      group.classList.toggle("nb-here", id === node);
    }
    const here = `${node} ${edge}`;
    if (here !== this.kept) this.reveal(this.nodes.get(node) ?? this.edges.get(edge)?.group);
    this.kept = here;
  }

  reveal(target) {
    if (!target?.getBBox || this.node.scrollWidth <= this.node.clientWidth) return;
    const { x, width } = target.getBBox();
    const { scrollLeft, clientWidth } = this.node;
    if (x < scrollLeft || x + width > scrollLeft + clientWidth) this.node.scrollLeft = x - clientWidth / 3;
  }
}

// The output cut into stretches, [text, is it forced]; offsets are in code points.
export function stretches(output, forced) {
  const chars = Array.from(output);
  const parts = [];
  let at = 0;
  const take = (end, isForced) => {
    if (end > at) parts.push([chars.slice(at, end).join(""), isForced]);
    at = Math.max(at, end);
  };
  for (const [begin, end] of forced) take(begin, false), take(end, true);
  take(chars.length, false);
  return parts;
}

// The grammar's source, its automaton, the output with forced text marked, and what may follow.
export class GrammarPanel {
  constructor() {
    const parts = { source: "pre", output: "pre", lines: "div" };
    for (const [name, tag] of Object.entries(parts)) this[name] = make(tag, { class: `nb-grammar-${name}` });
    this.diagram = new Diagram();
    this.node = make("div", { class: "nb-grammar" }, this.source, this.diagram.node, this.output, this.lines);
    this.laid = null;
    this.written = null;
  }

  draw(state) {
    setText(this.source, visible(state.source));
    this.diagram.node.hidden = !state.automaton.nodes.length;
    if (this.laid !== state.drawing && state.automaton.nodes.length) this.diagram.lay(state.automaton, state.drawing);
    this.laid = state.drawing;
    if (state.automaton.nodes.length) this.diagram.mark(state);
    this.write(state);
    setText(this.lines, state.lines.map(visible).join("\n"));
  }

  write({ output, forced, skipped }) {
    const key = `${skipped} ${output.length} ${output.slice(-20)} ${forced.at(-1)}`;
    if (key === this.written) return;
    this.written = key;
    const lead = skipped ? [`\u2026 ${skipped} characters before\n`] : [];
    this.output.hidden = !output;
    this.output.replaceChildren(...lead, ...stretches(output, forced).map(([text, isForced]) =>
      isForced ? make("span", { class: "nb-forced-text", text: visible(text) }) : visible(text)));
  }
}
