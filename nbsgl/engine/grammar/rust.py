"""Syntax trees printed for llguidance, in the syntax of Rust's `regex`, so that both engines mean the same language.

Classes are explicit ranges, whatever they were called: `\\w`, `.` and letters under IGNORECASE differ between dialects.
Intersection and complement have no spelling inside a regex; llguidance's Lark has one for them, in terminals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import msgspec

from nbsgl.engine.grammar.charset import CharSet
from nbsgl.engine.grammar.json.strings import all_spelt
from nbsgl.engine.grammar.syntax import Both, Chars, Concat, Either, Not, Repeat, Syntax, children, post_order
from nbsgl.errors import GrammarTooExpensive

MAX_PRINTED = 4 << 20  # a class of Unicode letters takes 12 kB
UNBOUNDED = "// intersections of which nothing tells how long they take"


class NotPrintable(Exception):
    """A tree has an intersection or a complement in it: `to_lark` prints it, `to_rust` cannot."""


def to_rust(node: Syntax) -> str:
    """A regex without anchors, for any context inside a regex; raises `NotPrintable` or `GrammarTooExpensive`."""
    return _printed(node, _regex)


def to_lark(node: Syntax) -> str:
    """The body of a Lark terminal (`TEXT: <this>`; not of a rule); raises `GrammarTooExpensive`.

    A regex alone where that is possible: llguidance matches it faster than the same in several pieces.
    """
    return string_of(node) or _terminal(node)


def terminal(name: str, node: Syntax) -> list[str]:
    """A terminal's line, behind a mark if nothing bounds how long llguidance looks for texts in it."""
    body = to_lark(node)
    return [f"{name}: {body}"] if "&" not in body or _is_bounded(node) else [UNBOUNDED, f"{name}: {body}"]


def _is_bounded(root: Syntax) -> bool:
    """No intersection but of all that a JSON string may hold with all but some texts: what other names are."""
    for node in post_order(root):
        if isinstance(node, Not) and not all(map(_is_text, _options(node.inner))):
            return False
        if isinstance(node, Both) and any(part != all_spelt() for part in node.parts if not isinstance(part, Not)):
            return False
    return True


def _options(node: Syntax) -> tuple[Syntax, ...]:
    return node.options if isinstance(node, Either) else (node,)


def _is_text(node: Syntax) -> bool:
    """As many characters as it has parts."""
    return all(isinstance(part, Chars) for part in (node.parts if isinstance(node, Concat) else (node,)))


def string_of(node: Syntax) -> str | None:
    """A Lark string, where the language is just one text that is not empty."""
    parts = node.parts if isinstance(node, Concat) else (node,)
    chars = [part.chars[0] for part in parts if isinstance(part, Chars) and len(part.chars) == 1]
    if not parts or len(chars) < len(parts) or any(low != high for low, high in chars):
        return None
    return quoted("".join([chr(low) for low, _ in chars]))


def quoted(text: str) -> str:
    """A Lark string, which is JSON's without a raw U+007F."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


@lru_cache(maxsize=32)  # formats come again and again; at most 4 MiB each
def _terminal(node: Syntax) -> str:
    try:
        return f"/{_not_empty(to_rust(node))}/"
    except NotPrintable:
        return _printed(node, _Terminals().print)


def _printed(root: Syntax, print_node: Callable[[Syntax, list[str]], str]) -> str:
    """Children before parents, without recursion: schemas nest deeper than Python's stack."""
    texts: dict[int, str] = {}
    total = 0
    for node in post_order(root):
        texts[id(node)] = text = print_node(node, [texts[id(child)] for child in children(node)])
        total += len(text) if isinstance(node, Chars) else 0
        if max(total, len(text)) > MAX_PRINTED:
            raise GrammarTooExpensive(kind="regex", path="character classes", limit="4 MiB of explicit ranges")
    return texts[id(root)]


def _regex(node: Syntax, inner: list[str]) -> str:
    if isinstance(node, Chars):
        return _print_class(node.chars)
    if isinstance(node, Concat):
        return "".join(inner)
    if isinstance(node, Either):
        return f"(?:{'|'.join(inner)})"
    if isinstance(node, Repeat):
        return f"(?:{inner[0]}){times(node.low, node.high)}"
    raise NotPrintable(f"{type(node).__name__.lower()} cannot stand inside a regex")


class _Terminals:
    """Prints what can be one regex as one; `regexes` has the text of each node that can."""

    def __init__(self) -> None:
        self.regexes: dict[int, str] = {}

    def print(self, node: Syntax, inner: list[str]) -> str:
        below = children(node)
        if not isinstance(node, Both | Not) and all(id(child) in self.regexes for child in below):
            self.regexes[id(node)] = text = _regex(node, [self.regexes[id(child)] for child in below])
            return f"/{_not_empty(text)}/"
        if isinstance(node, Concat):
            return f"({' '.join(self.runs(below, inner))})"
        if isinstance(node, Either):
            return f"({' | '.join(inner)})"
        if isinstance(node, Both):
            return f"({' & '.join(inner)})"
        return f"({inner[0]}){times(node.low, node.high)}" if isinstance(node, Repeat) else f"(/(?s:.*)/ & ~{inner[0]})"

    def runs(self, parts: tuple[Syntax, ...], printed: list[str]) -> list[str]:
        """Neighbours that can be one regex are."""
        found: list[str] = []
        run: list[str] = []
        for part, text in zip(parts, printed):
            if (regex := self.regexes.get(id(part))) is not None:
                run.append(regex)
                continue
            if run:
                found.append(f"/{''.join(run)}/")
                run = []
            found.append(text)
        return [*found, f"/{''.join(run)}/"] if run else found


def _not_empty(regex: str) -> str:
    return regex or "(?:)"  # `//` begins a comment


def times(low: int, high: int | None) -> str:
    """How often a part may stand, as EBNF writes it too."""
    if high is None:
        return "*" if low == 0 else f"{{{low},}}"
    return f"{{{low},{high}}}"


@lru_cache(maxsize=256)
def _print_class(chars: CharSet) -> str:
    if len(chars) == 1 and chars[0][0] == chars[0][1]:
        return _print_char(chars[0][0])
    if not chars:
        return r"[^\x{0}-\x{10FFFF}]"
    ranges = (_print_char(low) if low == high else f"{_print_char(low)}-{_print_char(high)}" for low, high in chars)
    return f"[{''.join(ranges)}]"


def _print_char(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else rf"\x{{{code:X}}}"
