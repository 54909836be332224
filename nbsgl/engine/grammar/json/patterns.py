"""Regular expressions of ECMA-262 as a set of strings: not all of them, but only such.

Never written: a fourth group inside three others, names of groups, references back, `\\0`, `\\p`, code points in
braces, ranges in a class but of digits and of letters, counts of more than three digits.
"""

from __future__ import annotations

from nbsgl.engine.grammar import regex
from nbsgl.engine.grammar.syntax import NOTHING, Syntax, concat, either, literal, optional, repeat

MAX_GROUPS = 3  # inside each other

_HEX = "[0-9A-Fa-f]"
_ESCAPE = rf"\\(?:[dDsSwWfnrtv^$\\.*+?()\[\]{{}}|/]|c[A-Za-z]|x{_HEX}{{2}}|u{_HEX}{{4}})"
_RANGE = "|".join(
    rf"{chr(low)}-[{chr(low)}-{last}]" for first, last in ("09", "AZ", "az") for low in range(ord(first), ord(last) + 1)
)
_CLASS = rf"\[\^?-?(?:[^\\\]\[\-^]|{_ESCAPE}|\\[b-]|{_RANGE})*-?\]"
_ATOM = rf"\.|[^\^$\\.*+?()\[\]{{}}|]|{_ESCAPE}|{_CLASS}"
_COUNTS = "|".join(
    [
        "[0-9]{1,3},?",
        *(rf"{low},[{low}-9]" for low in range(10)),
        *(rf"{tens}[0-9],[{tens + 1}-9][0-9]" for tens in range(1, 9)),
        "[0-9],[1-9][0-9]{1,2}",
        "[1-9][0-9],[1-9][0-9]{2}",
    ]
)
_TIMES = rf"(?:[*+?]|\{{(?:{_COUNTS})\}})\??"


def all_patterns() -> Syntax:
    """Patterns of any dialect's flags; assertions are never repeated, and no count's ends are the wrong way round."""
    atom, times, place = (regex.parse(f"(?s:{text})") for text in (_ATOM, _TIMES, r"\^|\$|\\[bB]"))
    group, look = regex.parse(r"\((?:\?:)?"), regex.parse(r"\(\?<?[=!]")
    found: Syntax = NOTHING
    for _ in range(MAX_GROUPS + 1):
        inside = concat([found, literal(")")])
        repeated = concat([either([atom, concat([group, inside])]), optional(times)])
        term = either([repeated, place, concat([look, inside])])
        found = concat([repeat(term), repeat(concat([literal("|"), repeat(term)]))])
    return found
