from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbsgl.engine import grammar
from nbsgl.engine.grammar import TokenVocab, charset
from nbsgl.engine.grammar.regex import parse
from nbsgl.engine.grammar.rust import to_rust
from nbsgl.errors import BadRegex, GrammarTooExpensive
from nbsgl.protocol import GrammarSpec

BYTES = TokenVocab([*(bytes([byte]) for byte in range(256)), None], eos_ids=[256])


def accepts(pattern: str, text: str) -> bool:
    """Whether the compiled pattern takes the text byte by byte and may end there."""
    matcher = grammar.compile(GrammarSpec(kind="regex", text=pattern), BYTES).matcher()
    return all(matcher.advance(byte) for byte in text.encode()) and matcher.is_accepting()


@cache
def everything() -> list[str]:
    return ["".join(map(chr, range(start, start + 0x1000))) for start in range(0, 0x110000, 0x1000)]


@pytest.mark.parametrize(
    "pattern",
    [
        *(r".", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"[^a]", r"[\d_-]", r"[^\W\d]", r"(?s:.)", r"[^\s\S]"),
        *(r"(?i:k)", r"(?i:s)", r"(?i:[a-z])", r"(?i:[^a-z])", r"(?i:ß)", r"(?i:µ)", r"(?i:[İı])", r"(?i:[Α-Ω])"),
        *(
            r"(?i)[\w]",
            r"(?i)[^k]",
            r"(?a:\w)",
            r"(?a:\S)",
            r"(?ai:[k-s])",
            r"(?ai:[^K])",
            r"(?i:[\U00010400-\U00010427])",
        ),
        *(r"(?i:\u01c5)", r"(?i:[\u1e60-\u1ea0])", r"(?i:[^\w])", r"(?i:\U0001f600)", r"[\x00-\U0010ffff]"),
    ],
)
def test_one_character_patterns_match_what_re_matches(pattern: str) -> None:
    flags = re.IGNORECASE if pattern.startswith("(?i)") else 0
    # The look-ahead keeps `finditer` from its search for a first character, which ignores (?a:...).
    runs = re.compile(rf"(?:(?=[\s\S]){pattern.removeprefix('(?i)')})+", flags)
    found = ((ord(run[0][0]), ord(run[0][-1])) for part in everything() for run in runs.finditer(part))
    assert charset.charset(ranges_of(to_rust(parse(pattern)))) == charset.charset(found)


def ranges_of(printed: str) -> list[tuple[int, int]]:
    """Read a printed class back (the test's own reader of `a`, `\\x{61}`, `[a-z]`)."""
    body = re.sub(r"^\(\?:|\)$", "", printed)
    if body == r"[^\x{0}-\x{10FFFF}]":
        return []
    char = r"(?:\\x\{([0-9A-F]+)\}|([0-9a-zA-Z]))"
    found = []
    for match in re.finditer(rf"{char}(?:-{char})?", body):
        low_hex, low, high_hex, high = match.groups()
        first = int(low_hex, 16) if low_hex else ord(low)
        last = int(high_hex, 16) if high_hex else ord(high) if high else first
        found.append((first, last))
    return found


ATOMS = st.one_of(
    st.sampled_from(
        ["a", "b", "é", "日", "🙂", r"\n", r"\d", r"\w", r"\s", ".", r"\.", "/", '"', "-", "#", " ", r"\\"]
    ),
    st.sampled_from(
        ["[ab]", "[^a]", "[a-c]", "[é-日]", r"[\d.]", r"[^\w]", "(?i:a)", "(?i:É)", "(?s:.)", "(?a:\\w)", "[]a]"]
    ),
)
SUFFIX = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?", "{,2}"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: "(?:" + "|".join(parts) + ")"),
        st.tuples(inner, SUFFIX).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ),
    max_leaves=6,
)
TEXTS = st.text(st.sampled_from('aAbcéÉ日🙂\n0٣_ ./"-#\\x\u2028'), max_size=6)


@given(pattern=PATTERNS, texts=st.lists(TEXTS, min_size=1, max_size=8), data=st.data())
@settings(max_examples=150, deadline=None)
def test_language_is_that_of_fullmatch(pattern: str, texts: list[str], data: st.DataObject) -> None:
    compiled = re.compile(pattern)
    texts.append(data.draw(st.from_regex(compiled, fullmatch=True)))
    for text in texts:
        if any(0xD800 <= ord(char) < 0xE000 for char in text):
            continue
        assert accepts(pattern, text) == bool(compiled.fullmatch(text)), (pattern, text)


