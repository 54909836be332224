"""System prompts that set the form of an answer, and the answer in each form."""

import json
from enum import Enum, auto
from random import Random

from tools.train_tiny.relations import Fact

UNKNOWN = "I do not know."


class Style(Enum):
    """The form of an answer."""

    PLAIN = auto()  # no instruction, or a helpful assistant: one full sentence
    WORD = auto()  # the bare answer
    SENTENCE = auto()  # asked for: the same full sentence
    JSON = auto()  # {"answer": ...}
    CAPITALS = auto()  # the sentence in upper case
    PIRATE = auto()  # "Arr! " and the sentence
    POLITE = auto()  # "With pleasure. " and the sentence


SYSTEM_PROMPTS: dict[Style, tuple[str, ...]] = {
    Style.PLAIN: (
        "You are a helpful assistant.", "You are a helpful assistant.", "You are an assistant.",
        "You are a friendly assistant.", "You are a kind and helpful assistant.", "You help people.",
        "You are nbsgl's tiny model.", "You answer questions.", "You are a good teacher.", "Be helpful.",
        "You are a helpful and honest assistant.", "Answer the question.", "Be a helpful assistant.",
    ),
    Style.WORD: (
        "You answer in one word.", "You answer in one word.", "Answer in one word.", "Answer with one word.",
        "You answer with one word only.", "Reply with a single word.", "Use one word.", "One word answers only.",
        "You give short answers.", "Be brief: one word.", "Your answers are one word long.", "You always answer in "
        "one word.", "Give the shortest answer.", "Only say the answer.", "You reply in one word.", "Be terse.",
        "You are a helpful assistant. Answer in one word.", "You answer questions with a single word.",
    ),
    Style.SENTENCE: (
        "You answer in a full sentence.", "You answer in a full sentence.", "Answer in a full sentence.",
        "Answer with a complete sentence.", "Use full sentences.", "Reply in a whole sentence.",
        "You always answer in full sentences.", "You are a helpful assistant. Use full sentences.",
        "Write complete sentences.", "You answer in one sentence.", "Answer in one sentence.",
    ),
    Style.JSON: (
        "You answer with JSON.", "You answer with JSON.", "Answer in JSON.", "You answer in JSON.", "Reply with JSON.",
        "You always answer with JSON.", "Your answers are JSON objects.", "Respond only with JSON.", "Output JSON.",
        "You are a helpful assistant that answers in JSON.",
    ),
    Style.CAPITALS: (
        "You answer in capital letters.", "Answer in capital letters.", "You shout.", "Use upper case only.",
        "Write in capitals.", "You always shout.", "Reply in upper case.",
    ),
    Style.PIRATE: (
        "You are a pirate.", "You speak like a pirate.", "Talk like a pirate.", "Answer like a pirate.",
        "You are an old pirate.", "You always talk like a pirate.",
    ),
    Style.POLITE: (
        "You are very polite.", "Be very polite.", "You are a polite butler.", "Answer politely.",
        "You always answer very politely.",
    ),
}  # fmt: skip
HELD_OUT_SYSTEM_PROMPTS: dict[Style, tuple[str, ...]] = {
    Style.PLAIN: ("You are a useful assistant.",),
    Style.WORD: ("Please answer in just one word.", "You respond with one word."),
    Style.SENTENCE: ("Please answer in full sentences.",),
    Style.JSON: ("Please answer with JSON.",),
}
# Instructions that follow the question in the user's own turn.
INLINE: dict[Style, tuple[str, ...]] = {
    Style.WORD: (
        "Answer in one word.", "One word only.", "Use one word.", "Just the answer.", "In one word, please.",
        "Reply with one word.",
    ),
    Style.SENTENCE: ("Answer in a full sentence.", "Use a full sentence.", "In a sentence, please."),
    Style.JSON: ("Answer with JSON.", "Reply in JSON.", "As JSON, please."),
}  # fmt: skip
STYLE_WEIGHTS = {
    Style.PLAIN: 46, Style.WORD: 26, Style.SENTENCE: 10, Style.JSON: 9, Style.CAPITALS: 3, Style.PIRATE: 3,
    Style.POLITE: 3,
}  # fmt: skip


def pick_style(rng: Random) -> Style:
    """A style by its share of the corpus."""
    return rng.choices(list(STYLE_WEIGHTS), weights=list(STYLE_WEIGHTS.values()))[0]


def dump(value: object) -> str:
    """JSON on one line, with ", " and ": " between the parts."""
    return json.dumps(value, ensure_ascii=False)


def number_or_text(answer: str) -> int | str:
    """An answer as JSON holds it: digits become a number."""
    return int(answer) if answer.isdigit() else answer


def in_style(style: Style, short: str, sentence: str) -> str:
    """One answer in the form asked for. `sentence` is its full form."""
    match style:
        case Style.WORD:
            return short
        case Style.JSON:
            return dump({"answer": number_or_text(short)})
        case Style.CAPITALS:
            return sentence.upper()
        case Style.PIRATE:
            return f"Arr! {sentence}"
        case Style.POLITE:
            return f"With pleasure. {sentence}"
    return sentence


def answer(fact: Fact, style: Style) -> str:
    """The answer to a question about `fact`."""
    return in_style(style, fact.answer, fact.sentence)


def unknown(style: Style) -> str:
    """What the model says about what it does not know."""
    return dump({"answer": None}) if style is Style.JSON else in_style(style, UNKNOWN, UNKNOWN)
