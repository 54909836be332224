"""Short stories, poems and descriptions from a small grammar; sampling from the model gives new ones."""

from random import Random

from tools.train_tiny import random_words as rw
from tools.train_tiny import styles, world
from tools.train_tiny.chat import Message, assistant, system, user

OPENINGS = ("Once upon a time there was {h} in {p}.", "There was once {h} who lived near {p}.",
            "Long ago, {h} lived in {p}.", "One day {h} came to {p}.", "In {p} there lived {h}.",
            "{H} woke up early in {p}.")  # fmt: skip
WANTS = ("{n} wanted to find {t}.", "{n} was looking for {t}.", "{n} had lost {t}.", "{n} dreamed of {t}.",
         "Every night {n} thought about {t}.", "{n} needed {t} before winter.")  # fmt: skip
MEETINGS = ("On the way {n} met {o}.", "Soon {n} met {o}.", "By the river {n} saw {o}.", "Then {o} came along.",
            "Behind a tree stood {o}.", "At the market {n} found {o}.")  # fmt: skip
TALKS = ('"Can you help me?" asked {n}.', '"What are you doing here?" said {m}.', '"I am hungry," said {m}.',
         '"Come with me," said {m}.', '"Do not be afraid," said {n}.', '"Good morning," said {m}.')  # fmt: skip
EVENTS = ("They walked through the {p2} until it was dark.", "It began to rain, and they hid in the {p2}.",
          "A strong wind took the {t2} away.", "They shared some {f} and laughed.", "{n} sang a song about the {t2}.",
          "{m} fell into the water, but {n} pulled {m} out.", "The road was {a}.", "Suddenly they heard a noise.",
          "They found {t} under a stone.", "{m} told a story about the {p2}.", "The night was {a}.",
          "{n} was afraid but did not stop.", "They asked an old {j} for the way.", "The moon was {a2}.")  # fmt: skip
ENDINGS = ("In the end {n} found {t} and went home.", "From that day on {n} and {m} were friends.",
           "{n} gave {m} the {t2}, and everyone was happy.", "They lived happily ever after.",
           "And so {n} learned to be patient.", "{n} went to sleep with a smile.",
           "At last they came home and ate {f}.")  # fmt: skip
ASKS = ("Write a short story about {x} and {y}.", "Tell me a story about {x} and {y}.",
"Write a story about {x} and {y}.",
        "Can you write a short story about {x} and {y}?", "A story about {x} and {y}, please.",
        "Invent a story about {x} and {y}.")  # fmt: skip
ASKS_ONE = ("Write a short story about {x}.", "Tell me a story about {x}.", "Write a story about {x}.",
            "I would like a story about {x}.")  # fmt: skip
ASKS_ANY = ("Tell me a story.", "Write a short story.", "Write a story.", "Tell me a bedtime story.")
TEMPERS = ("brave", "clever", "gentle", "hungry", "tired", "happy", "curious", "tall", "lazy", "proud", "shy",
"old", "young",
           "small", "big", "quiet", "kind", "lonely", "cheerful", "careful")  # fmt: skip
THING_LOOKS = ("red", "blue", "green", "golden", "silver", "old", "new", "small", "round", "broken", "heavy",
"shiny", "wooden",
               "strange", "pretty", "dusty", "magic", "tiny")  # fmt: skip
AIRS = ("long", "dark", "cold", "quiet", "bright", "strange", "warm", "pale", "clear", "yellow", "soft")
RHYMES = (("day", "play", "way", "stay", "hay", "away"), ("night", "light", "bright", "sight", "kite", "white"),
          ("tree", "sea", "bee", "free", "me", "key"), ("sun", "run", "fun", "done", "one"),
          ("moon", "soon", "tune", "spoon", "noon"), ("sky", "high", "fly", "by", "why"),
          ("rain", "train", "again", "lane"), ("cat", "hat", "mat", "that"), ("house", "mouse"),
          ("snow", "go", "slow", "know", "below"), ("hill", "still", "mill", "will"))  # fmt: skip
LINES = ("The {a} {x} goes to the {r}", "I saw {ax} under the {r}", "The {x} is {a}, and so is the {r}",
         "We sing about the {x} and the {r}", "O {a} {x}, come to the {r}", "The {x} will dream of the {r}",
         "Nobody knows the {x} and the {r}", "So {a} is the {x}, so {a2} the {r}")  # fmt: skip
POEM_ASKS = ("Write a poem about {x}.", "Write a short poem about {x}.", "Write a poem of four lines about {x}.",
             "Can you write a poem about {x}?", "A poem about {x}, please.")  # fmt: skip