@given(pattern=PATTERNS, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_random_allowed_tokens_spell_the_language(pattern: str, seed: int) -> None:
    matcher = grammar.compile(GrammarSpec(kind="regex", text=pattern), BYTES).matcher()
    rng, row, out = np.random.default_rng(seed), np.zeros(9, np.uint32), bytearray()
    for step in range(300):
        matcher.fill_mask(row)
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        assert allowed.size
        assert (256 in allowed) == matcher.is_accepting()
        token = 256 if 256 in allowed and step > 20 else int(rng.choice(allowed))
        assert matcher.advance(token)
        if token == 256:
            assert re.fullmatch(pattern, out.decode())
            return
        out.append(token)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^abc$", ["abc"], ["ab", "abcd", "abc\n"]),
        (r"\Aabc\Z", ["abc"], [" abc"]),
        (r"^a|^b$", ["a", "b"], ["ab"]),
        (r"(^a|b)c", ["ac", "bc"], ["c"]),
        (r"a|ab", ["a", "ab"], ["b", "abb"]),
        (r"(?m)^a$", ["a"], ["a\n", "\na"]),
        (r"(?x) a b  # comment", ["ab"], ["a b"]),
        (r"", [""], ["a"]),
        (r"(?:|b)c", ["c", "bc"], ["b"]),
        (r"(?P<year>\d{4})-\d{2}", ["2024-05", "٢٠٢٤-٠٥"], ["2024-5"]),
        (r"(?i:straße)", ["STRAẞE", "Straße"], ["STRASSE"]),
    ],
)
def test_worked_examples(pattern: str, good: list[str], bad: list[str]) -> None:
    assert all(re.fullmatch(pattern, text) for text in good)
    assert all(accepts(pattern, text) for text in good)
    assert not any(accepts(pattern, text) for text in bad)


@pytest.mark.parametrize(
    ("pattern", "position", "word"),
    [
        (r"(a)b\1", 4, "back-reference"),
        (r"(?P<n>a)b(?P=n)", 9, "back-reference"),
        (r"ab(?=c)", 2, "look-around"),
        (r"ab(?!c)", 2, "look-around"),
        (r"(?<=a)b", 0, "look-around"),
        (r"a(?<!a)b", 1, "look-around"),
        (r"[*+]a*+b", 5, "possessive"),
        (r"a(?>b)", 1, "atomic"),
        (r"(a)?(?(1)b|c)", 4, "conditional"),
        (r"a\bb", 1, r"\\b is not supported"),
        (r"a^b", 1, r"\^ can stand only"),
        (r"^a$b", 2, r"\$ can stand only"),
        (r"(a$)+", 2, r"\$ can stand only"),
        (r"a(b", 1, "missing"),
        (r"[b-a]", 1, "bad character range"),
        (r"a**", 2, "multiple repeat"),
        (r"a{1,20000}", 1, "limit is 10,000"),
        ("(" * 200 + ")" * 200, 128, "nested deeper than 128"),
    ],
)
def test_refused_by_name_and_position(pattern: str, position: int, word: str) -> None:
    with pytest.raises(BadRegex, match=word) as caught:
        grammar.check(GrammarSpec(kind="regex", text=pattern))
    assert caught.value.path == f"position {position}"
    assert caught.value.pos == position
    assert isinstance(caught.value, re.error)


def test_pattern_size_is_limited() -> None:
    with pytest.raises(BadRegex, match="16,385 bytes"):
        grammar.check(GrammarSpec(kind="regex", text="a" * 16_385))


@pytest.mark.parametrize(
    "pattern", [r"((a{1,999}){1,999}){1,999}", r"(a{1,1000}){1,1000}", r"(((a{0,99}){0,99}){0,99}b){9}"]
)
def test_multiplied_repeats_are_too_expensive(pattern: str) -> None:
    with pytest.raises(GrammarTooExpensive, match="100,000 states"):
        grammar.check(GrammarSpec(kind="regex", text=pattern))


@pytest.mark.parametrize("pattern", [r"[^\s\S]", r"a[^\w\W]b", r"(?:[^\s\S]|[^\d\D])+"])
def test_an_empty_language_is_refused(pattern: str) -> None:
    with pytest.raises(BadRegex, match="no output can satisfy"):
        grammar.compile(GrammarSpec(kind="regex", text=pattern), BYTES)


def test_repeat_printing_is_linear_in_the_pattern() -> None:
    assert len(to_rust(parse(r"[^\n]{0,10000}"))) < 100


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=6))
def test_charset_laws(pairs: list[tuple[int, int]]) -> None:
    chars = charset.charset((min(pair), max(pair)) for pair in pairs)
    assert charset.complement(charset.complement(chars)) == chars
    assert charset.charset(chars) == chars
    assert all(a[1] + 1 < b[0] for a, b in zip(chars, chars[1:]))
    assert {code for code in range(310) if charset.contains(chars, code)} == {
        code for low, high in pairs for code in range(min(low, high), max(low, high) + 1)
    }
