"""The four programs on which frontends are compared, in the language both SGLang and nbsgl speak.

Every gen that is not constrained runs to its max_tokens, so all do the same work whatever the weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information "
    "back parent face others level"
).split()

# a record of ten fields: six free ones of up to 16 characters, four of a few options, a number, a nested object
_FREE = r'"[\w\d\s]{1,16}"'
JSON_REGEX = (
    rf'\{{\n    "station": {_FREE},\n    "district": "(Northern|Harbour|Old Town|Riverside)",\n'
    r'    "access": "(Open|Restricted|Closed)",\n'
    r'    "purpose": "(weather|traffic|water level|air quality|seismic survey|radio relay)",\n'
    rf'    "sensor": \{{\n        "maker": {_FREE},\n        "series": {_FREE},\n'
    r'        "range": [0-9]{1,2}\.[0-9]{0,2}\n    \},\n    "condition": "(Working|Faulty)",\n'
    rf'    "keeper": {_FREE},\n    "remark": {_FREE}\n\}}'
)

CHOICES = (" yes", " no", " maybe", " unknown")
ASPECTS = ("clarity", "originality", "evidence", "style")
VERDICT_TOKENS, STEPS, THOUGHT_TOKENS, ACTION_TOKENS, ENTRY_TOKENS = 48, 8, 16, 8, 256

# tokens of a program that can only come one after another; None: as many as its grammar takes
DEPTH: dict[str, int | None] = {
    "select": 0,
    "judge": 2 * VERDICT_TOKENS,
    "chain": STEPS * (THOUGHT_TOKENS + ACTION_TOKENS),
    "json": None,
}


def programs(sgl: Any) -> dict[str, Any]:
    """The programs, written with the names of `sgl` (nbsgl or sglang)."""

    def to_the_end(name: str, tokens: int) -> Any:
        return sgl.gen(name, max_tokens=tokens, ignore_eos=True, temperature=0)

    @sgl.function
    def select(s: Any, shots: str, question: str) -> None:
        s += shots
        s += "Question: " + question + "\nAnswer:"
        s += sgl.select("answer", choices=list(CHOICES))

    @sgl.function
    def judge(s: Any, essay: str) -> None:
        s += "Here is an essay.\n\n" + essay + "\n\n"
        forks = s.fork(len(ASPECTS))
        for fork, aspect in zip(forks, ASPECTS, strict=True):
            fork += f"A verdict on its {aspect}: "
            fork += to_the_end("verdict", VERDICT_TOKENS)
        forks.join()
        s += "The four verdicts: " + "".join(fork["verdict"][:200] for fork in forks) + "\nAll in all: "
        s += to_the_end("overall", VERDICT_TOKENS)

    @sgl.function
    def chain(s: Any, question: str) -> None:
        """Sixteen short calls with literal text between them, as an agent makes."""
        s += "You are an agent that answers by steps.\n" + question + "\n"
        for step in range(STEPS):
            s += f"Thought {step + 1}:" + to_the_end(f"t{step}", THOUGHT_TOKENS)
            s += f"\nAction {step + 1}: search["
            s += to_the_end(f"a{step}", ACTION_TOKENS)
            s += f"]\nObservation {step + 1}: the result is listed below.\n"

    @sgl.function
    def json(s: Any, name: str) -> None:
        s += "Write the register's entry for the measuring station called " + name + ".\n"
        s += sgl.gen("entry", max_tokens=ENTRY_TOKENS, regex=JSON_REGEX, temperature=0)

    return {"select": select, "judge": judge, "chain": chain, "json": json}


def _text(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def _select(count: int = 256, shots: int = 1200, question: int = 24) -> list[dict[str, str]]:
    rng = random.Random(7)
    texts = [_text(rng, shots) + "\n" for _ in range(4)]
    return [{"shots": texts[i % 4], "question": _text(rng, question)} for i in range(count)]


def _judge(count: int = 64, essay: int = 700) -> list[dict[str, str]]:
    rng = random.Random(7)
    return [{"essay": _text(rng, essay)} for _ in range(count)]


def _chain(count: int = 128, question: int = 120) -> list[dict[str, str]]:
    rng = random.Random(7)
    return [{"question": _text(rng, question)} for _ in range(count)]


def _json(count: int = 64, name: int = 3) -> list[dict[str, str]]:
    rng = random.Random(7)
    return [{"name": _text(rng, name)} for _ in range(count)]


ARGUMENTS: dict[str, Callable[..., list[dict[str, str]]]] = {
    "select": _select,
    "judge": _judge,
    "chain": _chain,
    "json": _json,
}
TINY: dict[str, dict[str, int]] = {
    "select": {"count": 8, "shots": 40, "question": 8},
    "judge": {"count": 2, "essay": 40},
    "chain": {"count": 2, "question": 20},
    "json": {"count": 2},
}


def arguments(name: str, scale: str = "full") -> list[dict[str, str]]:
    """The inputs of a program, the same on every machine."""
    return ARGUMENTS[name](**(TINY[name] if scale == "tiny" else {}))
