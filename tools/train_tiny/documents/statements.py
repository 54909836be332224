"""Facts in running text: sentences to complete, and short descriptions of a country, a person, an animal or a job."""

from random import Random

from tools.train_tiny import relations, styles, world
from tools.train_tiny.chat import Message, assistant, system, user
from tools.train_tiny.documents.questions import random_fact
from tools.train_tiny.relations import Fact

ASKS = ("Describe {s}.", "Tell me about {s}.", "Write a short description of {s}.", "What do you know about {s}?",
        "Tell me something about {s}.", "Give me some facts about {s}.", "Write about {s}.")  # fmt: skip
ABOUT = ("country", "person", "animal", "job")


def _state(rng: Random, fact: Fact) -> str:
    others = relations.by_name()[fact.relation].statements
    if not others or rng.random() < 0.5:
        return fact.sentence
    return relations.state(rng.choice(others), fact.subject, fact.answer)


def plain(rng: Random) -> str:
    """One to twelve facts, mixed or of one subject."""
    if rng.random() < 0.5:
        facts = [random_fact(rng) for _ in range(rng.randint(1, 12))]
    else:
        about = relations.facts_about(rng.choice(ABOUT))
        facts = list(rng.choice(list(about.values())))
        rng.shuffle(facts)
    return rng.choice((" ", "\n")).join(_state(rng, f) for f in facts) + "\n"


def describe(rng: Random) -> list[Message]:
    """All that the world knows of one subject, in the order of its tables."""
    group = rng.choice(ABOUT)
    subject, facts = rng.choice(list(relations.facts_about(group).items()))
    shown = world.article(subject) if group in ("animal", "job") else subject
    head = [system(rng.choice(styles.SYSTEM_PROMPTS[styles.Style.PLAIN]))] if rng.random() < 0.3 else []
    return [*head, user(rng.choice(ASKS).format(s=shown)), assistant(" ".join(f.sentence for f in facts))]
