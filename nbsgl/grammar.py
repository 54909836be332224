"""Grammars without an engine: what a gen's `regex=`, `json_schema=`, `choices=`, `ebnf=` or `type=` admits, drawn.

    nbsgl.grammar.inspect(regex=r"[0-9]{4}-[0-9]{2}")          # in a notebook: the automaton
    nbsgl.grammar.inspect(type=Person).sample(3)

Needs neither torch nor a model; with a `vocab` it also tells which tokens may come next.
"""

from __future__ import annotations

import random
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbsgl.errors import ParameterError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nbsgl.automaton import Allowed, Automaton, GrammarPicture
    from nbsgl.engine.grammar.syntax import Syntax
    from nbsgl.engine.grammar.view import Graph
    from nbsgl.engine.grammar.vocab import TokenVocab
    from nbsgl.protocol import GrammarSpec

__all__ = ["Inspection", "inspect", "picture"]

MAX_SAMPLES = 10_000
MAX_STATES = 4_096
VIEW_STATES = 1_000  # a tenth of a second: a cell's end waits for it
_OPTIONS = ("whitespace", "on_unsupported", "tool_format", "after")


def inspect(
    *,
    regex: str | None = None,
    json_schema: Any = None,
    choices: Iterable[str] | None = None,
    ebnf: str | None = None,
    lark: str | None = None,
    type: Any = None,
    tools: Any = None,
    grammar: GrammarSpec | None = None,
    vocab: Any = None,
    **options: Any,
) -> Inspection:
    """Compile one grammar as `gen` would and return it for looking at.

    `options` are gen's own: `whitespace`, `on_unsupported`, `tool_format`, `after`.  `vocab`: a `TokenVocab`, an
    engine, "embedded", or a folder with a tokenizer.  `BadGrammar` names what is wrong and where; `ParameterError` if
    not exactly one grammar is given.
    """
    kinds = {"regex": regex, "json_schema": json_schema, "choices": choices, "ebnf": ebnf, "lark": lark}
    kinds |= {"type": type, "tools": tools, "grammar": grammar}
    return Inspection(_spec(kinds, options), vocab)


def picture(spec: GrammarSpec, text: str = "") -> GrammarPicture:
    """A spec's automaton and where a text stands in it, as data; for views, so at most 1,000 states."""
    return Inspection(spec, max_states=VIEW_STATES).picture(text)


def of_run(spec: GrammarSpec, text: str, model: str | None, top: Any = ()) -> GrammarPicture:
    """The same, with the tokens allowed there by the model's vocabulary, if its files are on this machine.

    `top`: (log-probability, token id) pairs of the step there, which name the likeliest.
    """
    from nbsgl.engine.folders import local_folder

    known = model is not None and local_folder(model) is not None
    return Inspection(spec, model if known else None).picture(text, top)


