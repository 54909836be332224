// The grammar view's pure half: messages to states, the way through an automaton, forced stretches.
import assert from "node:assert/strict";
import { test } from "node:test";
import { stretches, wayOf } from "../../nbsgl/widgets/static/automaton.js";
import { grammarCodec } from "../../nbsgl/widgets/static/grammar.js";
import { grammarName, grammarNews, runCodec } from "../../nbsgl/widgets/static/run.js";
import { bytes, recording } from "./recording.mjs";

const encode = (value) => new TextEncoder().encode(JSON.stringify(value));

test("recorded messages give each picture, and the automaton stays", () => {
  const { messages, texts } = recording("grammar");
  let state = grammarCodec.full([bytes(messages[0])]);
  const { automaton, drawing } = state;
  assert.ok(automaton.nodes.length > 10);
  assert.deepEqual(new Set(drawing.edges.map((e) => e.id)), new Set(automaton.edges.map((e) => e.id)));
  messages.slice(1).forEach((message, i) => {
    state = grammarCodec.delta(state, [bytes(message)]);
    assert.equal(state.automaton, automaton);
    assert.equal(state.output, texts[i + 1]);
    assert.ok(state.forced.every(([begin, end]) => begin < end && end <= texts[i + 1].length));
    assert.ok(state.node >= 0 ? automaton.nodes.some((n) => n.id === state.node) : automaton.edges.some((e) => e.id === state.edge));
  });
  assert.equal(state.accepting, true);
});

test("an edge that the text is on has not reached its end", () => {
  const edges = [{ id: 0, source: 1, target: 2 }, { id: 1, source: 2, target: 2 }, { id: 2, source: 2, target: 3 }];
  const way = wayOf(edges, [[0, 1], [1, 4], [2, 1]], 2);
  assert.deepEqual([...way.visited].sort(), [1, 2]);
  assert.equal(way.taken.get(1), 4);
  assert.deepEqual([...wayOf(edges, [[0, 1], [2, 1]], -1).visited].sort(), [1, 2, 3]);
  assert.equal(wayOf(edges, [[9, 1]], -1).visited.size, 0);
});

test("stretches put the output together again, by code points", () => {
  const parts = stretches("a😀bcd", [[1, 2], [3, 5]]);
  assert.deepEqual(parts, [["a", false], ["😀", true], ["b", false], ["cd", true]]);
  assert.deepEqual(stretches("", []), []);
  assert.equal(stretches("xyz", [[2, 9]]).map(([text]) => text).join(""), "xyz");
});

test("news of a run's grammar are laid on what is known of the same segment only", () => {
  const first = grammarNews(undefined, { branch: 0, segment: 1, automaton: 1, output: "a" });
  const second = grammarNews(first, { branch: 0, segment: 1, output: "ab" });
  assert.deepEqual([second.automaton, second.output], [1, "ab"]);
  assert.equal(grammarNews(second, { branch: 0, segment: 2, output: "" }).automaton, undefined);
  const state = {};
  runCodec.other(state, { kind: "grammar" }, [encode({ branch: 3, segment: 1, error: "no" })]);
  assert.equal(state.grammar.error, "no");
  runCodec.other(state, { kind: "label" }, []);
  runCodec.other(null, { kind: "grammar" }, [encode({})]);
});

test("a chip names a grammar in one line", () => {
  assert.equal(grammarName({ kind: "regex", text: "[0-9]+\n" }), "regex [0-9]+⏎");
  assert.equal(grammarName({ kind: "json_schema", text: '{"title": "Person", "type"' }), "json schema Person");
  assert.equal(grammarName({ kind: "json_schema", text: "{}" }), "json schema");
  assert.ok(grammarName({ kind: "choices", text: "x".repeat(200) }).length <= 48);
});
