r"""EBNF in the GBNF dialect: `root ::= "a" (digit | [x-z])+ # so`, as a tree if no rule refers to itself, else as Lark.

Names have letters, digits, `-`, `_` and `.`; a rule goes on until the next `name ::=`, over lines too.  Terminals are
strings and classes with the escapes `\n \r \t \xHH \uHHHH \UHHHHHHHH` and those of their own marks, and `.`, which is
any character.  Repeats are `* + ? {m} {m,} {m,n}`.  The source is `text` of a spec of kind "ebnf".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache

from nbsgl.engine.grammar.charset import END, CharSet, charset, complement
from nbsgl.engine.grammar.rust import to_rust
from nbsgl.engine.grammar.syntax import (
    ANY_CHAR,
    NOTHING,
    Chars,
    NotRegular,
    Syntax,
    character,
    concat,
    either,
    repeat,
)
from nbsgl.errors import BadGrammar

MAX_BYTES = 256 << 10
MAX_NESTING = 128
MAX_REPEAT = 10_000
MAX_CHARS = 50_000  # of a tree with every rule written out
MAX_CHAIN = 100  # rules inside of rules, in a tree

_TOKEN = re.compile(
    r"""(?P<space>(?:\s|\#[^\n]*)+)
      | (?P<define>::=)
      | (?P<name>[A-Za-z_][A-Za-z0-9_.-]*)
      | (?P<string>"(?:\\.|[^"\\\n])*")
      | (?P<class>\[(?:\\.|[^\]\\])*\])
      | (?P<count>\{\s*\d+\s*(?:,\s*\d*\s*)?\})
      | (?P<mark>[()|*+?.])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.DOTALL)
_SPELT = {"n": "\n", "r": "\r", "t": "\t"}
_OWN = frozenset("\\\"'[]-^/")
_COUNTS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Row:
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Options:
    options: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Times:
    inner: Part
    low: int
    high: int | None


Part = Chars | Rule | Row | Options | Times


def tree_of_ebnf(text: str) -> Syntax | NotRegular:
    """The tree of the grammar; `BadGrammar` names what is wrong, and the line."""
    rules = parse(text)
    if (name := _in_a_circle(rules)) is not None:
        return NotRegular(f"the rule {name!r} refers to itself")
    if _size(rules) > MAX_CHARS:
        return NotRegular(f"more than {MAX_CHARS:,} characters with every rule written out")
    made: dict[str, Syntax] = {}

    def tree(part: Part) -> Syntax:
        match part:
            case Rule(name):
                if name not in made:
                    made[name] = tree(rules[name])
                return made[name]
            case Row(parts):
                return concat(map(tree, parts))
            case Options(options):
                return either(map(tree, options))
            case Times(inner, low, high):
                return repeat(tree(inner), low, high)
            case Chars():
                return part

    found = tree(Rule("root"))
    if found == NOTHING:
        raise _bad("root", "no output can satisfy it")
    return found


def lark_of_ebnf(text: str, name: str = "start") -> list[str]:
    """The grammar as lines of Lark for llguidance whose first rule is `name`; other names begin with it.

    Every terminal is one character of a class, and no two classes share one: so there is nothing for a lexer to decide.
    Rules from which no text comes are left out, so that no text leads into them.
    """
    return _Printer(parse(text), name).lines()


# ---- reading ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def parse(text: str) -> dict[str, Part]:
    """The rules by name, with "root" among them, and none that is referred to missing."""
    check_size(text)
    return _Reader(text).rules()


