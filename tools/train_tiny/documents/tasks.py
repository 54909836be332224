"""Small jobs that demonstrations of language programs like: tips, judging, agents, sentiment, sorting by kind."""

from random import Random

from tools.train_tiny import random_words as rw
from tools.train_tiny import relations, styles, world
from tools.train_tiny.chat import Message, assistant, system, user
from tools.train_tiny.documents import arithmetic

# topic: tips, each with the sentence it expands into
TIPS: dict[str, tuple[tuple[str, str], ...]] = {
    "staying healthy": (
        ("Eat more vegetables.", "Vegetables give your body what it needs, so put some on your plate at every meal."),
        ("Drink enough water.", "Drink a glass of water every few hours, because your body works better with it."),
        ("Sleep well.", "Go to bed at the same time each night and sleep for about eight hours."),
        ("Exercise every day.", "Move for half an hour a day, and your heart will become strong."),
        ("Eat a balanced diet.", "Eat fruit, vegetables, grains and protein, and not too much of one thing."),
        ("Take short breaks.", "Stand up once an hour and stretch, because long sitting makes you tired."),
        ("Spend time outside.", "Fresh air and sunlight lift your mood, so take a walk every day.")),
    "learning a language": (
        ("Practise every day.", "Ten minutes every day help you more than one long lesson a week."),
        ("Speak with people.", "Find somebody who speaks the language and talk about simple things."),
        ("Read easy books.", "Read books for children first, since they use short sentences."),
        ("Listen to songs.", "Songs stay in your head, and their words stay with them."),
        ("Learn a few words a day.", "Write five new words on a card each morning and look at it often.")),
    "saving money": (
        ("Write down what you spend.", "Keep a small book and note each thing you buy, so you see where money goes."),
        ("Cook at home.", "A meal at home costs less than a meal in a restaurant."),
        ("Buy less.", "Wait one day before you buy something, and often you will not need it."),
        ("Compare prices.", "Look at two or three shops before you pay."),
        ("Repair old things.", "A repaired coat is cheaper than a new one and lasts for years.")),
    "sleeping better": (
        ("Keep the room dark.", "Close the curtains, because light tells your body to stay awake."),
        ("Put the phone away.", "Leave your phone in another room an hour before you sleep."),
        ("Go to bed early.", "Choose an early hour and keep it, even on Sunday."),
        ("Drink no coffee at night.", "Coffee keeps you awake for hours, so drink it in the morning only.")),
    "writing well": (
        ("Use short sentences.", "A short sentence is easy to read and hard to misunderstand."),
        ("Read your text aloud.", "When you read aloud, your ear finds the mistakes that your eye misses."),
        ("Cut needless words.", "Take out each word that does no work."),
        ("Write every day.", "Write one page each day, and writing will become easy.")),
    "making friends": (
        ("Listen to people.", "Ask a question and listen to the answer with care."),
        ("Smile.", "A smile tells people that you are glad to see them."),
        ("Join a club.", "In a club you meet people who like what you like."),
        ("Be kind.", "Help when you can, and people will remember it.")),
    "working from home": (
        ("Make a plan.", "Write down three things in the morning and do them first."),
        ("Keep a tidy desk.", "A tidy desk helps you think about one thing at a time."),
        ("Take a walk at noon.", "A walk at noon gives you new strength for the afternoon."),
        ("Stop on time.", "End your day at a fixed hour, so that the evening belongs to you.")),
    "growing plants": (
        ("Water them in the morning.", "In the morning the soil is cool, so the water reaches the roots."),
        ("Give them light.", "Put the plants near a window, because they live on light."),
        ("Use good soil.", "Good soil is dark and loose and full of food for the roots."),
        ("Be patient.", "A seed needs weeks, so wait and do not dig it up.")),
}  # fmt: skip
ASK_TIPS = ("Give {n} tips for {t}.", "Give me {n} tips for {t}.", "Write {n} tips for {t}.",
"What are {n} tips for {t}?",
            "Name {n} tips for {t}.", "Please provide {n} tips for {t}.", "List {n} tips for {t}.")  # fmt: skip
