"""The fourteen stories that problems are told in.

A template draws the words and the numbers of one story and returns it together with its working. It does not know
about splits: that is decided in ``problems.py``, from the numbers.
"""

from collections.abc import Callable
from random import Random

from parts import LARGEST, OTHER_NUMBER, SMALL_FACTOR, Draft, cast, divided, factors, minus, plus, times

Template = Callable[[Random], Draft]
TEMPLATES: list[Template] = []


def template(function: Template) -> Template:
    """Register a template; its name becomes the kind of its problems."""
    TEMPLATES.append(function)
    return function


@template
def running_count(rng: Random) -> Draft:
    """A count goes up and down two to four times."""
    c = cast(rng)
    he, count = c.he.capitalize(), rng.randint(5, 400)
    question, steps, numbers = f"{c.first} has {count} {c.things}.", [], [count]
    for _ in range(rng.choice((2, 2, 3, 4))):
        change = rng.randint(2, 150)
        if change >= count or (rng.random() < 0.5 and count + change <= LARGEST):
            question += rng.choice(
                (f" {he} buys {change} more.", f" {he} finds {change} more.", f" {c.second} brings {change} more.")
            )
            steps.append(plus(count, change, c.things))
            numbers.append(change)
        else:
            question += rng.choice(
                (f" {he} sells {change}.", f" {he} loses {change}.", f" {he} gives {change} to {c.second}.")
            )
            steps.append(minus(count, change, c.things))
            numbers.append(-change)
        count = steps[-1].value
    return Draft(f"{question} How many {c.things} does {c.first} have now?", steps, tuple(numbers))


@template
def packed_then_given(rng: Random) -> Draft:
    """Some of what came in full containers is given away."""
    c, (packs, each) = cast(rng), factors(rng)
    total = times(packs, each, c.things)
    given = rng.randint(2, total.value - 1)
    question = (
        f"{c.first} buys {packs} {c.containers} of {each} {c.things} each. {c.he.capitalize()} gives {given} "
        f"{c.things} to {c.second}. How many {c.things} does {c.first} keep?"
    )
    return Draft(question, [total, minus(total.value, given, c.things)], (packs, each, given))


@template
def packed_and_loose(rng: Random) -> Draft:
    """Full containers come on top of what was there."""
    c, (packs, each), loose = cast(rng), factors(rng), rng.randint(*OTHER_NUMBER)
    total = times(packs, each, c.things)
    question = (
        f"{c.first} has {loose} {c.things} and buys {packs} {c.containers} of {each} {c.things} each. "
        f"How many {c.things} does {c.first} have in all?"
    )
    return Draft(question, [total, plus(loose, total.value, c.things)], (loose, packs, each))


@template
def pooled_and_shared(rng: Random) -> Draft:
    """Two people put their things together and share them out equally."""
    c, (friends, each) = cast(rng), factors(rng)
    first = rng.randint(2, friends * each - 2)
    second = friends * each - first
    total = plus(first, second, c.things)
    question = (
        f"{c.first} has {first} {c.things} and {c.second} has {second} {c.things}. They share them all equally among "
        f"{friends} friends. How many {c.things} does each friend get?"
    )
    return Draft(question, [total, divided(total.value, friends, c.things)], (first, second, friends))


@template
def split_then_topped_up(rng: Random) -> Draft:
    """Things are spread over containers, and one of these gets more."""
    c, (packs, each), extra = cast(rng), factors(rng), rng.randint(*OTHER_NUMBER)
    share = divided(packs * each, packs, c.things)
    question = (
        f"{c.first} puts {packs * each} {c.things} equally into {packs} {c.containers}. {c.second} adds {extra} "
        f"{c.things} to one of them. How many {c.things} does that one hold now?"
    )
    return Draft(question, [share, plus(share.value, extra, c.things)], (packs, each, extra))


@template
def times_as_many(rng: Random) -> Draft:
    """One person has a multiple of what another has."""
    c, (factor, base) = cast(rng), factors(rng)
    multiple = times(factor, base, c.things)
    question = (
        f"{c.first} has {base} {c.things}. {c.second} has {factor} times as many {c.things} as {c.first}. "
        f"How many {c.things} do they have together?"
    )
    return Draft(question, [multiple, plus(base, multiple.value, c.things)], (factor, base))


@template
def ages(rng: Random) -> Draft:
    """Ages given by their differences: a third person's, or a sum some years from now."""
    c, unit = cast(rng), "years"
    age, older = rng.randint(5, 60), rng.randint(2, 30)
    second = plus(age, older, unit)
    question = f"{c.first} is {age} years old. {c.second} is {older} years older than {c.first}."
    if rng.random() < 0.5:
        younger = rng.randint(2, second.value - 1)
        question += f" {c.third} is {younger} years younger than {c.second}. How old is {c.third}?"
        return Draft(question, [second, minus(second.value, younger, unit)], (age, older, -younger))
    later = rng.randint(2, 9)
    today, both = plus(age, second.value, unit), times(2, later, unit)
    question += f" What will their ages add up to in {later} years?"
    return Draft(question, [second, today, both, plus(today.value, both.value, unit)], (age, older, later))


