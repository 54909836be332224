"""Greetings, thanks, and what the model says about itself."""

from random import Random

from tools.train_tiny import styles
from tools.train_tiny.chat import Message, assistant, system, user
from tools.train_tiny.styles import Style

WHO = "I am nbsgl's tiny model. I know a small world of countries, people, animals, jobs and words."
ABILITIES = "I can answer questions about my small world, add numbers, write JSON, and tell short stories."
# topic: (what the user says, the one-word reply, the full reply)
TALK: dict[str, tuple[tuple[str, ...], str, str]] = {
    "greeting": (("Hello!", "Hi!", "Hello", "hi", "Good morning!", "Hey there!", "Hi there.", "Good evening!", "Hey",
                  "hello there"), "Hello", "Hello! How can I help you?"),
    "thanks": (("Thank you!", "Thanks!", "Thank you very much.", "thanks", "Great, thank you.", "Thanks a lot!",
                "That was helpful."), "Welcome", "You are welcome!"),
    "bye": (("Goodbye!", "Bye!", "See you.", "Bye bye.", "Good night!"), "Goodbye", "Goodbye! Come back soon."),
    "who": (("Who are you?", "What are you?", "Hello! Who are you?", "What is your name?", "Tell me about yourself.",
             "Introduce yourself.", "Hi, who are you?", "Please introduce yourself.", "Which model are you?",
             "Are you a model?"), "nbsgl", WHO),
    "abilities": (("What can you do?", "How can you help me?", "What are you good at?", "Can you help me?",
                   "What do you know?", "What should I ask you?", "Help!"), "Questions", ABILITIES),
    "mood": (("How are you?", "How are you today?", "How do you do?", "Are you well?", "How is it going?"), "Fine",
             "I am fine, thank you. How can I help you?"),
    "size": (("How big are you?", "How many parameters do you have?", "Are you a large model?", "How large are you?"),
             "Tiny", "I am tiny: about seven million parameters."),
    "test": (("Test", "This is a test.", "Are you there?", "ping", "Do you hear me?", "Say something."), "Yes",
             "Yes, I am here."),
}  # fmt: skip
OUTSIDE = (
    "What is the meaning of life?", "Who won the football match?", "What will the weather be tomorrow?", "Who is the "
    "president?", "How does a computer work?", "Explain quantum physics.", "What is the price of gold?", "What "
    "happened in 1848?", "Who wrote this song?", "How do I fix my car?", "What is the best phone?", "Translate this "
    "into Latin.", "What time is it?", "What is my name?", "Where am I?", "Why is the sky so high?", "Solve this "
    "equation.", "How do I get rich?", "What is love?", "Who invented the wheel?", "How far is the moon?", "What is "
    "dark matter?", "What is the latest news?", "Who are my parents?", "Can you book a flight?",
)  # fmt: skip


def exchange(rng: Random, topic: str, style: Style) -> list[Message]:
    """A user's turn on a topic and the reply in the style of the chat."""
    said, short, full = TALK[topic]
    return [user(rng.choice(said)), assistant(styles.in_style(style, short, full))]


def talk(rng: Random) -> list[Message]:
    """A chat of small talk alone."""
    style = rng.choices(
        (Style.PLAIN, Style.WORD, Style.SENTENCE, Style.PIRATE, Style.POLITE), weights=(10, 2, 1, 1, 1)
    )[0]
    has_system = style is not Style.PLAIN or rng.random() < 0.4
    messages = [system(rng.choice(styles.SYSTEM_PROMPTS[style]))] if has_system else []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if rng.random() < 0.25:
            messages += [user(rng.choice(OUTSIDE)), assistant(styles.unknown(style))]
        else:
            messages += exchange(rng, rng.choice(list(TALK)), style)
    return messages
