"""Host names with letters of any script (RFC 5890 to 5893) as a set of strings: not all of them, but only such.

Never written: `xn--` labels, `--`, letters above U+FFFF, marks that normalisation may move or join, labels with letters
outside ASCII of more than 13 characters, more than four labels, right-to-left labels beside left-to-right ones that are
not ASCII.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from nbsgl.engine.grammar import regex
from nbsgl.engine.grammar.charset import CharSet, charset, complement, contains
from nbsgl.engine.grammar.syntax import (
    ANY_CHAR,
    ANY_TEXT,
    Chars,
    Syntax,
    both,
    character,
    concat,
    either,
    optional,
    repeat,
)

MAX_LABELS = 4  # of 61 characters in ASCII: 247 of the 253 of a name
MAX_ASCII = 61
MAX_CHARS = 13  # no label of so many was found that has more than 55 in ASCII

_LETTERS = frozenset({"Ll", "Lo", "Lm", "Nd", "Mn", "Mc"})
_MARKS = frozenset({"Mn", "Mc"})
_VIRAMA = 9  # combining class; marks of this one and of none stay where they are
_LEFT = frozenset({"L", "EN", "ES", "CS", "ET", "ON", "NSM"})
_RIGHT = frozenset({"R", "AL"})

_PLAIN = charset([(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3)])  # Han and Hangul: asked for nothing, 39,000

# RFC 5892, sections 2.6 to 2.9: what the rule by categories would take out, and what it would let in.
_ALLOWED = frozenset({0xDF, 0x3C2, 0x6FD, 0x6FE, 0xF0B, 0x3007})
_DISALLOWED = charset(
    [
        *((0x34F, 0x34F), (0x640, 0x640), (0x7FA, 0x7FA), (0x1100, 0x11FF), (0x17B4, 0x17B5), (0x180B, 0x180F)),
        *((0x302E, 0x302F), (0x3031, 0x3035), (0x303B, 0x303B), (0xA960, 0xA97F), (0xD7B0, 0xD7FF), (0xFE00, 0xFE0F)),
    ]
)
_ARABIC_DIGITS, _EXTENDED_DIGITS, _DIGITS = (charset([(code, code + 9)]) for code in (0x660, 0x6F0, 0x30))
_GREEK, _HEBREW = charset([(0x3B1, 0x3C9)]), charset([(0x5D0, 0x5EA)])
_KANA_HAN = charset([(0x3041, 0x3096), (0x30A1, 0x30FA), (0x3400, 0x4DBF), (0x4E00, 0x9FFF)])
_JOINED = charset([(0x628, 0x628), (0x62A, 0x62E), (0x633, 0x63A), (0x641, 0x647), (0x64A, 0x64A)])  # to both sides


def host(label: str) -> Syntax:
    """One to four labels; `label` is the pattern of one in ASCII."""
    plain = regex.parse(label)
    from_letter = both([plain, concat([regex.parse("[A-Za-z]"), ANY_TEXT])])
    return either([_labels([plain, _left_to_right()]), _labels([from_letter, _right_to_left()])])


def _labels(kinds: Iterable[Syntax]) -> Syntax:
    label, dot = either(kinds), regex.parse("[.\u3002\uff0e\uff61]")
    return concat([label, repeat(concat([dot, label]), 0, MAX_LABELS - 1)])


def _label(heads: list[Syntax], items: list[Syntax]) -> Syntax:
    """Single hyphens between items; `MAX_CHARS` characters."""
    shape = concat([either(heads), repeat(concat([optional(character("-")), either(items)]))])
    return both([shape, repeat(ANY_CHAR, 1, MAX_CHARS)])


def _left_to_right() -> Syntax:
    """Contexts (RFC 5892, appendix A): a middle dot between two l, a keraia before Greek, joiners after a virama, a
    katakana middle dot in a label with kana or Han."""
    heads = [
        _chars(_known(_LEFT), but=_marks()),
        concat([character("l"), repeat(regex.parse("\u00b7l"), 1)]),
        concat([character("\u0375"), Chars(_GREEK)]),
    ]
    items = [Chars(_known(_LEFT)), *heads[1:], concat([Chars(_viramas()), regex.parse("[\u200c\u200d]")])]
    dot = character("\u30fb")
    dotted = both([_label([*heads, dot], [*items, dot]), concat([ANY_TEXT, Chars(_KANA_HAN), ANY_TEXT])])
    return either([_label(heads, items), dotted])


def _right_to_left() -> Syntax:
    """RFC 5893's rule: from a letter on, digits of one kind.  A geresh comes after Hebrew, a non-joiner between two
    letters that join."""
    letter, joined = _chars(_known(_RIGHT)), Chars(_JOINED)
    heads = [
        letter,
        concat([Chars(_HEBREW), regex.parse("[\u05f3\u05f4]")]),
        concat([joined, repeat(concat([character("\u200c"), joined]), 1)]),
    ]
    digits = (_ARABIC_DIGITS, charset([*_DIGITS, *_EXTENDED_DIGITS]))
    return either(_label(heads, [*heads, Chars(kind)]) for kind in digits)


def _chars(chars: CharSet, but: CharSet = ()) -> Syntax:
    return Chars(complement(charset([*complement(chars), *but])))


# ---- what Unicode says -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _known(directions: frozenset[str]) -> CharSet:
    """Letters, digits and marks of these directions that may stand anywhere in a label, lower case and digits of ASCII
    among them."""
    own = charset([*_DIGITS, (0x61, 0x7A)]) if "L" in directions else ()
    found = (code for code in _stable() if unicodedata.bidirectional(chr(code)) in directions)
    return charset([*own, *((code, code) for code in found)])


@lru_cache(maxsize=1)
def _stable() -> tuple[int, ...]:
    """Above ASCII: what no normalisation changes, whatever stands beside it."""
    codes = range(0x80, 0x10000)
    pairs = [unicodedata.decomposition(chr(code)).split() for code in codes if not contains(_PLAIN, code)]
    joins_before = {int(pair[1], 16) for pair in pairs if len(pair) == 2 and pair[0][0] != "<"}
    return tuple(code for code in codes if contains(_PLAIN, code) or code not in joins_before and _is_stable(code))


def _is_stable(code: int) -> bool:
    if code in _ALLOWED:
        return True
    char = chr(code)
    if unicodedata.category(char) not in _LETTERS or unicodedata.combining(char) not in (0, _VIRAMA):
        return False
    if contains(_DISALLOWED, code) or contains(_ARABIC_DIGITS, code):
        return False
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", char).casefold()) == char


@lru_cache(maxsize=1)
def _marks() -> CharSet:
    return charset((code, code) for code in _stable() if unicodedata.category(chr(code)) in _MARKS)


@lru_cache(maxsize=1)
def _viramas() -> CharSet:
    return charset((code, code) for code in _stable() if unicodedata.combining(chr(code)) == _VIRAMA)
