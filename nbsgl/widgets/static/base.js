// What all views share: the stream of states from Python, the frame around a view, and small helpers.
// Text from outside reaches the page by textContent only; nothing here builds markup from strings.

// ---- text ----

const MARKED = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\ufeff\u2028-\u202e\u2066-\u2069]/g;

// The text with control characters and bidi overrides as symbols; newlines and tabs stay.
export function visible(text) {
  return text.replace(MARKED, (c) => {
    const code = c.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

export function oneLine(text, limit) {
  const short = visible(text.length > 4 * limit ? text.slice(0, 4 * limit) : text).replace(/\n/g, "\u23ce").replace(/\t/g, " ");
  return short.length <= limit ? short : `${short.slice(0, limit - 1)}\u2026`;
}

// The first n code points: Python counts in code points, JavaScript in UTF-16 units.
export function headOf(text, n) {
  let i = 0;
  for (; n > 0 && i < text.length; n--) i += text.codePointAt(i) > 0xffff ? 2 : 1;
  return text.slice(0, i);
}

export const count = (n) => Number(n).toLocaleString("en-US");

export function plural(n, word, words = `${word}s`) {
  return `${count(n)} ${n === 1 ? word : words}`;
}

// ---- the DOM ----

export function make(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// Changes the DOM only when the text has changed, so that a selection in it survives.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Reads a colour of base.css as the page resolves it, for a canvas.
export function colourOf(node, name) {
  return getComputedStyle(node).getPropertyValue(name).trim();
}

// ---- the stream from Python ----

const VERSION = 1;
const RETRY_MS = 500;
const HELLOS = 10;

// Keeps one state in step with Python's. `codec` is {full(buffers, envelope), delta(state, buffers, envelope), other?}.
// Lives on the model, not on a view: one model may be drawn several times, or not at all.
export class Channel {
  constructor(codec, send, now = () => Date.now()) {
    this.codec = codec;
    this.page = Math.random().toString(36).slice(2); // a reload is a new page
    this.send = send;
    this.now = now;
    this.state = null;
    this.epoch = -1;
    this.seq = -1;
    this.gaps = 0;
    this.heardAt = null; // any message
    this.changedAt = null; // one that changed the state
    this.askedAt = -Infinity;
    this.parts = null;
    this.listeners = new Set();
  }

  receive(envelope, buffers) {
    if (envelope?.v !== VERSION) return;
    this.heardAt = this.now();
    const { kind, seq, epoch } = envelope;
    if (kind === "full") this.replace(envelope, buffers);
    else if (kind === "part") this.gather(envelope, buffers[0]);
    else if (kind === "delta") {
      if (this.state === null || epoch !== this.epoch || seq > this.seq + 1) return this.lost();
      if (seq <= this.seq) return; // already in the full state
      this.state = this.codec.delta(this.state, buffers, envelope) ?? this.state;
      this.seq = seq;
      this.changedAt = this.heardAt;
    } else if (kind === "beat") {
      if (this.state === null || epoch !== this.epoch || seq > this.seq) this.lost();
    } else this.codec.other?.(this.state, envelope, buffers);
    for (const listener of this.listeners) listener(kind);
  }

  replace({ seq, epoch }, buffers) {
    this.state = this.codec.full(buffers);
    this.seq = seq;
    this.epoch = epoch;
    this.parts = null;
    this.changedAt = this.heardAt;
    this.askedAt = -Infinity;
  }

  gather(envelope, part) {
    const { i, n, lengths } = envelope;
    if (i === 0) this.parts = { seq: envelope.seq, got: [] };
    if (this.parts?.seq !== envelope.seq || this.parts.got.length !== i) return this.lost();
    this.parts.got.push(part);
    if (this.parts.got.length < n) return;
    const whole = joined(this.parts.got);
    let at = 0;
    const cut = (length) => whole.subarray(at, (at += length));
    this.replace(envelope, lengths.map(cut));
  }

  // A gap: ask for the whole state, at most twice a second.
  lost() {
    if (this.now() - this.askedAt < RETRY_MS) return;
    this.gaps += this.state === null ? 0 : 1;
    this.askedAt = this.now();
    this.send({ type: "resync", epoch: this.epoch });
  }

  hello() {
    this.send({ type: "hello", epoch: this.epoch, have_seq: this.state === null ? -1 : this.seq, page: this.page });
  }
}

export function bytesOf(buffer) {
  if (buffer instanceof Uint8Array) return buffer;
  if (buffer instanceof ArrayBuffer) return new Uint8Array(buffer);
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
}

function joined(buffers) {
  const parts = buffers.map(bytesOf);
  const whole = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export const jsonOf = (buffer) => JSON.parse(new TextDecoder().decode(bytesOf(buffer)));

// A typed array over a copy: the buffer's own offset need not be a multiple of the element's size.
export function columnOf(buffer, Type) {
  const bytes = bytesOf(buffer);
  return new Type(bytes.slice().buffer, 0, bytes.length / Type.BYTES_PER_ELEMENT);
}

// ---- a view's frame ----

const channels = new Map(); // by view_id: initialize and render see different proxies of one model

// False if there is no way to the kernel (any more).
function post(model, message) {
  try {
    model.send(message);
    return true;
  } catch {
    return false;
  }
}

function channelOf(model, codec) {
  const id = model.get("view_id");
  let entry = channels.get(id);
  if (!entry) {
    const channel = new Channel(codec, (message) => post(model, message));
    const onMessage = (message, buffers) => channel.receive(message, buffers ?? []);
    model.on("msg:custom", onMessage);
    entry = { channel, end: () => (model.off("msg:custom", onMessage), channels.delete(id)) };
    channels.set(id, entry);
  }
  return entry;
}

// The module that a front end loads.  `build(frame)` fills `frame.body` and returns the picture:
// {draw(state), text(state), status(state), facts(state, sinceMs), title?(state), key?(name), theme?(), inspect?(), help?}.
export function viewModule(codec, build) {
  return {
    initialize({ model }) {
      return channelOf(model, codec).end;
    },
    render({ model, el }) {
      const frame = new Frame(model, el, channelOf(model, codec).channel);
      frame.open(build(frame));
      return () => frame.close();
    },
  };
}

const KEYS = { "?": "help", t: "text", p: "pause", c: "copy", x: "stop" };
const HELP = [
  ["?", "show or hide this list"], ["t", "text view"], ["p", "pause drawing"], ["c", "copy as text"],
  ["x", "stop, where there is a stop button"], ["Esc", "leave"],
];
const BUTTONS = [
  ["stop", "stop this run (x)"], ["pause", "pause drawing (p)"], ["copy", "copy as text (c)"], ["text", "text view (t)"],
];
const CALM_MS = 250; // between two frames where the reader asked for less motion
const TEXT_MS = 500; // the whole text is laid out anew each time
const SAY_MS = 2000; // between two announcements to a screen reader
const ACK_MS = 10000;
const LAST_WORDS_MS = 1000;
const QUIET_MS = 10000;
const isGoing = (status) => status === "queued" || status === "running";

// Header, body, text view, details strip; one tab stop.  Messages only change the channel's state; drawing happens here,
// at most once per animation frame and never at width 0.
class Frame {
  constructor(model, el, channel) {
    Object.assign(this, { model, el, channel });
    this.calm = globalThis.matchMedia?.("(prefers-reduced-motion: reduce)").matches ?? false;
    this.flags = { paused: false, text: false, visible: true, width: 0, frames: 0, error: null };
    this.times = []; // of the last frames, ms
    this.request = 0;
    this.drawnAt = this.textAt = this.lostAt = -Infinity; // lostAt: the front end lost or replaced the model's connection
    this.stopAt = null;
    this.said = { status: "", at: -Infinity };
    this.acked = { seq: -1, visible: true, at: -Infinity };
    this.lay();
  }

  lay() {
    const parts = { title: "b", word: "span", facts: "span", note: "span", live: "span", body: "div", plain: "pre", strip: "div", help: "table" };
    for (const [name, tag] of Object.entries(parts)) this[name] = make(tag, { class: `nb-${name}` });
    this.buttons = Object.fromEntries(BUTTONS.map(([name, hint]) => {
      const node = make("button", { type: "button", class: "nb-button", title: hint, tabindex: "-1", text: name });
      node.addEventListener("click", () => this.act(name));
      return [name, node];
    }));
    const row = make("span", { class: "nb-buttons" }, ...Object.values(this.buttons));
    const head = make("div", { class: "nb-head" }, this.title, this.word, this.facts, this.note, row);
    this.live.setAttribute("aria-live", "polite");
    this.plain.hidden = this.help.hidden = true;
    const all = [head, this.help, this.body, this.plain, this.strip, this.live];
    this.root = make("div", { class: "nbsgl", tabindex: "0", role: "group" }, ...all);
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.el.replaceChildren(this.root);
  }

  // ---- for the picture ----

  get state() {
    return this.channel.state;
  }

  send(message) {
    return post(this.model, message);
  }

  colour(name) {
    return colourOf(this.root, name);
  }

  hint(text) {
    setText(this.strip, text);
  }

  // Draw at the next animation frame.
  want() {
    const { width, paused, frames } = this.flags;
    if (!this.request && width > 0 && !(paused && frames)) this.request = requestAnimationFrame((time) => this.paint(time));
  }

  // ---- drawing ----

  paint(time) {
    this.request = 0;
    if (this.calm && time - this.drawnAt < CALM_MS) return this.want();
    this.drawnAt = time;
    this.flags.frames += 1;
    const began = performance.now();
    try {
      this.header();
      if (this.state !== null) this.show(time);
    } catch (error) {
      this.fail(error, time);
    }
    this.times.push(performance.now() - began);
    if (this.times.length > 200) this.times.shift();
  }

  show(time) {
    this.plain.hidden = !this.flags.text;
    this.body.hidden = this.flags.text;
    if (!this.flags.text) this.picture.draw(this.state);
    else if (time - this.textAt >= TEXT_MS) {
      this.textAt = time;
      setText(this.plain, visible(this.picture.text(this.state)));
    }
  }

  // A picture that throws gives way to the text view and the error's line, never to an empty box.
  fail(error, time) {
    const first = this.flags.error === null;
    this.flags.error = String(error?.message ?? error);
    this.flags.text = true;
    setText(this.note, `cannot draw: ${this.flags.error}`);
    if (first && this.state !== null) this.show(time);
  }

  header() {
    const { state, picture } = this;
    const status = state === null ? "waiting" : picture.status(state);
    setText(this.title, visible(picture.title?.(state) ?? this.model.get("title")));
    setText(this.word, status);
    this.word.dataset.status = status;
    setText(this.facts, state === null ? "" : picture.facts(state, Date.now() - this.channel.changedAt));
    this.buttons.stop.hidden = !this.model.get("can_stop") || !isGoing(status);
    setText(this.buttons.pause, this.flags.paused ? "go on" : "pause");
    setText(this.buttons.text, this.flags.text ? "picture" : "text");
    if (this.flags.error === null) setText(this.note, this.remark(status));
    if (status !== this.said.status && Date.now() - this.said.at > SAY_MS) {
      this.said = { status, at: Date.now() };
      setText(this.live, status);
    }
  }

  // What a reader should know beside the status.
  remark(status) {
    const { heardAt } = this.channel;
    if (this.stopAt !== null && isGoing(status)) {
      return Date.now() - this.stopAt > 1000 ? "stop will act when the cell ends" : "stopping";
    }
    const life = this.model.get("status");
    if (life === "reloaded") return "loaded again while it ran: `%sgl show` puts this picture in the file";
    if (life !== "live" || !(isGoing(status) || status === "live") || heardAt === null) return "";
    if (this.isLost()) return "the kernel is gone or was restarted: this is its last picture";
    const quiet = Date.now() - heardAt;
    return quiet > QUIET_MS ? `no news from the kernel for ${Math.round(quiet / 1000)} s` : "";
  }

  // Whether the connection changed and nothing came since; what a dying kernel still said in the first second is no life.
  isLost() {
    const sinceMs = Date.now() - this.lostAt;
    return sinceMs > 1.5 * LAST_WORDS_MS && sinceMs < Infinity && this.channel.heardAt < this.lostAt + LAST_WORDS_MS;
  }

  // ---- keys and buttons ----

  act(name) {
    if (name === "stop") this.stop();
    else if (name === "copy") this.copy();
    else if (name === "help") this.toggleHelp();
    else {
      const flag = { pause: "paused", text: "text" }[name];
      this.flags[flag] = !this.flags[flag];
      this.flags.frames = 0; // one frame even if paused
      this.textAt = -Infinity;
    }
    this.want();
  }

  stop() {
    if (this.buttons.stop.hidden) return;
    this.stopAt = this.send({ type: "stop" }) ? Date.now() : null;
    if (this.stopAt === null) this.hint("the kernel cannot be reached");
  }

  copy() {
    if (this.state === null) return;
    const done = navigator.clipboard?.writeText(this.picture.text(this.state)) ?? Promise.reject();
    done.then(() => this.hint("copied"), () => this.hint("the browser refused to copy: use the text view"));
  }

  toggleHelp() {
    this.help.hidden = !this.help.hidden;
    if (this.help.childElementCount) return;
    for (const [key, does] of [...HELP, ...(this.picture.help ?? [])]) {
      this.help.append(make("tr", {}, make("td", { class: "nb-key", text: key }), make("td", { text: does })));
    }
  }

  onKey(event) {
    event.stopPropagation(); // else the notebook's command mode eats it
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target instanceof HTMLInputElement;
    const pressing = event.target instanceof HTMLButtonElement && ["Enter", " "].includes(event.key);
    if (event.key === "Escape") (typing ? this.root.focus() : this.root.blur());
    else if (typing || pressing) return;
    else if (KEYS[event.key]) this.act(KEYS[event.key]);
    else if (!this.picture.key?.(event.key)) return;
    event.preventDefault();
  }

  // ---- the road in and out ----

  open(picture) {
    this.picture = picture;
    this.exits = [...this.listen(), ...this.observe(), this.greet(), this.tick()];
    this.el.nbsgl = {
      times: () => [...this.times].sort((a, b) => a - b),
      state: () => ({ ...this.flags, ...this.account(), ...picture.inspect?.() }),
      text: () => (this.state === null ? "" : picture.text(this.state)),
    };
    this.want();
  }

  account() {
    const { seq, gaps, state } = this.channel;
    return { seq, gaps, status: this.word.textContent, data: state };
  }

  close() {
    cancelAnimationFrame(this.request);
    this.request = -1; // nothing asked for from here on is drawn
    for (const exit of this.exits) exit();
    delete this.el.nbsgl;
  }

  listen() {
    const onNews = () => this.want();
    const onTrait = () => {
      this.catchUp();
      this.want();
    };
    const onComm = () => {
      this.lostAt = Date.now();
      this.want();
    };
    const events = { "change:final_seq": onTrait, "change:status": onTrait, comm_live_update: onComm };
    this.channel.listeners.add(onNews);
    for (const [name, does] of Object.entries(events)) this.model.on(name, does);
    return [
      () => this.channel.listeners.delete(onNews),
      ...Object.entries(events).map(([name, does]) => () => this.model.off(name, does)),
    ];
  }

  observe() {
    const sized = new ResizeObserver(([entry]) => {
      this.flags.width = entry.contentRect.width;
      this.want();
    });
    const seen = new IntersectionObserver(([entry]) => {
      this.flags.visible = entry.isIntersecting;
      this.ack();
    });
    const themed = new MutationObserver(() => {
      this.picture.theme?.();
      this.want();
    });
    sized.observe(this.root);
    seen.observe(this.root);
    themed.observe(document.body, { attributeFilter: ["class", "data-jp-theme-name", "data-jp-theme-light"] });
    return [sized, seen, themed].map((observer) => () => observer.disconnect());
  }

  // Says hello until something comes back: the first one may be lost.
  greet() {
    let left = HELLOS;
    const timer = setInterval(() => {
      if (this.channel.heardAt !== null || left-- <= 0) clearInterval(timer);
      else this.channel.hello();
    }, RETRY_MS);
    this.channel.hello();
    return () => clearInterval(timer);
  }

  tick() {
    const timer = setInterval(() => {
      if (this.model.get("status") === "live" && !this.isLost()) this.ack();
      this.catchUp();
      this.want(); // the clock
    }, 1000);
    return () => clearInterval(timer);
  }

  // The end is a trait, which is not lost even if the last messages were.
  catchUp() {
    if (this.state !== null && this.channel.seq < this.model.get("final_seq")) this.channel.lost();
  }

  // Once a second while something changes, else every 10 s: each message makes the kernel busy for a moment.
  ack() {
    const next = { seq: this.channel.seq, visible: this.flags.visible && !document.hidden, at: Date.now() };
    const { seq, visible: seen, at } = this.acked;
    if (next.seq === seq && next.visible === seen && next.at - at < ACK_MS) return;
    this.acked = next;
    this.send({ type: "ack", seq: next.seq, visible: next.visible });
  }
}
