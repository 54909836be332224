r"""Python regular expressions as syntax trees.

The reference is `re.fullmatch(pattern, text)`.  The standard library parses (its parser is a private module, used here
and nowhere else); what is not regular, or has no meaning at its place, is refused by name and position.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from re import _constants as op
from re import _parser as parser
from typing import Any

from nbsgl.engine.grammar import charset as cs
from nbsgl.engine.grammar.syntax import EMPTY_TEXT, Chars, Syntax, concat, either, num_positions, repeat
from nbsgl.errors import BadRegex, GrammarTooExpensive

MAX_PATTERN_BYTES = 16 << 10
MAX_NESTING = 128
MAX_REPEAT = 10_000
MAX_STATES = 100_000  # counted repeats multiplied out; llguidance gave up in the middle of a run near 1,000,000

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
_CASES = int(re.ASCII | re.IGNORECASE)  # the flags that change what a class means
_STARTS = (op.AT_BEGINNING, op.AT_BEGINNING_STRING)
_ENDS = (op.AT_END, op.AT_END_STRING)


def check_size(pattern: str) -> None:
    size = len(pattern.encode("utf-8", "surrogatepass"))
    if size > MAX_PATTERN_BYTES:
        raise bad(pattern, None, f"{size:,} bytes, the limit is {MAX_PATTERN_BYTES:,}", limit="16 KiB of pattern")


def parse(pattern: str, *, ecma: bool = False) -> Syntax:
    """The tree of a pattern; raises `BadRegex` or `GrammarTooExpensive`.

    The texts that `re.fullmatch` takes; with `ecma`, the texts in which ECMA-262's search finds the pattern (its flag
    u), which is what `pattern` in a JSON schema means.
    """
    check_size(pattern)
    if ecma:
        from nbsgl.engine.grammar import ecma as ecma_script

        tree = ecma_script.search(pattern)
    else:
        tree = _parse_python(pattern)
    if num_positions(tree) > MAX_STATES:
        raise GrammarTooExpensive(
            kind="regex",
            path="counted repeats",
            limit=f"{MAX_STATES:,} states",
            hint="Lower the counts, or use * and + with max_tokens as the bound.",
        )
    return tree


def too_deep(pattern: str, position: int) -> BadRegex:
    return bad(pattern, position, f"nested deeper than {MAX_NESTING}", limit=f"nesting of {MAX_NESTING}")


def bad(pattern: str, position: int | None, reason: str, limit: str | None = None) -> BadRegex:
    where = "the pattern" if position is None else f"position {position}"
    error = BadRegex(kind="regex", path=where, reason=reason, limit=limit, pattern_text=pattern)
    error.pos = position
    return error


def _parse_python(pattern: str) -> Syntax:
    _check_nesting(pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            tree = parser.parse(pattern)
    except re.error as error:
        raise bad(pattern, error.pos, error.msg) from None
    except (RecursionError, OverflowError) as error:
        raise bad(pattern, None, f"too large to parse ({type(error).__name__})") from None
    return _Builder(pattern).sequence(list(tree), tree.state.flags, True, True)


def _check_nesting(pattern: str) -> None:
    depth = 0
    for match in _TOKEN.finditer(pattern):
        token = match[0]
        depth += (token[0] == "(") - (token == ")")
        if depth > MAX_NESTING:
            raise too_deep(pattern, match.start())


class _Builder:
    """Walks the parser's tree.  `at_start` and `at_end`: nothing can stand before, or after, what is being built."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def sequence(self, items: list[Any], flags: int, at_start: bool, at_end: bool) -> Syntax:
        solid = [place for place, item in enumerate(items) if not _is_anchor(item)]
        first, last = (solid[0], solid[-1]) if solid else (len(items), -1)
        return concat(
            self.item(item, flags, at_start and place <= first, at_end and place >= last)
            for place, item in enumerate(items)
        )

    def item(self, item: Any, flags: int, at_start: bool, at_end: bool) -> Syntax:
        kind, value = item
        if kind in _REFUSED:
            name, is_it = _REFUSED[kind]
            raise self.refuse(f"{name} is not supported", is_it)
        if kind is op.AT:
            return self.anchor(value, at_start, at_end)
        if kind is op.BRANCH:
            return either([self.sequence(list(option), flags, at_start, at_end) for option in value[1]])
        if kind is op.SUBPATTERN:
            _, add, remove, inner = value
            return self.sequence(list(inner), _combine(flags, add, remove), at_start, at_end)
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            return self.repeat(*value, flags, at_start, at_end)
        return Chars(self.chars(item, flags))

    def repeat(self, low: int, high: Any, inner: Any, flags: int, at_start: bool, at_end: bool) -> Syntax:
        most = low if high is op.MAXREPEAT else int(high)
        if most > MAX_REPEAT:
            raise self.refuse(f"a repeat of {most:,}, the limit is {MAX_REPEAT:,}", lambda token: token == "{")
        once = high is not op.MAXREPEAT and high <= 1
        body = self.sequence(list(inner), flags, at_start and once, at_end and once)
        return repeat(body, low, None if high is op.MAXREPEAT else int(high))

    def anchor(self, value: Any, at_start: bool, at_end: bool) -> Syntax:
        if (value in _STARTS and at_start) or (value in _ENDS and at_end):
            return EMPTY_TEXT
        name, spelt = _AT.get(value, ("an anchor", ""))
        place = "is not supported" if value not in (*_STARTS, *_ENDS) else "can stand only at the pattern's own ends"
        raise self.refuse(f"{name} {place}", lambda token: token == spelt)

    def refuse(self, reason: str, is_it: Any) -> BadRegex:
        places = [match.start() for match in _TOKEN.finditer(self.pattern) if is_it(match[0])]
        inner = [place for place in places if place > 0] or places
        return bad(self.pattern, inner[0] if inner else None, reason)

    def chars(self, item: Any, flags: int) -> cs.CharSet:
        kind, value = item
        if kind is op.ANY:
            return cs.complement(cs.EMPTY if flags & re.DOTALL else cs.charset([(10, 10)]))
        if kind is op.LITERAL:
            return _union((item,), flags & _CASES)
        if kind is op.NOT_LITERAL:
            return cs.complement(_union(((op.LITERAL, value),), flags & _CASES))
        if kind is op.IN:
            return _char_class(tuple(value), flags & _CASES)
        raise bad(self.pattern, None, f"{str(kind).lower()} is not supported")


@lru_cache(maxsize=512)
def _char_class(members: tuple[Any, ...], flags: int) -> cs.CharSet:
    if members and members[0][0] is op.NEGATE:
        return cs.complement(_union(members[1:], flags))
    return _union(members, flags)


@lru_cache(maxsize=4096)
def _union(members: tuple[Any, ...], flags: int) -> cs.CharSet:
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
            named += cs.category(name, ascii_only, is_negated)
    if not flags & re.IGNORECASE:
        return cs.charset([*spelt, *named])
    lows = cs.charset([*cs.lowered(cs.charset(spelt), ascii_only), *named])
    return cs.matching_lowered(lows, ascii_only)


def _is_anchor(item: Any) -> bool:
    kind, value = item
    if kind is op.SUBPATTERN:
        return all(_is_anchor(inner) for inner in value[3])
    return kind is op.AT


def _combine(flags: int, add: int, remove: int) -> int:
    if add & parser.TYPE_FLAGS:
        flags &= ~parser.TYPE_FLAGS
    return (flags | add) & ~remove
