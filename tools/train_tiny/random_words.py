"""Material that is drawn anew for each document, so that it can be read but not remembered."""

from random import Random

from tools.train_tiny import world

_ONSETS = (
    "b", "br", "c", "d", "dr", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pr", "r", "s", "st", "t", "tr", "v",
    "w", "z",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "oo")
_CODAS = ("", "", "", "l", "n", "r", "s", "m", "x", "k", "nd", "sh")
OBJECTS = (
    "key", "book", "lamp", "hat", "cup", "box", "map", "ring", "coin", "letter", "stone", "bell", "rope", "mirror",
    "clock", "shell", "knife", "bottle", "ball", "drum", "flute", "kite", "candle", "basket", "chair", "pen", "scarf",
    "ticket", "photo", "apple", "umbrella", "phone", "wallet", "jacket", "guitar", "bicycle", "violin", "camera",
)  # fmt: skip
PLACES = (
    "kitchen", "garden", "attic", "cellar", "garage", "library", "station", "market", "forest", "school", "tower",
    "harbour", "museum", "park", "bedroom", "office", "barn", "bakery", "cave", "bridge", "hotel", "church", "shop",
)  # fmt: skip
ADJECTIVES = (
    "red", "blue", "green", "yellow", "old", "new", "small", "big", "round", "broken", "golden", "silver", "heavy",
    "shiny", "wooden", "strange", "pretty", "dusty", "warm", "cold", "quiet", "bright", "soft", "brave", "clever",
    "gentle", "hungry", "tired", "happy", "curious", "tall", "lazy", "proud", "shy",
)  # fmt: skip
WORDS = (
    "apple", "pear", "plum", "grape", "lemon", "melon", "cherry", "bread", "milk", "honey", "salt", "sugar", "river",
    "stone", "cloud", "storm", "wind", "rain", "snow", "fire", "table", "chair", "window", "door", "roof", "wall",
    "floor", "garden", "tree", "leaf", "root", "seed", "flower", "grass", "field", "hill", "mountain", "valley", "lake",
    "boat", "train", "car", "plane", "wheel", "road", "bridge", "town", "city", "house", "room", "light", "shadow",
    "night", "morning", "summer", "winter", "music", "song", "dance", "story", "letter", "word", "number", "colour",
    "circle", "square", "line", "point", "paper", "ink", "brush", "silver", "gold", "iron", "glass", "wood", "wool",
    "cotton", "button", "needle", "thread", "shirt", "shoe", "coat", "glove", "hat", "ring", "crown", "sword", "shield",
    "king", "queen", "prince", "knight", "dragon", "castle", "tower", "gate", "market", "shop", "coin",
)  # fmt: skip
FIRST_NAMES = (
    "Adam", "Agnes", "Albert", "Alma", "Amir", "Amy", "Arthur", "Astrid", "Beth", "Bruno", "Cecil", "Chloe", "Claude",
    "Daisy", "Diana", "Doris", "Edgar", "Edith", "Emil", "Erik", "Esther", "Ethan", "Eva", "Fatima", "Florence",
    "Frank", "Fred", "George", "Grace", "Hannah", "Harold", "Hector", "Helen", "Igor", "Ines", "Isaac", "Jacob",
    "James", "Jane", "Jasper", "Jean", "John", "Joseph", "Karin", "Karl", "Laura", "Lena", "Linda", "Liam", "Lola",
    "Louis", "Lucy", "Luke", "Magnus", "Marco", "Mark", "Martin", "Mary", "Matteo", "Max", "Mia", "Mike", "Mina",
    "Nadia", "Nina", "Nora", "Oliver", "Omar", "Oscar", "Pablo", "Pedro", "Peter", "Priya", "Rachel", "Ravi", "Rita",
    "Robert", "Robin", "Roy", "Ruth", "Sally", "Sara", "Simon", "Stella", "Susan", "Theo", "Tim", "Tina", "Ulf", "Vito",
    "Walter", "Wanda", "Yoko", "Zelda",
)  # fmt: skip
# Words and names that people type when they try a model out.
COMMON_WORDS = (
    "hello", "world", "banana", "moon", "sun", "star", "love", "time", "life", "water", "earth", "people", "friend",
    "cheese", "pizza", "computer", "robot", "python", "notebook", "engine", "language", "model", "token", "code",
    "data", "science", "history", "art", "war", "peace", "dream", "hope", "heart", "hand", "eye", "face", "voice",
    "world", "space", "planet", "rocket", "ship", "ocean", "island", "beach", "desert", "rainbow", "spring", "autumn",
    "dragon", "wizard", "magic", "ghost", "witch", "pirate", "unicorn", "coffee", "tea", "cake", "chocolate", "orange",
    "potato", "garlic", "beautiful", "little", "great", "funny", "crazy", "sleepy", "one", "two", "three", "yes", "no",
    "maybe", "today", "tomorrow", "again", "please", "thanks", "foo", "bar", "baz", "test", "spam", "eggs", "alpha",
    "beta", "gamma", "the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "machine", "learning", "paris",
    "london", "happy", "birthday",
)  # fmt: skip
FAMOUS_NAMES = (
    "Harry", "Hermione", "Ron", "Ginny", "Draco", "Luna", "Neville", "Albus", "Severus", "Sirius", "Sherlock", "Watson",
    "Frodo", "Gandalf", "Bilbo", "Aragorn", "Romeo", "Juliet", "Hamlet", "Alan", "Turing", "Isaac", "Newton",
    "Einstein", "Marie", "Charles", "Darwin", "Leonardo", "Picasso", "Mozart", "Batman", "Robin", "Mickey", "Donald",
    "Elsa", "Mario", "Luigi", "Zelda", "Link", "Nemo", "Pippi", "Heidi", "Dorothy", "Merlin", "Lancelot", "Robinson",
    "Mira", "Lara", "Harriet", "Larry", "Barry", "Jerry", "Mary", "Terry", "Sue", "Jim", "Joe", "Ann", "Lee", "Kim",
    "Ali", "Omar",
)  # fmt: skip
DOMAINS = ("example.com", "example.org", "mail.net", "home.net", "tiny.org", "world.com", "post.org")


