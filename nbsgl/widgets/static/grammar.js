import { jsonOf, viewModule } from "./base.js";
import { GrammarPanel } from "./automaton.js";

// ---- state: the last message of each field; the form is told in grammar.py ----

export const grammarCodec = {
  full: (buffers) => jsonOf(buffers[0]),
  delta: (state, buffers) => Object.assign(state, jsonOf(buffers[0])),
};

function statusOf(state) {
  if (state.failed) return "failed";
  return state.accepting ? "may end here" : "not complete";
}

function buildGrammar(frame) {
  const panel = new GrammarPanel();
  frame.body.append(panel.node);
  return {
    draw: (state) => panel.draw(state),
    text: (state) => state.plain,
    status: statusOf,
    facts: (state) => state.facts,
    inspect: () => ({ nodes: panel.diagram.nodes.size, edges: panel.diagram.edges.size }),
  };
}

export default viewModule(grammarCodec, buildGrammar);
