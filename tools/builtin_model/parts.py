"""What stories are made of: words, numbers and lines of working."""

from dataclasses import dataclass
from random import Random

LARGEST = 999  # a running count grows no further
SMALL_FACTOR = (2, 9)  # one factor of every product has one digit,
LARGE_FACTOR = (2, 99)  # the other one up to two
OTHER_NUMBER = (2, 299)  # added or taken away beside a product

MEN = ("Adam", "Carl", "David", "Felix", "Hugo", "Liam", "Noah", "Oscar", "Peter", "Victor")
WOMEN = ("Alice", "Clara", "Dora", "Emma", "Grace", "Iris", "Kate", "Lena", "Sara", "Wendy")
PEOPLE = tuple(person for man, woman in zip(MEN, WOMEN, strict=True) for person in ((man, "he"), (woman, "she")))
FOODS = ("apples", "pears", "lemons", "nuts", "cookies", "candies")
SUPPLIES = ("books", "pencils", "crayons", "stamps")
TRIFLES = ("coins", "beads", "buttons", "shells", "stones", "marbles", "stickers", "roses", "candles", "cups")
THINGS = FOODS + SUPPLIES + TRIFLES
CONTAINERS = ("boxes", "bags", "baskets", "crates", "jars", "trays")


@dataclass(frozen=True)
class Step:
    """One line of working: ``6*9=54 dollars.`` is one."""

    expression: str
    value: int
    unit: str

    def __str__(self) -> str:
        """The line as the answer has it."""
        return f"{self.expression}={self.value} {self.unit}."


@dataclass(frozen=True)
class Draft:
    """What a template returns: the story, the working, and the numbers that tell the problem from its neighbours."""

    question: str
    steps: list[Step]
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Cast:
    """The words of one story; ``he`` is the first person's pronoun."""

    first: str
    second: str
    third: str
    he: str
    things: str
    others: str
    containers: str


def cast(rng: Random) -> Cast:
    """Draw three people, two kinds of things and a container."""
    (first, he), (second, _), (third, _) = rng.sample(PEOPLE, 3)
    things, others = rng.sample(THINGS, 2)
    return Cast(first, second, third, he, things, others, rng.choice(CONTAINERS))


def factors(rng: Random) -> tuple[int, int]:
    """A one-digit number and one of up to two digits, to be multiplied."""
    return rng.randint(*SMALL_FACTOR), rng.randint(*LARGE_FACTOR)


def plus(a: int, b: int, unit: str) -> Step:
    return Step(f"{a}+{b}", a + b, unit)


def minus(a: int, b: int, unit: str) -> Step:
    return Step(f"{a}-{b}", a - b, unit)


def times(a: int, b: int, unit: str) -> Step:
    return Step(f"{a}*{b}", a * b, unit)


def divided(a: int, b: int, unit: str) -> Step:
    quotient, rest = divmod(a, b)
    if rest:
        raise ValueError(f"{a} is no multiple of {b}")
    return Step(f"{a}/{b}", quotient, unit)
