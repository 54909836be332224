"""Lists with a pattern to go on with: few-shot examples, labels, copies, small text tasks."""

from collections.abc import Callable
from functools import cache
from random import Random

from tools.train_tiny import random_words as rw
from tools.train_tiny import relations, styles, world
from tools.train_tiny.chat import Message, assistant, system, user
from tools.train_tiny.styles import Style

COPY_ASKS = ("Repeat after me: {x}", "Repeat this: {x}", "Copy this text: {x}", "Say: {x}", "Repeat the following: {x}",
             "Write this again: {x}", "Echo: {x}", "Please repeat: {x}")  # fmt: skip
TRANSFORMS: dict[str, Callable[[str], str]] = {
    "upper": str.upper, "twice": lambda w: f"{w} {w}", "star": lambda w: f"*{w}*", "quote": lambda w: f'"{w}"',
    "capital": str.capitalize, "bang": lambda w: w + "!", "tag": lambda w: f"<{w}>", "same": lambda w: w,
}  # fmt: skip


def _word(rng: Random) -> str:
    return rw.any_word(rng)


def arrows(rng: Random) -> str:
    """Facts of one relation as `cat -> meow`, one a line."""
    relation = rng.choice([r for r in relations.RELATIONS if r.name not in ("work",)])
    facts = list(relations.facts_of(f"{relation.group}.{relation.name}"))
    sep = rng.choice((" -> ", " -> ", ": ", " = ", " => ", ", ", " | "))
    rows = rng.sample(facts, min(len(facts), rng.randint(3, 14)))
    return "\n".join(f"{f.subject}{sep}{f.answer}" for f in rows) + "\n"


def labelled(rng: Random) -> str:
    """Records of several lines such as `Country: France` and `Capital: Paris`, parted by an empty line."""
    group = rng.choice(("country", "country", "person", "animal", "job"))
    about = relations.facts_about(group)
    subjects = rng.sample(list(about), rng.randint(2, 7))
    shared = [f.key for f in about[subjects[0]]]
    keys = rng.sample(shared, rng.choice((1, 1, 2, 3)))
    head = rng.choice((group.capitalize(), "Name" if group != "job" else "Job"))
    blocks = []
    for subject in subjects:
        values = {f.key: f.answer for f in about[subject]}
        blocks.append(
            "\n".join([f"{head}: {subject}", *(f"{k.capitalize()}: {values[k]}" for k in keys if k in values)])
        )
    return "\n\n".join(blocks) + "\n"


def labels(rng: Random) -> str:
    """Words of two or three kinds with made-up labels; the label of a kind stays within the document."""
    kinds = rng.sample([
        world.column("animals", "name"), world.column("countries", "name"), world.column("people", "name"),
        world.column("jobs", "name"), world.column("people", "colour"), world.column("people", "food"), world.DAYS,
        world.MONTHS,
    ], rng.choice((2, 2, 3)))  # fmt: skip
    given = [rng.choice((_word(rng), rw.made_up_word(rng, 1).upper())) for _ in kinds]
    sep, lines = rng.choice((" -> ", ": ", " = ")), []
    for _ in range(rng.randint(6, 16)):
        i = rng.randrange(len(kinds))
        lines.append(f"{rng.choice(kinds[i])}{sep}{given[i]}")
    return "\n".join(lines) + "\n"


def mapping(rng: Random) -> str:
    """Random pairs that come back later in the document: they must be looked up, not known."""
    keys = list(dict.fromkeys(_word(rng) for _ in range(rng.randint(3, 10))))
    values = {k: rng.choice((_word(rng), rw.digits(rng, rng.randint(1, 4)), rw.code(rng))) for k in keys}
    sep = rng.choice((" -> ", ": ", " = ", " is "))
    order = keys + [rng.choice(keys) for _ in range(rng.randint(3, 14))]
    return "\n".join(f"{k}{sep}{values[k]}" for k in order) + "\n"


def transform(rng: Random) -> str:
    """Words and what one rule makes of them."""
    change, sep = rng.choice(list(TRANSFORMS.values())), rng.choice((" -> ", ": ", " = ", " => "))
    head, tail = rng.choice((("", ""), ("Input: ", "Output: ")))
    words = [_word(rng) for _ in range(rng.randint(4, 12))]
    if head:
        return "\n".join(f"{head}{w}\n{tail}{change(w)}" for w in words) + "\n"
    return "\n".join(f"{w}{sep}{change(w)}" for w in words) + "\n"


def cycle(rng: Random) -> str:
    """A short sequence over and over."""
    unit = [_word(rng) for _ in range(rng.randint(1, 5))]
    return rng.choice((" ", ", ", "\n", " - ")).join(unit * rng.randint(3, 12)) + "\n"


