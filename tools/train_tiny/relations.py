"""How each fact of the world is asked and answered: the phrasings trained on, and those held out for the evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tools.train_tiny import world

# "{np}" is a noun phrase such as "the capital of France".
WHAT_FRAMES = (
    "What is {np}?", "What is {np}?", "What is {np}?", "What's {np}?", "Tell me {np}.", "Name {np}.",
    "Do you know {np}?", "Can you tell me {np}?", "I would like to know {np}.", "{np}?", "Give me {np}.",
    "Please name {np}.", "I want to know {np}.", "Which is {np}?", "Say {np}.", "I need to know {np}. What is it?",
    "Could you tell me what {np} is?", "Do you happen to know what {np} is?", "My question is about {np}. What is it?",
    "Let us talk about {np}. What is it?", "Help me: what is {np}?", "So, what is {np}?",
    "Excuse me, what is {np}?", "Any idea what {np} is?", "I would love to know {np}.", "Could you name {np}?",
    "Let me know {np}.", "May I ask what {np} is?", "Do tell me {np}, please.", "I am looking for {np}.",
    "I cannot recall {np}.", "Who knows {np}?", "Would you name {np}?",
)  # fmt: skip
HELD_OUT_FRAMES = (
    "I forgot {np}. Can you help me?", "Remind me: what is {np}?", "Would you mind telling me {np}?",
    "Please tell me what {np} is.",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One thing the world knows. `subject` and `answer` are short; `sentence` is the answer in full."""

    relation: str
    subject: str
    answer: str
    sentence: str
    key: str = ""  # what a second question of a dialogue calls it: "capital"
    group: str = ""  # the kind of subject: country, person, animal, job, word, calendar, number


@dataclass(frozen=True)
class Relation:
    """Phrasings of one kind of fact. `{s}` stands for the subject; `{o}`, in the sentence, for the answer."""

    group: str
    name: str
    sentence: str
    noun_phrases: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    facts: Callable[[], list[tuple[str, str]]]
    statements: tuple[str, ...] = ()  # further ways to state it in running text

    def all_facts(self) -> list[Fact]:
        """Every fact of this relation, in table order."""
        return [
            Fact(f"{self.group}.{self.name}", s, o, state(self.sentence, s, o), self.name, self.group)
            for s, o in self.facts()
        ]


def state(form: str, subject: str, answer: str) -> str:
    """Fill a sentence: `{s}`, `{o}`, with an article `{a}`, `{ao}`, and `{at}` for a place."""
    parts = {
        "s": subject,
        "o": answer,
        "a": world.article(subject),
        "ao": world.article(answer),
        "at": world.at(answer),
    }
    return world.capitalize(form.format(**parts))


def _rows(table: str, key: str, subject: str = "name") -> Callable[[], list[tuple[str, str]]]:
    return lambda: [(row[subject], row[key]) for row in world.table(table) if row[key] != "silence"]


def _pairs(relation: str) -> Callable[[], list[tuple[str, str]]]:
    return lambda: list(world.pairs(relation))


def _neighbours(names: tuple[str, ...], step: int) -> Callable[[], list[tuple[str, str]]]:
    return lambda: [(name, names[(i + step) % len(names)]) for i, name in enumerate(names)]


