"""Text to tokens and back, for one tokenizer: special tokens count where the caller says so and nowhere else."""

from __future__ import annotations

import copy
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from tokenizers import Encoding, Tokenizer

from nbsgl.engine.detokenizer import Detokenizer
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.engine.text_prefixes import LEAST_CHARS, TextPrefixes, sharing_of
from nbsgl.engine.tokenizer_files import AddedToken, TokenizerFiles, parts
from nbsgl.errors import BadConfig, RequestError

MEMO_CHARS = 8 << 20  # text whose encoding is remembered; ids take about as much again
MEMO_ENTRY_CHARS = 64  # what an entry takes beside its text

APOSTROPHES = ("'", "\u2019")

_SPELT_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")

Piece = tuple[str, bool]
"""(text, parse_special): special tokens written in the text count only with parse_special."""


class TextCodec:
    """A tokenizer as the engine uses it.  Encoding is thread-safe; nothing here changes after `load` but the memo."""

    def __init__(self, files: TokenizerFiles) -> None:
        self.files = files
        self.vocab = TokenVocab.of_files(files)
        self.eos_ids = self.vocab.eos_ids
        self.bos_id = files.bos_id
        self.start_ids = files.start_ids
        self.special_ids = frozenset({token.id for token in files.added if token.special} | set(self.eos_ids))
        self._splitter = _Splitter(files.added)
        # Text that is only characters may not become one of these, by whatever road.  Runs of white space may: they
        # are ordinary pieces that some tokenizers list as added ones too.  Nor does "unknown" control anything.
        self._guarded = frozenset(t.id for t in files.added if t.special or t.text.strip()) - {files.unk_id}
        model = files.tokenizer.get("model") or {}
        self._knows_spelt_bytes = model.get("type") == "Unigram" and bool(model.get("byte_fallback"))
        bare = _without_added(files.tokenizer)
        self._plain = _tokenizer(files, bare)
        self._prepends, self._prepends_always = _prepend_of(bare)
        self._continued = _tokenizer(files, _without_prepend(bare)) if self._prepends else self._plain
        self._memo: OrderedDict[tuple[str, bool], list[int]] = OrderedDict()
        self._memo_chars = 0
        self._may_share = sharing_of(files.tokenizer)
        self._prefixes = {prepend: TextPrefixes(MEMO_CHARS) for prepend in (False, True)}
        self._lock = Lock()

    @classmethod
    def load(cls, folder: Path | str) -> TextCodec:
        """Read a model folder's tokenizer.  `ModelNotFound` without a `tokenizer.json`, `BadConfig` for a bad one."""
        return cls(TokenizerFiles.load(Path(folder)))

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    # ---- text -> tokens ----------------------------------------------------------------------------------------------

    def encode_run(self, pieces: Sequence[Piece], *, is_first: bool, lead: bytes = b"") -> list[int]:
        """Encode one open run as one string: where a program cut its text changes no token.

        Special tokens count in pieces with `parse_special`; all text between two of them is one stretch.  `is_first`:
        the run starts the sequence, so it gets what the tokenizer puts before a text (not twice if it is written
        there); else it is a continuation, with nothing in front.  `lead` are bytes that a stop string left over of the
        token before: characters go in front of the run's text, other bytes become byte tokens.  A lone surrogate is a
        `RequestError` with its offset in the run.
        """
        _refuse_surrogates(pieces)
        ids, text = self._lead(lead)
        merged = _merge([(text, False), *pieces])
        prepend = is_first and not lead
        for part in self._parts(merged):
            if isinstance(part, int):
                ids.append(part)
                prepend = self._prepends_always
            else:
                ids += self._stretch(part, prepend=prepend)
                prepend = False
        if is_first and tuple(ids[: len(self.start_ids)]) != self.start_ids:
            ids = [*self.start_ids, *ids]
        return ids

    def encode(self, text: str) -> list[int]:
        """Plain characters in the middle of a sequence."""
        return self.encode_run([(text, False)], is_first=False)

    def _parts(self, pieces: Iterable[Piece]) -> Iterator[int | str]:
        """Special tokens as ids, and the maximal stretches of ordinary text between them."""
        open_text: list[str] = []
        for text, parse_special in pieces:
            for part in self._splitter.split(text) if parse_special else (text,):
                if isinstance(part, str):
                    open_text.append(part)
                    continue
                if stretch := "".join(open_text):
                    yield stretch
                open_text.clear()
                yield part
        if stretch := "".join(open_text):
            yield stretch

    def _stretch(self, text: str, *, prepend: bool) -> list[int]:
        key = (text, prepend)
        with self._lock:
            if (known := self._memo.get(key)) is not None:
                self._memo.move_to_end(key)
                return known
        if self._may_share is not None and len(text) >= LEAST_CHARS and self._may_share(text):
            return self._encode_shared(self._prefixes[prepend and self._prepends], text, prepend)
        ids = self._encode_plain(text, prepend)
        with self._lock:
            if key not in self._memo and len(text) <= MEMO_CHARS:
                self._memo[key] = ids
                self._memo_chars += len(text) + MEMO_ENTRY_CHARS
            while self._memo_chars > MEMO_CHARS:
                (old, _), _ = self._memo.popitem(last=False)
                self._memo_chars -= len(old) + MEMO_ENTRY_CHARS
        return ids

    def _encode_shared(self, prefixes: TextPrefixes, text: str, prepend: bool) -> list[int]:
        """The same tokens; what a text before it began with is not encoded again."""
        with self._lock:
            ids, chars = prefixes.find(text)
        if 2 * chars >= len(text):
            return ids + self._encode_plain(text[chars:], False)
        encoding = self._encoding(text, prepend)
        if not self._is_clean(encoding.ids, text):
            return self._encode_plain(text, prepend)
        ids, words, offsets = encoding.ids, encoding.word_ids, encoding.offsets
        with self._lock:
            prefixes.add(text, ids, words, offsets)
        return ids

    def _encoding(self, text: str, prepend: bool) -> Encoding:
        return (self._plain if prepend else self._continued).encode(text, add_special_tokens=False)

    def _is_clean(self, ids: Sequence[int], text: str) -> bool:
        """No marker has come about from plain characters."""
        return self._guarded.isdisjoint(ids) and not (self._knows_spelt_bytes and _SPELT_BYTE.search(text))

    def _encode_plain(self, text: str, prepend: bool) -> list[int]:
        encoding = self._encoding(text, prepend)
        ids = encoding.ids
        if self._is_clean(ids, text):
            return ids
        # The model's own vocabulary has a marker as a piece (SentencePiece's control and byte symbols): cut it in two.
        spans = (
            (start, end)
            for token, (start, end) in zip(ids, encoding.offsets)
            if self._is_marker(token, text[start:end])
        )
        start, end = next(spans, (0, 0))
        if not end:
            return ids
        cut = min(start + 1, len(text) - 1)
        if end - start < 2 or cut < 1:
            return self._spell(text)
        return self._encode_plain(text[:cut], prepend) + self._encode_plain(text[cut:], False)

    def _is_marker(self, token: int, text: str) -> bool:
        return token in self._guarded or bool(self._knows_spelt_bytes and _SPELT_BYTE.fullmatch(text.strip()))

    def _lead(self, lead: bytes) -> tuple[list[int], str]:
        """Tokens for the bytes up to the last one that is part of no character, and the text after it."""
        cut = next(i for i in range(len(lead) + 1) if _is_text(lead[i:]))
        data, text = lead[:cut], lead[cut:].decode()
        ids: list[int] = []
        while data:
            try:
                ids += self._stretch(data.decode(), prepend=False)
                break
            except UnicodeDecodeError as error:
                if error.start:
                    ids += self._stretch(data[: error.start].decode(), prepend=False)
                ids += self._byte_tokens(data[error.start : error.end])
                data = data[error.end :]
        return ids, text

    def _spell(self, text: str) -> list[int]:
        return self._byte_tokens(text.encode())

    def _byte_tokens(self, data: bytes) -> list[int]:
        missing = [byte for byte in data if byte not in self.vocab.byte_ids]
        if missing:
            raise RequestError(
                f"The tokenizer has no token for the byte 0x{missing[0]:02x}.", hint="Leave the character out."
            )
        return [self.vocab.byte_ids[byte] for byte in data]

    # ---- tokens -> text ----------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these tokens, from their bytes; special tokens add none, bytes that are no character U+FFFD."""
        return self.vocab.bytes_of(ids).decode("utf-8", "replace")

    def detokenizer(self) -> Detokenizer:
        """A new incremental decoder: one per sampled run."""
        return Detokenizer(self.vocab)

    def token_text(self, token: int) -> str:
        """One token for people: special tokens show their name, a part of a character shows as U+FFFD."""
        if (name := self._names.get(token)) is not None:
            return name
        data = self.vocab.tokens[token] if 0 <= token < len(self.vocab) else None
        return "" if data is None else data.decode("utf-8", "replace")

    def token_id(self, text: str) -> int | None:
        """The id of an added token by its whole text."""
        return next((token.id for token in self.files.added if token.text == text), None)

    @cached_property
    def _names(self) -> dict[int, str]:
        names = {token: piece for piece, token in self.files.vocab.items() if token in self.special_ids}
        return names | {token.id: token.text for token in self.files.added}

    # ---- what a text becomes -----------------------------------------------------------------------------------------

    def normalize(self, text: str) -> str:
        """The text after the tokenizer's normalizer (NFC, say), without what only marks spaces."""
        normalizer = self._continued.normalizer
        return normalizer.normalize_str(text).replace("\u2581", " ") if normalizer else text

    def self_test(self, texts: Iterable[str] | None = None) -> str | None:
        """The first text that the bytes table does not give back from its tokens; None if there is none.

        Without texts: characters of all lengths and scripts, alone and between others (about 10 ms).
        """
        chosen = _self_test_texts() if texts is None else texts
        return self.vocab.check(self.encode, (self.normalize(text) for text in chosen))