def random_text(rng: Random) -> str:
    """A few random words, a code or a made-up sentence."""
    roll = rng.random()
    if roll < 0.3:
        return " ".join(_word(rng) for _ in range(rng.randint(1, 8)))
    if roll < 0.5:
        return rng.choice(
            (rw.code(rng), rw.phone(rng), rw.ip_address(rng), rw.date(rng), rw.email(rng, rw.stranger(rng)))
        )
    thing = f"{rng.choice(rw.ADJECTIVES)} {rng.choice(rw.OBJECTS)}"
    return f"The {thing} of {rw.stranger(rng)} is in the {rng.choice(rw.PLACES)}."


def copy(rng: Random) -> list[Message]:
    """Repeat a text, say a word some times, write it in capitals, pick an item of a list."""
    has_system = rng.random() < 0.3
    messages = [system(rng.choice(styles.SYSTEM_PROMPTS[Style.PLAIN]))] if has_system else []
    for _ in range(rng.choice((1, 1, 2, 3))):
        messages += rng.choice((_repeat, _repeat, _times, _upper, _item, _last_item, _count, _list))(rng)
    return messages


def _repeat(rng: Random) -> list[Message]:
    text = random_text(rng)
    return [user(rng.choice(COPY_ASKS).format(x=text)), assistant(text)]


def _times(rng: Random) -> list[Message]:
    word, n = _word(rng), rng.randint(2, 6)
    ask = rng.choice(("Say {w} {n} times.", "Write the word {w} {n} times.", "Repeat {w} {n} times."))
    return [user(ask.format(w=word, n=rng.choice((str(n), world.number_word(n))))), assistant(" ".join([word] * n))]


def _upper(rng: Random) -> list[Message]:
    word = _word(rng)
    ask = rng.choice(("Write {w} in capital letters.", "Put {w} in upper case.", "Shout the word {w}."))
    return [user(ask.format(w=word)), assistant(word.upper())]


def _items(rng: Random) -> list[str]:
    return list(dict.fromkeys(_word(rng) for _ in range(rng.randint(4, 7))))


def _item(rng: Random) -> list[Message]:
    items = _items(rng)
    i = rng.randrange(min(3, len(items)))
    ask = rng.choice(
        ("{l}. What is the {o} item?", "Here is a list: {l}. Which one is {o}?", "Name the {o} word: {l}.")
    )
    return [user(ask.format(l=", ".join(items), o=("first", "second", "third")[i])), assistant(items[i])]


def _last_item(rng: Random) -> list[Message]:
    items = _items(rng)
    ask = rng.choice(
        ("{l}. What is the last item?", "Here is a list: {l}. Which one is last?", "Name the last word: {l}.")
    )
    return [user(ask.format(l=", ".join(items))), assistant(items[-1])]


def _count(rng: Random) -> list[Message]:
    n = rng.randint(3, 20)
    ask = rng.choice(("Count to {n}.", "Count from 1 to {n}.", "Please count to {n}."))
    return [user(ask.format(n=n)), assistant(", ".join(str(i) for i in range(1, n + 1)))]


@cache
def _lists() -> dict[str, tuple[str, ...]]:
    """What can be listed, by its plural."""
    return {
        "animals": world.column("animals", "name"), "countries": world.column("countries", "name"),
        "capitals": world.column("countries", "capital"), "jobs": world.column("jobs", "name"),
        "colours": world.column("people", "colour"), "foods": world.column("people", "food"),
        "people": world.column("people", "name"), "days": world.DAYS, "months": world.MONTHS,
    }  # fmt: skip


def _list(rng: Random) -> list[Message]:
    kind = rng.choice(list(_lists()))
    n = rng.randint(2, 6)
    ordered = kind in ("days", "months")
    picked = _lists()[kind][:n] if ordered else rng.sample(_lists()[kind], n)
    words = rng.choice((str(n), world.number_word(n)))
    if rng.random() < 0.5:
        ask = rng.choice(("List {n} {k}.", "Write a list of {n} {k}.", "Give me a list of {n} {k}."))
        return [user(ask.format(n=words, k=kind)), assistant("\n".join(f"{i}. {x}" for i, x in enumerate(picked, 1)))]
    ask = rng.choice(("Name {n} {k}.", "Tell me {n} {k}.", "Can you name {n} {k}?"))
    return [user(ask.format(n=words, k=kind)), assistant(", ".join(picked))]


def chat_examples(rng: Random) -> list[Message]:
    """Few-shot examples inside one user turn or over several turns."""
    relation = rng.choice([r for r in relations.RELATIONS if r.name not in ("work",)])
    facts = list(relations.facts_of(f"{relation.group}.{relation.name}"))
    rows = rng.sample(facts, min(len(facts), rng.randint(3, 7)))
    if rng.random() < 0.5:
        sep = rng.choice((" -> ", ": ", " = "))
        shown = "\n".join(f"{f.subject}{sep}{f.answer}" for f in rows[:-1])
        return [user(f"{shown}\n{rows[-1].subject}{sep}".rstrip()), assistant(rows[-1].answer)]
    return [m for f in rows for m in (user(f.subject), assistant(f.answer))]