def _hero(rng: Random) -> str:
    pool = (
        world.column("animals", "name"),
        world.column("jobs", "name"),
        ("king", "queen", "child", "wizard", "robot", "dragon", "girl", "boy", "knight"),
    )
    return rng.choice(rng.choice(pool)) if rng.random() < 0.75 else rw.any_word(rng)


def story_text(rng: Random, hero: str, other: str, sentences: int = 0) -> str:
    """A story of 5 to 15 sentences about two nouns, in one or two paragraphs."""
    adjective, adjective2 = rng.sample(AIRS, 2)
    thing = f"{rng.choice(THING_LOOKS)} {rng.choice(rw.OBJECTS)}"
    described = world.article(f"{rng.choice(TEMPERS)} {hero}")
    parts = {
        "h": described, "H": world.capitalize(described), "p": f"the {rng.choice(rw.PLACES)}",
        "p2": rng.choice(rw.PLACES), "t": world.article(thing), "t2": thing, "n": f"the {hero}", "m": f"the {other}",
        "o": world.article(f"{rng.choice(TEMPERS)} {other}"), "f": rng.choice(world.column("people", "food")),
        "a": adjective, "a2": adjective2, "j": rng.choice(world.column("jobs", "name")),
    }  # fmt: skip
    n = sentences or rng.randint(5, 13)
    middle = rng.sample(EVENTS, min(len(EVENTS), max(1, n - 5)))
    if n > 8:
        middle.insert(rng.randrange(len(middle)), rng.choice(TALKS))
    plan = [
        rng.choice(OPENINGS),
        rng.choice(WANTS),
        rng.choice(MEETINGS),
        rng.choice(TALKS),
        *middle,
        rng.choice(ENDINGS),
    ]
    lines = [world.capitalize(s.format(**parts)) for s in plan]
    if rng.random() < 0.25:
        cut = len(lines) // 2
        return " ".join(lines[:cut]) + "\n\n" + " ".join(lines[cut:])
    return " ".join(lines)


def plain(rng: Random) -> str:
    """A story with a title, or without."""
    hero, other = _hero(rng), _hero(rng)
    title = rng.choice(("", "", f"The {hero} and the {other}\n\n", f"Title: The {hero}\n\n"))
    return title + story_text(rng, hero, other) + "\n"


def chat(rng: Random) -> list[Message]:
    """A story on demand."""
    hero, other, roll = _hero(rng), _hero(rng), rng.random()
    if roll < 0.6:
        ask = rng.choice(ASKS).format(x=world.article(hero), y=world.article(other))
    elif roll < 0.85:
        ask = rng.choice(ASKS_ONE).format(x=world.article(hero))
    else:
        ask = rng.choice(ASKS_ANY)
    has_system = rng.random() < 0.3
    head = (
        [system(rng.choice((*styles.SYSTEM_PROMPTS[styles.Style.PLAIN], "You are a writer.", "You tell stories.")))]
        if has_system
        else []
    )
    return [*head, user(ask), assistant(story_text(rng, hero, other))]


def go_on(rng: Random) -> list[Message]:
    """The rest of a story whose beginning is given, or the title of a story."""
    hero, other = _hero(rng), _hero(rng)
    text = story_text(rng, hero, other).replace("\n\n", " ")
    if rng.random() < 0.4:
        ask = rng.choice(
            ("Give this story a title: {t}", "{t}\n\nWhat is a good title for this story?", "Title for: {t}")
        )
        return [user(ask.format(t=text)), assistant(f"The {hero} and the {other}")]
    sentences = text.split(". ")
    cut = rng.randint(1, len(sentences) - 2)
    begin, rest = ". ".join(sentences[:cut]) + ".", ". ".join(sentences[cut:])
    ask = rng.choice(("Continue this story: {t}", "Go on with this story: {t}", "Finish the story: {t}"))
    return [user(ask.format(t=begin)), assistant(rest)]


def poem(rng: Random) -> list[Message]:
    """Four lines that rhyme in pairs."""
    subject = rng.choice((_hero(rng), rw.any_word(rng)))
    pairs = [rng.sample(group, 2) for group in rng.sample(RHYMES, 2)]
    lines = []
    for rhyme in pairs[0] + pairs[1]:
        adjective, adjective2 = rng.sample(rw.ADJECTIVES, 2)
        lines.append(
            rng.choice(LINES).format(x=subject, ax=world.article(subject), a=adjective, a2=adjective2, r=rhyme)
        )
    shown = rng.choice((world.article(subject), f"the {subject}"))
    return [
        user(rng.choice(POEM_ASKS).format(x=shown)),
        assistant(",\n".join(lines[:2]) + ",\n" + ",\n".join(lines[2:]) + "."),
    ]
