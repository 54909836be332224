// The run view's pure half, on what Python sends.
import assert from "node:assert/strict";
import { test } from "node:test";
import { applyRun, cutBlock, factsOf, noteOf, runCodec, transcript } from "../../nbsgl/widgets/static/run.js";
import { bytes, recording } from "./recording.mjs";

const bare = (state) => JSON.parse(JSON.stringify(state, (key, value) => (key === "rev" ? undefined : value)));

test("recorded deltas laid on the old state give the new one", () => {
  const runs = recording("runs");
  assert.ok(runs.length > 10);
  for (const { full, steps } of runs) {
    let state = runCodec.full([bytes(full)]);
    for (const { delta, want } of steps) {
      state = runCodec.delta(state, [bytes(delta)]);
      assert.deepEqual(bare(state), JSON.parse(Buffer.from(want, "base64").toString()));
    }
  }
});

test("a cut of a text is counted, an append is not", () => {
  const state = { branches: [{ segments: [{ kind: "gen", text: "a😀b" }] }], variables: {} };
  applyRun(state, { branches: [[0, { segs: [[0, { text: [null, "c"] }]] }]] });
  assert.equal(state.branches[0].segments[0].rev, undefined);
  applyRun(state, { branches: [[0, { segs: [[0, { text: [2, "X"] }]] }]] });
  assert.deepEqual(state.branches[0].segments[0], { kind: "gen", text: "a😀X", rev: 1 });
});

function blocksOf(text) {
  const blocks = [];
  for (let rest = text; rest; ) {
    const [end, next] = cutBlock(rest, 0);
    blocks.push([rest.slice(0, end), rest.slice(end, next)]);
    rest = rest.slice(next);
  }
  return blocks;
}

test("blocks end at a newline, else at a space, and never inside a pair", () => {
  for (const text of ["x".repeat(999) + "\n\n" + "y".repeat(2000) + "\nz", "word ".repeat(5000), "😀".repeat(9000), ""]) {
    const blocks = blocksOf(text);
    assert.equal(blocks.flat().join(""), text);
    assert.ok(blocks.every(([block]) => block.length <= 6001 && block.isWellFormed()));
  }
  assert.deepEqual(blocksOf("word ".repeat(2000)).map(([block]) => block.at(-1)), [" ", " "]);
  assert.deepEqual(cutBlock("ab\ncd", 0), [5, 5, false]); // short: the newline stays inside
  assert.deepEqual(cutBlock("ab\ncd", 998), [2, 3, true]);
  assert.deepEqual(cutBlock("abc", 6000), [1, 1, true]);
});

test("notes tell cuts and errors", () => {
  assert.equal(noteOf({ status: "done", finish: { type: "length", length: 8 } }), "cut at 8 tokens");
  assert.equal(noteOf({ status: "failed", error: "Bad: no" }), "failed: Bad: no");
  assert.equal(noteOf({ status: "done", finish: { type: "stop" } }), "");
  assert.equal(noteOf({ status: "running" }), "running");
});

test("the transcript holds every branch", () => {
  const state = runCodec.full([bytes(recording("chat"))]);
  assert.equal(factsOf(state, 5000), "3 branches · 412 tokens · cached 120 / computed 30 · 1.8 s");
  assert.deepEqual(transcript(state).split("\n").slice(0, 3), [
    "run 7 · 3 branches · 412 tokens · cached 120 / computed 30 · 1.8 s · done",
    "branch 0 · done",
    "Capital of France?[answer: Par | cut at 1 token]",
  ]);
  assert.match(transcript(state), /\[z: failed: BadRegex: \(\]/);
});

test("20,000 tokens grow in well under 8 ms a step", () => {
  const state = { branches: [], variables: {} };
  const start = performance.now();
  for (let i = 0; i < 2000; i++) applyRun(state, { set: { generated: i }, branches: [[0, { segs: [[0, { text: [null, " ten tokens at a time and on"] }]] }]] });
  assert.ok((performance.now() - start) / 2000 < 2);
});
