import { count, headOf, jsonOf, make, oneLine, plural, setText, viewModule, visible } from "./base.js";
import { GrammarPanel } from "./automaton.js";

// ---- state: protocol's RunView as JSON; `rev` on a segment counts cuts of its text ----

export const runCodec = {
  full: (buffers) => jsonOf(buffers[0]),
  delta: (state, buffers) => applyRun(state, jsonOf(buffers[0])),
  other: (state, { kind }, buffers) => {
    if (kind === "grammar" && state) state.grammar = grammarNews(state.grammar, jsonOf(buffers[0]));
  },
};

// What is known of the grammar that is looked at: news of the same segment are laid on what there was.
export function grammarNews(old, news) {
  const isSame = old?.branch === news.branch && old?.segment === news.segment;
  return { ...(isSame ? old : {}), error: null, ...news };
}

// Lays a delta on the state, in place.  The form of a delta is told in run.py.
export function applyRun(state, delta) {
  Object.assign(state, delta.set);
  state.variables ??= {};
  for (const [name, change] of Object.entries(delta.vars ?? {})) {
    if (change === null) delete state.variables[name];
    else put(state.variables, name, changed(own(state.variables, name) ?? "", change));
  }
  state.branches ??= [];
  if (delta.keep !== undefined) state.branches.length = delta.keep;
  for (const [i, change] of delta.branches ?? []) applyBranch((state.branches[i] ??= { segments: [] }), change);
  return state;
}

// A variable may have any name, `__proto__` too.
const own = (object, name) => (Object.hasOwn(object, name) ? object[name] : undefined);
const put = (object, name, value) =>
  Object.defineProperty(object, name, { value, writable: true, enumerable: true, configurable: true });

function applyBranch(branch, delta) {
  Object.assign(branch, delta.set);
  branch.segments ??= [];
  if (delta.keep !== undefined) branch.segments.length = delta.keep;
  for (const [j, change] of delta.segs ?? []) {
    const segment = (branch.segments[j] ??= { text: "" });
    Object.assign(segment, change.set);
    if (!change.text) continue;
    if (change.text[0] !== null) segment.rev = (segment.rev ?? 0) + 1;
    segment.text = changed(segment.text ?? "", change.text);
  }
}

function changed(text, [keep, added]) {
  return (keep === null ? text : headOf(text, keep)) + added;
}

// ---- words ----

const generated = (branch) => branch.segments.reduce((n, s) => n + (s.kind === "gen" ? s.num_tokens : 0), 0);

export function noteOf(segment) {
  if (segment.status === "aborted") return "aborted";
  if (segment.error) return `${segment.status}: ${oneLine(segment.error, 300)}`;
  const finish = segment.finish;
  if (finish?.type === "length") return finish.length == null ? "cut" : `cut at ${plural(finish.length, "token")}`;
  if (finish?.type === "abort") return "aborted";
  if (finish?.type === "error") return "failed";
  return segment.status === "done" ? "" : segment.status;
}

function segmentText(segment) {
  if (segment.kind === "forced") return segment.text;
  const chosen = segment.choices?.[segment.chosen];
  const parts = [segment.text || (segment.kind === "select" && chosen) || "", noteOf(segment)];
  return `[${segment.name ?? segment.kind}: ${parts.filter(Boolean).join(" | ")}]`;
}

// The plain transcript, a branch after the other.
export function transcript(state) {
  const lines = [`run ${state.title} \u00b7 ${factsOf(state)} \u00b7 ${state.status}`];
  for (const branch of state.branches) {
    const from = branch.parent == null ? "" : ` \u00b7 from branch ${branch.parent}`;
    if (state.branches.length > 1) lines.push(`branch ${branch.id}${from} \u00b7 ${branch.status}`);
    lines.push(branch.segments.filter((s) => !s.is_markup).map(segmentText).join(""));
  }
  if (state.error) lines.push(`error: ${state.error}`);
  return lines.join("\n");
}

export function factsOf(state, sinceMs = 0) {
  const ticking = ["queued", "running"].includes(state.status) ? sinceMs / 1000 : 0;
  return [
    plural(state.branches.length, "branch", "branches"),
    plural(state.generated, "token"),
    state.prefill_cached + state.prefill_computed
      && `cached ${count(state.prefill_cached)} / computed ${count(state.prefill_computed)}`,
    `${(state.elapsed_s + ticking).toFixed(1)} s`,
  ].filter(Boolean).join(" \u00b7 ");
}

