"""Arithmetic word problems in English with written solutions, at the level of the first school years.

Made for small pretrained models: `recipes/smollm2` learns from their solutions and is measured on others of them. Like
the families of `data.families`, train and held-out problems are disjoint by content: a hash of a story's kind and
numbers decides, not names or wording. Level 1 takes one or two steps, each further level one more.
"""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from data.families import HELD_OUT_SHARE, Split
from data.problems import Problem

NAMES = (
    "Ana", "Ben", "Carla", "Dev", "Ella", "Farid", "Grace", "Hugo", "Iris", "Jonas", "Kira", "Leo", "Mina", "Noor",
    "Omar", "Paula", "Quinn", "Rosa", "Sven", "Tara", "Uma", "Vera", "Wim", "Yara",
)  # fmt: skip
THINGS = (
    "apples", "books", "buttons", "cards", "coins", "cookies", "eggs", "marbles", "oranges", "pencils", "plums",
    "shells", "stamps", "stickers", "toys",
)  # fmt: skip
PLACES = ("bowl", "box", "drawer", "jar", "sack")


@dataclass(slots=True)
class Story:
    """A problem while it is told: each sentence of the question with the steps of the solution that it asks for."""

    sentences: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # drawn in this order; with the kind, what the problem is
    answer: int = 0

    def tell(self, sentence: str, *numbers: int) -> None:
        self.sentences.append(sentence)
        self.numbers += numbers

    def work(self, step: str, value: int) -> int:
        self.steps.append(step)
        self.answer = value
        return value


Tell = Callable[[Story, int, random.Random], None]


