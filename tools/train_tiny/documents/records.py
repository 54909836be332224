"""JSON: records of the world, of texts in the prompt, and of invented characters; one line or indented."""

import json
from random import Random

from tools.train_tiny import random_words as rw
from tools.train_tiny import styles, world
from tools.train_tiny.chat import Message, assistant, system, user

PERSON_KEYS = ("name", "age", "job", "home", "pet", "colour", "food", "friend")
SHORT_PERSON_KEYS = ("name", "age", "job", "home", "pet")
COUNTRY_KEYS = ("name", "capital", "continent", "language", "currency")
ANIMAL_KEYS = ("name", "kind", "sound", "legs", "habitat", "food", "size")
JOB_KEYS = ("name", "does", "tool", "place")
KEYS = {"people": PERSON_KEYS, "countries": COUNTRY_KEYS, "animals": ANIMAL_KEYS, "jobs": JOB_KEYS}

DESCRIBE = ("Describe {s} as JSON.", "Describe {s} as JSON.", "Describe {s} in JSON.", "Write {s} as JSON.",
            "Give me {s} as a JSON object.", "Show {s} as JSON.", "JSON for {s}.", "Make a JSON record of {s}.",
            "Write a JSON object about {s}.", "Tell me about {s} in JSON.",
            "Can you describe {s} as JSON?", "{s} as JSON", "I want {s} as JSON.", "Give me the JSON of {s}.",
            "How would you write {s} as JSON?", "Could I have {s} as JSON?", "Show me {s} in JSON, please.",
            "What is {s} as JSON?", "Please put {s} into JSON.", "Return {s} as JSON.")  # fmt: skip
HELD_OUT_DESCRIBE = ("Please describe {s} as a JSON object.", "What does {s} look like as JSON?")
WITH_KEYS = ("Describe {s} as JSON with the keys {k}.", "Give me JSON about {s}. Keys: {k}.",
             "Write {s} as JSON with {k}.", "Make a JSON object of {s} with these keys: {k}.")  # fmt: skip
TELL = ("Describe {s}.", "Tell me about {s}.", "Who or what is {s}?", "What do you know about {s}?")
PRETTY = (" Indent it.", " Pretty print it.", " Use several lines.")
EXTRACT = ("Write this as JSON: {t}", "Turn this text into JSON: {t}", "{t}\nAs JSON, please.",
"Extract JSON from: {t}",
           "Text: {t}\nJSON:")  # fmt: skip
HOUSES = ("Gryffindor", "Slytherin", "Ravenclaw", "Hufflepuff")
BLOOD = ("Pure-blood", "Half-blood", "Muggle-born")
MOODS = ("brave", "clever", "kind", "shy", "proud", "gentle", "curious", "lazy", "loyal", "wise")
CLASSES = ("wizard", "knight", "thief", "ranger", "healer", "bard", "monk", "dragon rider")
ASK_WIZARD = ("{n} is a character in Harry Potter. Please fill in the following information about {n}.",
              "Describe the wizard {n} as JSON.", "Fill in a wizard sheet for {n}.")  # fmt: skip
ASK_PLAYER = ("Make a character sheet for {n}.", "Invent a character called {n} as JSON.",
              "Create a game character named {n}.", "Write a character sheet for {n} in JSON.")  # fmt: skip


def shown_subject(table: str, row: dict[str, str]) -> str:
    """How a question names the subject of a row."""
    return world.article(row["name"]) if table in ("animals", "jobs") else row["name"]


def record(table: str, row: dict[str, str], keys: tuple[str, ...] = ()) -> dict[str, object]:
    """A row as a JSON object with `keys` in their order; people have five keys when none are given."""
    keys = keys or (SHORT_PERSON_KEYS if table == "people" else KEYS[table])
    values: dict[str, object] = {k: styles.number_or_text(row[k]) for k in keys}
    if isinstance(name := values.get("name"), str):
        values["name"] = name.removeprefix("the ")
    return values


def _row(rng: Random) -> tuple[str, dict[str, str]]:
    table = rng.choices(("people", "countries", "animals", "jobs"), weights=(5, 3, 3, 1))[0]
    return table, rng.choice(world.table(table))


def describe(rng: Random) -> list[Message]:
    """One or more records, with the usual keys or with the keys the prompt asks for."""
    by_system = rng.random() < 0.3
    messages = [system(rng.choice(styles.SYSTEM_PROMPTS[styles.Style.JSON]))] if by_system else []
    if not by_system and rng.random() < 0.3:
        messages = [system(rng.choice(styles.SYSTEM_PROMPTS[styles.Style.PLAIN]))]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        table, row = _row(rng)
        keys: tuple[str, ...] = ()
        subject = shown_subject(table, row)
        if rng.random() < 0.35:
            keys = tuple(rng.sample(KEYS[table], rng.randint(1, len(KEYS[table]))))
            ask = rng.choice(WITH_KEYS).format(s=subject, k=", ".join(keys))
        else:
            ask = rng.choice(TELL if by_system and rng.random() < 0.5 else DESCRIBE).format(s=subject)
        pretty = rng.random() < 0.12
        text = json.dumps(record(table, row, keys), indent=2 if pretty else None, ensure_ascii=False)
        messages += [user(ask + (rng.choice(PRETTY) if pretty else "")), assistant(text)]
    return messages


