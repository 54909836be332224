// The stream's page half: gaps, resyncs, parts, and text made visible.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Channel, bytesOf, columnOf, headOf, jsonOf, oneLine, visible } from "../../nbsgl/widgets/static/base.js";
import { recording } from "./recording.mjs";

const utf8 = (value) => new TextEncoder().encode(JSON.stringify(value));
const codec = {
  full: (buffers) => jsonOf(buffers[0]),
  delta: (state, buffers) => [...state, ...jsonOf(buffers[0])],
};
const envelope = (kind, seq, more = {}) => ({ v: 1, view: "run", epoch: 1, kind, seq, ...more });

function channel() {
  const sent = [];
  const clock = { now: 0 };
  return { sent, clock, channel: new Channel(codec, (message) => sent.push(message), () => clock.now) };
}

test("deltas follow the full state in order", () => {
  const { channel: c, sent } = channel();
  c.receive(envelope("full", 4), [utf8(["a"])]);
  c.receive(envelope("delta", 5), [utf8(["b"])]);
  c.receive(envelope("beat", 5), []);
  assert.deepEqual(c.state, ["a", "b"]);
  assert.deepEqual(sent, []);
});

test("a gap asks once for a resync and drops deltas until the full state comes", () => {
  const { channel: c, sent, clock } = channel();
  c.receive(envelope("full", 0), [utf8([])]);
  c.receive(envelope("delta", 2), [utf8(["lost"])]);
  c.receive(envelope("delta", 3), [utf8(["lost"])]);
  assert.deepEqual(sent, [{ type: "resync", epoch: 1 }]);
  assert.deepEqual(c.state, []);
  clock.now = 600;
  c.receive(envelope("beat", 3), []);
  assert.equal(sent.length, 2);
  c.receive(envelope("full", 4), [utf8(["all"])]);
  c.receive(envelope("delta", 4), [utf8(["already in it"])]);
  c.receive(envelope("delta", 5), [utf8(["next"])]);
  assert.deepEqual(c.state, ["all", "next"]);
  assert.equal(c.gaps, 2);
});

test("a lost tail is noticed by the beat", () => {
  const { channel: c, sent } = channel();
  c.receive(envelope("full", 0), [utf8([])]);
  c.receive(envelope("beat", 1), []);
  assert.equal(sent.length, 1);
});

test("hello says what it has", () => {
  const { channel: c, sent } = channel();
  c.hello();
  c.receive(envelope("full", 7), [utf8([])]);
  c.hello();
  const { page } = c;
  assert.match(page, /^[a-z0-9]+$/);
  assert.deepEqual(sent, [{ type: "hello", epoch: -1, have_seq: -1, page }, { type: "hello", epoch: 1, have_seq: 7, page }]);
});

test("parts make a whole, and a lost part asks again", () => {
  const whole = utf8(["long"]);
  const part = (i, seq = 1) => [envelope("part", seq, { i, n: 2, lengths: [whole.length] }), [i ? whole.subarray(3) : whole.subarray(0, 3)]];
  const { channel: c, sent } = channel();
  c.receive(...part(0));
  c.receive(...part(1));
  assert.deepEqual(c.state, ["long"]);
  assert.equal(c.seq, 1);
  const { channel: d, sent: asked } = channel();
  d.receive(...part(1));
  assert.equal(d.state, null);
  assert.equal(asked.length, 1);
  assert.equal(sent.length, 0);
});

test("another version of the stream is not read", () => {
  const { channel: c } = channel();
  c.receive({ v: 2, kind: "full", seq: 0, epoch: 1 }, [utf8([])]);
  c.receive(null, []);
  assert.equal(c.state, null);
});

test("text is made visible as Python does it", () => {
  for (const [text, shown] of recording("visible")) assert.equal(visible(text), shown);
});

test("heads are cut by code points", () => {
  assert.equal(headOf("a😀b", 2), "a😀");
  assert.equal(headOf("ab", 9), "ab");
  assert.equal(oneLine("a\nbcd", 4), "a⏎b…");
});

test("columns are read at any offset", () => {
  const bytes = new Uint8Array([9, 1, 0, 0, 0, 2, 0, 0, 0]);
  assert.deepEqual([...columnOf(bytes.subarray(1), Uint32Array)], [1, 2]);
  assert.deepEqual([...columnOf(new DataView(bytes.buffer, 1, 4), Uint32Array)], [1]);
  assert.equal(bytesOf(bytes.buffer).length, 9);
});
