import pytest

from nbsgl.engine.stop import Refused, StopRules, StopStrings
from nbsgl.protocol import SamplingParams
from tests.sim.toy_grammar import ToyGrammar, ToyMatcher

VOCAB = [b"a", b"b", b"c", b"ab", b"bcd", b"xENDy", b"\xc3", b"\xa9", None]
EOS = 8


def rules(limit: int = 50, matcher: ToyMatcher | None = None, **params: object) -> StopRules:
    return StopRules(SamplingParams(max_tokens=limit, **params), limit, [EOS], VOCAB, matcher)


def test_eos_ends_the_run_and_is_not_kept() -> None:
    run = rules()
    assert run.feed(0) is None
    ending = run.feed(EOS)
    assert ending is not None
    assert (ending.finish.type, ending.finish.matched, ending.kept) == ("stop", EOS, 1)


def test_ignored_eos_is_a_token_like_others() -> None:
    run = rules(limit=2, ignore_eos=True)
    assert run.feed(EOS) is None
    ending = run.feed(EOS)
    assert ending is not None
    assert (ending.finish.type, ending.kept) == ("length", 2)


def test_stop_string_over_three_tokens_is_held_back_and_cut() -> None:
    strings = StopStrings(["abc"], VOCAB)
    assert strings.feed(1, lambda *_: True) is None
    assert strings.num_released == 1
    assert strings.feed(0, lambda *_: True) is None
    assert strings.feed(1, lambda *_: True) is None
    assert strings.num_released == 1  # "ab" may become "abc"
    match = strings.feed(2, lambda *_: True)
    assert match is not None
    assert (match.kept, match.tail) == (1, b"")


def test_what_did_not_become_a_stop_string_is_released() -> None:
    strings = StopStrings(["abc"], VOCAB)
    strings.feed(3, lambda *_: True)
    assert strings.num_released == 0
    strings.feed(0, lambda *_: True)
    assert strings.num_released == 1  # "ab" is safe, the new "a" is not


def test_tail_is_the_kept_part_of_the_token_in_which_the_stop_begins() -> None:
    strings = StopStrings(["END"], VOCAB)
    match = strings.feed(5, lambda *_: True)
    assert match is not None
    assert (match.kept, match.tail) == (0, b"x")


def test_the_stop_string_that_begins_first_counts() -> None:
    strings = StopStrings(["cd", "bc"], VOCAB)
    strings.feed(0, lambda *_: True)
    match = strings.feed(4, lambda *_: True)
    assert match is not None
    assert (match.text, match.kept) == ("bc", 1)


def test_stop_string_of_a_character_in_two_tokens() -> None:
    strings = StopStrings(["é"], VOCAB)
    assert strings.feed(6, lambda *_: True) is None
    assert strings.num_released == 0
    match = strings.feed(7, lambda *_: True)
    assert match is not None
    assert match.kept == 0


def test_min_tokens_bans_and_overrules() -> None:
    run = rules(min_tokens=2, stop=("a",), stop_token_ids=(1,))
    assert run.ban_ids == (1, EOS)
    assert run.feed(0) is None  # a stop string does not end the run before min_tokens
    ending = run.feed(0)
    assert ending is not None
    assert (ending.finish.matched, ending.kept) == ("a", 1)


def test_max_tokens_zero_ends_at_once() -> None:
    ending = rules(limit=0).at_start()
    assert ending is not None
    assert (ending.finish.type, ending.finish.length) == ("length", 0)


def test_finished_grammar_ends_the_run() -> None:
    run = rules(matcher=ToyGrammar("2", VOCAB).matcher())
    assert run.feed(0) is None
    ending = run.feed(1)
    assert ending is not None
    assert (ending.finish.type, ending.finish.matched, ending.complete) == ("stop", None, True)


def test_grammar_cut_by_the_limit_is_incomplete() -> None:
    ending = rules(limit=1, matcher=ToyGrammar("9", VOCAB).matcher()).feed(0)
    assert ending is not None
    assert (ending.finish.type, ending.complete) == ("length", False)


def test_stop_string_ends_a_grammar_only_where_it_accepts() -> None:
    run = rules(matcher=ToyGrammar("9", VOCAB).matcher(), stop=("c",))
    assert [run.feed(token) for token in (0, 2, 0)] == [None, None, None]  # "c" after one token: not in the language
    ending = run.feed(2)  # after three tokens it is
    assert ending is not None
    assert (ending.finish.matched, ending.kept) == ("c", 3)


def test_a_token_outside_the_grammar_is_refused() -> None:
    with pytest.raises(Refused):
        rules(matcher=ToyGrammar("0", VOCAB).matcher()).feed(0)
