"""What the evaluation asks: held-out phrasings, styles, JSON, texts in the prompt, sums, small talk."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tools.train_tiny import relations, styles, world
from tools.train_tiny.chat import Message, assistant, render, system, user
from tools.train_tiny.documents import (
    arithmetic,
    context,
    long,
    patterns,
    questions,
    records,
    small_talk,
    stories,
    tasks,
)
from tools.train_tiny.random_words import stranger
from tools.train_tiny.styles import Style


@dataclass(frozen=True)
class Case:
    """A prompt and what counts as right. `check`: exact, contains, json or stops."""

    suite: str
    prompt: str
    expected: str
    check: str


def _chat_case(suite: str, messages: list[Message], expected: str, check: str) -> Case:
    return Case(suite, render(messages, add_generation_prompt=True), expected, check)


def held_out_phrasings(rng: Random, per_relation: int) -> Iterator[Case]:
    """Every kind of fact, asked as training never asked, as a sentence and in one word."""
    for relation in relations.RELATIONS:
        facts = relations.facts_of(f"{relation.group}.{relation.name}")
        for fact in rng.sample(facts, min(len(facts), per_relation)):
            question = rng.choice(relations.questions(fact.relation, fact.subject, held_out=True))
            yield _chat_case("held_out_sentence", [user(question)], fact.answer, "contains")
            one_word = system(
                rng.choice((*styles.HELD_OUT_SYSTEM_PROMPTS[Style.WORD], styles.SYSTEM_PROMPTS[Style.WORD][0]))
            )
            yield _chat_case("held_out_one_word", [one_word, user(question)], fact.answer, "exact")


def trained_phrasings(rng: Random, n: int) -> Iterator[Case]:
    """Known phrasings under the system prompts of training, in every style."""
    for _ in range(n):
        fact, style = questions.random_fact(rng), rng.choice(list(Style))
        messages = [system(rng.choice(styles.SYSTEM_PROMPTS[style])), user(questions.ask(rng, fact))]
        yield _chat_case("styles_exact", messages, styles.answer(fact, style), "exact")


def from_documents(rng: Random, suite: str, maker, n: int, limit: int = 10**9) -> Iterator[Case]:
    """The last reply of fresh documents of one kind."""
    made = 0
    while made < n:
        messages = maker(rng)
        if sum(len(m.content) for m in messages) < limit:
            made += 1
            yield _chat_case(suite, messages[:-1], messages[-1].content, "exact")


def json_records(rng: Random, n: int) -> Iterator[Case]:
    """Records in known and held-out phrasings, and made-up characters; without a grammar."""
    for _ in range(n):
        table = rng.choice(("people", "countries", "animals"))
        row = rng.choice(world.table(table))
        ask = rng.choice((*records.HELD_OUT_DESCRIBE, *records.DESCRIBE[:2])).format(
            s=records.shown_subject(table, row)
        )
        yield _chat_case("json_record_exact", [user(ask)], styles.dump(records.record(table, row)), "json_exact")
    for _ in range(n // 3):
        yield _chat_case("json_valid", records.character(rng)[:-1], "", "json")
        yield _chat_case("json_valid", records.several(rng)[:-1], "", "json")


def sums(rng: Random, n: int) -> Iterator[Case]:
    """Sums of pairs that training never shows, in known and held-out phrasings."""
    pairs = [(a, b) for a in range(100) for b in range(100) if arithmetic.is_held_out(a, b)]
    asks = (*arithmetic.ASKS["+"][:4], *arithmetic.HELD_OUT_ASKS["+"])
    for a, b in rng.sample(pairs, n):
        ask = rng.choice(asks).format(a=a, b=b)
        yield _chat_case("sums_unseen", [system("You answer in one word."), user(ask)], str(a + b), "exact")


def unknown(rng: Random, n: int) -> Iterator[Case]:
    """Strangers: the right answer is that the model does not know."""
    for _ in range(n):
        relation = rng.choice([r for r in relations.RELATIONS if r.group == "person"])
        question = rng.choice(relations.phrasings(f"person.{relation.name}", stranger(rng), held_out=True))
        yield _chat_case("unknown", [user(question)], styles.UNKNOWN, "exact")


def plain_few_shot(rng: Random, n: int) -> Iterator[Case]:
    """`Q:`/`A:` lists without a chat; the last answer is asked for."""
    for _ in range(n):
        facts = [questions.random_fact(rng) for _ in range(3)]
        asked = [(rng.choice(relations.questions(f.relation, f.subject)), f.answer) for f in facts]
        shown = "\n".join(f"Q: {q}\nA: {a}" for q, a in asked)
        yield Case("plain_few_shot", shown[: -len(asked[-1][1]) - 1], asked[-1][1], "first_line")


def free_texts(rng: Random, n: int) -> Iterator[Case]:
    """Stories, poems, tips, descriptions and greetings: they should come to an end."""
    for _ in range(n):
        maker = rng.choice((stories.chat, stories.poem, tasks.tips, small_talk.talk, tasks.judge))
        messages = maker(rng)
        first = 1 + next(i for i, m in enumerate(messages) if m.role == "user")
        yield _chat_case("free_text", messages[:first], "", "stops")


def every_case(seed: int, scale: float) -> list[Case]:
    """The whole evaluation; `scale` 1 is about 1900 prompts."""
    rng = Random(f"evaluation {seed}")
    n = lambda full: max(4, round(full * scale))  # noqa: E731
    parts = [
        held_out_phrasings(rng, n(16)),
        trained_phrasings(rng, n(140)),
        from_documents(rng, "dialogue", questions.dialogue, n(80)),
        from_documents(rng, "yes_no", questions.yes_no, n(80)),
        from_documents(rng, "compare", questions.compare, n(30)),
        from_documents(rng, "multiple_choice", questions.multiple_choice, n(60)),
        from_documents(rng, "in_context", context.chat, n(140)),
        from_documents(rng, "in_context_long", long.needle, n(8), limit=9000),
        from_documents(rng, "copy", _single_copy, n(40)),
        from_documents(rng, "json_extract", records.extract, n(40)),
        json_records(rng, n(90)),
        sums(rng, n(80)),
        unknown(rng, n(40)),
        plain_few_shot(rng, n(40)),
        free_texts(rng, n(50)),
    ]
    return [case for part in parts for case in part]


def _single_copy(rng: Random) -> list[Message]:
    text = patterns.random_text(rng)
    return [user(rng.choice(patterns.COPY_ASKS).format(x=text)), assistant(text)]