EXPAND = ("Expand this tip into a sentence: {x}", "Expand this tip: {x}", "Explain this tip in a sentence: {x}",
          "Now expand this tip into a paragraph: {x}", "Say more about this tip: {x}")  # fmt: skip
POSITIVE = ("I love this {x}.", "The {x} is wonderful.", "What a great {x}!", "This {x} made me very happy.",
            "The best {x} I have ever seen.", "I enjoyed the {x} a lot.", "The {x} works perfectly.",
            "A beautiful {x}, thank you.", "Everybody liked the {x}.", "I am very pleased with the {x}.")  # fmt: skip
NEGATIVE = ("I hate this {x}.", "The {x} is terrible.", "What a bad {x}!", "This {x} made me very sad.",
            "The worst {x} I have ever seen.", "I did not like the {x} at all.", "The {x} broke after one day.",
            "An ugly {x}, never again.", "Nobody liked the {x}.", "I am very disappointed with the {x}.")  # fmt: skip
FELT = (
    "film",
    "book",
    "meal",
    "hotel",
    "phone",
    "song",
    "game",
    "soup",
    "trip",
    "hat",
    "play",
    "coffee",
    "lamp",
    "shoe",
)
ASK_SENTIMENT = ("Sentiment of: {x}", "Is this positive or negative? {x}", "What is the sentiment of this text: {x}",
                 "Classify the sentiment: {x}", "Text: {x}\nSentiment:", "Positive or negative: {x}")  # fmt: skip
# dimension: (a good sign, a bad sign)
DIMENSIONS = {
    "clarity": ("The sentences are short and easy to follow.", "The sentences are long and hard to follow."),
    "structure": ("The text has a clear beginning and end.", "The text jumps from one thing to another."),
    "originality": ("The text has a new idea.", "The text repeats what everybody knows."),
    "style": ("The words are well chosen.", "The same words come again and again."),
    "evidence": ("The text gives reasons for what it says.", "The text claims much and proves little."),
}  # fmt: skip
ASK_JUDGE = ("Judge the {d} of this text: {x}", "Judge the {d} of this essay: {x}",
"Evaluate the {d} of this text: {x}",
             "Text: {x}\nJudge the {d} of the text.", "How good is the {d} of this text? {x}",
             "Please evaluate the essay based on the {d}: {x}")  # fmt: skip
GOOD_TEXTS = ("Dogs are good friends because they are loyal and play with us.", "We should read every day, because "
              "books make us wise.", "Walking is healthy. It costs nothing, and anyone can do it.", "A garden gives us "
              "food, and it gives us rest.", "Trains are better than cars since they use less energy.")  # fmt: skip
BAD_TEXTS = ("Things are things and stuff is stuff and so on and on.", "It is what it is and it was what it was.",
             "Cars, cats, clouds, I do not know, maybe yes.", "Good is good because it is good, and good.",
             "The the thing of the thing is very very very thing.")  # fmt: skip


def tips(rng: Random) -> list[Message]:
    """A numbered list of tips, then perhaps the expansion of one of them."""
    topic = rng.choice(list(TIPS))
    n = rng.randint(2, min(4, len(TIPS[topic])))
    chosen = rng.sample(TIPS[topic], n)
    words = rng.choice((str(n), world.number_word(n)))
    head = [system(rng.choice(styles.SYSTEM_PROMPTS[styles.Style.PLAIN]))] if rng.random() < 0.3 else []
    listing = "\n".join(f"{i}. {tip}" for i, (tip, _) in enumerate(chosen, 1))
    messages = [*head, user(rng.choice(ASK_TIPS).format(n=words, t=topic)), assistant(listing)]
    while rng.random() < 0.4 and len(messages) < 8:
        i = rng.randrange(n)
        ask = rng.choice((f"Expand tip {i + 1}.", f"Expand tip {i + 1} into a sentence.",
        f"Say more about tip {i + 1}.",
                          rng.choice(EXPAND).format(x=chosen[i][0])))  # fmt: skip
        messages += [user(ask), assistant(chosen[i][1])]
    return messages


