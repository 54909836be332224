"""The corpus: which kinds of documents there are, in which shares, and a seeded stream of them."""

from collections.abc import Callable, Iterator
from random import Random

from tools.train_tiny.chat import Message, render
from tools.train_tiny.documents import (
    arithmetic,
    context,
    long,
    patterns,
    questions,
    records,
    small_talk,
    statements,
    stories,
    tasks,
)

Maker = Callable[[Random], "list[Message] | str"]

# Share of the documents, not of the tokens.
SHORT: dict[Maker, float] = {
    questions.single: 20, questions.dialogue: 12, questions.unknown: 3.5, questions.yes_no: 7,
    questions.multiple_choice: 4, questions.compare: 2, questions.plain_question: 2.5, small_talk.talk: 3,
    arithmetic.chat: 6, arithmetic.table: 1.5, arithmetic.counting: 0.4, context.chat: 9, context.plain: 2,
    patterns.arrows: 1.5,
    patterns.labelled: 1.5, patterns.labels: 1, patterns.mapping: 1, patterns.transform: 1, patterns.cycle: 0.5,
    patterns.copy: 3, patterns.chat_examples: 1.5, records.describe: 6, records.several: 1.5, records.plain: 1,
    records.extract: 2, records.character: 1.5, stories.plain: 1, stories.chat: 2, stories.poem: 1,
    stories.go_on: 1, statements.plain: 4, statements.describe: 2.5, tasks.tips: 1.5, tasks.expand: 0.8,
    tasks.plain_tips: 0.6, tasks.sentiment: 1,
    tasks.plain_sentiment: 0.5, tasks.judge: 1.2, tasks.agent: 1.5, tasks.plain_tool_choice: 0.7,
    tasks.plain_addresses: 0.5, tasks.addresses: 0.5, tasks.same_kind: 1,
}  # fmt: skip
LONG: dict[Maker, float] = {
    long.chat: 4, long.dialogue: 3, long.recall: 3, long.needle: 2, long.anthology: 1, long.book_of_patterns: 1,
}  # fmt: skip


def to_text(document: list[Message] | str) -> str:
    """A document as it is trained on, without the end-of-text mark."""
    return document if isinstance(document, str) else render(document)


def documents(seed: int, kinds: dict[Maker, float] = SHORT) -> Iterator[str]:
    """An endless stream of documents. The same seed gives the same texts."""
    rng = Random(seed)
    makers, weights = list(kinds), list(kinds.values())
    while True:
        for maker in rng.choices(makers, weights=weights, k=256):
            yield to_text(maker(rng))