export function grammarName({ kind, text }) {
  const title = kind === "json_schema" ? text.match(/"title":\s*"([^"\\]{1,40})"/)?.[1] : text;
  return oneLine(title ? `${kind.replace("_", " ")} ${title}` : kind.replace("_", " "), 48);
}

// ---- text that grows: blocks that are laid out on their own, so that an append touches one small block ----

const BLOCK = 1000; // from here on a block ends at the next newline
const LONGEST = 6000; // and here anyway, at a space if there is one

// Where the block that holds `used` units already ends in `text`: [end of its piece, start of the next, is it full].
// A newline at the end is left out: the block's own end stands for it.
export function cutBlock(text, used) {
  const newline = text.indexOf("\n", Math.max(BLOCK - used, 0));
  if (newline >= 0 && newline + used <= LONGEST) return [newline, newline + 1, true];
  if (text.length + used <= LONGEST) return [text.length, text.length, false];
  let end = Math.max(LONGEST - used, 1);
  end = text.lastIndexOf(" ", end) + 1 || end;
  if ((text.charCodeAt(end - 1) & 0xfc00) === 0xd800) end += 1; // never inside a pair
  return [end, end, true];
}

class Growing {
  constructor(node) {
    this.node = node;
    this.of = null;
    this.clear(0);
  }

  clear(rev) {
    this.node.replaceChildren();
    this.len = 0;
    this.rev = rev;
    this.block = null;
    this.used = 0;
  }

  // Appends what is new; begins anew when the text was cut, or belongs to another segment (a new full state).
  draw(segment) {
    const { text, rev = 0 } = segment;
    if (rev !== this.rev || segment !== this.of) this.clear(rev);
    this.of = segment;
    if (text.length === this.len) return false;
    for (let rest = text.slice(this.len); rest; ) {
      if (!this.block) this.node.append((this.block = make("span", { class: "nb-block" })));
      const [end, next, full] = cutBlock(rest, this.used);
      this.block.append(visible(rest.slice(0, end)));
      this.used += end;
      if (full) [this.block, this.used] = [null, 0];
      rest = rest.slice(next);
    }
    this.len = text.length;
    return true;
  }
}

// ---- one segment ----

const MARKS = { forced: "prompt", gen: "generated", select: "selected" };

class SegmentNode {
  constructor(kind) {
    this.kind = kind;
    this.label = make("div", { class: "nb-label" });
    this.text = make("pre", { class: "nb-text" });
    this.rows = make("table", { class: "nb-choices" });
    this.chip = make("button", { type: "button", class: "nb-chip", tabindex: "-1", title: "show the grammar's automaton (g)" });
    this.chip.hidden = true;
    const head = make("div", { class: "nb-seg-head" }, this.label, this.chip);
    this.node = make("div", { class: `nb-seg nb-${kind}` }, head, this.text, this.rows);
    this.growing = new Growing(this.text);
    this.scores = "";
    this.panel = null;
  }

  // The chip names the segment's grammar; opened, the automaton stands below the text.
  grammar({ grammar }, isOpen, news) {
    this.chip.hidden = !grammar;
    if (grammar) setText(this.chip, `${isOpen ? "\u25be" : "\u25b8"} ${grammarName(grammar)}`);
    this.chip.setAttribute("aria-expanded", String(isOpen));
    if (!isOpen) {
      this.panel?.remove();
      this.panel = null;
      return;
    }
    if (!this.panel) this.node.append((this.panel = make("div", { class: "nb-open-grammar" })));
    if (news?.error) setText(this.panel, visible(`cannot draw this grammar: ${news.error}`));
    else if (!news?.automaton) setText(this.panel, "compiling the grammar \u2026");
    else this.drawn(news);
  }

  drawn(news) {
    if (!this.panel.firstElementChild) {
      this.shown = new GrammarPanel();
      this.panel.replaceChildren(this.shown.node);
    }
    this.shown.draw(news);
  }

  draw(segment, role) {
    const note = noteOf(segment);
    const who = role ? `${oneLine(role, 40)} \u00b7 ` : "";
    const name = segment.kind === "forced" ? "" : `${oneLine(segment.name ?? segment.kind, 60)} \u00b7 `;
    const tokens = segment.num_tokens ? ` \u00b7 ${plural(segment.num_tokens, "token")}` : "";
    const bare = segment.kind === "forced" && !role && !note;
    setText(this.label, bare ? "" : `${who}${name}${MARKS[segment.kind]}${tokens}${note ? ` \u00b7 ${note}` : ""}`);
    this.node.dataset.status = note.startsWith("cut") ? "cut" : segment.status;
    this.node.hidden = Boolean(segment.is_markup) || (segment.kind === "forced" && !segment.text && !note);
    const grew = this.node.hidden ? false : this.growing.draw(segment);
    if (segment.choices?.length) this.choices(segment);
    return grew;
  }