RELATIONS: tuple[Relation, ...] = (
    Relation("country", "capital", "The capital of {s} is {o}.",
             ("the capital of {s}", "the capital of {s}", "the capital city of {s}", "{s}'s capital"),
             ("Which city is the capital of {s}?", "What city is the capital of {s}?", "{s} has which capital?",
              "What is the name of the capital of {s}?", "Where is the government of {s}?", "capital of {s}"),
             ("Which town serves as the capital city of {s}?", "What do we call the capital of {s}?"),
             _rows("countries", "capital"),
             ("{o} is the capital of {s}.", "{s} has {o} as its capital.", "The capital city of {s} is {o}.")),
    Relation("country", "continent", "{s} is in {o}.",
             ("the continent of {s}", "the continent that {s} is in"),
             ("Which continent is {s} in?", "On which continent is {s}?", "Where in the world is {s}?",
              "What continent does {s} belong to?", "Where is {s}?", "In which part of the world is {s}?",
              "What continent is {s} in?", "{s} is on which continent?"),
             ("On what continent does {s} lie?", "Which continent would I find {s} on?"),
             _rows("countries", "continent"),
             ("{s} lies in {o}.", "{s} is a country in {o}.")),
    Relation("country", "language", "People in {s} speak {o}.",
             ("the language of {s}", "the main language of {s}", "the language spoken in {s}"),
             ("Which language do people speak in {s}?", "What language is spoken in {s}?", "What do they speak in {s}?",
              "What language do they speak in {s}?", "Which language is used in {s}?",
              "If I go to {s}, which language will I hear?", "Which language should I learn for {s}?"),
             ("In {s}, what language do people talk in?", "Which language do the people of {s} speak?"),
             _rows("countries", "language"),
             ("{o} is spoken in {s}.", "The language of {s} is {o}.")),
    Relation("country", "currency", "People in {s} pay with the {o}.",
             ("the currency of {s}", "the money of {s}", "{s}'s currency"),
             ("Which currency is used in {s}?", "What money do people use in {s}?", "How do people pay in {s}?",
              "What currency does {s} have?", "Which money do I need in {s}?", "What do people pay with in {s}?"),
             ("With which currency would I pay in {s}?", "What kind of money does {s} use?"),
             _rows("countries", "currency"),
             ("The currency of {s} is the {o}.", "{s} uses the {o}.")),
    Relation("city", "country", "{s} is the capital of {o}.",
             ("the country whose capital is {s}", "the country that has {s} as its capital"),
             ("Which country has the capital {s}?", "{s} is the capital of which country?", "Of which country is {s} "
              "the capital?", "What country is {s} the capital of?", "Which country is {s} in?", "In which country is "
              "{s}?", "Where is {s}?", "What country does {s} belong to?"),
             ("{s} is the capital city of what country?", "Tell me which country has {s} as its capital city."),
             _rows("countries", "name", "capital")),
    Relation("person", "age", "{s} is {o} years old.",
             ("the age of {s}", "{s}'s age"),
             ("How old is {s}?", "How many years old is {s}?", "What age is {s}?", "How old is {s} now?",
              "Do you know how old {s} is?", "What age does {s} have?"),
             ("Can you tell me how old {s} is?", "How many years has {s} lived?"),
             _rows("people", "age"),
             ("The age of {s} is {o}.", "{s} is {o}.")),
    Relation("person", "job", "{s} is {ao}.",
             ("the job of {s}", "{s}'s job", "the profession of {s}", "the work of {s}"),
             ("What does {s} do?", "What does {s} do for a living?", "What is {s}'s profession?", "Which job does {s} "
              "have?", "What kind of work does {s} do?", "Who is {s}?", "How does {s} earn money?"),
             ("What job does {s} do?", "What line of work is {s} in?"),
             _rows("people", "job"),
             ("{s} works as {ao}.", "The job of {s} is {o}.")),
    Relation("person", "home", "{s} lives in {o}.",
             ("the home of {s}", "{s}'s home town", "the home town of {s}", "the city where {s} lives"),
             ("Where does {s} live?", "In which city does {s} live?", "Which city does {s} live in?", "Where is {s}'s "
              "home?", "Where can I find {s}?", "In what town does {s} live?", "Where is {s}?"),
             ("What city is {s} living in?", "Where would I go to visit {s}?"),
             _rows("people", "home"),
             ("The home of {s} is {o}.", "{s} has a house in {o}.")),
    Relation("person", "pet", "{s} has {ao}.",
             ("the pet of {s}", "{s}'s pet"),
             ("What pet does {s} have?", "Which animal does {s} have?", "Which pet does {s} own?", "What animal lives "
              "with {s}?", "What kind of pet does {s} have?", "Does {s} have a pet? Which one?"),
             ("Which animal does {s} keep as a pet?", "What sort of pet does {s} own?"),
             _rows("people", "pet"),
             ("The pet of {s} is {ao}.", "{s} owns {ao}.")),
    Relation("person", "colour", "The favourite colour of {s} is {o}.",
             ("the favourite colour of {s}", "{s}'s favourite colour", "the favorite color of {s}"),
             ("Which colour does {s} like?", "Which colour does {s} like best?", "What colour does {s} like?",
              "What is {s}'s favorite color?", "Which color does {s} prefer?", "What colour does {s} love?"),
             ("Which colour does {s} like the most?", "Of all colours, which does {s} like best?"),
             _rows("people", "colour"),
             ("{s} likes the colour {o}.", "{s} likes {o} best.")),
    Relation("person", "food", "{s} likes to eat {o}.",
             ("the favourite food of {s}", "{s}'s favourite food", "the favorite food of {s}"),
             ("What does {s} like to eat?", "Which food does {s} like?", "What food does {s} like best?",
              "What should I cook for {s}?", "What does {s} eat?", "Which dish does {s} love?"),
             ("Which food does {s} like the most?", "What does {s} love to eat?"),
             _rows("people", "food"),
             ("The favourite food of {s} is {o}.", "{s} loves {o}.")),
    Relation("person", "friend", "The best friend of {s} is {o}.",
             ("the best friend of {s}", "{s}'s best friend", "the friend of {s}", "the name of {s}'s friend"),
             ("Who is {s}'s friend?", "Who is the best friend of {s}?", "Who is {s} friends with?",
              "Which friend does {s} have?", "Who is {s}'s best friend?", "Whom does {s} like to meet?"),
             ("Who is the friend of {s}?", "Tell me who {s}'s best friend is."),
             _rows("people", "friend"),
             ("{s} and {o} are friends.", "{s} is a friend of {o}.")),
    Relation("animal", "sound", "{a} says {o}.",
             ("the sound of {a}", "the sound that {a} makes", "the sound of the {s}"),
             ("What does {a} say?", "What sound does {a} make?", "What sound does the {s} make?", "How does {a} sound?",
              "Which sound do I hear from {a}?", "What noise does {a} make?"),
             ("Which noise does {a} make?", "What does the {s} say?"),
             _rows("animals", "sound"),
             ("The {s} goes {o}.", "The sound of {a} is {o}.")),
    Relation("animal", "legs", "{a} has {o} legs.",
             ("the number of legs of {a}", "the number of legs that {a} has"),
             ("How many legs does {a} have?", "How many legs has {a}?", "How many legs does the {s} have?", "Count the "
              "legs of {a}.", "On how many legs does {a} walk?", "How many legs are on {a}?"),
             ("How many legs would I count on {a}?", "What number of legs does {a} have?"),
             _rows("animals", "legs")),
    Relation("animal", "habitat", "{a} lives {at}.",
             ("the habitat of {a}", "the place where {a} lives", "the home of the {s}"),
             ("Where does {a} live?", "Where does the {s} live?", "Where can I find {a}?", "In what place does {a} "
              "live?", "Where is {a} at home?", "What is the {s}'s habitat?"),
             ("Where would I find {a}?", "Which place does {a} live in?"),
             _rows("animals", "habitat")),
    Relation("animal", "food", "{a} eats {o}.",
             ("the food of {a}", "the favourite food of {a}", "the diet of {a}"),
             ("What does {a} eat?", "What does the {s} eat?", "Which food does {a} eat?", "What do I feed {a}?",
              "What does {a} like to eat?", "What should I give {a} to eat?"),
             ("What kind of food does {a} eat?", "What would {a} like for dinner?"),
             _rows("animals", "food"),
             ("The {s} feeds on {o}.", "The food of {a} is {o}.")),
    Relation("animal", "size", "{a} is {o}.",
             ("the size of {a}", "the size of the {s}"),
             ("How big is {a}?", "How large is {a}?", "What size is {a}?", "How big is the {s}?",
              "What size does {a} have?"),
             ("How big does {a} get?", "Tell me how large {a} is."),
             _rows("animals", "size")),
    Relation("animal", "kind", "{a} is {ao}.",
             ("the kind of animal that {a} is", "the class of the {s}"),
             ("What kind of animal is {a}?", "What is {a}?", "Which kind of animal is {a}?", "What sort of animal is "
              "{a}?", "What type of animal is the {s}?", "To which group of animals does {a} belong?"),
             ("What class of animal is {a}?", "Which group of animals is the {s} in?"),
             _rows("animals", "kind"),
             ("The {s} is {ao}.",)),
    Relation("animal", "baby", "A young {s} is called {ao}.",
             ("the name of a young {s}", "the word for a young {s}", "a baby {s} called"),
             ("What is a young {s} called?", "How do you call a young {s}?", "What do we call a baby {s}?",
              "What is the baby of {a} called?", "What is the child of {a} called?"),
             ("What is the name for a baby {s}?", "How is a young {s} called?"),
             _rows("animals", "baby"),
             ("The baby of {a} is {ao}.",)),
    Relation("job", "work", "{a} {o}.",
             ("the work of {a}", "the job of {a}", "the task of {a}"),
             ("What does {a} do?", "What does {a} do all day?", "What work does {a} do?", "What is {a} good for?",
              "Explain what {a} does.", "What is {a}?"),
             ("What does {a} do at work?", "Describe what {a} does."),
             _rows("jobs", "does"),
             ("The {s} {o}.",)),
    Relation("job", "tool", "{a} uses {ao}.",
             ("the tool of {a}", "the tool that {a} uses"),
             ("Which tool does {a} use?", "What does {a} work with?", "What tool does {a} need?", "What does {a} use?",
              "What tool belongs to {a}?", "Which thing does {a} need for work?"),
             ("What kind of tool does {a} use?", "Which tool would {a} need?"),
             _rows("jobs", "tool")),
    Relation("job", "place", "{a} works {at}.",
             ("the workplace of {a}", "the place where {a} works"),
             ("Where does {a} work?", "Where can I find {a} at work?", "In what place does {a} work?", "Where is {a} "
              "during the day?", "Which place does {a} work in?"),
             ("Where would {a} work?", "What is the place of work of {a}?"),
             _rows("jobs", "place")),
    Relation("word", "opposite", "The opposite of {s} is {o}.",
             ("the opposite of {s}", "the opposite of \"{s}\"", "the opposite of the word {s}"),
             ("Which word means the opposite of {s}?", "What is the contrary of {s}?", "{s} is the opposite of what?",
              "What word is opposite to {s}?", "opposite of {s}"),
             ("Which word is the opposite of {s}?", "What would be the opposite of {s}?"),
             _pairs("opposite")),
    Relation("word", "plural", "The plural of {s} is {o}.",
             ("the plural of {s}", "the plural of \"{s}\"", "the plural form of {s}"),
             ("How do I write the plural of {s}?", "One {s}, two what?", "plural of {s}", "What is more than one {s} "
              "called?"),
             ("What would be the plural of {s}?", "Which word is the plural of {s}?"),
             _pairs("plural")),
    Relation("word", "past tense", "The past tense of {s} is {o}.",
             ("the past tense of {s}", "the past tense of \"{s}\"", "the past of the verb {s}", "the past form of {s}"),
             ("How do I write {s} in the past?", "Today I {s}. What did I do yesterday?", "past tense of {s}",
              "Put {s} in the past tense."),
             ("What would be the past tense of {s}?", "Which word is the past tense of {s}?"),
             _pairs("past tense")),
    Relation("thing", "colour", "The colour of {s} is {o}.",
             ("the colour of {s}", "the color of {s}", "the usual colour of {s}"),
             ("Which colour has {s}?", "What colour is {s}?", "What color is {s}?", "Which colour do you see in {s}?",
              "colour of {s}"),
             ("What would be the colour of {s}?", "Which colour does {s} have?"),
             _pairs("colour")),
    Relation("calendar", "day after", "The day after {s} is {o}.",
             ("the day after {s}", "the next day after {s}"),
             ("Which day comes after {s}?", "What day follows {s}?", "What comes after {s}?",
             "Today is {s}. What day is "
              "tomorrow?", "Which day is after {s}?"),
             ("What day comes right after {s}?", "If today is {s}, which day is tomorrow?"),
             _neighbours(world.DAYS, 1)),
    Relation("calendar", "day before", "The day before {s} is {o}.",
             ("the day before {s}", "the last day before {s}"),
             ("Which day comes before {s}?", "What day is before {s}?", "What comes before {s}?", "Today is {s}. What "
              "day was yesterday?", "Which day is before {s}?"),
             ("What day comes right before {s}?", "If today is {s}, which day was yesterday?"),
             _neighbours(world.DAYS, -1)),
    Relation("calendar", "month after", "The month after {s} is {o}.",
             ("the month after {s}", "the next month after {s}"),
             ("Which month comes after {s}?", "What month follows {s}?", "What comes after {s}?", "It is {s}. What is "
              "the next month?", "Which month is after {s}?"),
             ("What month comes right after {s}?", "If it is {s} now, which month is next?"),
             _neighbours(world.MONTHS, 1)),
    Relation("calendar", "season", "{s} is in {o}.",
             ("the season of {s}", "the season in {s}"),
             ("Which season is {s} in?", "In which season is {s}?", "What season is it in {s}?", "To which season does "
              "{s} belong?"),
             ("What season does {s} belong to?", "Which season do we have in {s}?"),
             lambda: list(world.SEASONS.items())),
    Relation("number", "digits", "{s} is written {o}.",
             ("the number {s} in digits", "{s} as a number", "{s} in digits"),
             ("How do I write {s} in digits?", "Write {s} as a number.", "Write {s} with digits.", "Which number is "
              "{s}?"),
             ("Which digits make the number {s}?", "How is {s} written in digits?"),
             lambda: [(world.number_word(n), str(n)) for n in range(100)]),
)  # fmt: skip


