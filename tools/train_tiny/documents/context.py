"""Reading comprehension: invented facts in the prompt and questions about them. It teaches copying, not knowledge."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tools.train_tiny import random_words as rw
from tools.train_tiny import styles, world
from tools.train_tiny.chat import Message, assistant, system, user
from tools.train_tiny.styles import Style

NOT_SAID = "The text does not say."


@dataclass(frozen=True)
class Claim:
    """An invented fact: its sentence, ways to ask for it, the short answer and the full one."""

    statement: str
    questions: tuple[str, ...]
    short: str
    full: str


def _thing(rng: Random) -> str:
    return f"{rng.choice(rw.ADJECTIVES)} {rng.choice(rw.OBJECTS)}" if rng.random() < 0.5 else rng.choice(rw.OBJECTS)


def _owns(rng: Random, name: str) -> Claim:
    thing = world.article(_thing(rng))
    full = rng.choice((f"{name} has {thing}.", f"{name} owns {thing}.", f"{name} bought {thing}."))
    return Claim(full, (f"What does {name} have?", f"What does {name} own?", f"Which thing belongs to {name}?",
                        f"What is {name}'s thing?"), thing.split(" ", 1)[1], f"{name} has {thing}.")  # fmt: skip


def _lives(rng: Random, name: str) -> Claim:
    place = rng.choice((rng.choice(world.column("people", "home")), rng.choice(world.column("countries", "capital")),
                        rw.made_up_name(rng)))  # fmt: skip
    full = rng.choice((f"{name} lives in {place}.", f"{name} is from {place}.", f"The home of {name} is {place}."))
    return Claim(full, (f"Where does {name} live?", f"Where is {name} from?", f"What is the home of {name}?",
                        f"In which city does {name} live?"), place, f"{name} lives in {place}.")  # fmt: skip


def _age(rng: Random, name: str) -> Claim:
    age = str(rng.randint(3, 99))
    return Claim(rng.choice((f"{name} is {age} years old.", f"{name} is {age}.")),
                 (f"How old is {name}?", f"What is {name}'s age?"), age, f"{name} is {age} years old.")  # fmt: skip


def _job(rng: Random, name: str) -> Claim:
    job = world.article(rng.choice(world.column("jobs", "name")))
    return Claim(rng.choice((f"{name} is {job}.", f"{name} works as {job}.")),
                 (f"What does {name} do?", f"What is {name}'s job?", f"What is the job of {name}?"),
                 job.split(" ", 1)[1], f"{name} is {job}.")  # fmt: skip


def _colour(rng: Random, name: str) -> Claim:
    colour = rng.choice(world.column("people", "colour"))
    full = f"The favourite colour of {name} is {colour}."
    return Claim(rng.choice((full, f"{name} likes {colour}.")),
                 (f"What is {name}'s favourite colour?", f"Which colour does {name} like?"), colour, full)  # fmt: skip


def _pet(rng: Random, name: str) -> Claim:
    kind, pet_name = rng.choice(world.column("people", "pet")), rw.made_up_name(rng)
    return Claim(f"{name} has a {kind} called {pet_name}.",
                 (f"What is the name of {name}'s {kind}?", f"What is {name}'s {kind} called?",
                  f"Who is {name}'s {kind}?"), pet_name, f"{name}'s {kind} is called {pet_name}.")  # fmt: skip


def _place_of(rng: Random, name: str) -> Claim:
    thing, place = f"{rng.choice(rw.ADJECTIVES)} {rng.choice(rw.OBJECTS)}", rng.choice(rw.PLACES)
    full = f"The {thing} is in the {place}."
    return Claim(rng.choice((full, f"{name} put the {thing} in the {place}.")),
                 (f"Where is the {thing}?", f"In which place is the {thing}?", f"Where can I find the {thing}?"),
                 place, full)  # fmt: skip


def _code_of(rng: Random, name: str) -> Claim:
    what = rng.choice((f"the {rng.choice(rw.PLACES)}", f"the {_thing(rng)}", name))
    kind = rng.choice(("code", "number", "password", "secret code"))
    value = rw.code(rng)
    full = f"The {kind} of {what} is {value}."
    return Claim(full, (f"What is the {kind} of {what}?", f"Which {kind} has {what}?",
                        f"Tell me the {kind} of {what}."),
                 value, full)  # fmt: skip


def _address_of(rng: Random, name: str) -> Claim:
    kind, value = rng.choice((("phone number", rw.phone(rng)), ("e-mail address", rw.email(rng, name)),
                              ("birthday", rw.date(rng))))  # fmt: skip
    full = f"The {kind} of {name} is {value}."
    return Claim(full, (f"What is the {kind} of {name}?", f"What is {name}'s {kind}?",
                        f"Give me the {kind} of {name}."),
                 value, full)  # fmt: skip


def _server(rng: Random, name: str) -> Claim:
    host = rng.choice(("server", "printer", "router", "database", "mail server", "web server", "camera", "gateway"))
    value = rw.ip_address(rng)
    full = f"The IP address of the {host} is {value}."
    return Claim(full, (f"What is the IP address of the {host}?", f"Which IP address has the {host}?",
                        f"What is the {host}'s IP address?"), value, full)  # fmt: skip


def _made_up_meaning(rng: Random, name: str) -> Claim:
    word, meaning = rw.made_up_word(rng, 2), rng.choice(rw.WORDS)
    return Claim(f"The word {word} means {meaning}.", (f"What does {word} mean?", f"What is the meaning of {word}?"),
                 meaning, f"The word {word} means {meaning}.")  # fmt: skip


CLAIMS: tuple[Callable[[Random, str], Claim], ...] = (
    _owns, _lives, _age, _job, _colour, _pet, _place_of, _code_of, _address_of, _server, _made_up_meaning,
)  # fmt: skip


def claims(rng: Random, n: int) -> list[Claim]:
    """`n` claims whose questions differ from each other."""
    known = rng.random() < 0.15  # people of the world, with other facts: the text wins over memory
    names = rng.sample(world.column("people", "name"), 3) if known else rw.strangers(rng, min(n, rng.randint(1, 4)))
    found: list[Claim] = []
    for _ in range(n * 4):
        claim = rng.choice(CLAIMS)(rng, rng.choice(names))
        if len(found) < n and not any(claim.questions[0] == other.questions[0] for other in found):
            found.append(claim)
    return found


def _frame(rng: Random, text: str, question: str) -> str:
    return rng.choice((
        f"{text} {question}", f"{text}\n{question}", f"{text}\n\n{question}", f"Text: {text}\nQuestion: {question}",
        f"Read this text: {text}\n\n{question}", f"Context: {text}\n\nQuestion: {question}",
        f"{question}\n\n{text}", f"Here is a text.\n{text}\nAnswer this: {question}",
        f"Use the text to answer.\nText: {text}\nQuestion: {question}",
    ))  # fmt: skip


def _opening(rng: Random, style: Style) -> list[Message]:
    if style is Style.PLAIN and rng.random() < 0.6:
        return []
    return [system(rng.choice(styles.SYSTEM_PROMPTS[style]))]


def _pick_style(rng: Random) -> Style:
    return rng.choices((Style.PLAIN, Style.WORD, Style.JSON, Style.SENTENCE), weights=(10, 6, 1, 2))[0]


def _reply(rng: Random, claim: Claim, style: Style) -> str:
    if style is Style.JSON:
        return styles.dump({"answer": styles.number_or_text(claim.short)})
    return styles.in_style(style, claim.short, claim.full)


def _text(rng: Random, found: list[Claim]) -> str:
    sep = rng.choice((" ", " ", " ", "\n", "\n- "))
    return ("- " if sep == "\n- " else "") + sep.join(c.statement for c in found)


def chat(rng: Random, n: int = 0) -> list[Message]:
    """A text of `n` claims, then one to five questions about it. Some ask for what the text does not say."""
    found, style = claims(rng, n or rng.randint(1, 8)), _pick_style(rng)
    text = _text(rng, found)
    missing = rng.choice(CLAIMS)(rng, rw.made_up_name(rng)) if rng.random() < 0.08 else None
    asked = [rng.choice(found) for _ in range(rng.choice((1, 1, 2, 3, 5)))]
    first, rest = asked[0], asked[1:]
    messages = _opening(rng, style)
    if missing and missing.questions[0] not in [c.questions[0] for c in found]:
        return [*messages, user(_frame(rng, text, rng.choice(missing.questions))),
                assistant(styles.in_style(style, NOT_SAID, NOT_SAID))]  # fmt: skip
    where = rng.random()
    if where < 0.2:
        lead = messages[0].content + "\n" if messages else rng.choice(("", "Use these facts. ", "You know this: "))
        messages = [system(lead + text), user(rng.choice(first.questions))]
    elif where < 0.35:
        messages += [user(rng.choice(("", "Remember this: ", "Please note: ", "Here are some facts. ")) + text),
                     assistant(rng.choice(("I will remember that.", "I will remember that.", "Noted."))),
                     user(rng.choice(first.questions))]  # fmt: skip
    else:
        messages += [user(_frame(rng, text, rng.choice(first.questions)))]
    messages += [assistant(_reply(rng, first, style))]
    for claim in rest:
        messages += [user(rng.choice(claim.questions)), assistant(_reply(rng, claim, style))]
    return messages


def plain(rng: Random) -> str:
    """The same without a chat: the text, then `Q:` and `A:` lines."""
    found, style = claims(rng, rng.randint(1, 6)), rng.choice((Style.PLAIN, Style.WORD))
    head, tail = rng.choice((("Q: ", "A: "), ("Question: ", "Answer: ")))
    lines = [
        f"{head}{rng.choice(c.questions)}\n{tail}{_reply(rng, c, style)}"
        for c in rng.choices(found, k=rng.randint(1, 4))
    ]
    return _text(rng, found) + rng.choice(("\n", "\n\n")) + "\n".join(lines) + "\n"
