r"""ECMA-262 patterns (flag u) as syntax trees: what `pattern` and `patternProperties` of a JSON schema hold.

A pattern is searched for, so open ends take any text.  Anchors and look-aheads speak about the whole rest of the text;
a pattern with them is first written as a choice of flat sequences, in which each stands at a place of its own.  What is
not regular (back-references) or speaks about what came before (look-behind, `\b`) is refused by name and position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import product

from nbsgl.engine.grammar import charset as cs
from nbsgl.engine.grammar.properties import SPACE, property_of
from nbsgl.engine.grammar.regex import MAX_NESTING, MAX_REPEAT, bad, too_deep
from nbsgl.engine.grammar.syntax import (
    ANY_TEXT,
    EMPTY_TEXT,
    NOTHING,
    Chars,
    Syntax,
    both,
    character,
    concat,
    either,
    is_nullable,
    negate,
    repeat,
)
from nbsgl.errors import BadRegex

MAX_SEQUENCES = 64

_LINE_ENDS = cs.charset([(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)])
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_CLASSES = {"d": cs.category(cs.DIGIT, True), "w": cs.category(cs.WORD, True), "s": SPACE}
_CLASSES |= {name.upper(): cs.complement(chars) for name, chars in _CLASSES.items()}
_HEX = frozenset("0123456789abcdefABCDEF")


class Anchor(Enum):
    START = "^"
    END = "$"


@dataclass(frozen=True)
class Ahead:
    """A look-ahead: one of the sequences begins the rest of the text; or, negated, none does."""

    sequences: tuple[Items, ...]
    is_negated: bool


@dataclass(frozen=True)
class Choice:
    """Alternatives with anchors or look-aheads in them."""

    options: tuple[Items, ...]


Item = Syntax | Anchor | Ahead | Choice
Items = tuple[Item, ...]


def search(pattern: str) -> Syntax:
    """The texts in which the pattern is found; raises `BadRegex`."""
    parser = _Parser(pattern)
    options = parser.whole()
    return either([_whole_text((ANY_TEXT, *flat, ANY_TEXT)) for flat in parser.flattened(options)])


def _whole_text(items: Items) -> Syntax:
    """The texts that a flat sequence is, from their start to their end."""
    if Anchor.START in items:
        last = len(items) - 1 - items[::-1].index(Anchor.START)
        if not all(_may_be_empty(item) for item in items[:last]):
            return NOTHING
        before = [item for item in items[:last] if item is Anchor.END or isinstance(item, Ahead)]
        items = (*before, *items[last + 1 :])
    if Anchor.END in items:
        first = items.index(Anchor.END)
        if not all(_may_be_empty(item) for item in items[first:]):
            return NOTHING
        items = (*items[:first], *[item for item in items[first:] if isinstance(item, Ahead)])
    rest: Syntax = EMPTY_TEXT
    for item in reversed(items):
        if isinstance(item, Ahead):
            seen = either([_whole_text((*flat, ANY_TEXT)) for flat in item.sequences])
            rest = both([rest, negate(seen) if item.is_negated else seen])
        else:
            rest = concat([item, rest])
    return rest


def _may_be_empty(item: Item) -> bool:
    return not isinstance(item, Syntax) or is_nullable(item)


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.place = 0
        self.depth = 0

    # ---- reading -----------------------------------------------------------------------------------------------------

    def peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.place)

    def take(self, text: str) -> bool:
        found = self.peek(text)
        self.place += len(text) * found
        return found

    def next(self) -> str:
        self.place += 1
        return self.pattern[self.place - 1]

    def run(self, allowed: Callable[[str], bool]) -> str:
        start = self.place
        while self.place < len(self.pattern) and allowed(self.pattern[self.place]):
            self.place += 1
        return self.pattern[start : self.place]

    def bad(self, reason: str, place: int | None = None) -> BadRegex:
        return bad(self.pattern, self.place if place is None else place, reason)

    # ---- alternatives, sequences -------------------------------------------------------------------------------------

    def whole(self) -> tuple[Items, ...]:
        found = self.options()
        if self.place < len(self.pattern):
            raise self.bad("unbalanced parenthesis")
        return found

    def options(self) -> tuple[Items, ...]:
        found = [self.sequence()]
        while self.take("|"):
            found.append(self.sequence())
        return tuple(found)

    def sequence(self) -> Items:
        items: list[Item] = []
        while self.place < len(self.pattern) and self.pattern[self.place] not in "|)":
            start = self.place
            items.append(self.repeated(self.item(), start))
        return tuple(items)

    def item(self) -> Item:
        char = self.pattern[self.place]
        if char == "(":
            return self.group()
        if char == "[":
            return Chars(self.char_class())
        if char == "\\":
            return Chars(self.escape())
        if char in "*+?" or (char == "{" and self.counts() is not None):
            raise self.bad("nothing to repeat")
        self.place += 1
        if char in "^$":
            return Anchor(char)
        return Chars(cs.complement(_LINE_ENDS)) if char == "." else character(char)

    def group(self) -> Item:
        start = self.place
        self.place += 1
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise too_deep(self.pattern, start)
        ahead = self.opening(start)
        options = self.options()
        if not self.take(")"):
            raise self.bad("missing ), unterminated subpattern", start)
        self.depth -= 1
        if ahead is not None:
            flat = self.flattened(options, start)
            if any(Anchor.START in items for items in flat):
                raise self.bad("^ inside a look-ahead is not supported", start)
            return Ahead(tuple(flat), ahead == "(?!")
        if all(isinstance(item, Syntax) for items in options for item in items):
            return either([concat(items) for items in options])
        return Choice(options)

    def opening(self, start: int) -> str | None:
        """Read what follows a parenthesis; which look-ahead it opens, if one."""
        for ahead in ("(?=", "(?!"):
            if self.take(ahead[1:]):
                return ahead
        if self.peek("?<=") or self.peek("?<!"):
            raise self.bad("look-behind is not supported", start)
        if self.take("?<"):
            name = self.run(lambda char: char != ">")
            if not name.replace("$", "_").isidentifier() or not self.take(">"):
                raise self.bad("bad group name", start)
        elif self.peek("?") and not self.take("?:"):
            raise self.bad("an unknown kind of group", start)
        return None

    # ---- repeats -----------------------------------------------------------------------------------------------------

    def repeated(self, item: Item, start: int) -> Item:
        place = self.place
        if (counts := self.counts()) is None:
            return item
        low, high, self.place = counts
        self.take("?")
        if self.place < len(self.pattern) and (self.pattern[self.place] in "*+?" or self.counts() is not None):
            raise self.bad("multiple repeat")
        if high is not None and low > high:
            raise self.bad("min repeat greater than max repeat", place)
        if max(low, high or 0) > MAX_REPEAT:
            raise self.bad(f"a repeat of {max(low, high or 0):,}, the limit is {MAX_REPEAT:,}", place)
        if isinstance(item, Syntax):
            return repeat(item, low, high)
        if isinstance(item, Anchor | Ahead):
            raise self.bad("nothing to repeat", place)
        if (low, high) == (1, 1):
            return item
        if (low, high) == (0, 1):
            return Choice((*item.options, ()))
        raise self.bad("an anchor or a look-ahead inside a repeat is not supported", start)

    def counts(self) -> tuple[int, int | None, int] | None:
        """(low, high, the place behind) if a quantifier stands here.  A brace that is none is a character."""
        place = self.place
        char = self.pattern[place : place + 1]
        if char and char in "*+?":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char] + (place + 1,)
        if char != "{" or (end := self.pattern.find("}", place)) < 0:
            return None
        low, comma, high = self.pattern[place + 1 : end].partition(",")
        if not _is_number(low) or (high and not _is_number(high)):
            return None
        least = _number(low)
        return least, least if not comma else _number(high) if high else None, end + 1

    # ---- anchors out of alternatives ---------------------------------------------------------------------------------

    def flattened(self, options: tuple[Items, ...], start: int | None = None) -> list[Items]:
        """Sequences without choices that have anchors in them, each choice multiplied out."""
        found: list[Items] = []
        for items in options:
            ways = [self.flattened(item.options, start) if isinstance(item, Choice) else [(item,)] for item in items]
            for way in product(*ways):
                found.append(tuple(item for part in way for item in part))
                if len(found) > MAX_SEQUENCES:
                    raise bad(self.pattern, start, f"more than {MAX_SEQUENCES} combinations of anchors in alternatives")
        return found

    # ---- characters --------------------------------------------------------------------------------------------------

    def char_class(self) -> cs.CharSet:
        start = self.place
        self.place += 1
        is_negated = self.take("^")
        ranges: list[tuple[int, int]] = []
        while not self.take("]"):
            if self.place >= len(self.pattern):
                raise self.bad("unterminated character set", start)
            place = self.place
            low = self.member()
            if self.peek("-") and not self.peek("-]") and self.place + 1 < len(self.pattern):
                self.place += 1
                high = self.member()
                if isinstance(low, int) and isinstance(high, int):
                    if low > high:
                        raise self.bad(f"bad character range {self.pattern[place : self.place]}", place)
                    ranges.append((low, high))
                    continue
                ranges += [(0x2D, 0x2D), *_ranges(high)]
            ranges += _ranges(low)
        found = cs.charset(ranges)
        return cs.complement(found) if is_negated else found

    def member(self) -> int | cs.CharSet:
        if not self.peek("\\"):
            return ord(self.next())
        if self.take("\\b"):
            return 8
        if self.take("\\-"):
            return 0x2D
        return self.escaped()

    def escape(self) -> cs.CharSet:
        found = self.escaped()
        return cs.charset([(found, found)]) if isinstance(found, int) else found

    def escaped(self) -> int | cs.CharSet:
        """A code point, or a class; a backslash stands here."""
        start = self.place
        self.place += 1
        if self.place >= len(self.pattern):
            raise self.bad("bad escape (end of pattern)", start)
        char = self.next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char in "pP":
            found = self.property(start)
            return cs.complement(found) if char == "P" else found
        if char == "c" and self.take_letter():
            return ord(self.pattern[self.place - 1]) % 32
        if char == "x":
            return self.hexadecimal(2, start)
        if char == "u":
            return self.unicode(start)
        if char == "0" and not self.pattern[self.place : self.place + 1].isdigit():
            return 0
        if char.isascii() and char.isdigit() or char == "k":
            raise self.bad("a back-reference is not supported", start)
        if char in "bB":
            raise self.bad(f"\\{char} is not supported", start)
        if char.isalpha():
            raise self.bad(f"bad escape \\{char}", start)
        return ord(char)

    def take_letter(self) -> bool:
        char = self.pattern[self.place : self.place + 1]
        self.place += (found := char.isascii() and char.isalpha())
        return found

    def hexadecimal(self, size: int, start: int) -> int:
        digits = self.pattern[self.place : self.place + size]
        if len(digits) < size or not _HEX.issuperset(digits):
            raise self.bad(f"incomplete escape {self.pattern[start : self.place + size]}", start)
        self.place += size
        return int(digits, 16)

    def unicode(self, start: int) -> int:
        if self.take("{"):
            digits = self.run(_HEX.__contains__)
            if not digits or not self.take("}") or int(digits[-16:], 16) > cs.END:
                raise self.bad(f"bad escape {self.pattern[start : self.place]}", start)
            return int(digits, 16)
        code = self.hexadecimal(4, start)
        # Two escapes of surrogates spell one character.
        if 0xD800 <= code < 0xDC00 and self.peek("\\u"):
            behind = self.place
            self.place += 2
            if not self.peek("{") and 0xDC00 <= (low := self.hexadecimal(4, behind)) < 0xE000:
                return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
            self.place = behind
        return code

    def property(self, start: int) -> cs.CharSet:
        end = self.pattern.find("}", self.place)
        if not self.take("{") or end < 0:
            raise self.bad("bad escape: a property's name stands in braces", start)
        text, self.place = self.pattern[self.place : end], end + 1
        if (found := property_of(text)) is None:
            raise self.bad(f"the property {text!r} is not supported (general categories are, and ASCII, Any)", start)
        return found


def _ranges(member: int | cs.CharSet) -> list[tuple[int, int]]:
    return [(member, member)] if isinstance(member, int) else list(member)


def _number(text: str) -> int:
    return int(text.lstrip("0")[:9] or "0")  # past every limit from there on


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