def _self_test_texts() -> Iterator[str]:
    codes = [*range(0x80), *range(0xA0, 0x3000, 97), *range(0x3000, 0xD800, 997), *range(0xE000, 0x110000, 9973)]
    chars = [chr(code) for code in codes]
    yield from chars
    yield from (f"a{char} {char}1{char}" for char in chars)
    yield "".join(chars)
    yield '  def f(x):\n\treturn {"a": [1, 2.5, null]}  # naïve 日本語 🙂\r\n\n'


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refuse_surrogates(pieces: Iterable[Piece]) -> None:
    offset = 0
    for text, _ in pieces:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            char = text[error.start]
            raise RequestError(
                f"The text has a lone surrogate U+{ord(char):04X} at character {offset + error.start}.",
                hint="Replace it: text.encode('utf-8', 'replace').decode().",
            ) from None
        offset += len(text)


def _merge(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours with the same flag become one, so a marker cut in two by the program is still one."""
    merged: list[Piece] = []
    run: list[str] = []
    flag = False
    for text, parse_special in pieces:
        if not text:
            continue
        if run and parse_special != flag:
            merged.append(("".join(run), flag))
            run = []
        flag = parse_special
        run.append(text)
    if run:
        merged.append(("".join(run), flag))
    return merged


class _Splitter:
    """Finds added tokens in text as `tokenizers` does: those that see raw text first, then the others; longest wins."""

    def __init__(self, added: Iterable[AddedToken]) -> None:
        tokens = list(added)
        groups = [t for t in tokens if not t.normalized], [t for t in tokens if t.normalized]
        self._passes = [_Finder(group) for group in groups if group]

    def split(self, text: str) -> Iterator[int | str]:
        found: list[int | str] = [text]
        for finder in self._passes:
            found = [part for piece in found for part in (finder.split(piece) if isinstance(piece, str) else (piece,))]
        return iter(found)


class _Finder:
    def __init__(self, tokens: list[AddedToken]) -> None:
        self._by_text = {token.text: token for token in tokens}
        longest_first = sorted(self._by_text, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def split(self, text: str) -> Iterator[int | str]:
        done = 0
        for match in self._pattern.finditer(text):
            token, start, end = self._by_text[match[0]], match.start(), match.end()
            if start < done or (token.single_word and not _stands_alone(text, start, end)):
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip())
            if token.rstrip:
                end += len(text) - end - len(text[end:].lstrip())
            if done < start:
                yield text[done:start]
            yield token.id
            done = end
        if done < len(text):
            yield text[done:]


def _stands_alone(text: str, start: int, end: int) -> bool:
    around = text[start - 1 : start] + text[end : end + 1]
    return not any(char == "_" or char.isalnum() for char in around)


# ---- tokenizers with parts taken out ---------------------------------------------------------------------------------


def _without_added(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer without added tokens, truncation, padding, dropout and post-processing."""
    bare = {**tokenizer, "added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
    if "dropout" in (bare.get("model") or {}):
        bare["model"] = {**bare["model"], "dropout": None}
    return bare


def _prepend_of(tokenizer: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the tokenizer puts a space before a text, and whether it does so after every special token too."""
    before = parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
    normal = parts(tokenizer.get("normalizer"), "normalizers")
    schemes = [_metaspace_scheme(step) for step in before if step.get("type") == "Metaspace"]
    always = (
        "always" in schemes
        or any(step.get("type") == "Prepend" for step in normal)
        or any(step.get("type") == "ByteLevel" and step.get("add_prefix_space") for step in before)
    )
    return always or "first" in schemes, always


def _metaspace_scheme(step: dict[str, Any]) -> str:
    if "prepend_scheme" in step:
        return str(step["prepend_scheme"])
    return "always" if step.get("add_prefix_space", True) else "never"


def _without_prepend(tokenizer: dict[str, Any]) -> dict[str, Any]:
    bare = {**tokenizer, "pre_tokenizer": copy.deepcopy(tokenizer.get("pre_tokenizer"))}
    for step in parts(bare["pre_tokenizer"], "pretokenizers"):
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "never"
            step.pop("add_prefix_space", None)
        elif step.get("type") == "ByteLevel":
            step["add_prefix_space"] = False
    steps = [s for s in parts(bare.get("normalizer"), "normalizers") if s.get("type") != "Prepend"]
    bare["normalizer"] = {"type": "Sequence", "normalizers": steps} if steps else None
    return bare


def _tokenizer(files: TokenizerFiles, data: dict[str, Any]) -> Tokenizer:
    path = str(files.folder / "tokenizer.json")
    try:
        return Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # the library raises plain Exception
        raise BadConfig(f"{path} is no tokenizer that `tokenizers` can read: {error}.", file=path) from error


# ---- without a sequence ----------------------------------------------------------------------------------------------


class PlainEncoder:
    """Plain characters in the middle of a text to tokens, and what of them no continuation can change.

    Implements `grammar.forced.Encoder`; neither special tokens nor markers are looked for.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self._tokenizer = _tokenizer(files, _without_prepend(_without_added(files.tokenizer)))
        # Without pieces that merges stay inside of, a spelling may change as far back as a token is long.
        self._has_pieces = _splits(files.tokenizer)
        self._longest = max(map(len, files.vocab), default=1)

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def sure_len(self, text: str) -> int:
        """Where the last piece begins, and what before it may come to lie in one with it.

        That is white space, and the word before an apostrophe (`don'` and `t`, as o200k cuts).
        """
        normalizer, splitter = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        normal = normalizer.normalize_str(text) if normalizer else text
        if len(normal) != len(text):
            return 0
        if splitter is None or not self._has_pieces:
            return max(0, len(text) - self._longest)
        pieces = splitter.pre_tokenize_str(normal)
        begin = pieces[-1][1][0] if pieces else 0
        if len(pieces) > 1 and text[begin : begin + 1] in APOSTROPHES:
            begin = pieces[-2][1][0]
        return len(text[:begin].rstrip())


def _splits(tokenizer: dict[str, Any]) -> bool:
    """Whether the tokenizer cuts a text into pieces before it merges."""
    before = parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return any(
        step.get("type") == "Split"
        or (step.get("type") == "ByteLevel" and step.get("use_regex", True))
        or (step.get("type") == "Metaspace" and step.get("split", True))
        for step in before
    )
