"""The oracle sees what it is there to see (S7)."""

from nbsgl.engine.batch import Batch, Row
from nbsgl.protocol import SamplingParams
from tests.sim.oracle import OracleRunner, entries_of

TOKENS = [1, 2, 3, 4]


def last_entry(spoil: str = "") -> int:
    """KV of the fourth token after three cached ones, with one thing wrong."""
    runner = OracleRunner(num_slots=16)
    runner.launch(Batch([Row(row=0, start=0, num_tokens=3, history=TOKENS, slots=[5, 6, 7, 8])]))
    if spoil == "stale slot":
        runner.kv[7] = 12345
    if spoil == "wrong slot":
        runner.table[0][2] = 6
    start = 3 if spoil != "wrong position" else 2
    history = [1, 2, 3, 9] if spoil == "wrong token" else TOKENS
    row = Row(row=0, start=start, num_tokens=1, history=history, params=SamplingParams(temperature=0.0))
    runner.launch(Batch([row]))
    return runner.kv[8 if start == 3 else 7]


def test_undisturbed_entry_is_that_of_the_sequence_alone() -> None:
    assert last_entry() == entries_of(TOKENS)[-1]


def test_oracle_sees_each_corruption() -> None:
    for spoil in ("stale slot", "wrong slot", "wrong position", "wrong token"):
        assert last_entry(spoil) != entries_of(TOKENS)[-1], spoil


def test_fed_back_token_is_the_one_drawn_for_that_row() -> None:
    runner = OracleRunner(num_slots=16)
    params = SamplingParams(temperature=0.0)
    first = Row(row=0, start=0, num_tokens=4, history=TOKENS, slots=list(range(8)), params=params)
    drawn = runner.launch(Batch([first])).result()[0].token
    runner.launch(Batch([Row(row=0, start=4, num_tokens=1, history=TOKENS, is_fed_back=True, params=params)]))
    assert runner.kv[4] == entries_of([*TOKENS, drawn])[-1]
