"""What stands between the parts of a JSON text, by policy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from nbsgl.engine.grammar.charset import charset
from nbsgl.engine.grammar.json.forms import NO_TEXT, Form, Lexeme
from nbsgl.engine.grammar.json.strings import needs_escape, quoted
from nbsgl.engine.grammar.syntax import NOTHING, Chars, Syntax, concat, literal, repeat

_SPACE = repeat(Chars(charset([(0x20, 0x20), (0x09, 0x0A), (0x0D, 0x0D)])))


@dataclass(frozen=True)
class Texts:
    """Punctuation as lexemes.  Policies: "compact", "spaced" (", " and ": "), "flexible" (any white space around)."""

    whitespace: str

    def _around(self, text: str, before: bool = True, after: bool = True) -> Syntax:
        if self.whitespace == "flexible":
            return concat([*([_SPACE] if before else []), literal(text), *([_SPACE] if after else [])])
        return literal(f"{text} " if self.whitespace == "spaced" and text in ",:" else text)

    @cached_property
    def open_array(self) -> Lexeme:
        return Lexeme(self._around("[", before=False))

    @cached_property
    def close_array(self) -> Lexeme:
        return Lexeme(self._around("]", after=False))

    @cached_property
    def open_object(self) -> Lexeme:
        return Lexeme(self._around("{", before=False))

    @cached_property
    def close_object(self) -> Lexeme:
        return Lexeme(self._around("}", after=False))

    @cached_property
    def comma(self) -> Lexeme:
        return Lexeme(self._around(","))

    @cached_property
    def _colon(self) -> Syntax:
        return self._around(":")

    def key(self, names: Syntax) -> Form:
        """A member's name, one of a language, with its colon."""
        return self._key(quoted(names))

    def name(self, name: str) -> Form:
        """Just this name, with its colon."""
        return self._key(quoted(literal(name)) if needs_escape(name) else literal(f'"{name}"'))

    def _key(self, spelt: Syntax) -> Form:
        key = concat([spelt, self._colon])
        return NO_TEXT if key == NOTHING else Lexeme(key)