  choices({ choices, scores, chosen }) {
    const key = `${choices.length} ${chosen} ${scores}`;
    if (key === this.scores) return;
    this.scores = key;
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    this.rows.replaceChildren(...choices.slice(0, 24).map((choice, i) => {
      const share = !(i in scores) ? 0 : high === low ? 1 : (scores[i] - low) / (high - low);
      const fill = make("div", { class: "nb-fill" });
      fill.style.width = `${2 + 98 * share}%`;
      return make("tr", { class: i === chosen ? "nb-chosen" : "" },
        make("td", { text: i === chosen ? "\u2713" : "" }),
        make("td", { text: oneLine(choice, 80) }),
        make("td", { class: "nb-number", text: i in scores ? Number(scores[i]).toFixed(3) : "" }),
        make("td", {}, make("div", { class: "nb-bar" }, i in scores ? fill : "")));
    }));
  }
}

// ---- lanes: a branch each ----

class Lane {
  constructor(pick, grammars) {
    this.grammars = grammars;
    this.head = make("div", { class: "nb-lane-head" });
    this.text = make("div", { class: "nb-lane-text" });
    this.node = make("div", { class: "nb-lane" }, this.head, this.text);
    this.head.addEventListener("click", () => pick(this.id));
    this.segments = [];
    this.follow = true;
    this.text.addEventListener("scroll", () => {
      this.follow = this.text.scrollTop + this.text.clientHeight >= this.text.scrollHeight - 24;
    });
  }

  draw(branch) {
    this.id = branch.id;
    setText(this.head, headline(branch));
    this.node.dataset.status = branch.status;
    this.node.classList.toggle("nb-root", branch.parent == null);
    while (this.segments.length > branch.segments.length) this.segments.pop().node.remove();
    let grew = false;
    let role = null;
    branch.segments.forEach((segment, j) => {
      if (this.segments[j]?.kind !== segment.kind) this.put(j, segment.kind);
      const shown = segment.role && segment.role !== role ? segment.role : "";
      grew = this.segments[j].draw(segment, shown) || grew;
      if (this.grammars.canDraw) this.segments[j].grammar(segment, ...this.grammars.of(branch.id, j));
      if (!this.segments[j].node.hidden) role = segment.role ?? null;
      if (segment.is_markup) role = null;
    });
    if (grew && this.follow) this.text.scrollTop = this.text.scrollHeight;
  }

  put(j, kind) {
    const made = new SegmentNode(kind);
    made.chip.addEventListener("click", () => this.grammars.toggle(this.id, j));
    if (this.segments[j]) this.segments[j].node.replaceWith(made.node);
    else this.text.append(made.node);
    this.segments[j] = made;
  }
}

function headline(branch) {
  const from = !branch.parent ? "" : ` from branch ${branch.parent}`;
  return `branch ${branch.id}${from} \u00b7 ${plural(generated(branch), "token")} \u00b7 ${branch.status}`;
}

const tailOf = (branch) => {
  const text = branch.segments.filter((s) => !s.is_markup).slice(-3).map((s) => s.text).join("");
  return oneLine(text.slice(-60), 60);
};

// Which segment's grammar is open: one at a time.
class Grammars {
  constructor(frame) {
    this.frame = frame;
    this.canDraw = Boolean(frame.model.get("can_draw"));
    this.open = null;
  }

  of(branch, segment) {
    const isOpen = this.open?.branch === branch && this.open.segment === segment;
    const news = this.frame.state.grammar;
    return [isOpen, isOpen && news?.branch === branch && news.segment === segment ? news : null];
  }

  toggle(branch, segment) {
    const [isOpen] = this.of(branch, segment);
    this.open = isOpen ? null : { branch, segment };
    const sent = this.frame.send({ type: "watch", branch, segment: isOpen ? -1 : segment });
    if (!sent) this.frame.hint("the kernel cannot be reached");
    this.frame.want();
  }

  // The next variable of the branch in focus that has a grammar; after the last, none.
  step(state, focus) {
    const branch = state?.branches.find((b) => b.id === focus) ?? state?.branches[0];
    if (!branch || !this.canDraw) return;
    const all = branch.segments.flatMap((segment, j) => (segment.grammar ? [j] : []));
    const at = this.open?.branch === branch.id ? all.indexOf(this.open.segment) : -1;
    if (at + 1 < all.length) this.toggle(branch.id, all[at + 1]);
    else if (this.open) this.toggle(this.open.branch, this.open.segment);
  }
}