def _belongings(story: Story, level: int, rng: random.Random) -> None:
    """Someone's things become more and fewer."""
    name, other = rng.sample(NAMES, 2)
    things = rng.choice(THINGS)
    have = rng.randint(5, 40)
    story.tell(f"{name} has {have} {things}.", have)
    for event in rng.sample(("buys", "gives", "finds", "loses"), level + 1):
        n = rng.randint(2, 30) if event in ("buys", "finds") else rng.randint(1, have // 2)
        to = f" to {other}" if event == "gives" else ""
        more = " more" if event in ("buys", "finds") else ""
        story.tell(f"Then {name} {event} {n}{more} {things}{to}.", n if more else -n)
        sign, after = ("+", have + n) if more else ("-", have - n)
        have = story.work(f"After {name} {event} {n}, there are {have} {sign} {n} = {after} {things}.", after)
    story.tell(f"How many {things} does {name} have now?")


def _shopping(story: Story, level: int, rng: random.Random) -> None:
    """Several of a kind, perhaps of a second kind, perhaps change."""
    name, (first, second) = rng.choice(NAMES), rng.sample(THINGS, 2)
    n, price = rng.randint(2, 12), rng.randint(2, 9)
    story.tell(f"{name} buys {n} {first} for ${price} each.", n, price)
    total = story.work(f"The {first} cost {n} * {price} = {n * price} dollars.", n * price)
    if level >= 2:
        m, cost = rng.randint(2, 9), rng.randint(2, 9)
        story.tell(f"{name} also buys {m} {second} for ${cost} each.", m, cost)
        more = story.work(f"The {second} cost {m} * {cost} = {m * cost} dollars.", m * cost)
        total = story.work(f"Together that is {total} + {more} = {total + more} dollars.", total + more)
    if level == 2:
        story.tell("How many dollars does that cost in all?")
        return
    paid = (total // 10 + rng.randint(1, 3)) * 10
    story.tell(f"{name} pays with ${paid}. How many dollars does {name} get back?", paid)
    story.work(f"{name} gets back {paid} - {total} = {paid - total} dollars.", paid - total)


def _wages(story: Story, level: int, rng: random.Random) -> None:
    """Hours, days, a rate, and what else comes in or goes out."""
    name = rng.choice(NAMES)
    rate, hours = rng.randint(5, 20), rng.randint(2, 8)
    story.tell(f"{name} earns ${rate} an hour and works {hours} hours a day.", rate, hours)
    earned = story.work(f"In one day {name} earns {rate} * {hours} = {rate * hours} dollars.", rate * hours)
    if level >= 2:
        days = rng.randint(2, 6)
        story.tell(f"{name} works {days} days.", days)
        earned = story.work(f"In {days} days that is {earned} * {days} = {earned * days} dollars.", earned * days)
    if level >= 3:
        bonus = rng.randint(5, 50)
        story.tell(f"There is also a bonus of ${bonus}.", bonus)
        earned = story.work(f"With the bonus it is {earned} + {bonus} = {earned + bonus} dollars.", earned + bonus)
    spent = rng.randint(1, min(60, earned - 1))
    story.tell(f"Then {name} spends ${spent}. How many dollars are left?", spent)
    story.work(f"What is left is {earned} - {spent} = {earned - spent} dollars.", earned - spent)


def _comparing(story: Story, level: int, rng: random.Random) -> None:
    """Times as many, more than, fewer than; all together."""
    one, two, three = rng.sample(NAMES, 3)
    things = rng.choice(THINGS)
    first, times = rng.randint(3, 20), rng.randint(2, 5)
    story.tell(f"{one} has {first} {things}. {two} has {times} times as many {things} as {one}.", first, times)
    second = story.work(f"{two} has {times} * {first} = {times * first} {things}.", times * first)
    total, said = first + second, f"{first} + {second}"
    if level >= 2:
        fewer = rng.randint(1, second - 1)
        story.tell(f"{three} has {fewer} fewer {things} than {two}.", fewer)
        third = story.work(f"{three} has {second} - {fewer} = {second - fewer} {things}.", second - fewer)
        total, said = total + third, f"{said} + {third}"
    if level >= 3:
        lost = rng.randint(1, first)
        story.tell(f"Then {one} loses {lost} {things}.", lost)
        left = story.work(f"{one} has {first} - {lost} = {first - lost} {things} left.", first - lost)
        total, said = total - lost, f"{left}{said.removeprefix(str(first))}"
    story.tell(f"How many {things} do they have all together?")
    story.work(f"All together they have {said} = {total} {things}.", total)


def _sharing(story: Story, level: int, rng: random.Random) -> None:
    """Containers of so many, dealt out in equal parts."""
    (name, friend), things, place = rng.sample(NAMES, 2), rng.choice(THINGS), rng.choice(PLACES)
    friends, share = rng.randint(2, 8), rng.randint(2, 12)
    total = friends * share
    places = next(count for count in (5, 4, 3, 2, 1) if total % count == 0)
    kind = f"{place}es" if place.endswith("x") else f"{place}s"
    if level == 1:
        story.tell(
            f"{name} has {total} {things} and deals them out to {friends} friends in equal parts.", total, friends
        )
    else:
        each = total // places
        has = f"{places} {kind} with {each} {things} each" if places > 1 else f"one {place} with {each} {things}"
        story.tell(
            f"{name} has {has} and deals them all out to {friends} friends in equal parts.", places, each, friends
        )
        story.work(f"There are {places} * {each} = {total} {things}.", total)
    part = story.work(f"Each friend gets {total} / {friends} = {share} {things}.", share)
    if level >= 3:
        eaten = rng.randint(1, share - 1)
        story.tell(f"One of the friends, {friend}, gives {eaten} of them away.", eaten)
        story.work(f"{friend} keeps {part} - {eaten} = {part - eaten} {things}.", part - eaten)
        story.tell(f"How many {things} does {friend} keep?")
    else:
        story.tell(f"How many {things} does each friend get?")


def _travel(story: Story, level: int, rng: random.Random) -> None:
    """Speed and time, in one or two parts, and what is left of the way."""
    name, way = rng.choice(NAMES), rng.choice(("drives", "rides a train", "cycles"))
    speed, hours = rng.randint(8, 60), rng.randint(2, 6)
    story.tell(f"{name} {way} for {hours} hours at {speed} km per hour.", hours, speed)
    gone = story.work(f"In {hours} hours {name} goes {hours} * {speed} = {hours * speed} km.", hours * speed)
    if level >= 2:
        slower, longer = rng.randint(3, 9), rng.randint(1, 4)
        story.tell(f"Then {name} walks for {longer} hours at {slower} km per hour.", longer, slower)
        walked = story.work(f"Walking adds {longer} * {slower} = {longer * slower} km.", longer * slower)
        gone = story.work(f"So far that is {gone} + {walked} = {gone + walked} km.", gone + walked)
    if level == 2:
        story.tell(f"How many km does {name} go in all?")
        return
    whole = gone + rng.randint(5, 90)
    story.tell(f"The whole way is {whole} km long. How many km are left?", whole)
    story.work(f"What is left is {whole} - {gone} = {whole - gone} km.", whole - gone)


def _reading(story: Story, level: int, rng: random.Random) -> None:
    """Pages a day of a book, and the days that the rest takes."""
    name = rng.choice(NAMES)
    daily, days, rest_days, rate = rng.randint(5, 30), rng.randint(2, 9), rng.randint(2, 9), rng.randint(4, 25)
    pages = daily * days + rest_days * rate
    story.tell(f"A book has {pages} pages. {name} reads {daily} pages a day for {days} days.", pages, daily, days)
    read = story.work(f"{name} reads {daily} * {days} = {daily * days} pages.", daily * days)
    left = story.work(f"Then {pages} - {read} = {pages - read} pages are left.", pages - read)
    if level == 1:
        story.tell("How many pages are left?")
        return
    story.tell(f"From then on {name} reads {rate} pages a day.", rate)
    more = story.work(f"The rest takes {left} / {rate} = {rest_days} days.", rest_days)
    if level == 2:
        story.tell("How many more days does the book take?")
        return
    story.tell("How many days does the whole book take?")
    story.work(f"The whole book takes {days} + {more} = {days + more} days.", days + more)


def _seats(story: Story, level: int, rng: random.Random) -> None:
    """Rows of seats, some taken; tickets at a price."""
    rows, seats = rng.randint(3, 15), rng.randint(4, 20)
    story.tell(f"A hall has {rows} rows of {seats} seats.", rows, seats)
    there = story.work(f"The hall has {rows} * {seats} = {rows * seats} seats.", rows * seats)
    empty = rng.randint(1, there - 1)
    story.tell(f"{empty} seats stay empty.", empty)
    taken = story.work(f"So {there} - {empty} = {there - empty} seats are taken.", there - empty)
    if level == 1:
        story.tell("How many seats are taken?")
        return
    price = rng.randint(2, 9)
    story.tell(f"A ticket costs ${price}.", price)
    paid = story.work(f"The tickets bring {taken} * {price} = {taken * price} dollars.", taken * price)
    if level == 2:
        story.tell("How many dollars do the tickets bring?")
        return
    rent = rng.randint(1, paid)
    story.tell(f"The rent of the hall is ${rent}. How many dollars are left after the rent?", rent)
    story.work(f"After the rent {paid} - {rent} = {paid - rent} dollars are left.", paid - rent)


_KINDS: dict[str, Tell] = {
    "belongings": _belongings,
    "shopping": _shopping,
    "wages": _wages,
    "comparing": _comparing,
    "sharing": _sharing,
    "travel": _travel,
    "reading": _reading,
    "seats": _seats,
}
WORD_FAMILIES = tuple(_KINDS)


def word_problem(family: str, level: int, index: int, split: Split, seed: int = 0) -> Problem:
    """Problem `index` of a split: the same arguments always give the same problem. Its solution is in metadata."""
    rng = random.Random(f"{seed}-{split}-{family}-{level}-{index}")
    while True:
        story = Story()
        _KINDS[family](story, level, rng)
        if _split_of(family, story.numbers) == split:
            break
    return Problem(
        id=f"{family}-{level}-{split}-{seed}-{index}",
        messages=({"role": "user", "content": " ".join(story.sentences)},),
        ground_truth=str(story.answer),
        checker="math",
        domain=family,
        language="en",
        metadata={"level": level, "solution": f"{' '.join(story.steps)}\n#### {story.answer}"},  # laid out as GSM8K's
    )


def _split_of(family: str, numbers: list[int]) -> Split:
    digest = hashlib.blake2b(json.dumps([family, numbers]).encode(), digest_size=4).digest()
    return "held_out" if int.from_bytes(digest, "big") / 2**32 < HELD_OUT_SHARE else "train"
