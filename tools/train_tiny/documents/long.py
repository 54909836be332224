"""Documents of thousands of tokens, so that late positions are trained: many turns, and things said long before."""

from random import Random

from tools.train_tiny.chat import Message, assistant, user
from tools.train_tiny.documents import (
    arithmetic,
    context,
    patterns,
    questions,
    records,
    small_talk,
    statements,
    stories,
    tasks,
)

TURNS = (
    questions.single, questions.dialogue, context.chat, stories.chat, records.describe, statements.describe, tasks.tips,
    patterns.copy, small_talk.talk, arithmetic.chat, questions.unknown,
)  # fmt: skip


def _without_system(messages: list[Message]) -> list[Message]:
    return [m for m in messages if m.role != "system"]


def chat(rng: Random) -> list[Message]:
    """A long talk without instructions, made of short ones that need none."""
    messages: list[Message] = []
    for _ in range(rng.randint(8, 60)):
        piece = rng.choice(TURNS)(rng)
        if piece[0].role != "system":
            messages += piece
    return messages or questions.single(rng)


def dialogue(rng: Random) -> list[Message]:
    """Many questions under one system prompt: the form of the answers holds to the end."""
    return questions.dialogue(rng, turns=rng.randint(15, 90))


def recall(rng: Random) -> list[Message]:
    """Facts, then other talk, then questions about the facts."""
    found = context.claims(rng, rng.randint(1, 6))
    messages = [user("Remember this: " + " ".join(c.statement for c in found)), assistant("I will remember that.")]
    for _ in range(rng.randint(1, 25)):
        messages += _without_system(rng.choice((stories.chat, statements.describe, tasks.tips, tasks.expand))(rng))
        if rng.random() < 0.3:
            claim = rng.choice(found)
            messages += [user(rng.choice(claim.questions)), assistant(claim.full)]
    for claim in found:
        messages += [user(rng.choice(claim.questions)), assistant(claim.full)]
    return messages


def needle(rng: Random) -> list[Message]:
    """One claim inside a long text of stories, and the question for it."""
    found = context.claims(rng, 1)[0]
    texts = [stories.plain(rng).strip() for _ in range(rng.randint(3, 28))]
    texts.insert(rng.randrange(len(texts) + 1), found.statement)
    ask = rng.choice(found.questions)
    return [user("Read this text.\n\n" + "\n\n".join(texts) + f"\n\n{ask}"), assistant(found.full)]


def anthology(rng: Random) -> str:
    """Many stories, or many plain questions and answers, one after another."""
    maker = rng.choice((stories.plain, questions.plain_question, statements.plain))
    return "\n".join(maker(rng) for _ in range(rng.randint(10, 40)))


def book_of_patterns(rng: Random) -> str:
    """Long look-up tables with many repeats."""
    return "".join(patterns.mapping(rng) for _ in range(rng.randint(5, 20)))
