from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nbsgl.engine import text as text_module
from nbsgl.engine.text import TextCodec
from nbsgl.errors import BadConfig, ModelNotFound, ModelUnsupported, RequestError
from tests.unit import tiny_tokenizers

MAKERS = {
    "byte": lambda folder: tiny_tokenizers.byte_level(folder),
    "byte_bos": lambda folder: tiny_tokenizers.byte_level(folder, bos=True),
    "first": lambda folder: tiny_tokenizers.sentence_piece(folder, scheme="first"),
    "always": lambda folder: tiny_tokenizers.sentence_piece(folder, scheme="always"),
    "normalizer": lambda folder: tiny_tokenizers.sentence_piece(folder, scheme="normalizer"),
    "unigram": tiny_tokenizers.unigram,
}
TORTURE = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "  two  spaces ",
    "\ufeff",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "e\u0301",
    "\u200b\u202e",
    "日本",
    "\U0010ffff",
    "\r\n\t",
    "<|im_end|>",
    "<think>",
    "<s>x</s>",
    "<0x41>",
    "Ġ",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
MARKED = st.lists(
    st.sampled_from(["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", " the fox", "é", "\n", "<|im", "_", " "]),
    max_size=8,
).map("".join)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="session")
def codecs(folders: dict[str, Path]) -> dict[str, TextCodec]:
    return {name: TextCodec.load(folder) for name, folder in folders.items()}


@pytest.fixture(params=list(MAKERS))
def codec(request: pytest.FixtureRequest, codecs: dict[str, TextCodec]) -> TextCodec:
    return codecs[request.param]


def spells_no_underline(text: str) -> str:
    return text.replace("\u2581", "_")  # SentencePiece's space: lost in its own normalizer


@pytest.mark.parametrize("text", TORTURE)
def test_unicode_torture(codec: TextCodec, text: str) -> None:
    ids = codec.encode_run([(text, False)], is_first=False)
    assert codec.decode(ids) == text
    assert codec.special_ids.isdisjoint(ids)


@given(text=TEXT)
@settings(max_examples=60, deadline=None)
def test_text_comes_back_exactly(codecs: dict[str, TextCodec], text: str) -> None:
    text = spells_no_underline(text)
    for codec in codecs.values():
        assert codec.decode(codec.encode(text)) == text
        assert codec.self_test([text]) is None


@given(text=MARKED)
@settings(max_examples=100, deadline=None)
def test_parsed_text_encodes_as_the_tokenizer_does(
    folders: dict[str, Path], codecs: dict[str, TextCodec], text: str
) -> None:
    for name, codec in codecs.items():
        reference = Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
        expected = reference.encode(text, add_special_tokens=False).ids
        assert codec.encode_run([(text, True)], is_first=True)[-len(expected) :] == expected or not expected


@given(text=MARKED, cuts=st.lists(st.integers(0, 60), max_size=5), flag=st.booleans(), first=st.booleans())
@settings(max_examples=100, deadline=None)
def test_cuts_change_no_token(
    codecs: dict[str, TextCodec], text: str, cuts: list[int], flag: bool, first: bool
) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [(text[a:b], flag) for a, b in zip(places, places[1:])]
    for codec in codecs.values():
        assert codec.encode_run(pieces, is_first=first) == codec.encode_run([(text, flag)], is_first=first)


def test_ordinary_text_is_one_stretch_across_flags(codec: TextCodec) -> None:
    whole = codec.encode_run([("the quick fox", False)], is_first=False)
    assert codec.encode_run([("the qu", True), ("ick fox", False)], is_first=False) == whole


@pytest.mark.parametrize("name", MAKERS)
def test_user_text_cannot_forge_special_tokens(codecs: dict[str, TextCodec], name: str) -> None:
    codec = codecs[name]
    added = {token.id: token.text for token in codec.files.added}
    for token, text in added.items():
        if token == codec.files.unk_id:
            continue
        for pieces in [(text, False)], [(text[:2], False), (text[2:], False)], [("x", True), (f"{text} y", False)]:
            ids = codec.encode_run(pieces, is_first=False)
            assert token not in ids
            assert codec.decode(ids) == "".join(piece for piece, _ in pieces)
        assert token in codec.encode_run([(text, True)], is_first=False)


def test_a_marker_written_half_by_the_program_is_none(codecs: dict[str, TextCodec]) -> None:
    codec = codecs["byte"]
    ids = codec.encode_run([("<|im_", True), ("end|>", False)], is_first=False)
    assert codec.special_ids.isdisjoint(ids)


def test_start_token_comes_once(codecs: dict[str, TextCodec]) -> None:
    for name in ("byte_bos", "first"):
        codec = codecs[name]
        bos = codec.bos_id
        assert codec.start_ids == (bos,)
        assert codec.encode_run([("the", False)], is_first=True).count(bos) == 1
        assert codec.encode_run([("<s>the", True)], is_first=True).count(bos) == 1
        assert codec.encode_run([("<s>the", False)], is_first=True).count(bos) == 1
        assert bos not in codec.encode_run([("the", False)], is_first=False)
        assert codec.encode_run([], is_first=True) == [bos]
    assert codecs["byte"].start_ids == ()


def test_continuation_has_no_space_in_front(codecs: dict[str, TextCodec]) -> None:
    codec = codecs["first"]
    assert codec.decode(codec.encode_run([("fox", False)], is_first=True)) == " fox"
    assert codec.decode(codec.encode_run([("fox", False)], is_first=False)) == "fox"