def check_size(text: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise _bad("the grammar", f"{size:,} bytes, the limit is {MAX_BYTES:,}")


def _bad(path: str, reason: str) -> BadGrammar:
    return BadGrammar(kind="ebnf", path=path, reason=reason)


@dataclass(slots=True)
class _Reader:
    text: str
    tokens: list[tuple[str, str, int]] = field(default_factory=list)  # kind, text, where
    at: int = 0
    depth: int = 0
    referred: dict[str, int] = field(default_factory=dict)  # rule -> where

    def rules(self) -> dict[str, Part]:
        self._read_tokens()
        found: dict[str, Part] = {}
        while self.at < len(self.tokens):
            kind, name, where = self.tokens[self.at]
            if not self._begins_rule():
                raise self.wrong(where, f"expected `name ::=`, found {name!r}")
            if name in found:
                raise self.wrong(where, f"the rule {name!r} is there twice")
            self.at += 2
            found[name] = self.options()
        if "root" not in found:
            raise _bad("the grammar", "it has no rule `root ::= ...`")
        for name, where in self.referred.items():
            if name not in found:
                raise self.wrong(where, f"there is no rule {name!r}")
        return found

    def _read_tokens(self) -> None:
        at = 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                raise self.wrong(at, f"{self.text[at : at + 12]!r} is no part of a grammar")
            if match.lastgroup != "space":
                self.tokens.append((str(match.lastgroup), match[0], at))
            at = match.end()

    def wrong(self, where: int, reason: str) -> BadGrammar:
        line = self.text.count("\n", 0, where) + 1
        return _bad(f"line {line}", reason)

    def _kind(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][0] if self.at + ahead < len(self.tokens) else ""

    def _begins_rule(self) -> bool:
        return self._kind() == "name" and self._kind(1) == "define"

    def _is_mark(self, mark: str) -> bool:
        return self._kind() == "mark" and self.tokens[self.at][1] == mark

    def options(self) -> Part:
        found = [self.row()]
        while self._is_mark("|"):
            self.at += 1
            found.append(self.row())
        return found[0] if len(found) == 1 else Options(tuple(found))

    def row(self) -> Part:
        parts: list[Part] = []
        while self._kind() in ("name", "string", "class") or self._is_mark("(") or self._is_mark("."):
            if self._begins_rule():
                break
            parts.append(self.repeated())
        kind = self._kind()
        if kind in ("count", "define") or (kind == "mark" and self.tokens[self.at][1] in "*+?"):
            _, text, where = self.tokens[self.at]
            raise self.wrong(where, f"{text!r} has nothing before it")
        return parts[0] if len(parts) == 1 else Row(tuple(parts))

    def repeated(self) -> Part:
        part = self.single()
        while self._kind() == "count" or (self._kind() == "mark" and self.tokens[self.at][1] in "*+?"):
            _, text, where = self.tokens[self.at]
            self.at += 1
            low, high = _COUNTS[text] if text in _COUNTS else _counts(text)
            if max(low, high or 0) > MAX_REPEAT:
                raise self.wrong(where, f"{text}: at most {MAX_REPEAT:,} times")
            if high is not None and low > high:
                raise self.wrong(where, f"{text}: the least is more than the most")
            part = Times(part, low, high)
        return part

    def single(self) -> Part:
        kind, text, where = self.tokens[self.at]
        self.at += 1
        if kind == "name":
            self.referred.setdefault(text, where)
            return Rule(text)
        if kind == "string":
            chars = [character(chr(code)) for code, _ in self._codes(text[1:-1], where)]
            return chars[0] if len(chars) == 1 else Row(tuple(chars))
        if kind == "class":
            return Chars(self._class(text[1:-1], where))
        if text == ".":
            return ANY_CHAR
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise self.wrong(where, f"nested deeper than {MAX_NESTING}")
        inner = self.options()
        if not self._is_mark(")"):
            raise self.wrong(where, "a parenthesis that is not closed")
        self.at += 1
        self.depth -= 1
        return inner

    def _codes(self, text: str, where: int) -> Iterator[tuple[int, bool]]:
        """Code points, and whether they were written by an escape."""
        for two, four, eight, escaped, plain in _ESCAPE.findall(text):
            digits = two or four or eight
            code = int(digits, 16) if digits else ord(_SPELT.get(escaped, escaped) or plain)
            if escaped and escaped not in _SPELT and escaped not in _OWN:
                raise self.wrong(where, f"the escape \\{escaped} means nothing")
            if code > END or 0xD800 <= code <= 0xDFFF:
                raise self.wrong(where, f"U+{code:X} is no character")
            yield code, bool(digits or escaped)

    def _class(self, text: str, where: int) -> CharSet:
        negated = text.startswith("^")
        codes = list(self._codes(text[negated:], where))
        ranges, at = [], 0
        while at < len(codes):
            low = high = codes[at][0]
            if at + 2 < len(codes) and codes[at + 1] == (ord("-"), False):
                high, at = codes[at + 2][0], at + 2
            if high < low:
                raise self.wrong(where, f"[{text}]: a range that runs backwards")
            ranges.append((low, high))
            at += 1
        found = charset(ranges)
        return complement(found) if negated else found


def _counts(text: str) -> tuple[int, int | None]:
    low, comma, high = text[1:-1].replace(" ", "").partition(",")
    return int(low), (int(high) if high else None) if comma else int(low)


# ---- rules -----------------------------------------------------------------------------------------------------------


def _inside(part: Part) -> Iterator[Part]:
    """The part and all parts in it."""
    waiting = [part]
    while waiting:
        part = waiting.pop()
        yield part
        match part:
            case Row(parts) | Options(parts):
                waiting += parts
            case Times(inner, _, _):
                waiting.append(inner)


def _reached(rules: dict[str, Part]) -> dict[str, set[str]]:
    """The rules that root leads to, and those that each refers to."""
    found: dict[str, set[str]] = {}
    waiting = ["root"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = {part.name for part in _inside(rules[name]) if isinstance(part, Rule)}
            waiting += found[name]
    return found


def _in_a_circle(rules: dict[str, Part]) -> str | None:
    """A rule that leads to itself; or one in a chain so long that it is treated like one."""
    left = _reached(rules)
    for _ in range(MAX_CHAIN):
        leaves = {name for name, referred in left.items() if not referred}
        if not leaves:
            break
        left = {name: referred - leaves for name, referred in left.items() if name not in leaves}
    name, seen = next(iter(left), None), set()
    while name is not None and name not in seen:  # from there on, a circle is not far
        seen.add(name)
        name = min(left[name])
    return name


def _size(rules: dict[str, Part]) -> int:
    """Characters of the tree with every rule written out and every count multiplied."""

    @cache
    def of_rule(name: str) -> int:
        return min(size(rules[name]), MAX_CHARS + 1)

    def size(part: Part) -> int:
        match part:
            case Rule(name):
                return of_rule(name)
            case Row(parts) | Options(parts):
                return sum(map(size, parts))
            case Times(inner, low, high):
                return size(inner) * max(low, high or 1, 1)
            case Chars():
                return 1

    return of_rule("root")


def _fruitful(rules: dict[str, Part]) -> set[str]:
    """The rules from which a text comes."""
    found: set[str] = set()

    def gives(part: Part) -> bool:
        match part:
            case Rule(name):
                return name in found
            case Row(parts):
                return all(map(gives, parts))
            case Options(options):
                return any(map(gives, options))
            case Times(inner, low, _):
                return low == 0 or gives(inner)
            case Chars(chars):
                return bool(chars)

    before = -1
    while before < len(found):
        before = len(found)
        found |= {name for name, part in rules.items() if name not in found and gives(part)}
    return found


# ---- Lark ------------------------------------------------------------------------------------------------------------


_EMPTY = '""'


class _Printer:
    def __init__(self, rules: dict[str, Part], name: str) -> None:
        fruitful = _fruitful(rules)
        if "root" not in fruitful:
            raise _bad("root", "no output can satisfy it")
        self.name, self.fruitful = name, fruitful
        self.rules = {rule: rules[rule] for rule in _reached(rules) if rule in fruitful}
        self.names = {rule: f"{name}_r{place}" for place, rule in enumerate(self.rules)}
        sets = {part.chars for body in self.rules.values() for part in _inside(body) if isinstance(part, Chars)}
        self.atoms = atoms_of(sets)
        self.classes = {chars: f"{name}_c{place}" for place, chars in enumerate(sorted(filter(None, sets)))}

    def lines(self) -> list[str]:
        upper = self.name.upper()
        found = [f"{self.name}: {self.names['root']}"]
        for rule, body in self.rules.items():
            found.append(f"{self.names[rule]}: {self.body(body)}")
        for chars, name in self.classes.items():
            members = [f"{upper}_A{place}" for place, atom in enumerate(self.atoms) if _is_inside(atom, chars)]
            found.append(f"{name}: {' | '.join(members)}")
        found += [f"{upper}_A{place}: /{to_rust(Chars(atom))}/" for place, atom in enumerate(self.atoms)]
        return found

    def body(self, part: Part) -> str:
        return self.print(part) or _EMPTY

    def print(self, part: Part) -> str | None:
        """None for a part from which no text comes; "" for the empty text."""
        match part:
            case Rule(name):
                return self.names.get(name)
            case Chars(chars):
                return self.classes.get(chars)
            case Row(parts):
                printed = [self.print(one) for one in parts]
                return None if None in printed else " ".join(one for one in printed if one)
            case Options(options):
                kept = list(dict.fromkeys(text for text in map(self.print, options) if text is not None))
                return f"({' | '.join(text or _EMPTY for text in kept)})" if kept else None
            case Times(inner, low, high):
                once = self.print(inner)
                if not once or high == 0:
                    return "" if low == 0 or once == "" else None
                return f"({once}){_printed_count(low, high)}"


def _printed_count(low: int, high: int | None) -> str:
    if high is None:
        return "*" if low == 0 else "+" if low == 1 else f"{{{low},}}"
    return "?" if (low, high) == (0, 1) else f"{{{low},{high}}}"


def atoms_of(sets: Iterable[CharSet]) -> list[CharSet]:
    """The coarsest classes, no two of which share a character, of which each of the sets is made."""
    ordered = sorted(set(sets))
    cuts: dict[int, set[int]] = {}  # code point -> sets that begin or end there
    for place, chars in enumerate(ordered):
        for low, high in chars:
            cuts.setdefault(low, set()).symmetric_difference_update({place})
            cuts.setdefault(high + 1, set()).symmetric_difference_update({place})
    by_members: dict[frozenset[int], list[tuple[int, int]]] = {}
    members: frozenset[int] = frozenset()
    points = sorted(cuts)
    for low, following in zip(points, points[1:], strict=False):
        members ^= cuts[low]
        if members:
            by_members.setdefault(members, []).append((low, following - 1))
    return sorted(charset(ranges) for ranges in by_members.values())


def _is_inside(atom: CharSet, chars: CharSet) -> bool:
    low, high = atom[0]
    return any(begin <= low and high <= end for begin, end in chars)