const FULL_LANES = 4;
const MAX_ROWS = 500;

function buildRun(frame) {
  const rows = make("div", { class: "nb-rows", role: "listbox", "aria-label": "branches" });
  const lanes = make("div", { class: "nb-lanes" });
  const error = make("pre", { class: "nb-error" });
  frame.body.append(error, rows, lanes);
  const drawn = new Map(); // by branch id
  const rowOf = new Map();
  let focus = null;
  const grammars = new Grammars(frame);

  const pick = (id) => {
    focus = id;
    frame.want();
  };

  function draw(state) {
    setText(error, state.error ? visible(state.error) : "");
    error.hidden = !state.error;
    const many = state.branches.length > FULL_LANES;
    if (many && !state.branches.some((b) => b.id === focus)) focus = state.branches[0].id;
    const shown = many ? state.branches.filter((b) => b.id === focus) : state.branches;
    rows.hidden = !many;
    if (many) drawRows(state.branches);
    // a branch that others forked from lies above them, as wide as all
    lanes.dataset.lanes = String(shown.filter((b) => b.parent != null).length || shown.length);
    const ids = new Set(shown.map((b) => b.id));
    for (const [id, lane] of drawn) {
      if (ids.has(id)) continue;
      lane.node.remove();
      drawn.delete(id);
    }
    for (const branch of shown) {
      let lane = drawn.get(branch.id);
      if (!lane) {
        drawn.set(branch.id, (lane = new Lane(pick, grammars)));
        lanes.append(lane.node);
      }
      lane.draw(branch);
      lane.node.classList.toggle("nb-focus", branch.id === focus);
    }
    const at = state.branches.find((b) => b.id === focus) ?? state.branches[0];
    frame.hint(at ? stripOf(at) : "");
  }

  function drawRows(branches) {
    const shown = branches.slice(0, MAX_ROWS);
    const ids = new Set(shown.map((b) => b.id));
    for (const [id, row] of rowOf) if (!ids.has(id)) row.node.remove(), rowOf.delete(id);
    for (const branch of shown) {
      let row = rowOf.get(branch.id);
      if (!row) {
        const [name, tail] = [make("span", { class: "nb-row-name" }), make("span", { class: "nb-row-tail" })];
        row = { node: make("div", { class: "nb-row", role: "option" }, name, tail), name, tail };
        row.node.addEventListener("click", () => pick(branch.id));
        rowOf.set(branch.id, row);
        rows.append(row.node);
      }
      setText(row.name, `${branch.id} \u00b7 ${branch.status} \u00b7 ${count(generated(branch))}`);
      setText(row.tail, tailOf(branch));
      row.node.dataset.status = branch.status;
      row.node.setAttribute("aria-selected", String(branch.id === focus));
    }
  }

  function key(name) {
    const ids = frame.state?.branches.map((b) => b.id) ?? [];
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[name];
    if (name === "g") grammars.step(frame.state, focus);
    else if (name === "f") for (const lane of drawn.values()) lane.follow = true;
    else if (step && ids.length) {
      focus = ids[Math.min(Math.max(ids.indexOf(focus) + step, 0), ids.length - 1)];
      rowOf.get(focus)?.node.scrollIntoView({ block: "nearest" });
    } else return false;
    frame.want();
    return true;
  }

  return {
    draw,
    key,
    text: transcript,
    title: (state) => `run ${state?.title ?? ""}`,
    status: (state) => state.status,
    facts: factsOf,
    help: [["arrows", "another branch"], ["f", "follow the newest text"], ["g", "the grammar of a variable"]],
    inspect: () => ({ lanes: drawn.size, rows: rowOf.size, focus, grammar: grammars.open }),
  };
}

function stripOf(branch) {
  const sum = (name) => branch.segments.reduce((n, s) => n + (s[name] ?? 0), 0);
  const [cached, computed] = [sum("prefill_cached"), sum("prefill_computed")];
  const first = branch.segments.map((s) => s.first_at).find((t) => t != null);
  const parts = [`branch ${branch.id}`, plural(branch.segments.length, "segment")];
  if (cached + computed) parts.push(`cached ${count(cached)} / computed ${count(computed)}`);
  if (first != null) parts.push(`first token at ${first.toFixed(2)} s`);
  return parts.join(" \u00b7 ");
}

export default viewModule(runCodec, buildRun);
