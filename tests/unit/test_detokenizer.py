from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nbsgl.engine.detokenizer import Detokenizer
from nbsgl.engine.grammar.vocab import TokenVocab

VOCAB = TokenVocab([bytes([byte]) for byte in range(256)] + ["日".encode()[1:], "é".encode(), None], eos_ids=[258])


@given(st.lists(st.integers(0, 258), max_size=40), st.lists(st.integers(1, 5), min_size=40, max_size=40))
def test_pieces_join_to_the_whole(ids: list[int], steps: list[int]) -> None:
    detokenizer, text, done = Detokenizer(VOCAB), "", 0
    for step in steps:
        text += detokenizer.push(ids[done : done + step])
        done += step
    text += detokenizer.push(ids[done:]) + detokenizer.finish()
    assert text == VOCAB.bytes_of(ids).decode("utf-8", "replace")


@given(st.text())
def test_characters_come_whole(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    detokenizer = Detokenizer(VOCAB)
    pieces = [detokenizer.push([byte]) for byte in text.encode()]
    assert "".join(pieces) == text
    assert detokenizer.pending == b""
    assert all(len(piece) <= 1 for piece in pieces)


def test_broken_end_shows_only_at_finish() -> None:
    detokenizer = Detokenizer(VOCAB)
    assert detokenizer.push([ord("a"), 0xE6, 0x97]) == "a"
    assert detokenizer.pending == b"\xe6\x97"
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.push([ord("b")]) == "b"


def test_bytes_of_half_a_token_are_taken() -> None:
    detokenizer = Detokenizer(VOCAB)
    assert detokenizer.push([0xE6]) + detokenizer.push_bytes(b"\x97\xa5x") == "日x"


def test_special_and_padding_ids_add_nothing() -> None:
    assert Detokenizer(VOCAB).push([258, 4000, ord("x")]) == "x"