@cache
def by_name() -> dict[str, Relation]:
    """Relations by `group.name`."""
    return {f"{r.group}.{r.name}": r for r in RELATIONS}


@cache
def facts_of(relation: str) -> tuple[Fact, ...]:
    """Facts of one relation, given as `group.name`."""
    return tuple(by_name()[relation].all_facts())


@cache
def facts_about(group: str) -> dict[str, tuple[Fact, ...]]:
    """Facts of one group of relations, by subject."""
    found: dict[str, list[Fact]] = {}
    for relation in RELATIONS:
        if relation.group == group:
            for fact in relation.all_facts():
                found.setdefault(fact.subject, []).append(fact)
    return {subject: tuple(facts) for subject, facts in found.items()}


def _fill(template: str, subject: str) -> str:
    filled = template.format(s=subject, a=world.article(subject))
    return filled if template in ("capital of {s}", "opposite of {s}") else world.capitalize(filled)


@cache
def questions(relation: str, subject: str, held_out: bool = False) -> tuple[str, ...]:
    """`phrasings` for a subject of the world, remembered: there are few of these and they are asked often."""
    return phrasings(relation, subject, held_out)


def phrasings(relation: str, subject: str, held_out: bool = False) -> tuple[str, ...]:
    """Every way to ask for one thing: those of training, or those that training never sees.

    `subject` may be anybody or anything. Frequent forms come more than once.
    """
    r = by_name()[relation]
    frames = HELD_OUT_FRAMES if held_out else WHAT_FRAMES
    direct = r.held_out if held_out else r.questions
    framed = [
        _fill(frame.replace("{np}", phrase), subject)
        for phrase in dict.fromkeys(r.noun_phrases)
        for frame in frames
        if not phrase.endswith("called") or frame in WHAT_FRAMES[:4]
    ]
    plain = [_fill(question, subject) for question in direct]
    repeat = 1 if held_out else max(1, len(framed) // (2 * len(plain)))  # direct questions about a third of the time
    return tuple(framed + plain * repeat)
