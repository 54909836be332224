r"""Sets of characters and literals as short labels: `[0-9]`, `[^"\\]`, `\w`, `{"name": "`."""

from __future__ import annotations

from functools import lru_cache

from nbsgl.engine.grammar.charset import DIGIT, EMPTY, SPACE, WORD, CharSet, category, charset, complement

MAX_LITERAL = 40  # bytes of a literal that is shown whole
MAX_CLASS = 32  # characters of a class's label
_NAMES = ((WORD, r"\w"), (DIGIT, r"\d"), (SPACE, r"\s"))
_SHORTS = {short for _, short in _NAMES}
_SHORT = {0x09: r"\t", 0x0A: r"\n", 0x0D: r"\r"}
_MANY = 8  # ranges from which a class may be one of Unicode's: looking those up costs 0.1 s, once
_LINE_END = charset([(0x0A, 0x0A)])


def literal_label(text: str) -> str:
    """The text, its middle left out from 40 bytes on."""
    if len(text.encode()) < MAX_LITERAL:
        return text
    return f"{text[:24]}...{text[-10:]}"


@lru_cache(maxsize=1024)
def class_label(chars: CharSet) -> str:
    """A regex for the set: a name it has, or the shorter of its ranges and what they leave out."""
    rest = complement(chars)
    if rest in (EMPTY, _LINE_END):
        return "." if rest else r"[\s\S]"
    if len(chars) == 1 and chars[0][0] == chars[0][1]:
        return ranges_text(chars)
    inside, outside = _named(chars), _named(rest)
    if inside in _SHORTS:
        return inside
    if outside in _SHORTS:
        return outside.upper()
    return f"[{_cut(inside)}]" if len(inside) <= len(outside) + 1 else f"[^{_cut(outside)}]"


def _named(chars: CharSet) -> str:
    """The ranges, with a class of Unicode's that is among them by its name."""
    if len(chars) >= _MANY:
        for name, short in _NAMES:
            found = category(name)
            if charset([*chars, *found]) == chars:
                return short + ranges_text(complement(charset([*complement(chars), *found])))
    return ranges_text(chars)


def ranges_text(chars: CharSet) -> str:
    """What stands between the brackets of a class."""
    parts = []
    for low, high in chars:
        parts.append(_char(low) if low == high else f"{_char(low)}{'-' if high > low + 1 else ''}{_char(high)}")
    return "".join(parts)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CLASS else f"{text[: MAX_CLASS - 1]}…"


def _char(code: int) -> str:
    char = chr(code)
    if code in _SHORT:
        return _SHORT[code]
    if char in r"\]^-":
        return f"\\{char}"
    if char.isprintable():
        return char
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