def expand(rng: Random) -> list[Message]:
    """One tip expanded, out of any list."""
    tip, sentence = rng.choice(TIPS[rng.choice(list(TIPS))])
    return [user(rng.choice(EXPAND).format(x=tip)), assistant(sentence)]


def plain_tips(rng: Random) -> str:
    """Tips as running text: the list, then each tip in detail."""
    topic = rng.choice(list(TIPS))
    n = rng.randint(2, 3)
    chosen = rng.sample(TIPS[topic], n)
    lead = rng.choice(("Here are {n} tips for {t}:", "Here are {n} tips for {t}.", "{n} tips for {t}:"))
    text = world.capitalize(lead.format(n=world.number_word(n), t=topic)) + "\n"
    text += "\n".join(f"{i}. {tip}" for i, (tip, _) in enumerate(chosen, 1)) + "\n\n"
    ask = rng.choice(("Now, expand tip {i} into a paragraph:\n", "Tip {i} in detail: ", "Tip {i}: "))
    return text + "\n\n".join(ask.format(i=i) + long for i, (_, long) in enumerate(chosen, 1)) + "\n"


def sentiment(rng: Random) -> list[Message]:
    """Positive or negative, one or several times."""
    ask, messages = rng.choice(ASK_SENTIMENT), []
    for _ in range(rng.choice((1, 1, 2, 4))):
        good = rng.random() < 0.5
        text = rng.choice(POSITIVE if good else NEGATIVE).format(x=rng.choice(FELT))
        messages += [user(ask.format(x=text)), assistant("positive" if good else "negative")]
    return messages


def plain_sentiment(rng: Random) -> str:
    """Few-shot sentiment in plain text."""
    head, tail = rng.choice((("Review: ", "Sentiment: "), ("Text: ", "Label: "), ("", "=> ")))
    lines = []
    for _ in range(rng.randint(3, 8)):
        good = rng.random() < 0.5
        text = rng.choice(POSITIVE if good else NEGATIVE).format(x=rng.choice(FELT))
        lines.append(f"{head}{text}\n{tail}{'positive' if good else 'negative'}")
    return "\n\n".join(lines) + "\n"


def judge(rng: Random) -> list[Message]:
    """A verdict in one sentence and a score, for one or more dimensions of a text."""
    good = rng.random() < 0.5
    text = rng.choice(GOOD_TEXTS if good else BAD_TEXTS)
    if rng.random() < 0.3:
        text = text + " " + rng.choice(GOOD_TEXTS if good else BAD_TEXTS)
    messages: list[Message] = []
    for dimension in rng.sample(list(DIMENSIONS), rng.choice((1, 1, 2, 3))):
        score = rng.randint(7, 10) if good else rng.randint(1, 4)
        verdict = f"{DIMENSIONS[dimension][0 if good else 1]} Score: {score}"
        ask = rng.choice(ASK_JUDGE).format(d=dimension, x=text)
        if messages and rng.random() < 0.5:
            ask = rng.choice(("And its {d}?", "Now judge the {d}.")).format(d=dimension)
        messages += [user(ask), assistant(verdict)]
    if len(messages) > 2:
        grade = rng.choice("AB") if good else rng.choice("CD")
        messages += [
            user(rng.choice(("Give a grade from A to D.", "Summarize it in a grade from A to D."))),
            assistant(grade),
        ]
    return messages


def agent(rng: Random) -> list[Message]:
    """Steps of thought, action and observation that look a fact up or compute a result."""
    if rng.random() < 0.35:
        question, short, full = arithmetic.problem(rng)
        action, observation, final = f"calculate[{full.split(' = ')[0]}]", short, short
        thought = "I need to calculate this."
    else:
        relation = rng.choice([r for r in relations.RELATIONS if r.group in ("country", "person", "animal", "job")])
        fact = rng.choice(relations.facts_of(f"{relation.group}.{relation.name}"))
        question = rng.choice(relations.questions(fact.relation, fact.subject))
        thought, action = f"I need to look up {fact.subject}.", f"search[{fact.subject}]"
        observation, final = fact.sentence, fact.answer
    lead = rng.choice(("Use steps. ", "Think step by step. ", "Use tools. ", "Solve this with tools: ",
    "Answer with Thought, "
                       "Action and Answer. "))  # fmt: skip
    if rng.random() < 0.5:
        text = (
            f"Thought: {thought}\nAction: {action}\nObservation: {observation}\n"
            f"Thought: I know the answer.\nAnswer: {final}"
        )
        return [user(lead + question), assistant(text)]
    return [user(lead + question), assistant(f"Thought: {thought}\nAction: {action}"),
            user(f"Observation: {observation}"),
            assistant(f"Thought: I know the answer.\nAnswer: {final}")]  # fmt: skip


