r"""Properties of characters by the names that `\p{...}` knows them by: general categories, and the few exact others."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from nbsgl.engine.grammar.charset import END, CharSet, charset, complement

SPACE = charset(
    [
        *((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)),
        *((0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
    ]
)
"""ECMA-262's white space and line ends: `\\s`."""

# PropertyValueAliases.txt of the Unicode Character Database: short name, long name, others.
_ALIASES = """
C Other|Cc Control cntrl|Cf Format|Cn Unassigned|Co Private_Use|Cs Surrogate|L Letter|LC Cased_Letter
Ll Lowercase_Letter|Lm Modifier_Letter|Lo Other_Letter|Lt Titlecase_Letter|Lu Uppercase_Letter
M Mark Combining_Mark|Mc Spacing_Mark|Me Enclosing_Mark|Mn Nonspacing_Mark|N Number|Nd Decimal_Number digit
Nl Letter_Number|No Other_Number|P Punctuation punct|Pc Connector_Punctuation|Pd Dash_Punctuation
Pe Close_Punctuation|Pf Final_Punctuation|Pi Initial_Punctuation|Po Other_Punctuation|Ps Open_Punctuation
S Symbol|Sc Currency_Symbol|Sk Modifier_Symbol|Sm Math_Symbol|So Other_Symbol|Z Separator|Zl Line_Separator
Zp Paragraph_Separator|Zs Space_Separator
"""
_SHORT = {
    name: names.split()[0] for line in _ALIASES.split("\n") for names in line.split("|") for name in names.split()
}
_FIXED = {
    "Any": charset([(0, END)]),
    "ASCII": charset([(0, 0x7F)]),
    "ASCII_Hex_Digit": charset([(0x30, 0x39), (0x41, 0x46), (0x61, 0x66)]),
    "White_Space": charset([(0x85, 0x85), *((low, high) for low, high in SPACE if low != 0xFEFF)]),
}
_FIXED |= {"AHex": _FIXED["ASCII_Hex_Digit"], "space": _FIXED["White_Space"]}


def property_of(text: str) -> CharSet | None:
    """The characters of `Lu`, `Letter`, `gc=Nd`, `General_Category=Nd`, `ASCII`, ...; None for an unknown name.

    Names are exact, as in ECMA-262; of this Python's Unicode version.
    """
    name, equals, value = text.partition("=")
    if equals:
        return _general(value) if name in ("gc", "General_Category") else None
    if name == "Assigned":
        return complement(_categories()["Cn"])
    return _FIXED.get(name) or _general(name)


def _general(name: str) -> CharSet | None:
    if (short := _SHORT.get(name)) is None:
        return None
    wanted = ("Lu", "Ll", "Lt") if short == "LC" else (short,)
    found = [ranges for category, ranges in _categories().items() if category.startswith(wanted)]
    return charset(pair for ranges in found for pair in ranges)


@lru_cache(maxsize=1)
def _categories() -> dict[str, list[tuple[int, int]]]:
    """General category -> its ranges.  0.15 s, once."""
    found: dict[str, list[tuple[int, int]]] = {}
    start, category = 0, unicodedata.category("\0")
    for code in range(1, END + 2):
        now = unicodedata.category(chr(code)) if code <= END else ""
        if now != category:
            found.setdefault(category, []).append((start, code - 1))
            start, category = code, now
    return found
