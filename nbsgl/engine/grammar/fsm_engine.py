"""The engine of tables: regular languages up to a number of states and bytes."""

from __future__ import annotations

from nbsgl.engine.grammar import HandOver, dfa, refuse_irregular, register_grammar
from nbsgl.engine.grammar.fsm import CompiledFsm
from nbsgl.engine.grammar.syntax import NOTHING, NotRegular, Syntax
from nbsgl.engine.grammar.tokens import TokenTables, TooLarge, Unsatisfiable, build_tables
from nbsgl.engine.grammar.trees import tree_of
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.errors import BadGrammar, BadRegex
from nbsgl.protocol import GrammarSpec

# A field of sixteen letters of any script takes 5,000 states, most of them inside a character.  The dearest patterns
# reach this limit in 1 s, in a helper, while the stand-in serves.
MAX_STATES = 32_768


class FsmEngine:
    """See `grammar.Engine`."""

    def __init__(self, vocab: TokenVocab) -> None:
        self.vocab = vocab

    @staticmethod
    def source_of(spec: GrammarSpec, tree: Syntax | NotRegular) -> str:
        """None: tables are made from the tree itself."""
        if refuse_irregular(spec, tree) == NOTHING:
            raise unsatisfiable(spec)
        return ""

    @staticmethod
    def probe(spec: GrammarSpec, source: str) -> None:
        """Nothing: all of its compile runs in a helper."""

    def compile(self, spec: GrammarSpec, source: str, notes: tuple[str, ...]) -> CompiledFsm:
        return CompiledFsm(spec, self.tables(spec), notes)

    def pack(self, spec: GrammarSpec, source: str) -> bytearray:
        return self.tables(spec).to_bytes()

    def unpack(self, spec: GrammarSpec, data: bytes | bytearray, notes: tuple[str, ...]) -> CompiledFsm:
        return CompiledFsm(spec, TokenTables.from_bytes(data), notes)

    def tables(self, spec: GrammarSpec) -> TokenTables:
        """`HandOver` where they would be too large."""
        tree = refuse_irregular(spec, tree_of(spec))
        try:
            automaton = dfa.build(tree, MAX_STATES)
            if automaton.is_empty:
                raise unsatisfiable(spec)
            return build_tables(automaton, self.vocab)
        except dfa.TooManyStates as error:
            raise HandOver(f"its automaton has more than {error.limit:,} states") from None
        except TooLarge as error:
            raise HandOver(str(error)) from None
        except Unsatisfiable as error:
            raise unsatisfiable(spec, str(error)) from None


def unsatisfiable(spec: GrammarSpec, detail: str = "") -> BadGrammar:
    """The error for a language without texts, or without any that the vocabulary can spell."""
    reason = "no output can satisfy it" + (f" ({detail})" if detail else "")
    if spec.kind == "regex":
        return BadRegex(kind="regex", path="the pattern", reason=reason, pattern_text=spec.text)
    return BadGrammar(kind=spec.kind, path="#", reason=reason)


@register_grammar("fsm")
def _give() -> type[FsmEngine]:
    return FsmEngine