class Inspection:
    """One grammar.  In a notebook it draws itself; `print` gives an edge per line."""

    def __init__(self, spec: GrammarSpec, vocab: Any = None, max_states: int = MAX_STATES) -> None:
        self.spec = spec
        self._vocab_of = vocab
        self._found = _compiled(spec.language, max_states)

    # ---- the language ----

    @property
    def is_regular(self) -> bool:
        """Whether there is an automaton to draw; else a host engine makes its states as it meets them."""
        return self._found.graph is not None

    @property
    def states(self) -> int | None:
        """States of the minimal automaton over bytes; None if there is none."""
        return None if self._found.graph is None else self._found.graph.num_states

    @property
    def regex(self) -> str | None:
        """The language as a pattern for `re.fullmatch`; None where it has none."""
        from nbsgl.engine.grammar.printed import to_python

        if self.spec.kind == "regex" and not self.spec.prefix:
            return self.spec.text
        return None if self._found.tree is None else to_python(self._found.tree)

    @property
    def automaton(self) -> Automaton:
        """Nodes and edges as data, at most 200 nodes."""
        return self.picture().automaton

    @property
    def dot(self) -> str:
        """Graphviz's source of the automaton."""
        from nbsgl.widgets.automaton import automaton_dot

        return automaton_dot(self.automaton)

    def matches(self, text: str) -> bool:
        """Whether the whole text is in the language."""
        if (graph := self._found.graph) is not None:
            state = graph.state_after(text.encode("utf-8", "surrogatepass"))
            return graph.accepting[state]
        matcher = self._byte_matcher(text)
        return matcher is not None and matcher.is_accepting()

    def sample(self, n: int = 1, seed: int = 0) -> list[str]:
        """Draw `n` texts of the language at random, the same for the same seed."""
        from nbsgl.engine.grammar.strings import Strings

        if not 0 <= n <= MAX_SAMPLES:
            raise ParameterError(name="n", value=n, allowed=f"0..{MAX_SAMPLES:,}")
        if (graph := self._found.graph) is None:
            raise Unsupported(
                f"No texts can be drawn from this grammar: it has no automaton ({self._found.why}).",
                name="sample",
                value=self.spec.kind,
            )
        strings = Strings(graph)
        drawn = [strings.draw(random.Random(f"{seed}/{i}")) for i in range(n)]
        return [text for text in drawn if text is not None]  # the empty language has none

    # ---- a text's place ----

    def picture(self, text: str = "", top: Any = ()) -> GrammarPicture:
        """The automaton and where a text stands in it, as data."""
        import msgspec

        from nbsgl.automaton import Automaton, GrammarPicture

        graph = self._found.graph
        automaton, note = Automaton(), self._found.why
        place = self._host_place(text) if graph is None else graph.place(text)
        if graph is not None:
            automaton = graph.shown(graph.around(place))
            place = msgspec.structs.replace(place, allowed=self._allowed(text, top) if self.vocab else None)
        return GrammarPicture(self.spec.kind, self.spec.text, automaton, place, text, note)

    def walk(self, text: str) -> Walk:
        """Draw the automaton with the way of a text through it."""
        return Walk(self.picture(text))

    def allowed(self, text: str = "") -> Allowed:
        """The tokens that may follow a text: how many, and the first ten; none for a text no output begins with.

        Needs a `vocab`.
        """
        from nbsgl.automaton import Allowed

        if self.vocab is None:
            raise ParameterError(name="vocab", value=None, allowed='a vocabulary: inspect(..., vocab="embedded")')
        found = self._allowed(text, ())
        return Allowed(0, len(self.vocab)) if found is None else found

    @cached_property
    def vocab(self) -> TokenVocab | None:
        return _vocab(self._vocab_of)

    # ---- looks ----

    def __repr__(self) -> str:
        from nbsgl.widgets.automaton import grammar_text

        return grammar_text(self.picture())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return Walk(self.picture())._repr_mimebundle_()

    # ---- inside ----

    def _allowed(self, text: str, top: Any) -> Allowed | None:
        from nbsgl.engine.grammar import compile, view

        vocab = self.vocab
        assert vocab is not None
        matcher = compile(self.spec, vocab).matcher()
        return view.allowed_tokens(matcher, vocab, top) if _spell(matcher, vocab, text) else None

    def _byte_matcher(self, text: str) -> Any:
        """A host engine's place after a text, by a vocabulary of single bytes; None if no text begins so."""
        from nbsgl.engine.grammar import compile

        matcher = compile(self.spec, _bytes_vocab()).matcher()
        return matcher if _spell(matcher, _bytes_vocab(), text) else None

    def _host_place(self, text: str) -> Any:
        from nbsgl.automaton import Place
        from nbsgl.engine.grammar import view

        matcher = self._byte_matcher(text)
        if matcher is None:
            return Place()
        return view.host_place(matcher, _bytes_vocab(), text, matcher.is_accepting())