def made_up_word(rng: Random, syllables: int = 0) -> str:
    """A pronounceable word that means nothing, such as `brolim`."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + (rng.choice(_CODAS) if rng.random() < 0.5 else "")
        for _ in range(syllables or rng.choice((1, 2, 2, 2, 3)))
    )


def scramble(rng: Random) -> str:
    """Random letters, such as `qwzor`: they reach tokens that words do not."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 8)))


def any_word(rng: Random) -> str:
    """A word of any origin: for copying, where every token may come."""
    roll = rng.random()
    if roll < 0.3:
        word = rng.choice(WORDS)
    elif roll < 0.5:
        word = rng.choice(COMMON_WORDS)
    elif roll < 0.65:
        word = made_up_word(rng)
    elif roll < 0.78:
        word = scramble(rng)
    elif roll < 0.84:
        word = stranger(rng)
    else:
        table, key = rng.choice((("animals", "name"), ("jobs", "name"), ("people", "food"), ("people", "name"),
                                 ("people", "home"), ("countries", "capital"), ("animals", "habitat")))  # fmt: skip
        word = rng.choice(world.column(table, key))
    return world.capitalize(word) if rng.random() < 0.12 else word


def made_up_name(rng: Random) -> str:
    """A name that nobody in the world has; it ends so that it meets no fact by chance."""
    made_up = scramble(rng) + rng.choice("aeiou") if rng.random() < 0.15 else made_up_word(rng, rng.choice((2, 2, 3)))
    name = made_up.capitalize()
    return name if name not in world.column("people", "name") else name + "o"


def stranger(rng: Random) -> str:
    """A first name that is not in the world."""
    roll = rng.random()
    if roll < 0.2:
        return rng.choice(FAMOUS_NAMES)
    return rng.choice(FIRST_NAMES) if roll < 0.6 else made_up_name(rng)


def strangers(rng: Random, n: int) -> list[str]:
    """`n` different strangers."""
    names: dict[str, None] = {}
    while len(names) < n:
        names[stranger(rng)] = None
    return list(names)


def digits(rng: Random, n: int) -> str:
    """`n` random digits, the first one not 0."""
    return str(rng.randint(1, 9)) + "".join(str(rng.randint(0, 9)) for _ in range(n - 1))


def code(rng: Random) -> str:
    """A code of digits, of letters, or of both."""
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTUVWXYZ") for _ in range(rng.randint(2, 4)))
    return rng.choice((digits(rng, rng.randint(3, 6)), f"{letters}-{digits(rng, rng.randint(2, 4))}", letters))


def phone(rng: Random) -> str:
    """A phone number such as 555-0173."""
    if rng.random() < 0.6:
        return f"{digits(rng, 3)}-{digits(rng, 4)}"
    return f"+{rng.randint(1, 99)} {digits(rng, 3)} {digits(rng, 3)} {digits(rng, 4)}"


def ip_address(rng: Random) -> str:
    """An IPv4 address."""
    head = rng.choice(
        (
            "10.0.0",
            "192.168.1",
            "192.168.0",
            "172.16.4",
            f"{rng.randint(1, 223)}.{rng.randint(0, 255)}.{rng.randint(0, 255)}",
        )
    )
    return f"{head}.{rng.randint(1, 254)}"


def email(rng: Random, name: str) -> str:
    """An e-mail address of `name`."""
    tail = str(rng.randint(1, 99)) if rng.random() < 0.3 else ""
    return f"{name.lower()}{tail}@{rng.choice(DOMAINS)}"


def date(rng: Random) -> str:
    """An ISO date."""
    return f"{rng.randint(1980, 2035)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
