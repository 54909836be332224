"""The closed world: what the tiny model is taught to know, read from the tables in `facts/`."""

import csv
from functools import cache
from pathlib import Path

FACTS_DIR = Path(__file__).parent / "facts"

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
SEASONS = dict(zip(MONTHS, ["winter"] * 2 + ["spring"] * 3 + ["summer"] * 3 + ["autumn"] * 3 + ["winter"], strict=True))
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

NO_ARTICLE = ("chalk", "scissors")
ON_PLACES = ("farm", "ice", "coast", "mountain", "savanna", "stage", "lake")  # "on the farm", but "in the forest"


@cache
def table(name: str) -> tuple[dict[str, str], ...]:
    """Rows of `facts/NAME.csv`, in file order. Read once."""
    with (FACTS_DIR / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


@cache
def column(name: str, key: str) -> tuple[str, ...]:
    """Distinct values of one column, in file order."""
    return tuple(dict.fromkeys(row[key] for row in table(name)))


@cache
def pairs(relation: str) -> tuple[tuple[str, str], ...]:
    """Word pairs of one relation of `facts/pairs.csv`: opposite, plural, past tense or colour."""
    return tuple((row["word"], row["answer"]) for row in table("pairs") if row["relation"] == relation)


def number_word(n: int) -> str:
    """English for 0..99, as in `forty-two`."""
    if not 0 <= n <= 99:
        raise ValueError(f"number_word knows 0..99, not {n}")
    if n < 20:
        return ONES[n]
    return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")


def article(noun: str) -> str:
    """`noun` behind a or an, by its first letter; `chalk` and `scissors` stay as they are."""
    if noun in NO_ARTICLE:
        return noun
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def capitalize(text: str) -> str:
    """First letter in upper case, the rest as it is."""
    return text[:1].upper() + text[1:]


def at(place: str) -> str:
    """A place of the tables behind its preposition, as in `on the farm`."""
    return f"{'on' if place in ON_PLACES else 'in'} the {place}"