@template
def money_back(rng: Random) -> Draft:
    """The change from a purchase."""
    c, (count, price), back = cast(rng), factors(rng), rng.randint(*OTHER_NUMBER)
    cost = times(count, price, "dollars")
    paid = cost.value + back
    question = (
        f"{c.first} buys {count} {c.things} at {price} dollars each and pays with {paid} dollars. "
        f"How many dollars does {c.first} get back?"
    )
    return Draft(question, [cost, minus(paid, cost.value, "dollars")], (count, price, back))


@template
def two_purchases(rng: Random) -> Draft:
    """Two products added up; half the time the sum is taken from what there was to spend."""
    c, unit = cast(rng), "dollars"
    count, other_count = rng.randint(*SMALL_FACTOR), rng.randint(*SMALL_FACTOR)
    price, other_price = rng.randint(2, 40), rng.randint(2, 40)
    cost, other_cost = times(count, price, unit), times(other_count, other_price, unit)
    total = plus(cost.value, other_cost.value, unit)
    steps, numbers = [cost, other_cost, total], (count, price, other_count, other_price)
    question = (
        f"{c.first} buys {count} {c.things} at {price} dollars each and {other_count} {c.others} at {other_price} "
        "dollars each."
    )
    if rng.random() < 0.5:
        return Draft(f"{question} How many dollars does {c.first} pay?", steps, numbers)
    left = rng.randint(*OTHER_NUMBER)
    budget = total.value + left
    question += f" {c.he.capitalize()} had {budget} dollars. How many dollars are left?"
    return Draft(question, [*steps, minus(budget, total.value, unit)], (*numbers, left))


@template
def journey(rng: Random) -> Draft:
    """Hours at a steady speed and some miles more."""
    c, (hours, speed), more = cast(rng), factors(rng), rng.randint(*OTHER_NUMBER)
    ridden = times(hours, speed, "miles")
    question = (
        f"{c.first} rides {hours} hours at {speed} miles per hour and then {more} miles more. "
        f"How many miles does {c.first} ride?"
    )
    return Draft(question, [ridden, plus(ridden.value, more, "miles")], (hours, speed, more))


@template
def unread_pages(rng: Random) -> Draft:
    """What is left of a book after days of steady reading."""
    c, (days, daily), left = cast(rng), factors(rng), rng.randint(*OTHER_NUMBER)
    read = times(days, daily, "pages")
    length = read.value + left
    question = (
        f"{c.first} has a book of {length} pages and reads {daily} pages a day for {days} days. "
        f"How many pages are left to read?"
    )
    return Draft(question, [read, minus(length, read.value, "pages")], (days, daily, left))


@template
def wages(rng: Random) -> Draft:
    """Money is earned and partly spent; the rest buys some things at one price."""
    c, unit = cast(rng), "dollars"
    while True:  # until the rest fits both the earnings and the range of prices
        (days, daily), (count, price) = factors(rng), factors(rng)
        if days * daily - count * price >= 2:
            break
    earned, rest = times(days, daily, unit), count * price
    spent = earned.value - rest
    question = (
        f"{c.first} earns {daily} dollars a day for {days} days and spends {spent} dollars. With the rest {c.he} buys "
        f"{count} {c.things}. How many dollars does each one cost?"
    )
    steps = [earned, minus(earned.value, spent, unit), divided(rest, count, unit)]
    return Draft(question, steps, (days, daily, spent, count))


@template
def backwards(rng: Random) -> Draft:
    """The end is known and the start is asked for."""
    c = cast(rng)
    given, kept, bought = (rng.randint(*OTHER_NUMBER) for _ in range(3))
    now = minus(kept + bought, bought, c.things)
    question = (
        f"{c.first} gives {given} {c.things} to {c.second} and then buys {bought} more. Now {c.first} has "
        f"{kept + bought} {c.things}. How many {c.things} did {c.first} have at first?"
    )
    return Draft(question, [now, plus(now.value, given, c.things)], (given, bought, kept))


@template
def unit_price(rng: Random) -> Draft:
    """The price of some, from the price of others."""
    c, (count, price), wanted = cast(rng), factors(rng), rng.randint(*SMALL_FACTOR)
    one = divided(count * price, count, "dollars")
    question = (
        f"{count} {c.things} cost {count * price} dollars. How many dollars does {c.first} pay for {wanted} {c.things}?"
    )
    return Draft(question, [one, times(wanted, one.value, "dollars")], (count, price, wanted))