class Walk:
    """A text's way through a grammar, drawn in a notebook."""

    def __init__(self, picture: GrammarPicture) -> None:
        self.picture = picture

    def __repr__(self) -> str:
        from nbsgl.widgets.automaton import grammar_text

        return grammar_text(self.picture)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        from nbsgl.widgets.automaton import grammar_html

        return {"text/html": grammar_html(self.picture), "text/plain": repr(self)}


# ---- how a spec is made and compiled -------------------------------------------------------------------------------


def _spec(kinds: dict[str, Any], options: dict[str, Any]) -> GrammarSpec:
    """As `gen` reads its parameters of these names."""
    from nbsgl.lang.constrain import constraint, one_kind

    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"inspect() got an unexpected keyword argument {name!r}; options are {', '.join(_OPTIONS)}")
    kind = one_kind(kinds)
    if kind == "choices":
        kinds = {"grammar": _choices(kinds["choices"])}
        kind = "grammar"
    found = None if kind is None else constraint(kind, kinds, options).grammar
    if found is None:
        raise ParameterError(
            name="inspect", value=kind, allowed=f"one of {', '.join(f'{name}=' for name in kinds)} that constrains text"
        )
    return found


def _choices(value: Any) -> GrammarSpec:
    """Any one of these texts, as `gen(choices=...)` of an engine takes them."""
    import json

    from nbsgl.protocol import GrammarSpec

    texts = [] if isinstance(value, str) else list(value)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ParameterError(name="choices", value=value, allowed="a list of texts")
    return GrammarSpec(kind="choices", text=json.dumps(texts, ensure_ascii=False))


class _Compiled:
    """A spec's tree and graph, or why there is none."""

    def __init__(self, tree: Syntax | None, graph: Graph | None, why: str) -> None:
        self.tree = tree
        self.graph = graph
        self.why = why


@lru_cache(maxsize=64)
def _compiled(spec: GrammarSpec, max_states: int) -> _Compiled:
    """Once per language: a notebook's redraws and a stream's updates find it here."""
    from nbsgl.engine.grammar.drawn import graph_of
    from nbsgl.engine.grammar.syntax import NotRegular
    from nbsgl.engine.grammar.trees import tree_of

    tree = tree_of(spec)
    if isinstance(tree, NotRegular):
        return _Compiled(None, None, tree.reason)
    graph = graph_of(tree, max_states)
    return _Compiled(tree, None, graph.reason) if isinstance(graph, NotRegular) else _Compiled(tree, graph, "")


def _vocab(source: Any) -> TokenVocab | None:
    """The vocabulary of whatever a user names it by."""
    from nbsgl.engine.grammar.vocab import TokenVocab

    if source is None or isinstance(source, TokenVocab):
        return source
    info = getattr(source, "info", None)
    name = getattr(info, "model", source)
    if not isinstance(name, (str, Path)):
        raise ParameterError(
            name="vocab", value=source, allowed='a TokenVocab, an engine, "embedded" or a folder with a tokenizer'
        )
    return _vocab_of_model(str(name))


@lru_cache(maxsize=2)
def _vocab_of_model(name: str) -> TokenVocab:
    from nbsgl.engine.folders import local_folder
    from nbsgl.engine.grammar.vocab import TokenVocab
    from nbsgl.engine.tokenizer_files import TokenizerFiles

    folder = local_folder(name)
    if folder is None:
        raise ParameterError(name="vocab", value=name, allowed='"embedded" or a folder on this machine')
    return TokenVocab.of_files(TokenizerFiles.load(folder))


@lru_cache(maxsize=1)
def _bytes_vocab() -> TokenVocab:
    from nbsgl.engine.grammar.vocab import TokenVocab

    return TokenVocab([*(bytes([byte]) for byte in range(256)), None], [256])


def _spell(matcher: Any, vocab: TokenVocab, text: str) -> bool:
    """Take a text byte by byte; False where the language or the vocabulary has no such text."""
    data = text.encode("utf-8", "surrogatepass")
    ids = [vocab.byte_ids.get(byte) for byte in data]
    return all(token is not None and matcher.advance(token) for token in ids)