def several(rng: Random) -> list[Message]:
    """A JSON list of records or of names."""
    table, n = rng.choice(("people", "countries", "animals")), rng.randint(2, 4)
    rows = rng.sample(world.table(table), n)
    count = rng.choice((str(n), world.number_word(n)))
    if rng.random() < 0.4:
        kind = rng.choice(("colour", "food", "pet", "job"))
        names = rng.sample(world.column("people", kind), n)
        ask = rng.choice(
            ("List {n} {t}s as a JSON list.", "Give me a JSON list of {n} {t}s.", "Name {n} {t}s as JSON.")
        )
        return [user(ask.format(n=count, t=kind)), assistant(styles.dump(names))]
    if rng.random() < 0.5:
        ask = rng.choice(("List {n} {t} as a JSON list.", "Give me a JSON list of {n} {t}.", "Name {n} {t} as JSON."))
        return [
            user(ask.format(n=count, t=table)),
            assistant(styles.dump([r["name"].removeprefix("the ") for r in rows])),
        ]
    names = [shown_subject(table, r) for r in rows]
    keys = tuple(rng.sample(KEYS[table][1:], rng.randint(1, 2)))
    ask = f"Describe {', '.join(names[:-1])} and {names[-1]} as a JSON list with the keys name, {', '.join(keys)}."
    return [user(ask), assistant(styles.dump([record(table, r, ("name", *keys)) for r in rows]))]


def plain(rng: Random) -> str:
    """Lines such as `Ada = {...}`, or an array of records, without a chat."""
    table = rng.choice(list(KEYS))
    rows = rng.sample(world.table(table), rng.randint(2, 5))
    if rng.random() < 0.3:
        return json.dumps([record(table, r) for r in rows], indent=rng.choice((None, 2)), ensure_ascii=False) + "\n"
    sep = rng.choice((" = ", ": ", " -> ", "\n"))
    return "\n".join(f"{r['name']}{sep}{styles.dump(record(table, r))}" for r in rows) + "\n"


def extract(rng: Random) -> list[Message]:
    """An invented person in a sentence or two, and the record of it."""
    name, age = rw.stranger(rng), rng.randint(3, 99)
    job, home = rng.choice(world.column("jobs", "name")), rng.choice(world.column("people", "home"))
    pet, thing = rng.choice(world.column("people", "pet")), rng.choice(rw.OBJECTS)
    parts = [("age", age, f"{name} is {age} years old."), ("job", job, f"{name} is {world.article(job)}."),
             ("home", home, f"{name} lives in {home}."), ("pet", pet, f"{name} has a {pet}."),
             ("thing", thing, f"{name} owns {world.article(thing)}."),
             ("code", code := rw.digits(rng, 4), f"The code of {name} is {code}.")]  # fmt: skip
    chosen = rng.sample(parts, rng.randint(1, 4))
    text = " ".join(sentence for _, _, sentence in chosen)
    value = {"name": name, **{key: value for key, value, _ in chosen}}
    return [user(rng.choice(EXTRACT).format(t=text)), assistant(styles.dump(value))]


def character(rng: Random) -> list[Message]:
    """A character sheet for an invented name. Its values are free: sampling gives another one each time."""
    name = rw.stranger(rng) if rng.random() < 0.7 else rng.choice(world.column("people", "name"))
    wizard = rng.random() < 0.4
    sheet = _wizard(rng, name) if wizard else _player(rng, name)
    ask = rng.choice(ASK_WIZARD if wizard else ASK_PLAYER)
    text = json.dumps(sheet, indent=rng.choice((None, None, 2, 4)), ensure_ascii=False)
    return [user(ask.format(n=name)), assistant(text)]


def _wizard(rng: Random, name: str) -> dict[str, object]:
    return {
        "name": name,
        "house": rng.choice(HOUSES),
        "blood status": rng.choice(BLOOD),
        "occupation": rng.choice(("student", "teacher", "healer", "keeper")),
        "alive": rng.choice(("Alive", "Deceased")),
        "wand": {
            "wood": rng.choice(("oak", "holly", "elm", "willow", "ash")),
            "core": rng.choice(("phoenix feather", "unicorn hair", "dragon heartstring")),
            "length": round(rng.uniform(8, 15), 1),
        },
    }


def _player(rng: Random, name: str) -> dict[str, object]:
    return {
        "name": name,
        "class": rng.choice(CLASSES),
        "level": rng.randint(1, 20),
        "strength": rng.randint(3, 18),
        "mood": rng.choice(MOODS),
        "items": rng.sample(rw.OBJECTS, rng.randint(1, 3)),
    }