def plain_tool_choice(rng: Random) -> str:
    """To answer a question: a calculator or a search engine, with what is typed into it."""
    if rng.random() < 0.5:
        question, _, full = arithmetic.problem(rng)
        tool, typed = "calculator", f"The math expression is: {full}"
    else:
        relation = rng.choice([r for r in relations.RELATIONS if r.group in ("country", "person", "animal")])
        fact = rng.choice(relations.facts_of(f"{relation.group}.{relation.name}"))
        question = rng.choice(relations.questions(fact.relation, fact.subject))
        tool, typed = "search engine", f"The key word to search is: {fact.subject}"
    return f"To answer this question: {question} I need to use a {tool}. {typed}\n"


def plain_addresses(rng: Random) -> str:
    """Questions about machines and people with well-formed made-up addresses."""
    lines = []
    for _ in range(rng.randint(1, 5)):
        host = rng.choice(("server", "printer", "router", "database", "mail server", "Google DNS servers", "gateway"))
        name = rw.stranger(rng)
        question, reply = rng.choice((
            (f"What is the IP address of the {host}?", "8.8.8.8" if "DNS" in host else rw.ip_address(rng)),
            (f"What is the phone number of {name}?", rw.phone(rng)), (f"What is the e-mail address of {name}?",
            rw.email(rng, name)),
            (f"When was {name} born?", rw.date(rng)),
        ))  # fmt: skip
        lines.append(f"Q: {question}\nA: {reply}")
    return "\n".join(lines) + "\n"


def addresses(rng: Random) -> list[Message]:
    """A made-up address on demand: an example of a form."""
    kind, value = rng.choice((("IP address", rw.ip_address(rng)), ("phone number", rw.phone(rng)), ("date",
    rw.date(rng)),
                              ("e-mail address", rw.email(rng, rw.stranger(rng)))))  # fmt: skip
    if rng.random() < 0.4:
        host = rng.choice(("Google DNS servers", "server", "printer", "router", "database", "mail server"))
        value = "8.8.8.8" if "DNS" in host else f"10.0.0.{rng.randint(1, 254)}"
        return [user(f"What is the IP address of the {host}?"), assistant(value)]
    ask = rng.choice(("Give me an example of a {k}.", "Write an example {k}.", "Invent a {k}.", "Make up a {k}."))
    return [user(ask.format(k=kind).replace("a IP", "an IP").replace("a e-", "an e-").replace("an example an",
    "an example")),
            assistant(value)]  # fmt: skip


def same_kind(rng: Random) -> list[Message]:
    """Which of two kinds a word is."""
    kinds = {"an animal": world.column("animals", "name"), "a country": world.column("countries", "name"),
             "a city": world.column("countries", "capital"), "a job": world.column("jobs", "name"),
             "a person": world.column("people", "name"), "a colour": world.column("people", "colour"),
             "a food": world.column("people", "food"), "a day": world.DAYS, "a month": world.MONTHS}  # fmt: skip
    kind, other = rng.sample(list(kinds), 2)
    word = rng.choice(kinds[kind])
    options = [kind, other]
    rng.shuffle(options)
    ask = rng.choice(("Is {w} {a} or {b}?", "What is {w}: {a} or {b}?"))
    full = rng.random() < 0.5
    head = [] if full else [system(rng.choice(styles.SYSTEM_PROMPTS[styles.Style.WORD]))]
    reply = world.capitalize(f"{word} is {kind}.") if full else kind.split(" ", 1)[1]
    return [*head, user(ask.format(w=word, a=options[0], b=options[1])), assistant(reply)]
