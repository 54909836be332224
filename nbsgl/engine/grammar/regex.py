r"""Python regular expressions, printed back in Rust's syntax so that both mean the same language.

The reference is `re.fullmatch(pattern, text)`.  The standard library parses (its parser is a private module, used here
and nowhere else); classes, `.`, and letters under IGNORECASE are printed as explicit ranges, for there the dialects
differ.  What is not regular, or has no meaning at its place, is refused by name and position.
"""

from __future__ import annotations

import re
import warnings
from re import _constants as op
from re import _parser as parser
from typing import Any

from nbsgl.engine.grammar import charset as cs
from nbsgl.errors import BadRegex, GrammarTooExpensive

MAX_PATTERN_BYTES = 16 << 10
MAX_NESTING = 128
MAX_REPEAT = 10_000
MAX_STATES = 100_000  # counted repeats multiplied out; llguidance gave up in the middle of a run near 1,000,000
_MAX_PRINTED = 4 << 20  # a class of Unicode letters takes 12 kB

_CATEGORIES = {
    op.CATEGORY_DIGIT: (cs.DIGIT, False),
    op.CATEGORY_NOT_DIGIT: (cs.DIGIT, True),
    op.CATEGORY_SPACE: (cs.SPACE, False),
    op.CATEGORY_NOT_SPACE: (cs.SPACE, True),
    op.CATEGORY_WORD: (cs.WORD, False),
    op.CATEGORY_NOT_WORD: (cs.WORD, True),
}
# One token of a pattern, coarsely: enough to find where a refused construct stands.
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?(?:P=|P<|<=|<!|[=!>(:#])|[*+?}]\+|.", re.DOTALL)
_LOOKS = ("(?=", "(?!", "(?<=", "(?<!")
_REFUSED: dict[Any, tuple[str, Any]] = {
    op.ASSERT: ("look-around", lambda token: token in _LOOKS),
    op.ASSERT_NOT: ("look-around", lambda token: token in _LOOKS),
    op.FAILURE: ("look-around", lambda token: token in _LOOKS),
    op.GROUPREF: ("a back-reference", lambda token: token == "(?P=" or (token[0] == "\\" and token[1:].isdigit())),
    op.GROUPREF_EXISTS: ("a conditional group", lambda token: token == "(?("),
    op.POSSESSIVE_REPEAT: ("a possessive repeat", lambda token: len(token) == 2 and token[1] == "+"),
    op.ATOMIC_GROUP: ("an atomic group", lambda token: token == "(?>"),
}
_AT = {
    op.AT_BEGINNING: ("^", "^"),
    op.AT_BEGINNING_STRING: (r"\A", r"\A"),
    op.AT_END: ("$", "$"),
    op.AT_END_STRING: (r"\Z", r"\Z"),
    op.AT_BOUNDARY: (r"\b", r"\b"),
    op.AT_NON_BOUNDARY: (r"\B", r"\B"),
}
_STARTS = (op.AT_BEGINNING, op.AT_BEGINNING_STRING)
_ENDS = (op.AT_END, op.AT_END_STRING)


def to_rust(pattern: str) -> str:
    """The pattern in the syntax of Rust's `regex`, without anchors; raises `BadRegex` or `GrammarTooExpensive`."""
    size = len(pattern.encode("utf-8", "surrogatepass"))
    if size > MAX_PATTERN_BYTES:
        raise _bad(pattern, None, f"{size:,} bytes, the limit is {MAX_PATTERN_BYTES:,}", limit="16 KiB of pattern")
    _check_nesting(pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            tree = parser.parse(pattern)
    except re.error as error:
        raise _bad(pattern, error.pos, error.msg) from None
    except (RecursionError, OverflowError) as error:
        raise _bad(pattern, None, f"too large to parse ({type(error).__name__})") from None
    printer = _Printer(pattern)
    text = printer.sequence(list(tree), tree.state.flags, True, True)
    if printer.states(list(tree)) > MAX_STATES:
        raise GrammarTooExpensive(
            kind="regex",
            path="counted repeats",
            limit=f"{MAX_STATES:,} states",
            hint="Lower the counts, or use * and + with max_tokens as the bound.",
        )
    return text


def _check_nesting(pattern: str) -> None:
    depth, position = 0, 0
    for match in _TOKEN.finditer(pattern):
        position, token = match.start(), match[0]
        depth += (token[0] == "(") - (token == ")")
        if depth > MAX_NESTING:
            raise _bad(pattern, position, f"nested deeper than {MAX_NESTING}", limit=f"nesting of {MAX_NESTING}")


def _bad(pattern: str, position: int | None, reason: str, limit: str | None = None) -> BadRegex:
    where = "the pattern" if position is None else f"position {position}"
    error = BadRegex(kind="regex", path=where, reason=reason, limit=limit, pattern_text=pattern)
    error.pos = position
    return error


class _Printer:
    """Walks the parser's tree.  `at_start` and `at_end`: nothing can stand before, or after, what is being printed."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.size = 0
        self.classes: dict[cs.CharSet, str] = {}

    def sequence(self, items: list[Any], flags: int, at_start: bool, at_end: bool) -> str:
        width = [not _is_anchor(item) for item in items]
        printed = []
        for place, item in enumerate(items):
            starts, ends = at_start and not any(width[:place]), at_end and not any(width[place + 1 :])
            text = self.item(item, flags, starts, ends)
            self.size += len(text)
            if self.size > _MAX_PRINTED:
                raise GrammarTooExpensive(kind="regex", path="character classes", limit="4 MiB of explicit ranges")
            printed.append(text)
        return "".join(printed)

    def item(self, item: Any, flags: int, at_start: bool, at_end: bool) -> str:
        kind, value = item
        if kind in _REFUSED:
            name, is_it = _REFUSED[kind]
            raise self.refuse(f"{name} is not supported", is_it)
        if kind is op.AT:
            return self.anchor(value, at_start, at_end)
        if kind is op.BRANCH:
            options = (self.sequence(list(option), flags, at_start, at_end) for option in value[1])
            return f"(?:{'|'.join(options)})"
        if kind is op.SUBPATTERN:
            _, add, remove, inner = value
            return f"(?:{self.sequence(list(inner), _combine(flags, add, remove), at_start, at_end)})"
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            return self.repeat(*value, flags, at_start, at_end)
        return self.char_class(self.chars(item, flags))

    def repeat(self, low: int, high: Any, inner: Any, flags: int, at_start: bool, at_end: bool) -> str:
        most = low if high is op.MAXREPEAT else int(high)
        if most > MAX_REPEAT:
            raise self.refuse(f"a repeat of {most:,}, the limit is {MAX_REPEAT:,}", lambda token: token == "{")
        once = high is not op.MAXREPEAT and high <= 1
        body = f"(?:{self.sequence(list(inner), flags, at_start and once, at_end and once)})"
        if high is op.MAXREPEAT:
            return body + ("*" if low == 0 else f"{{{low},}}")
        return f"{body}{{{low},{high}}}"

    def anchor(self, value: Any, at_start: bool, at_end: bool) -> str:
        if (value in _STARTS and at_start) or (value in _ENDS and at_end):
            return ""
        name, spelt = _AT.get(value, ("an anchor", ""))
        place = "is not supported" if value not in (*_STARTS, *_ENDS) else "can stand only at the pattern's own ends"
        raise self.refuse(f"{name} {place}", lambda token: token == spelt)

    def refuse(self, reason: str, is_it: Any) -> BadRegex:
        places = [match.start() for match in _TOKEN.finditer(self.pattern) if is_it(match[0])]
        inner = [place for place in places if place > 0] or places
        return _bad(self.pattern, inner[0] if inner else None, reason)

    # ---- characters --------------------------------------------------------------------------------------------------

    def chars(self, item: Any, flags: int) -> cs.CharSet:
        kind, value = item
        if kind is op.ANY:
            return cs.complement(cs.EMPTY if flags & re.DOTALL else cs.charset([(10, 10)]))
        if kind is op.LITERAL:
            return self.union([item], flags)
        if kind is op.NOT_LITERAL:
            return cs.complement(self.union([(op.LITERAL, value)], flags))
        if kind is op.IN:
            negated = bool(value) and value[0][0] is op.NEGATE
            found = self.union(value[1:] if negated else value, flags)
            return cs.complement(found) if negated else found
        raise _bad(self.pattern, None, f"{str(kind).lower()} is not supported")

    def union(self, members: list[Any], flags: int) -> cs.CharSet:
        ascii_only = bool(flags & re.ASCII)
        spelt: list[tuple[int, int]] = []
        named: list[tuple[int, int]] = []
        for kind, value in members:
            if kind is op.LITERAL:
                spelt.append((value, value))
            elif kind is op.RANGE:
                spelt.append(value)
            else:
                name, is_negated = _CATEGORIES[value]
                found = cs.category(name, ascii_only)
                named += cs.complement(found) if is_negated else found
        if not flags & re.IGNORECASE:
            return cs.charset([*spelt, *named])
        lows = cs.charset([*cs.lowered(cs.charset(spelt), ascii_only), *named])
        return cs.matching_lowered(lows, ascii_only)

    def char_class(self, chars: cs.CharSet) -> str:
        if (known := self.classes.get(chars)) is None:
            known = self.classes[chars] = _print_class(chars)
        return known

    # ---- size --------------------------------------------------------------------------------------------------------

    def states(self, items: list[Any]) -> int:
        """An upper bound of the automaton's positions with every counted repeat multiplied out."""
        return sum(self.item_states(item) for item in items)

    def item_states(self, item: Any) -> int:
        kind, value = item
        if kind is op.BRANCH:
            return sum(self.states(list(option)) for option in value[1])
        if kind is op.SUBPATTERN:
            return self.states(list(value[3]))
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            low, high, inner = value
            times = max(low, 1) if high is op.MAXREPEAT else int(high)
            return times * self.states(list(inner))
        return 0 if kind is op.AT else 1


def _is_anchor(item: Any) -> bool:
    kind, value = item
    if kind is op.SUBPATTERN:
        return all(_is_anchor(inner) for inner in value[3])
    return kind is op.AT


def _combine(flags: int, add: int, remove: int) -> int:
    if add & parser.TYPE_FLAGS:
        flags &= ~parser.TYPE_FLAGS
    return (flags | add) & ~remove


def _print_class(chars: cs.CharSet) -> str:
    if len(chars) == 1 and chars[0][0] == chars[0][1]:
        return _print_char(chars[0][0])
    if not chars:
        return r"[^\x{0}-\x{10FFFF}]"
    ranges = (_print_char(low) if low == high else f"{_print_char(low)}-{_print_char(high)}" for low, high in chars)
    return f"[{''.join(ranges)}]"


def _print_char(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else rf"\x{{{code:X}}}"
