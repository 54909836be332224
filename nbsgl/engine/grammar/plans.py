"""What is to be done for a spec: which engine holds it, and in what words.  Needs no vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from nbsgl import structural_tags
from nbsgl.engine.grammar import CompiledGrammar, Engine, HandOver, ebnf, engine_class, json_syntax, lark, regex, schema
from nbsgl.engine.grammar.after import limited
from nbsgl.engine.grammar.syntax import NotRegular, Syntax
from nbsgl.engine.grammar.tag_rules import is_json
from nbsgl.engine.grammar.tags import refuse_special
from nbsgl.engine.grammar.trees import choices_of, notes_of, schema_of, tree_of
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.errors import GrammarError, GrammarTooExpensive
from nbsgl.protocol import GrammarSpec

GENERAL = "llguidance"  # takes what the tables cannot, and stands in for them
READ_AT_DOOR = 4_096  # characters: at most some ten milliseconds; 10,000 open brackets take seconds


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`source` is the spec in its engine's words; of tables in llguidance's, "" where it may not be put in those.

    `notes`: what of a schema the language does not hold to.
    """

    engine: str
    source: str
    notes: tuple[str, ...] = ()

    @property
    def may_hand_over(self) -> bool:
        """Whether the general engine stands in for the tables, and takes over what is too large for them."""
        return self.engine == "fsm" and bool(self.source)


def plan_of(spec: GrammarSpec) -> Plan:
    """Read a spec; raises `GrammarError`'s children for what is no grammar, or refused by the engine asked for."""
    if is_json(spec) and spec.engine == "auto":
        return _plan_of_json(spec)
    tree = tree_of(spec)
    name = engine_of(spec, tree)
    source = engine_class(name).source_of(spec, tree)
    if name == "fsm" and spec.engine == "auto":
        source = _general_source(spec, tree)
    return Plan(name, source, notes_of(spec))


def _plan_of_json(spec: GrammarSpec) -> Plan:
    """As of others; but llguidance is told rules in any case, so the tree, a third of the time, is only checked for."""
    grammar = schema_of(spec)
    try:
        grammar.check_regular()
    except json_syntax.NotRegular as error:
        return Plan(GENERAL, engine_class(GENERAL).source_of(spec, NotRegular(str(error))), grammar.notes)
    return Plan("fsm", _general_source(spec, NotRegular("JSON in rules")), grammar.notes)


def check_at_door(spec: GrammarSpec) -> None:
    """See `grammar.check`."""
    match spec.kind:
        case "json_schema":
            schema.parse(spec.text)
        case "tags":
            structural_tags.decode(spec.text)
        case "lark":  # the only language whose errors its engine knows and we do not
            from nbsgl.engine.grammar.host import LlguidanceEngine

            lark.check_lark(spec.text)
            if len(spec.text) <= READ_AT_DOOR:
                LlguidanceEngine.validate(spec, plan_of(spec).source)
        case _ if len(spec.text) <= READ_AT_DOOR:
            tree = tree_of(spec)
            engine_class(engine_of(spec, tree)).source_of(spec, tree)
        case "regex":
            regex.check_size(spec.text)
        case "ebnf":
            ebnf.check_size(spec.text)
        case "choices":
            choices_of(spec.text)


def engine_of(spec: GrammarSpec, tree: Syntax | NotRegular) -> str:
    """The first engine that takes the spec: tables for what is regular, as far as they fit, else llguidance."""
    if spec.engine != "auto":
        return spec.engine
    return GENERAL if isinstance(tree, NotRegular) else "fsm"


def _general_source(spec: GrammarSpec, tree: Syntax | NotRegular) -> str:
    try:
        return engine_class(GENERAL).source_of(spec, tree)
    except GrammarError:  # too long in print
        return ""


def compile_here(spec: GrammarSpec, vocab: TokenVocab, engine: Callable[[str], Engine]) -> CompiledGrammar:
    """Compile in this thread, whatever it takes; `engine(name)` gives the vocabulary's engine of a name."""
    refuse_special(spec, vocab)
    plan = plan_of(spec)
    try:
        compiled = engine(plan.engine).compile(spec, plan.source, plan.notes)
    except HandOver as reason:
        if not plan.source:
            raise too_expensive(spec, str(reason)) from None
        compiled = engine(GENERAL).compile(spec, plan.source, plan.notes)
    return limited(compiled, vocab)


def too_expensive(spec: GrammarSpec, limit: str) -> GrammarTooExpensive:
    return GrammarTooExpensive(kind=spec.kind, path="the whole grammar", limit=limit, hint="Simplify its largest part.")
