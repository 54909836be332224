"""A regular language's tree printed as a regular expression of Python's."""

from __future__ import annotations

from nbsgl.engine.grammar.charset import complement
from nbsgl.engine.grammar.labels import ranges_text
from nbsgl.engine.grammar.syntax import Both, Chars, Concat, Either, Not, Repeat, Syntax

MAX_CHARS = 100_000
_META = frozenset(r"\.^$*+?{}[]|()")
_SPELT = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}


def to_python(node: Syntax) -> str | None:
    """A pattern that `re.fullmatch` reads as the same language; None for what needs an intersection or a complement,
    and for a pattern of more than 100,000 characters."""
    try:
        text = _print(node, outer=True)
    except _NoPattern:
        return None
    return text if len(text) <= MAX_CHARS else None


class _NoPattern(Exception):
    """The tree has a node that patterns lack."""


def _print(node: Syntax, outer: bool = False) -> str:
    match node:
        case Chars(chars):
            if not chars:
                return r"[^\s\S]"
            if len(chars) == 1 and chars[0][0] == chars[0][1]:
                return _literal(chr(chars[0][0]))
            rest = complement(chars)
            if not rest:
                return r"[\s\S]"
            inside, outside = ranges_text(chars), ranges_text(rest)
            return f"[{inside}]" if len(inside) <= len(outside) + 1 else f"[^{outside}]"
        case Concat(parts):
            return "".join(map(_print, parts))
        case Either(options):
            text = "|".join(map(_print, options))
            return text if outer else f"(?:{text})"
        case Repeat(inner, low, high):
            body = _print(inner)
            simple = isinstance(inner, (Chars, Either))
            return (body if simple else f"(?:{body})") + _times(low, high)
        case Both() | Not():
            raise _NoPattern
    raise AssertionError(node)


def _times(low: int, high: int | None) -> str:
    plain = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    if (sign := plain.get((low, high))) is not None:
        return sign
    return f"{{{low}}}" if low == high else f"{{{low},{'' if high is None else high}}}"


def _literal(char: str) -> str:
    if char in _META:
        return f"\\{char}"
    if char in _SPELT or char.isprintable():
        return _SPELT.get(char, char)
    return ranges_text(((ord(char), ord(char)),))
