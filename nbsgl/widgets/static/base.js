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

// The module that a front end loads. `build(frame)` draws a body and returns {draw(state), text(state), keys?, help?,
// status(state), facts(state), end?()}.
export function viewModule(codec, build) {
  return {
    initialize({ model }) {
      return channelOf(model, codec).end;
    },
    render({ model, el }) {
      const { channel } = channelOf(model, codec);
      return mount(model, el, channel, build);
    },
  };
}

const KEYS = { "?": "help", t: "text", p: "pause", c: "copy", x: "stop" };
const HELP = [
  ["?", "show or hide this list"], ["t", "text view"], ["p", "pause drawing"], ["c", "copy as text"],
  ["x", "stop, where there is a stop button"], ["Esc", "leave"],
];

function mount(model, el, channel, build) {
  const title = make("b", { class: "nb-title" });
  const word = make("span", { class: "nb-word" });
  const facts = make("span", { class: "nb-facts" });
  const note = make("span", { class: "nb-note" });
  const live = make("span", { class: "nb-live", "aria-live": "polite" });
  const button = (text, hint) => make("button", { type: "button", class: "nb-button", title: hint, tabindex: "-1", text });
  const stop = button("stop", "stop this run (x)");
  const pause = button("pause", "pause drawing (p)");
  const copy = button("copy", "copy as text (c)");
  const asText = button("text", "text view (t)");
  const buttons = make("span", { class: "nb-buttons" }, stop, pause, copy, asText);
  const head = make("div", { class: "nb-head" }, title, word, facts, note, buttons);
  const body = make("div", { class: "nb-body" });
  const plain = make("pre", { class: "nb-plain" });
  const strip = make("div", { class: "nb-strip" });
  const help = make("table", { class: "nb-help" });
  const root = make("div", { class: "nbsgl", tabindex: "0", role: "group" }, head, help, body, plain, strip, live);
  plain.hidden = help.hidden = true;
  el.replaceChildren(root);

  const view = {};
  const flags = { paused: false, text: false, visible: true, width: 0, dirty: true, frames: 0, textAt: 0, error: null };
  const times = []; // of the last frames, ms
  const calm = globalThis.matchMedia?.("(prefers-reduced-motion: reduce)").matches ?? false;
  let frame = 0;
  let drawnAt = 0;
  let stopAt = null;
  let lostAt = -Infinity; // when the front end lost or replaced the connection of this model
  let announced = "";
  let announcedAt = 0;

  const want = () => {
    flags.dirty = true;
    if (!frame && flags.width > 0 && !(flags.paused && flags.frames)) frame = requestAnimationFrame(paint);
  };
  const frameApi = {
    root, body, strip, want, calm,
    send: (message) => post(model, message),
    state: () => channel.state,
    colour: (name) => colourOf(root, name),
    hint: (text) => setText(strip, text),
  };

  function paint(time) {
    frame = 0;
    if (calm && time - drawnAt < 250) {
      frame = requestAnimationFrame(paint);
      return;
    }
    drawnAt = time;
    flags.dirty = false;
    flags.frames += 1;
    const began = performance.now();
    guarded(() => {
      header();
      if (channel.state === null) return;
      plain.hidden = !flags.text;
      body.hidden = flags.text;
      if (flags.text) drawText(time);
      else view.draw(channel.state);
    });
    times.push(performance.now() - began);
    if (times.length > 200) times.shift();
  }

  // The whole text is laid out anew each time, so twice a second must do.
  function drawText(time) {
    if (flags.frames > 1 && time - flags.textAt < 500) return;
    flags.textAt = time;
    setText(plain, visible(view.text(channel.state)));
  }

  // A view that throws shows its text and the error's line, never an empty box.
  function guarded(work) {
    try {
      work();
    } catch (error) {
      flags.error = String(error?.message ?? error);
      setText(note, `cannot draw: ${flags.error}`);
      plain.hidden = false;
      body.hidden = true;
      try {
        if (channel.state !== null) setText(plain, visible(view.text(channel.state)));
      } catch {
        setText(plain, "");
      }
    }
  }

  function header() {
    const state = channel.state;
    const status = state === null ? "waiting" : view.status(state);
    setText(title, visible(view.title?.(state) ?? model.get("title")));
    setText(word, status);
    word.dataset.status = status;
    setText(facts, state === null ? "" : view.facts(state, Date.now() - channel.changedAt));
    stop.hidden = !model.get("can_stop") || !["queued", "running"].includes(status);
    if (flags.error === null) setText(note, silence(status));
    if (status !== announced && Date.now() - announcedAt > 2000) {
      announced = status;
      announcedAt = Date.now();
      setText(live, status);
    }
  }

  function silence(status) {
    if (stopAt !== null && ["queued", "running"].includes(status)) {
      return Date.now() - stopAt > 1000 ? "stop will act when the cell ends" : "stopping";
    }
    if (model.get("status") === "reloaded") return "loaded again while it ran: `%sgl show` puts this picture in the file";
    const over = model.get("status") !== "live" || !["queued", "running", "live"].includes(status);
    if (over || channel.heardAt === null) return "";
    if (lostAt > channel.heardAt) return "the kernel is gone or was restarted: this is its last picture";
    const quiet = Date.now() - channel.heardAt;
    return quiet > 10000 ? `no news from the kernel for ${Math.round(quiet / 1000)} s` : "";
  }

  // ---- keys and buttons ----

  const actions = {
    stop() {
      if (stop.hidden) return;
      stopAt = post(model, { type: "stop" }) ? Date.now() : null;
      if (stopAt === null) setText(strip, "the kernel cannot be reached");
      want();
    },
    pause() {
      flags.paused = !flags.paused;
      setText(pause, flags.paused ? "go on" : "pause");
      want();
    },
    copy() {
      if (channel.state === null) return;
      const done = navigator.clipboard?.writeText(view.text(channel.state));
      if (!done) return setText(strip, "no clipboard here: use the text view");
      done.then(() => setText(strip, "copied"), () => setText(strip, "the browser refused to copy: use the text view"));
    },
    text() {
      flags.text = !flags.text;
      setText(asText, flags.text ? "picture" : "text");
      flags.frames = 0;
      want();
    },
    help() {
      help.hidden = !help.hidden;
      if (help.hidden || help.childElementCount) return;
      for (const [key, does] of [...HELP, ...(view.help ?? [])]) {
        help.append(make("tr", {}, make("td", { class: "nb-key", text: key }), make("td", { text: does })));
      }
    },
  };
  for (const [node, name] of [[stop, "stop"], [pause, "pause"], [copy, "copy"], [asText, "text"]]) {
    node.addEventListener("click", () => actions[name]());
  }
  const onKey = (event) => {
    event.stopPropagation(); // else the notebook's command mode eats it
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target instanceof HTMLInputElement;
    if (event.key === "Escape") {
      if (typing) root.focus();
      else root.blur();
      return event.preventDefault();
    }
    if (typing) return;
    const name = KEYS[event.key];
    if (event.target instanceof HTMLButtonElement && ["Enter", " "].includes(event.key)) return;
    if (name) actions[name]();
    else if (!view.key?.(event.key)) return;
    event.preventDefault();
  };
  root.addEventListener("keydown", onKey);

  // ---- the road in and out ----

  Object.assign(view, build(frameApi));
  const onNews = () => want();
  const onTrait = () => {
    if (model.get("final_seq") > channel.seq) channel.lost();
    want();
  };
  const onComm = () => {
    lostAt = Date.now();
    setTimeout(want, 50);
  };
  channel.listeners.add(onNews);
  model.on("comm_live_update", onComm);
  model.on("change:final_seq", onTrait);
  model.on("change:status", onTrait);
  const sized = new ResizeObserver(([entry]) => {
    flags.width = entry.contentRect.width;
    view.resize?.(flags.width);
    want();
  });
  sized.observe(root);
  const seen = new IntersectionObserver(([entry]) => {
    flags.visible = entry.isIntersecting;
    ack();
  });
  seen.observe(root);
  const themed = new MutationObserver(() => {
    view.theme?.();
    want();
  });
  themed.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-name", "data-jp-theme-light"] });

  // Once a second while something changes, else every 10 s: each message makes the kernel busy for a moment.
  let acked = { seq: -1, visible: true, at: -Infinity };
  const ack = () => {
    const next = { seq: channel.seq, visible: flags.visible && !document.hidden, at: Date.now() };
    if (next.seq === acked.seq && next.visible === acked.visible && next.at - acked.at < 10000) return;
    acked = next;
    post(model, { type: "ack", seq: next.seq, visible: next.visible });
  };
  let hellos = 0;
  const greet = () => {
    const answered = channel.heardAt !== null && hellos > 0;
    if (answered || hellos++ >= HELLOS) return clearInterval(greeting);
    channel.hello();
  };
  const greeting = setInterval(greet, RETRY_MS);
  greet();
  const second = setInterval(() => {
    if (model.get("status") === "live" && !(lostAt > channel.heardAt)) ack();
    if (channel.state !== null && channel.seq < model.get("final_seq")) channel.lost();
    want(); // the clock
  }, 1000);

  el.nbsgl = {
    times: () => [...times].sort((a, b) => a - b),
    state: () => ({ ...flags, seq: channel.seq, gaps: channel.gaps, status: word.textContent, data: channel.state, ...view.inspect?.() }),
    text: () => (channel.state === null ? "" : view.text(channel.state)),
    act: (name) => actions[name](),
  };
  want();

  return () => {
    clearInterval(greeting);
    clearInterval(second);
    cancelAnimationFrame(frame);
    for (const observer of [sized, seen, themed]) observer.disconnect();
    channel.listeners.delete(onNews);
    model.off("change:final_seq", onTrait);
    model.off("change:status", onTrait);
    model.off("comm_live_update", onComm);
    root.removeEventListener("keydown", onKey);
    view.end?.();
    delete el.nbsgl;
  };
}