def test_explicit_add_bos_token_wins(tmp_path: Path) -> None:
    folder = tiny_tokenizers.byte_level(tmp_path, bos=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    codec = TextCodec.load(folder)
    assert codec.start_ids == ()
    assert codec.bos_id is not None


def test_lead_goes_in_front_as_text(codec: TextCodec) -> None:
    plain = codec.encode_run([("the quick fox", False)], is_first=False)
    assert codec.encode_run([("quick fox", False)], is_first=False, lead=b"the ") == plain
    assert codec.encode_run([("quick fox", True)], is_first=False, lead=b"the ") == plain


@pytest.mark.parametrize("lead", [b"\xb8\x80", b"\x80 x", b"ab\xc3", b"\xe6\x97", b"a\xffb", b"\xf0\x9f\x99\x82"])
def test_lead_keeps_every_byte(codec: TextCodec, lead: bytes) -> None:
    ids = codec.encode_run([("fox", False)], is_first=False, lead=lead)
    assert codec.vocab.bytes_of(ids) == lead + b"fox"


def test_lone_surrogate_names_its_offset(codec: TextCodec) -> None:
    with pytest.raises(RequestError, match=r"U\+D800 at character 5"):
        codec.encode_run([("abc", True), ("de\ud800", False)], is_first=False)


def test_eos_ids_of_all_files(codecs: dict[str, TextCodec]) -> None:
    assert codecs["byte"].eos_ids == (0, 2)
    assert codecs["first"].eos_ids == (2,)
    assert all(codec.vocab.tokens[token] is None for codec in codecs.values() for token in codec.eos_ids)


def test_token_text_names_special_tokens(codecs: dict[str, TextCodec]) -> None:
    codec = codecs["byte"]
    assert codec.token_text(2) == "<|im_end|>"
    assert codec.token_text(codec.encode("a")[0]) == "a"
    assert codec.token_text(10**6) == ""
    assert codec.token_text(codec.vocab.byte_ids[0xFF]) == "\ufffd"


def test_added_but_not_special_is_text_when_decoded(codecs: dict[str, TextCodec]) -> None:
    codec = codecs["byte"]
    ids = codec.encode_run([("<think>", True)], is_first=False)
    assert len(ids) == 1
    assert codec.decode(ids) == "<think>"


def test_lstrip_and_rstrip_take_the_space(tmp_path: Path) -> None:
    folder = tiny_tokenizers.byte_level(tmp_path)
    data = json.loads((folder / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        token |= {"lstrip": token["id"] == 1, "rstrip": token["id"] == 2, "single_word": token["content"] == "<think>"}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    codec, reference = TextCodec.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in [
        "a  <|im_start|>  b",
        "a  <|im_end|>  b",
        "x<think>y",
        "x <think> y",
        "<|im_end|> <|im_start|>",
        "<think>",
    ]:
        assert codec.encode_run([(text, True)], is_first=True) == reference.encode(text, add_special_tokens=False).ids


def test_memo_is_bounded_and_changes_nothing(codecs: dict[str, TextCodec], monkeypatch: pytest.MonkeyPatch) -> None:
    codec = codecs["byte"]
    monkeypatch.setattr(text_module, "MEMO_CHARS", 500)
    texts = [f"{i} the quick brown fox " * 8 for i in range(20)]
    first = [codec.encode(text) for text in texts]
    assert codec._memo_chars <= 500
    assert [codec.encode(text) for text in texts] == first
    first[0].append(-1)
    assert codec.encode(texts[0])[-1] != -1


def test_folder_without_tokenizer_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json.*save_pretrained"):
        TextCodec.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": 3}}'])
def test_broken_tokenizer_is_bad_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BadConfig, match="tokenizer.json"):
        TextCodec.load(tmp_path)


def test_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbsgl.engine.tokenizer_files.MAX_TOKENIZER_BYTES", 100)
    with pytest.raises(BadConfig, match="at most 100 bytes"):
        TextCodec.load(tiny_tokenizers.byte_level(tmp_path))


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": {}}}))
    with pytest.raises(ModelUnsupported, match="WordPiece"):
        TextCodec.load(tmp_path)


def test_long_prompt_is_linear_enough(codecs: dict[str, TextCodec]) -> None:
    text = "the quick brown fox " * 20_000
    for name in ("byte", "normalizer"):
        codec = codecs[name]
        assert codec.decode(codec.encode(text)) == text


def test_self_test_passes_and_can_fail(codecs: dict[str, TextCodec]) -> None:
    assert all(codecs[name].self_test() is None for name in ("byte", "byte_bos", "first", "always", "normalizer"))
    broken = TextCodec(codecs["byte"].files)
    broken.vocab.tokens[broken.vocab.byte_ids[ord("q")]] = b"x"
    assert "q" in (broken.self_test() or "")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, nbsgl.engine.text, nbsgl.engine.templates, nbsgl.engine.grammar.cache;"
        "print([m for m in ('torch', 'transformers', 'IPython') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_embedded_tokenizer_is_exact() -> None:
    folder = Path(text_module.__file__).parent / "assets" / "tiny"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the embedded model is not in this checkout")
    codec = TextCodec.load(folder)
    assert codec.eos_ids
    assert codec.self_test() is None
    assert codec.self_test([*TORTURE, *tiny_tokenizers.CORPUS[:3]]) is None
