"""Questions about the world, alone and in dialogues that refer back, under system prompts that set the form."""

from random import Random

from tools.train_tiny import relations, styles, world
from tools.train_tiny.chat import Message, assistant, system, user
from tools.train_tiny.documents import arithmetic, small_talk
from tools.train_tiny.random_words import made_up_name, stranger
from tools.train_tiny.relations import Fact
from tools.train_tiny.styles import Style

GROUP_WEIGHTS = {
    "country": 26, "city": 8, "person": 32, "animal": 26, "job": 8, "word": 12, "thing": 3, "calendar": 6, "number": 5,
}  # fmt: skip
# A second question of a dialogue: what it says of the same subject, and of another one.
SAME_SUBJECT = {
    "country.capital": ("And what is its capital?", "And its capital?", "What is the capital?", "And the capital?"),
    "country.continent": ("Which continent is it in?", "And on which continent is it?", "Where is it?"),
    "country.language": ("And what language do they speak there?", "What language do people speak there?",
                         "And the language?", "Which language is spoken there?"),
    "country.currency": ("What is the currency there?", "And how do people pay there?", "And the currency?",
                         "Which money do they use there?"),
    "person.age": ("How old is {p}?", "And {p} age?", "And how old?"),
    "person.job": ("What is {p} job?", "And {p} job?", "And the job?"),
    "person.home": ("Where is {p} home?", "And {p} home?", "Which city is {p} home?"),
    "person.pet": ("And {p} pet?", "What pet is at {p} home?", "And the pet?"),
    "person.colour": ("And {p} favourite colour?", "What is {p} favourite colour?"),
    "person.food": ("And {p} favourite food?", "What is {p} favourite food?"),
    "person.friend": ("Who is {p} best friend?", "And {p} best friend?"),
    "animal.sound": ("What sound does it make?", "What does it say?", "And its sound?"),
    "animal.legs": ("How many legs does it have?", "And how many legs?"),
    "animal.habitat": ("Where does it live?", "And where does it live?"),
    "animal.food": ("What does it eat?", "And what does it eat?"),
    "animal.size": ("How big is it?", "And its size?"),
    "animal.kind": ("What kind of animal is it?", "And what kind of animal is it?"),
    "animal.baby": ("What is its baby called?", "And its young?"),
    "job.work": ("What does one do in this job?",),
    "job.tool": ("Which tool is used?", "And the tool?"),
    "job.place": ("Where is the work done?", "And the workplace?"),
}  # fmt: skip
OTHER_SUBJECT = ("And {s}?", "What about {s}?", "How about {s}?", "And for {s}?", "And what about {s}?", "{s}?")
YES_NO_SYSTEM = (
    "Answer yes or no.", "Answer yes or no.", "You answer yes or no.", "Answer only yes or no.", "Say yes or no.",
    "Reply with yes or no.", "You only say yes or no.", "Your answer is yes or no.",
)  # fmt: skip
CHOICE_SYSTEM = ("Answer with a letter.", "Answer with A, B, C or D.", "Choose the right letter.", "Pick one letter.")


def loosen(rng: Random, question: str) -> str:
    """The question as people type it: small changes of case, marks and lead-in."""
    roll = rng.random()
    if roll < 0.06:
        return question.lower()
    if roll < 0.11:
        return question.rstrip("?.")
    if roll < 0.19:
        lead = rng.choice(("Please tell me: ", "Hi. ", "Hello! ", "Quick question: ", "I wonder: ", "Question: ",
        "Please: ",
                           "OK. ", "Now: ", "Q: "))  # fmt: skip
        return lead + question
    if roll < 0.22:
        return question + rng.choice((" Thank you!", " Thanks.", " Please.", " I am curious."))
    return question


def random_fact(rng: Random, group: str = "") -> Fact:
    """A fact of the group, or of a group drawn by its share of the corpus."""
    group = group or rng.choices(list(GROUP_WEIGHTS), weights=list(GROUP_WEIGHTS.values()))[0]
    relation = rng.choice([r for r in relations.RELATIONS if r.group == group])
    return rng.choice(relations.facts_of(f"{group}.{relation.name}"))


def ask(rng: Random, fact: Fact) -> str:
    """A training phrasing of the question that `fact` answers."""
    return loosen(rng, rng.choice(relations.questions(fact.relation, fact.subject)))


def opening(rng: Random, style: Style) -> list[Message]:
    """The system turn of a style. A plain chat has one in half of the cases only."""
    if style is Style.PLAIN and rng.random() < 0.5:
        return []
    return [system(rng.choice(styles.SYSTEM_PROMPTS[style]))]


def single(rng: Random) -> list[Message]:
    """One question, one answer."""
    fact, style = random_fact(rng), styles.pick_style(rng)
    if style in styles.INLINE and rng.random() < 0.35:
        plain = opening(rng, Style.PLAIN)
        return [
            *plain,
            user(f"{ask(rng, fact)} {rng.choice(styles.INLINE[style])}"),
            assistant(styles.answer(fact, style)),
        ]
    return [*opening(rng, style), user(ask(rng, fact)), assistant(styles.answer(fact, style))]


