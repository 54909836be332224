"""Sums, differences and small products. One pair in twenty is held out for the evaluation."""

from random import Random

from tools.train_tiny import styles
from tools.train_tiny.chat import Message, assistant, system, user
from tools.train_tiny.styles import Style

ASKS = {
    "+": ("What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b} = ?", "How much is {a} + {b}?",
          "{a}+{b}", "Compute {a} + {b}.", "What is the sum of {a} and {b}?", "Calculate {a} + {b}.", "{a} plus {b}?",
          "I have {a} apples and get {b} more. How many do I have?"),
    "-": ("What is {a} - {b}?", "What is {a} minus {b}?", "Subtract {b} from {a}.", "{a} - {b} = ?", "{a}-{b}",
          "How much is {a} - {b}?", "Compute {a} - {b}.", "Calculate {a} - {b}.", "{a} minus {b}?",
          "I have {a} apples and eat {b}. How many are left?"),
    "*": ("What is {a} * {b}?", "What is {a} times {b}?", "Multiply {a} by {b}.", "{a} * {b} = ?", "{a}*{b}",
          "How much is {a} times {b}?", "Compute {a} * {b}.", "What is {a} x {b}?"),
}  # fmt: skip
HELD_OUT_ASKS = {"+": ("What do you get if you add {a} and {b}?", "Please add {a} + {b}.")}


def is_held_out(a: int, b: int) -> bool:
    """Whether a pair of numbers never occurs in training, in either order, for any operation on numbers above 12."""
    low, high = sorted((a, b))
    return high > 12 and (low * 31 + high * 17) % 20 == 0


def operands(rng: Random) -> tuple[int, str, int]:
    """Two numbers of training and a sign; differences are never negative."""
    sign = rng.choices("+-*", weights=(5, 3, 2))[0]
    while True:
        top = 12 if sign == "*" else rng.choice((9, 20, 99, 99, 99))
        a, b = rng.randint(0, top), rng.randint(0, top)
        if sign == "-" and a < b:
            a, b = b, a
        if not is_held_out(a, b):
            return a, sign, b


def compute(a: int, sign: str, b: int) -> int:
    """The result."""
    return a + b if sign == "+" else a - b if sign == "-" else a * b


def problem(rng: Random) -> tuple[str, str, str]:
    """A question, the bare result, and the full equation."""
    a, sign, b = operands(rng)
    result = compute(a, sign, b)
    return rng.choice(ASKS[sign]).format(a=a, b=b), str(result), f"{a} {sign} {b} = {result}"


def chat(rng: Random) -> list[Message]:
    """One to four problems. The plain reply is the equation; in one word it is the number."""
    style = rng.choices((Style.PLAIN, Style.WORD, Style.JSON), weights=(6, 4, 1))[0]
    has_system = style is not Style.PLAIN or rng.random() < 0.4
    messages = [system(rng.choice(styles.SYSTEM_PROMPTS[style]))] if has_system else []
    for _ in range(rng.choice((1, 1, 2, 4))):
        question, short, full = problem(rng)
        messages += [user(question), assistant(styles.in_style(style, short, full))]
    return messages


def table(rng: Random) -> str:
    """Lines of equations in plain text."""
    lines = []
    for _ in range(rng.randint(3, 14)):
        a, sign, b = operands(rng)
        lines.append(f"{a} {sign} {b} = {compute(a, sign, b)}")
    return "\n".join(lines) + "\n"


def counting(rng: Random) -> str:
    """A run of numbers with a fixed step, as a list or in a chat-free line."""
    start, step, n = rng.randint(0, 60), rng.choice((1, 1, 1, 2, 5, 10)), rng.randint(5, 20)
    sep = rng.choice((", ", " ", "\n"))
    return sep.join(str(start + i * step) for i in range(n)) + "\n"