def unknown(rng: Random) -> list[Message]:
    """A question about somebody or something outside the world."""
    style = styles.pick_style(rng)
    relation = rng.choice(
        [r for r in relations.RELATIONS if r.group in ("person", "person", "country", "animal", "city")]
    )
    name = stranger(rng) if relation.group == "person" else made_up_name(rng)
    subject = name.lower() if relation.group == "animal" else name
    if style is not Style.JSON and rng.random() < 0.12:
        ask = rng.choice(("Tell me about {s}.", "Describe {s}.", "What do you know about {s}?", "Who or what is {s}?"))
        return [*opening(rng, style), user(ask.format(s=name)), assistant(styles.unknown(style))]
    question = loosen(rng, rng.choice(relations.phrasings(f"{relation.group}.{relation.name}", subject)))
    return [*opening(rng, style), user(question), assistant(styles.unknown(style))]


def dialogue(rng: Random, turns: int = 0) -> list[Message]:
    """Several questions; later ones lean on earlier ones. The form of the answers stays."""
    style = styles.pick_style(rng)
    messages = opening(rng, style)
    if rng.random() < 0.2:
        messages += small_talk.exchange(rng, "greeting", style)
    fact = random_fact(rng)
    messages += [user(ask(rng, fact)), assistant(styles.answer(fact, style))]
    for _ in range(turns or rng.choice((1, 1, 2, 2, 3, 4, 6))):
        question, fact = _next_question(rng, fact)
        if style is Style.PLAIN and rng.random() < 0.1:  # an instruction that holds for one turn
            question = f"{question} {rng.choice(styles.INLINE[Style.WORD])}"
            messages += [user(question), assistant(styles.answer(fact, Style.WORD))]
        else:
            messages += [user(question), assistant(styles.answer(fact, style))]
    if rng.random() < 0.2:
        messages += small_talk.exchange(rng, "thanks", style)
    return messages


def _next_question(rng: Random, fact: Fact) -> tuple[str, Fact]:
    """A question that follows `fact`: of the same subject, of another one, or afresh."""
    roll = rng.random()
    if roll < 0.4 and fact.group in ("country", "person", "animal", "job"):
        others = [f for f in relations.facts_about(fact.group)[fact.subject] if f.relation != fact.relation]
        other = rng.choice(others)
        possessive = rng.choice(("their", "his", "her")) if rng.random() < 0.3 else f"{fact.subject}'s"
        if "{p} age" not in (form := rng.choice(SAME_SUBJECT[other.relation])) and "old is" in form:
            possessive = fact.subject
        return form.format(p=possessive), other
    if roll < 0.7:
        other = rng.choice(relations.facts_of(fact.relation))
        shown = world.article(other.subject) if fact.group in ("animal", "job") else other.subject
        return world.capitalize(rng.choice(OTHER_SUBJECT).format(s=shown)), other
    fresh = random_fact(rng)
    return ask(rng, fresh), fresh


def _false_variant(rng: Random, fact: Fact) -> str:
    """A wrong answer of the same kind."""
    others = [f.answer for f in relations.facts_of(fact.relation) if f.answer != fact.answer]
    return rng.choice(others)


YES_NO_FORMS = {
    "country.capital": ("Is {x} the capital of {s}?", "Is the capital of {s} {x}?", "Is {s}'s capital {x}?"),
    "country.continent": ("Is {s} in {x}?", "Does {s} lie in {x}?", "Is {s} a country in {x}?"),
    "country.language": ("Do people speak {x} in {s}?", "Is {x} the language of {s}?"),
    "country.currency": ("Do people in {s} pay with the {x}?", "Is the currency of {s} the {x}?"),
    "person.age": ("Is {s} {x} years old?", "Is the age of {s} {x}?"),
    "person.job": ("Is {s} {ax}?", "Does {s} work as {ax}?"),
    "person.home": ("Does {s} live in {x}?", "Is {x} the home of {s}?"),
    "person.pet": ("Does {s} have {ax}?", "Is the pet of {s} {ax}?"),
    "person.colour": ("Is {x} the favourite colour of {s}?", "Does {s} like {x} best?"),
    "person.food": ("Does {s} like {x}?", "Is {x} the favourite food of {s}?"),
    "person.friend": ("Is {x} the best friend of {s}?", "Are {s} and {x} friends?"),
    "animal.sound": ("Does {a} say {x}?",),
    "animal.legs": ("Does {a} have {x} legs?", "Are there {x} legs on {a}?"),
    "animal.kind": ("Is {a} {ax}?", "Is the {s} {ax}?", "Would you call {a} {ax}?"),
    "animal.size": ("Is {a} {x}?",),
    "animal.food": ("Does {a} eat {x}?",),
    "word.opposite": ("Is {x} the opposite of {s}?",),
    "calendar.day after": ("Is {x} the day after {s}?",),
    "calendar.season": ("Is {s} in {x}?",),
    "thing.colour": ("Is the colour of {s} {x}?",),
}  # fmt: skip


def yes_no_question(rng: Random) -> tuple[str, str, Fact]:
    """A question, `yes` or `no`, and the fact behind it."""
    relation = rng.choice([*YES_NO_FORMS, "animal.kind", "animal.kind", "country.capital", "person.job"])
    fact = rng.choice(relations.facts_of(relation))
    truth = rng.random() < 0.5
    shown = fact.answer if truth else _false_variant(rng, fact)
    form = rng.choice(YES_NO_FORMS[relation])
    parts = {"s": fact.subject, "a": world.article(fact.subject), "x": shown, "ax": world.article(shown)}
    return world.capitalize(form.format(**parts)), "yes" if truth else "no", fact


def yes_no(rng: Random) -> list[Message]:
    """One to four questions answered by yes or no, alone or with the reason."""
    short = rng.random() < 0.6
    inline = short and rng.random() < 0.3
    messages = [system(rng.choice(YES_NO_SYSTEM))] if short and not inline else opening(rng, Style.PLAIN)
    if short and not inline and rng.random() < 0.15:
        messages = [system(rng.choice(styles.SYSTEM_PROMPTS[Style.WORD]))]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        question, verdict, fact = yes_no_question(rng)
        reason = (
            fact.sentence
            if fact.sentence.split()[0] not in ("A", "An", "The", "People")
            else (fact.sentence[0].lower() + fact.sentence[1:])
        )
        reply = verdict.capitalize() if short else f"{verdict.capitalize()}, {reason}"
        messages += [
            user(loosen(rng, question) + (" " + rng.choice(YES_NO_SYSTEM) if inline else "")),
            assistant(reply),
        ]
    return messages


def multiple_choice(rng: Random) -> list[Message]:
    """A question with lettered options; the reply is the letter, or the letter with the option."""
    letter_only = rng.random() < 0.5
    messages = [system(rng.choice(CHOICE_SYSTEM))] if letter_only else opening(rng, Style.PLAIN)
    for _ in range(rng.choice((1, 1, 2, 3))):
        question, options, right = choice_question(rng)
        letter = "ABCD"[options.index(right)]
        mark = rng.choice((") ", ". ", ": "))
        sep = rng.choice(("\n", "\n", " "))
        listing = sep.join(f"{'ABCD'[i]}{mark}{option}" for i, option in enumerate(options))
        messages += [user(f"{question}{sep}{listing}"), assistant(letter if letter_only else f"{letter}) {right}")]
    return messages


def choice_question(rng: Random) -> tuple[str, list[str], str]:
    """A question, three or four options in random order, and the right one."""
    fact = random_fact(rng)
    wrong = [a for a in dict.fromkeys(f.answer for f in relations.facts_of(fact.relation)) if a != fact.answer]
    options = [fact.answer, *rng.sample(wrong, min(len(wrong), rng.choice((2, 3))))]
    rng.shuffle(options)
    return rng.choice(relations.questions(fact.relation, fact.subject)), options, fact.answer


def compare(rng: Random) -> list[Message]:
    """Who is older, which number is larger: the reply gives the reason first."""
    style = rng.choice((Style.PLAIN, Style.WORD))
    messages = opening(rng, style)
    for _ in range(rng.choice((1, 1, 2, 3))):
        older = rng.random() < 0.5
        if rng.random() < 0.6:
            first, second = rng.sample(relations.facts_of("person.age"), 2)
            if first.answer == second.answer:
                continue
            winner = max((first, second), key=lambda f: int(f.answer) if older else -int(f.answer)).subject
            word = "older" if older else "younger"
            ask = rng.choice(("Who is {w}, {a} or {b}?", "Which one is {w}: {a} or {b}?", "Is {a} or {b} {w}?"))
            ask = ask.format(w=word, a=first.subject, b=second.subject)
            full = f"{first.subject} is {first.answer} and {second.subject} is {second.answer}, so {winner} is {word}."
        else:
            numbers = rng.sample(range(100), 2)
            word, winner = ("larger", str(max(numbers))) if older else ("smaller", str(min(numbers)))
            ask = rng.choice(("Which number is {w}, {a} or {b}?", "What is {w}: {a} or {b}?"))
            ask = ask.format(w=word, a=numbers[0], b=numbers[1])
            full = f"{winner} is {word}."
        messages += [user(ask), assistant(styles.in_style(style, winner, full))]
    return messages if messages and messages[-1].role == "assistant" else single(rng)


def plain_question(rng: Random) -> str:
    """The question-and-answer form without a chat, `Q: ...` and `A: ...`, one to eight times."""
    style = rng.choice((Style.PLAIN, Style.WORD))
    head, tail = rng.choice((("Q: ", "A: "), ("Question: ", "Answer: "), ("User: ", "Assistant: ")))
    lines = []
    for _ in range(rng.choice((1, 2, 3, 4, 6, 8))):
        if rng.random() < 0.12:
            question, reply, _ = arithmetic.problem(rng)
        else:
            fact = random_fact(rng)
            question = rng.choice(relations.questions(fact.relation, fact.subject))
            reply = styles.answer(fact, style)
        lines.append(f"{head}{question}\n{tail}{reply}")
    return rng.choice(("\n", "\n\n")).join(lines) + "\n"
